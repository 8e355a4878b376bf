"""A reference model of an AioContext, in plain Python.

It is told what is done to a context and what the context's callbacks see, and
objects to what the contract forbids: a callback that must not run, a progress
report that cannot be. It never looks at the context, it has no file descriptors.

Where the contract leaves a choice the model does too: the place in the order of a
bottom half that was cancelled and scheduled again, and whether an unseen
notification is still there.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class Notified(enum.Enum):
    """Whether a notification is waiting to be drained."""

    NO = enum.auto()
    YES = enum.auto()
    MAYBE = enum.auto()


@dataclass
class HalfModel:
    """A bottom half."""

    scheduled: bool = False
    idle: bool = False
    deleted: bool = False
    order: int = 0
    moved: bool = False  # its place in the order is the engine's choice
    due: bool = False  # belongs to the slice of the poll that runs now


@dataclass
class EventModel:
    """An event notifier and its registration."""

    active: bool = False
    registered: bool = False
    flush: bool | None = None  # what io_flush says; None without one
    handled: bool = False  # ran in the poll that runs now


@dataclass
class TimerModel:
    """A timer; a due one is armed for the past, another for a far future."""

    armed: bool = False
    past: bool = False
    due: bool = False


@dataclass
class Model:
    """The whole context. ``modern`` selects today's contract."""

    modern: bool = False
    halves: list[HalfModel] = field(default_factory=list)
    events: list[EventModel] = field(default_factory=list)
    timers: list[TimerModel] = field(default_factory=list)
    notified: Notified = Notified.MAYBE
    _clock: int = 0
    _progress: bool = False
    _urgent_ran: bool = False
    _last_order: int = -1

    # What is done to the context -------------------------------------------------

    def schedule(self, index: int, *, idle: bool) -> bool:
        """Schedule a bottom half; return False where the context must refuse."""
        half = self.halves[index]
        if half.deleted:
            return False
        if half.scheduled:
            half.moved = True
            half.idle = half.idle and idle
        else:
            self._clock += 1
            half.scheduled, half.idle, half.order = True, idle, self._clock
            half.due = False
        self._unsure()
        return True

    def cancel(self, index: int) -> None:
        half = self.halves[index]
        half.moved = half.moved or half.scheduled
        half.scheduled = half.idle = half.due = False

    def delete(self, index: int) -> None:
        self.cancel(index)
        self.halves[index].deleted = True

    def register(self, index: int, flush: bool | None) -> None:
        event = self.events[index]
        event.registered, event.flush = True, flush
        self.notified = Notified.YES

    def unregister(self, index: int) -> None:
        self.events[index].registered = False
        self._unsure()

    def notify(self) -> None:
        self.notified = Notified.YES

    def _unsure(self) -> None:
        if self.notified is Notified.NO:
            self.notified = Notified.MAYBE

    # What can be said before a poll ------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether some ``io_flush`` says that requests are outstanding."""
        return any(event.registered and event.flush for event in self.events)

    def watched(self, event: EventModel) -> bool:
        """Whether the next poll looks at a notifier."""
        if not event.registered:
            return False
        return self.modern or (self.busy and event.flush is not False)

    def may_block(self) -> bool:
        """Whether ``poll(True)`` could block, as far as the model can tell."""
        if any(half.scheduled and not half.idle for half in self.halves):
            return False
        if any(timer.armed and timer.past for timer in self.timers):
            return False
        if not self.modern and not self.busy:
            return False
        return not any(e.active and self.watched(e) for e in self.events)

    # A poll ------------------------------------------------------------------------

    def begin_poll(self) -> None:
        self._progress = self._urgent_ran = False
        self._last_order = -1
        for half in self.halves:
            half.due = half.scheduled
        for event in self.events:
            event.handled = False
        for timer in self.timers:
            timer.due = timer.armed and timer.past
        # Decided before callbacks can change it; they do not touch registrations.
        self._must = [self.watched(event) and event.active for event in self.events]

    def half_runs(self, index: int) -> None:
        half = self.halves[index]
        assert half.scheduled, "a bottom half ran that was not scheduled"
        assert half.due, "a bottom half ran in the pass that scheduled it"
        assert not half.deleted, "a deleted bottom half ran"
        if not half.moved:
            assert half.order > self._last_order, "not in scheduling order"
            self._last_order = half.order
        if not half.idle:
            self._progress = self._urgent_ran = True
        half.scheduled = half.idle = half.due = half.moved = False

    def event_runs(self, index: int) -> None:
        event = self.events[index]
        assert event.registered, "a handler ran that is not registered"
        assert self._must[index], "a handler ran that is not watched or not ready"
        assert not event.handled, "a handler ran twice in one pass"
        event.handled, event.active = True, False
        self._progress = True

    def timer_runs(self, index: int) -> None:
        timer = self.timers[index]
        assert timer.due, "a timer ran that was not due"
        timer.armed = timer.due = False
        self._progress = True

    def end_poll(self, result: bool) -> None:
        for half in self.halves:
            assert not (half.due and half.scheduled), "a bottom half did not run"
        # A seed poll that ran bottom halves need not have looked any further.
        short = self._urgent_ran and not self.modern
        if not short:
            for event, must in zip(self.events, self._must, strict=True):
                assert event.handled or not must, "a ready handler did not run"
            for timer in self.timers:
                assert not (timer.due and timer.armed), "a due timer did not run"
        looked = self.modern or self.busy
        if self._progress:
            assert result is True, "progress was not reported"
        elif self.modern or not looked or self.notified is Notified.NO:
            assert result is False, "progress was reported and none was made"
        elif self.notified is Notified.YES:
            assert result is True, "a notification is progress of a busy poll"
        if looked and not short:
            self.notified = Notified.NO
            if any(half.scheduled for half in self.halves):
                self.notified = Notified.MAYBE  # scheduled by a callback just now
        else:
            self.notified = Notified.MAYBE
