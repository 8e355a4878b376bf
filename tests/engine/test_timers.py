"""Engine timers: nanosecond deadlines on the monotonic clock, never early."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

import pytest
from support.qemu import Busy, EventData, settle

from aioqemu import AioContext

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.pipes import Pipe

FAR = 2**62


def test_schedule(ctx: AioContext, busy: Busy) -> None:
    # QEMU's timer/schedule, with the seed's semantics and a shorter interval.
    interval = 60_000_000
    fired: list[int] = []

    def cb(_: object) -> None:
        fired.append(time.monotonic_ns())
        if len(fired) < 2:
            deadlines.append(time.monotonic_ns() + interval)
            timer.mod(deadlines[-1])

    timer = ctx.timer_new(cb)
    deadlines = [time.monotonic_ns() + interval]
    timer.mod(deadlines[0])
    settle(ctx)
    assert not fired
    time.sleep(0.08)
    assert not fired, "a timer runs in the loop only"
    assert ctx.poll(False) is True
    assert len(fired) == 1
    settle(ctx)
    assert len(fired) == 1
    while len(fired) < 2:
        assert ctx.poll(True) is True
    assert ctx.poll(False) is False
    assert all(at >= due for at, due in zip(fired, deadlines, strict=True))
    assert busy.n == 0


def test_attributes(ctx: AioContext) -> None:
    timer = ctx.timer_new(lambda _: None)
    assert timer.pending is False
    timer.mod(FAR)
    assert timer.pending is True
    assert timer.expire_time_ns == FAR
    timer.mod(FAR + 1)
    assert timer.expire_time_ns == FAR + 1
    timer.delete()
    assert timer.pending is False
    timer.delete()
    assert ctx.poll(False) is False


def test_opaque(ctx: AioContext) -> None:
    seen: list[object] = []
    opaque = object()
    ctx.timer_new(seen.append, opaque).mod(0)
    assert ctx.poll(False) is True
    assert seen == [opaque]


def test_a_timer_that_fired_is_not_pending_and_may_be_armed_again(
    ctx: AioContext,
) -> None:
    states: list[bool] = []
    timer = ctx.timer_new(lambda _: states.append(timer.pending))
    for expected in (1, 2):
        timer.mod(0)
        assert ctx.poll(False) is True
        assert states == [False] * expected
    assert timer.pending is False


def test_due_timers_run_in_deadline_order_equal_ones_first_come_first_served(
    ctx: AioContext,
) -> None:
    ran: list[tuple[int, int]] = []
    made = []
    shuffled = [(deadline, number) for deadline in range(20) for number in range(3)]
    random.Random(1).shuffle(shuffled)
    order: dict[int, list[int]] = {}
    for deadline, number in shuffled:
        timer = ctx.timer_new(ran.append, (deadline, number))
        timer.mod(deadline)
        made.append(timer)
        order.setdefault(deadline, []).append(number)
    assert ctx.poll(False) is True
    assert ran == [(d, n) for d in sorted(order) for n in order[d]]


@pytest.mark.parametrize("due", [0, 1, 500, 2000, 4000])
def test_many_timers_due_at_once(ctx: AioContext, due: int) -> None:
    """They fire by deadline, equal ones by age; those that are not due stay set."""
    count = 4000
    rng = random.Random(due)
    now = time.monotonic_ns()
    fired: list[int] = []
    timers = [ctx.timer_new(fired.append, i) for i in range(count)]
    past, future = [now - 1 - i // 3 for i in range(due)], now + 3_600_000_000_000
    deadlines = past + [future + i for i in range(count - due)]
    rng.shuffle(deadlines)
    for timer, deadline in zip(timers, deadlines, strict=True):
        timer.mod(deadline)
    ctx.poll(False)
    ones = [i for i in range(count) if deadlines[i] < now]
    assert fired == sorted(ones, key=lambda i: deadlines[i])
    assert ctx.stats()["timers_pending"] == count - due
    fired.clear()
    rng.shuffle(timers)
    for timer in timers[: count // 2]:
        timer.delete()
    for timer in timers[count // 2 :]:
        if timer.pending:
            timer.mod(timer.expire_time_ns - 2 * 3_600_000_000_000)
    ctx.poll(False)
    assert len(fired) == len(set(fired))
    assert [deadlines[i] for i in fired] == sorted(deadlines[i] for i in fired)
    assert ctx.stats()["timers_pending"] == 0


@pytest.mark.parametrize("span", [0, 1, 300, 70_000, 1 << 40, 1 << 62])
def test_a_crowd_of_timers_fires_in_order_whatever_lies_between(
    ctx: AioContext, span: int
) -> None:
    """The deadlines reach far into the past; some leave the crowd while it fires."""
    rng = random.Random(span)
    count = 1500
    deadlines = [rng.randint(-span, 0) for _ in range(count)]
    fired: list[int] = []
    gone: set[int] = set()

    def fire(number: int) -> None:
        fired.append(number)
        if number % 7 == 0:
            other = rng.randrange(count)
            if timers[other].pending:
                gone.add(other)
                timers[other].delete()

    timers = [ctx.timer_new(fire, i) for i in range(count)]
    for timer, deadline in zip(timers, deadlines, strict=True):
        timer.mod(deadline)
    ctx.poll(False)
    left = [i for i in range(count) if i not in gone]
    assert gone
    assert fired == sorted(left, key=lambda i: deadlines[i])


def test_many_timers_cancelled_at_random(ctx: AioContext) -> None:
    rng = random.Random(2)
    ran: set[int] = set()
    timers = [ctx.timer_new(ran.add, number) for number in range(2000)]
    armed: set[int] = set()
    for _ in range(10_000):
        number = rng.randrange(2000)
        if rng.random() < 0.4:
            timers[number].delete()
            armed.discard(number)
        else:
            timers[number].mod(rng.randrange(1_000_000))
            armed.add(number)
    assert {n for n, timer in enumerate(timers) if timer.pending} == armed
    assert ctx.poll(False) is True
    assert ran == armed
    assert ctx.poll(False) is False


def test_mod_moves_both_ways(ctx: AioContext) -> None:
    ran: list[int] = []
    timer = ctx.timer_new(ran.append, 1)
    timer.mod(0)
    timer.mod(FAR)
    assert ctx.poll(False) is False
    timer.mod(0)
    assert ctx.poll(False) is True
    assert ran == [1]


def test_mod_anticipate_only_moves_earlier(ctx: AioContext) -> None:
    timer = ctx.timer_new(lambda _: None)
    timer.mod_anticipate(FAR)
    assert timer.expire_time_ns == FAR
    timer.mod_anticipate(FAR + 1)
    assert timer.expire_time_ns == FAR
    timer.mod_anticipate(FAR - 1)
    assert timer.expire_time_ns == FAR - 1
    timer.delete()
    timer.mod_anticipate(FAR)
    assert timer.expire_time_ns == FAR
    timer.delete()


def test_a_timer_deleted_by_an_earlier_one_does_not_fire(ctx: AioContext) -> None:
    ran: list[str] = []

    def first(_: object) -> None:
        ran.append("first")
        victim.delete()

    victim = ctx.timer_new(lambda _: ran.append("victim"))
    ctx.timer_new(first).mod(1)
    victim.mod(2)
    assert ctx.poll(False) is True
    assert ctx.poll(False) is False
    assert ran == ["first"]


def test_a_timer_that_deletes_itself(ctx: AioContext) -> None:
    ran: list[int] = []

    def cb(_: object) -> None:
        ran.append(1)
        timer.mod(0)
        timer.delete()

    timer = ctx.timer_new(cb)
    timer.mod(0)
    assert ctx.poll(False) is True
    assert ctx.poll(False) is False
    assert ran == [1]


def test_a_timer_armed_by_a_timer_for_the_past_waits_for_the_next_pass(
    ctx: AioContext,
) -> None:
    ran: list[str] = []
    second = ctx.timer_new(lambda _: ran.append("second"))

    def first(_: object) -> None:
        ran.append("first")
        second.mod(0)

    ctx.timer_new(first).mod(0)
    assert ctx.poll(False) is True
    assert ran == ["first"]
    assert ctx.poll(False) is True
    assert ran == ["first", "second"]


def test_never_early(ctx: AioContext, busy: Busy) -> None:
    early: list[int] = []

    def cb(deadline: int) -> None:
        if time.monotonic_ns() < deadline:
            early.append(deadline)

    rng = random.Random(3)
    for _ in range(50):
        deadline = time.monotonic_ns() + rng.randrange(3_000_000)
        timer = ctx.timer_new(cb, deadline)
        timer.mod(deadline)
        while timer.pending:
            ctx.poll(True)
    assert early == []
    assert busy.n == 0


def test_timers_and_fds_in_one_blocking_poll(
    ctx: AioContext,
    busy: Busy,
    make_pipe: Callable[[], Pipe],
    event: Callable[..., EventData],
) -> None:
    data = event()
    ctx.set_event_notifier(data.e, data.ready)
    settle(ctx)
    fired: list[int] = []
    timer = ctx.timer_new(lambda _: (fired.append(1), data.e.set()))
    timer.mod(time.monotonic_ns() + 20_000_000)
    while data.n == 0:
        assert ctx.poll(True) is True
    assert fired == [1]
    assert busy.n == 0


def test_a_timer_armed_from_another_thread_wakes_a_blocked_poll(
    ctx: AioContext, busy: Busy, later: Callable[..., object]
) -> None:
    fired: list[int] = []
    timer = ctx.timer_new(fired.append, 1)
    far = ctx.timer_new(lambda _: None)
    far.mod(time.monotonic_ns() + 20_000_000_000)
    settle(ctx)
    bh = ctx.bh_new(lambda _: timer.mod(time.monotonic_ns() + 10_000_000))
    started = time.monotonic()
    later(0.03, bh.schedule)
    while not fired:
        ctx.poll(True)
    assert time.monotonic() - started < 5
    far.delete()
    assert busy.n == 0


def test_a_pending_timer_does_not_make_a_seed_poll_block(ctx: AioContext) -> None:
    timer = ctx.timer_new(lambda _: None)
    timer.mod(time.monotonic_ns() + 20_000_000_000)
    started = time.monotonic()
    assert ctx.poll(True) is False
    assert time.monotonic() - started < 5
    timer.delete()


def test_a_modern_poll_blocks_for_a_timer(modern: AioContext) -> None:
    fired: list[int] = []
    timer = modern.timer_new(lambda _: fired.append(time.monotonic_ns()))
    deadline = time.monotonic_ns() + 30_000_000
    timer.mod(deadline)
    while not fired:
        modern.poll(True)
    assert fired[0] >= deadline


@pytest.mark.parametrize(
    "deadline, error",
    [("soon", TypeError), (None, TypeError), (1.5, TypeError), (2**64, Exception)],
)
def test_bad_deadlines(ctx: AioContext, deadline: Any, error: type[Exception]) -> None:
    timer = ctx.timer_new(lambda _: None)
    with pytest.raises(error) as caught:
        timer.mod(deadline)
    assert isinstance(caught.value, TypeError | ValueError | OverflowError)
    assert timer.pending is False


def test_a_deadline_before_time_began_is_due(ctx: AioContext) -> None:
    fired: list[int] = []
    ctx.timer_new(fired.append, 1).mod(-5)
    assert ctx.poll(False) is True
    assert fired == [1]


def test_timers_do_not_run_after_close(fdmon: str) -> None:
    ctx = AioContext(fdmon=fdmon)
    timer = ctx.timer_new(lambda _: pytest.fail("closed"))
    timer.mod(FAR)
    ctx.close()
    with pytest.raises(RuntimeError):
        timer.mod(0)
    timer.delete()
