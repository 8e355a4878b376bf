"""A state machine that drives an AioContext against the model of the contract."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.model import EventModel, HalfModel, Model, TimerModel

from aioqemu import AioContext, EventNotifier

FAR = 2**62
ACTIONS = ("nothing", "again", "schedule", "idle", "cancel", "delete", "raise")
indexes = st.integers(min_value=0, max_value=7)


class Machine(RuleBasedStateMachine):
    """Bottom halves with scripted callbacks, notifiers and timers on one context."""

    fdmon = "poll"
    semantics = "seed"

    def __init__(self) -> None:
        super().__init__()
        self.ctx = AioContext(fdmon=self.fdmon, semantics=self.semantics)
        self.model = Model(modern=self.semantics == "modern")
        self.halves: list[Any] = []
        self.scripts: list[tuple[str, int]] = []
        self.events: list[EventNotifier] = []
        self.timers: list[Any] = []
        self.failures: list[BaseException] = []
        self.ctx.set_exception_handler(self._reported)

    def teardown(self) -> None:
        for notifier in self.events:
            self.ctx.set_event_notifier(notifier, None)
            notifier.close()
        self.ctx.close()

    # The callbacks: they tell the model, which objects to what may not be.

    def _reported(self, context: dict[str, Any]) -> None:
        if not isinstance(context["exception"], LookupError):
            self.failures.append(context["exception"])

    def _half_cb(self, index: int) -> None:
        self.model.half_runs(index)
        action, other = self.scripts[index]
        other %= len(self.halves)
        if action == "again":
            # Once only: a chain would keep every later poll from looking at fds.
            self.scripts[index] = ("nothing", 0)
            self._schedule(index, idle=False)
        elif action in ("schedule", "idle"):
            self.scripts[index] = ("nothing", 0)
            self._schedule(other, idle=action == "idle")
        elif action == "cancel":
            self.model.cancel(other)
            self.halves[other].cancel()
        elif action == "delete":
            self.model.delete(other)
            self.halves[other].delete()
        elif action == "raise":
            raise LookupError("on purpose")

    def _event_cb(self, notifier: EventNotifier) -> None:
        self.model.event_runs(self.events.index(notifier))
        assert notifier.test_and_clear() is True

    def _flush_cb(self, notifier: EventNotifier) -> int:
        return int(bool(self.model.events[self.events.index(notifier)].flush))

    def _schedule(self, index: int, *, idle: bool) -> None:
        half = self.halves[index]
        schedule = half.schedule_idle if idle else half.schedule
        if self.model.schedule(index, idle=idle):
            schedule()
        else:
            with pytest.raises(RuntimeError):
                schedule()

    # The rules.

    @precondition(lambda self: len(self.halves) < 8)
    @rule(action=st.sampled_from(ACTIONS), other=indexes)
    def bh_new(self, action: str, other: int) -> None:
        self.scripts.append((action, other))
        self.model.halves.append(HalfModel())
        self.halves.append(self.ctx.bh_new(self._half_cb, len(self.halves)))

    @precondition(lambda self: self.halves)
    @rule(index=indexes, idle=st.booleans())
    def bh_schedule(self, index: int, idle: bool) -> None:
        self._schedule(index % len(self.halves), idle=idle)

    @precondition(lambda self: self.halves)
    @rule(index=indexes)
    def bh_cancel(self, index: int) -> None:
        index %= len(self.halves)
        self.model.cancel(index)
        self.halves[index].cancel()

    @precondition(lambda self: self.halves)
    @rule(index=indexes)
    def bh_delete(self, index: int) -> None:
        index %= len(self.halves)
        self.model.delete(index)
        self.halves[index].delete()

    @precondition(lambda self: len(self.events) < 5)
    @rule(active=st.booleans())
    def event_new(self, active: bool) -> None:
        self.model.events.append(EventModel(active=active))
        self.events.append(EventNotifier(active))

    @precondition(lambda self: self.events)
    @rule(index=indexes)
    def event_set(self, index: int) -> None:
        index %= len(self.events)
        self.model.events[index].active = True
        self.events[index].set()

    @precondition(lambda self: self.events)
    @rule(index=indexes)
    def event_clear(self, index: int) -> None:
        index %= len(self.events)
        was = self.model.events[index].active
        assert self.events[index].test_and_clear() is was
        self.model.events[index].active = False

    @precondition(lambda self: self.events)
    @rule(index=indexes, flush=st.sampled_from([None, False, True]))
    def event_register(self, index: int, flush: bool | None) -> None:
        index %= len(self.events)
        self.model.register(index, flush)
        self.ctx.set_event_notifier(
            self.events[index],
            self._event_cb,
            None if flush is None else self._flush_cb,
        )

    @precondition(lambda self: self.events)
    @rule(index=indexes)
    def event_unregister(self, index: int) -> None:
        index %= len(self.events)
        self.model.unregister(index)
        self.ctx.set_event_notifier(self.events[index], None)

    @precondition(lambda self: len(self.timers) < 4)
    @rule()
    def timer_new(self) -> None:
        self.model.timers.append(TimerModel())
        self.timers.append(self.ctx.timer_new(self.model.timer_runs, len(self.timers)))

    @precondition(lambda self: self.timers)
    @rule(index=indexes, past=st.booleans())
    def timer_mod(self, index: int, past: bool) -> None:
        index %= len(self.timers)
        self.model.timers[index].armed, self.model.timers[index].past = True, past
        self.timers[index].mod(0 if past else FAR)

    @precondition(lambda self: self.timers)
    @rule(index=indexes)
    def timer_delete(self, index: int) -> None:
        index %= len(self.timers)
        self.model.timers[index].armed = False
        self.timers[index].delete()

    @rule()
    def notify(self) -> None:
        self.model.notify()
        self.ctx.notify()

    @rule(blocking=st.booleans())
    def poll(self, blocking: bool) -> None:
        if blocking and self.model.may_block():
            blocking = False
        self.model.begin_poll()
        result = self.ctx.poll(blocking)
        if self.failures:
            raise self.failures[0]
        self.model.end_poll(result)
        for index, half in enumerate(self.halves):
            assert half.scheduled is self.model.halves[index].scheduled
            assert half.deleted is self.model.halves[index].deleted
        for index, timer in enumerate(self.timers):
            assert timer.pending is self.model.timers[index].armed


@pytest.mark.slow
@pytest.mark.timeout(120)
# On 3.14 the garbage collector does not see who refers to Hypothesis' own generator.
@pytest.mark.filterwarnings("ignore:It looks like .register_random.")
@pytest.mark.parametrize("semantics", ["seed", "modern"])
def test_the_context_does_what_the_model_says(fdmon: str, semantics: str) -> None:
    machine = type("Bound", (Machine,), {"fdmon": fdmon, "semantics": semantics})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
