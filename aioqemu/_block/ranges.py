"""Who writes where: writes that must wait for each other take turns.

Needed where some writes are made of reads, too (direct I/O in units): what is widened
to whole units must not overlap what others write meanwhile.  Knows no files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aioqemu._block.request import BlockRequest
    from aioqemu._block.service import BlockService
    from aioqemu._block.steps import Steps


class Range:
    """A write in flight; `alone`: nobody else may write there meanwhile."""

    __slots__ = ("alone", "end", "over", "start", "waiters")

    def __init__(self, start: int, end: int, alone: bool) -> None:
        self.start, self.end, self.alone = start, end, alone
        self.over = False
        self.waiters: list[BlockRequest] = []


class Turns:
    """The writes in flight of one device, in the order in which they were made."""

    def __init__(self, service: BlockService) -> None:
        self._service = service
        self.ranges: list[Range] = []

    def _overlapping(self, mine: Range) -> list[Range]:
        """The earlier writes that `mine` has to wait for."""
        return [
            other
            for other in self.ranges
            if other.start < mine.end
            and mine.start < other.end
            and (mine.alone or other.alone)
        ]

    def free(self, mine: Range) -> bool:
        """Whether `mine` has to wait for nobody."""
        return not self.ranges or not self._overlapping(mine)

    def take(self, mine: Range, steps: Steps) -> Steps:
        """Queue up; the steps begin when it is the range's turn."""
        earlier = self._overlapping(mine)
        self.ranges.append(mine)
        return self._in_turn(earlier, steps)

    def _in_turn(self, earlier: list[Range], steps: Steps) -> Steps:
        # Only for earlier ones, which wait for still earlier ones: no circle.
        for other in earlier:
            if not other.over:
                waiter = self._service.parked()
                other.waiters.append(waiter)
                ret = yield waiter
                if ret < 0:
                    return ret
        return (yield from steps)

    def leave(self, mine: Range, ret: int) -> int:
        """The write is over; gives `ret`.  Twice does nothing."""
        if not mine.over:
            mine.over = True
            if mine in self.ranges:
                self.ranges.remove(mine)
            for waiter in mine.waiters:
                self._service.unpark(waiter)
            mine.waiters = []
        return ret
