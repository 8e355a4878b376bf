"""Bottom halves: order, state, idle ones, lifetime.

The checklist has the famous pitfalls; here is the rest of the contract.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import pytest
from support.pipes import Pipe
from support.qemu import BHData, Busy, EventData, settle

from aioqemu import AioContext

MakeEvent = Callable[..., EventData]
MakePipe = Callable[[], Pipe]
MakeCounter = Callable[..., BHData]
Later = Callable[[float, Callable[[], object]], object]


def test_bottom_halves_run_in_scheduling_order(ctx: AioContext) -> None:
    ran: list[int] = []
    halves = [ctx.bh_new(ran.append, number) for number in range(4)]
    for number in (2, 0, 3, 1):
        halves[number].schedule()
    assert ctx.poll(False) is True
    assert ran == [2, 0, 3, 1]


def test_bottom_half_gets_its_opaque_and_shows_its_state(ctx: AioContext) -> None:
    seen: list[object] = []
    opaque = object()
    bh = ctx.bh_new(seen.append, opaque)
    assert (bh.scheduled, bh.deleted) == (False, False)
    bh.schedule()
    assert bh.scheduled is True
    assert ctx.poll(False) is True
    assert seen == [opaque]
    assert bh.scheduled is False
    ctx.bh_new(seen.append).schedule()
    ctx.poll(False)
    assert seen == [opaque, None]
    bh.schedule()
    bh.delete()
    assert (bh.scheduled, bh.deleted) == (False, True)
    assert ctx.poll(False) is False


def test_a_running_bottom_half_is_no_longer_scheduled(ctx: AioContext) -> None:
    states: list[bool] = []
    bh = ctx.bh_new(lambda _: states.append(bh.scheduled))
    bh.schedule()
    ctx.poll(False)
    assert states == [False]


def test_bh_poll_runs_bottom_halves_only(
    ctx: AioContext, busy: Busy, counter: MakeCounter
) -> None:
    data = counter()
    assert data.bh is not None
    assert ctx.bh_poll() is False
    data.bh.schedule()
    busy.e.set()
    assert ctx.bh_poll() is True
    assert (data.n, busy.n) == (1, 0)
    assert ctx.bh_poll() is False


def test_scheduling_an_idle_bottom_half_makes_it_urgent(
    ctx: AioContext, counter: MakeCounter
) -> None:
    data = counter()
    assert data.bh is not None
    data.bh.schedule_idle()
    data.bh.schedule()
    assert ctx.poll(False) is True
    assert data.n == 1
    assert ctx.poll(False) is False
    # And the other way round it stays urgent.
    data.bh.schedule()
    data.bh.schedule_idle()
    assert ctx.poll(False) is True
    assert data.n == 2


def test_cancelled_bottom_half_can_be_scheduled_again(
    ctx: AioContext, counter: MakeCounter
) -> None:
    data = counter()
    assert data.bh is not None
    data.bh.schedule()
    data.bh.cancel()
    assert data.bh.scheduled is False
    data.bh.cancel()
    data.bh.schedule()
    assert ctx.poll(False) is True
    assert ctx.poll(False) is False
    assert data.n == 1
    data.bh.schedule_idle()
    data.bh.cancel()
    assert ctx.poll(False) is False
    assert data.n == 1


def test_an_idle_bottom_half_scheduled_elsewhere_runs_while_the_poll_waits(
    ctx: AioContext, busy: Busy, later: Later
) -> None:
    ran: list[float] = []
    scheduled: list[float] = []
    bh = ctx.bh_new(lambda _: ran.append(time.monotonic()))

    def schedule() -> None:
        scheduled.append(time.monotonic())
        bh.schedule_idle()

    later(0.05, schedule)
    later(0.5, busy.release)
    while busy.n == 0:
        ctx.poll(True)
    assert len(ran) == 1
    assert ran[0] - scheduled[0] < 0.3, "it waited for something else to happen"


def test_context_keeps_alive_what_is_scheduled_or_registered(
    ctx: AioContext, make_pipe: MakePipe, busy: Busy
) -> None:
    ran: list[str] = []
    pipe = make_pipe()
    ctx.bh_new(lambda _: ran.append("bh")).schedule()
    ctx.timer_new(lambda _: ran.append("timer")).mod(0)
    ctx.set_fd_handler(pipe.r, lambda _: (ran.append("fd"), pipe.drain()), None)
    pipe.feed()
    gc.collect()
    settle(ctx)
    assert sorted(ran) == ["bh", "fd", "timer"]
    ctx.set_fd_handler(pipe.r, None, None)
    assert busy.n == 0


def test_a_dropped_bottom_half_is_collected(ctx: AioContext) -> None:
    class Opaque:
        alive = 0

        def __init__(self) -> None:
            type(self).alive += 1

        def __del__(self) -> None:
            type(self).alive -= 1

    for _ in range(10):
        opaque = Opaque()
        bh = ctx.bh_new(lambda _: None, opaque)
        bh.schedule()
    del opaque, bh
    gc.collect()
    assert Opaque.alive == 10
    ctx.poll(False)
    gc.collect()
    assert Opaque.alive == 0


def test_a_cycle_through_a_context_is_collected(fdmon: str) -> None:
    class Owner:
        alive = 0

        def __init__(self) -> None:
            type(self).alive += 1
            self.ctx = AioContext(fdmon=fdmon)
            self.bh = self.ctx.bh_new(self.run)
            self.timer = self.ctx.timer_new(self.run)
            self.ctx.set_exception_handler(self.run)

        def run(self, _: object) -> None:
            raise AssertionError("never scheduled")

        def __del__(self) -> None:
            type(self).alive -= 1

    owner = Owner()
    owner.ctx.close()
    del owner
    gc.collect()
    assert Owner.alive == 0


@pytest.mark.parametrize("cb", [None, 3, "print"])
def test_callbacks_must_be_callable(ctx: AioContext, cb: Any) -> None:
    with pytest.raises(TypeError):
        ctx.bh_new(cb)
    with pytest.raises(TypeError):
        ctx.timer_new(cb)
