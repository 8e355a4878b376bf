"""The bookkeeping that QEMU's own AioContext tests use, in Python.

The two helpers and their behaviour follow the published tests: a bottom half
that counts and reschedules itself, and an event notifier that counts, knows how
many events it still expects, and can set itself again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aioqemu import AioContext, BottomHalf

from aioqemu import EventNotifier


@dataclass
class BHData:
    """Counts the runs of one bottom half; ``max`` is how many there may be."""

    n: int = 0
    max: int = 0
    bh: BottomHalf | None = None


def bh_test_cb(data: BHData) -> None:
    """Count, and schedule again until ``max`` runs."""
    data.n += 1
    if data.n < data.max:
        assert data.bh is not None
        data.bh.schedule()


def bh_delete_cb(data: BHData) -> None:
    """Count, and schedule again until ``max`` runs; then delete oneself."""
    data.n += 1
    assert data.bh is not None
    if data.n < data.max:
        data.bh.schedule()
    else:
        data.bh.delete()
        data.bh = None


@dataclass
class EventData:
    """An event notifier with its count, and the number of events expected."""

    n: int = 0
    active: int = 0
    auto_set: bool = False
    e: EventNotifier = field(default_factory=EventNotifier)

    def ready(self, notifier: EventNotifier) -> None:
        """The ``io_read``."""
        assert notifier is self.e
        assert notifier.test_and_clear() is True
        self.n += 1
        if self.active > 0:
            self.active -= 1
            if self.auto_set and self.active:
                notifier.set()

    def flush(self, notifier: EventNotifier) -> int:
        """The ``io_flush``: busy while events are expected."""
        assert notifier is self.e
        return int(self.active > 0)

    def close(self) -> None:
        """Give the descriptor back."""
        self.e.close()


class Busy(EventData):
    """Keeps a seed context busy: registered, expecting events for ever.

    With it ``poll(True)`` may block. ``release()`` ends that, and wakes a poll
    that is blocked.
    """

    def __init__(self, ctx: AioContext) -> None:
        super().__init__(active=1 << 40)
        self._ctx = ctx
        ctx.set_event_notifier(self.e, self.ready, self.flush)
        settle(ctx)

    def release(self) -> None:
        """Stop being busy; callable from any thread."""
        self.active = 0
        self.e.set()

    def close(self) -> None:
        if not self._ctx.closed:
            self._ctx.set_event_notifier(self.e, None, None)
        super().close()


def settle(ctx: AioContext) -> None:
    """Poll without blocking until nothing makes progress any more."""
    for _ in range(1000):
        if not ctx.poll(False):
            return
    raise AssertionError("the context makes progress for ever")


def wait_for_aio(ctx: AioContext) -> None:
    """Poll, blocking, until nothing makes progress any more."""
    while ctx.poll(True):
        pass
