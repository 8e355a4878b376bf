"""Rules of call_later and call_at: never early, in order, cheap to cancel.

Times are compared with the loop's own clock; the few bounds from above take the
best of many tries, so that a busy machine cannot fail them.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
import weakref
from typing import Any

import pytest

from .helpers import cpu_seconds, is_ours, one_pass


def test_time_is_the_monotonic_clock(any_loop: asyncio.AbstractEventLoop) -> None:
    before = time.monotonic()
    now = any_loop.time()
    assert before <= now <= time.monotonic()


def test_time_moves_in_steps_finer_than_a_microsecond(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    steps = []
    for _ in range(1000):
        first = any_loop.time()
        while (second := any_loop.time()) == first:
            pass
        steps.append(second - first)
    assert min(steps) < 5e-6


def test_timers_never_run_early(any_loop: asyncio.AbstractEventLoop) -> None:
    early: list[float] = []
    left = 300
    # The stock loop takes timers within its clock's resolution as due.
    slack = 0.0 if is_ours(any_loop) else 1e-6

    def due(when: float) -> None:
        nonlocal left
        left -= 1
        if any_loop.time() < when - slack:
            early.append(when - any_loop.time())
        if not left:
            any_loop.stop()

    chance = random.Random(1)
    for _ in range(left):
        when = any_loop.time() + chance.random() * 0.08
        any_loop.call_at(when, due, when)
    any_loop.run_forever()
    assert early == []


def test_sleep_lasts_at_least_as_long_as_asked(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    async def main() -> None:
        for delay in (0.0001, 0.0009, 0.001, 0.0011, 0.0123):
            started = any_loop.time()
            await asyncio.sleep(delay)
            # The deadline is a float: sums of floats round.
            assert any_loop.time() - started >= delay - 1e-6

    any_loop.run_until_complete(main())


def test_short_delays_are_not_rounded_to_milliseconds(loop: Any) -> None:
    async def main() -> float:
        best = 1.0
        for _ in range(50):
            started = time.perf_counter()
            await asyncio.sleep(0.0002)
            best = min(best, time.perf_counter() - started)
        return best

    assert 0.0002 <= loop.run_until_complete(main()) < 0.0009


def test_a_wait_for_a_timer_does_not_spin(any_loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> float:
        started = cpu_seconds()
        await asyncio.sleep(0.2)
        return cpu_seconds() - started

    assert any_loop.run_until_complete(main()) < 0.1


def test_timers_run_in_the_order_of_their_deadlines(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    seen: list[int] = []
    base = any_loop.time()
    order = list(range(200))
    random.Random(2).shuffle(order)
    for number in order:
        any_loop.call_at(base + number * 1e-5, seen.append, number)
    any_loop.call_at(base + 0.01, any_loop.stop)
    any_loop.run_forever()
    assert seen == sorted(seen)
    assert len(seen) == 200


def test_timers_of_one_deadline_run_in_the_order_of_the_calls(loop: Any) -> None:
    seen: list[int] = []
    when = loop.time() + 0.002
    for number in range(500):
        loop.call_at(when, seen.append, number)
    loop.call_at(when + 0.001, loop.stop)
    loop.run_forever()
    assert seen == list(range(500))


def test_cancel_keeps_the_order_of_the_others(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    chance = random.Random(3)
    base = any_loop.time()
    seen: list[float] = []
    handles = []
    for _ in range(2000):
        when = base + chance.random() * 0.02
        handles.append(any_loop.call_at(when, seen.append, when))
    chance.shuffle(handles)
    for handle in handles[:1200]:
        handle.cancel()
    any_loop.call_at(base + 0.021, any_loop.stop)
    any_loop.run_forever()
    assert seen == sorted(handle.when() for handle in handles[1200:])


def test_a_timer_can_cancel_one_that_is_due_too(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    seen: list[str] = []
    when = any_loop.time()
    handles: list[asyncio.TimerHandle] = []
    any_loop.call_at(when - 1, lambda: handles[0].cancel())
    handles.append(any_loop.call_at(when, seen.append, "cancelled"))
    any_loop.call_at(when + 0.005, any_loop.stop)
    any_loop.run_forever()
    assert seen == []


def test_a_timer_rearmed_in_the_past_runs_once_a_pass(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    runs = 0

    def again() -> None:
        nonlocal runs
        runs += 1
        any_loop.call_later(-1, again)

    any_loop.call_later(-1, again)
    for _ in range(5):
        one_pass(any_loop)
    assert 4 <= runs <= 6


@pytest.mark.slow
def test_a_hundred_thousand_timers_are_cancelled(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    class Payload:
        pass

    payload = Payload()
    alive = weakref.ref(payload)
    handles = [any_loop.call_later(3600 + n, print, payload) for n in range(100_000)]
    started = time.perf_counter()
    for handle in handles:
        handle.cancel()
    elapsed = time.perf_counter() - started
    del payload, handles, handle
    gc.collect()
    # Nothing keeps what a cancelled timer held, and the loop is free at once.
    assert alive() is None
    one_pass(any_loop)
    assert elapsed < 2.0


def test_when_is_the_deadline_asked_for(any_loop: asyncio.AbstractEventLoop) -> None:
    now = any_loop.time()
    at = any_loop.call_at(now + 12.25, print)
    later = any_loop.call_later(3, print)
    assert at.when() == now + 12.25
    assert now + 3 <= later.when() <= any_loop.time() + 3
    at.cancel()
    later.cancel()
    assert at.when() == now + 12.25


def test_timer_handles_compare_by_deadline(any_loop: asyncio.AbstractEventLoop) -> None:
    now = any_loop.time()
    first, second = any_loop.call_at(now + 1, print), any_loop.call_at(now + 2, print)
    assert first < second
    assert second > first
    assert first <= second
    assert second >= first
    assert first != second
    assert sorted([second, first]) == [first, second]
    assert len({first, second}) == 2
    first.cancel()
    second.cancel()


@pytest.mark.parametrize("delay", [-1, -1e300, float("-inf"), 0, -0.0])
def test_deadlines_in_the_past_are_due_at_once(
    any_loop: asyncio.AbstractEventLoop, delay: float
) -> None:
    seen: list[str] = []
    any_loop.call_later(delay, seen.append, "ran")
    any_loop.call_later(0.05, any_loop.stop)
    any_loop.run_forever()
    assert seen == ["ran"]


def test_a_deadline_that_is_no_number_does_no_harm(loop: Any) -> None:
    # The stock loop raises ValueError out of run_forever and is stuck with it.
    seen: list[str] = []
    try:
        loop.call_later(float("nan"), seen.append, "nan")
    except ValueError:
        seen.append("nan")
    loop.call_later(0.001, seen.append, "first")
    loop.call_later(0.002, seen.append, "second")
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    assert seen == ["nan", "first", "second"]


@pytest.mark.parametrize("delay", [1e7, 1e10, 1e18, 1e308, float("inf")])
def test_far_deadlines_neither_run_nor_overflow(
    any_loop: asyncio.AbstractEventLoop, delay: float
) -> None:
    seen: list[str] = []
    handle = any_loop.call_later(delay, seen.append, "never")
    any_loop.call_later(0.005, any_loop.stop)
    started = cpu_seconds()
    any_loop.run_forever()
    assert cpu_seconds() - started < 0.1
    assert seen == []
    assert handle.when() >= delay
    handle.cancel()


def test_only_a_far_timer_lets_the_loop_sleep(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    import threading

    far = [any_loop.call_later(delay, print) for delay in (1e9, 1e19, float("inf"))]
    waker = threading.Timer(0.05, any_loop.call_soon_threadsafe, (any_loop.stop,))
    waker.start()
    started = cpu_seconds()
    any_loop.run_forever()
    waker.join()
    assert cpu_seconds() - started < 0.04
    for handle in far:
        handle.cancel()


def test_missing_deadlines_are_refused(any_loop: asyncio.AbstractEventLoop) -> None:
    with pytest.raises(TypeError, match="delay must not be None"):
        any_loop.call_later(None, print)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="when cannot be None"):
        any_loop.call_at(None, print)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        any_loop.call_later("1", print)  # type: ignore[arg-type]


@pytest.mark.parametrize("when", ["x", b"x"])
def test_a_time_that_is_no_number_is_refused(
    any_loop: asyncio.AbstractEventLoop, when: Any
) -> None:
    # The stock loop notices when it sorts it among other timers.
    timer = any_loop.call_at(any_loop.time() + 0.001, any_loop.stop)
    with pytest.raises(TypeError):
        any_loop.call_later(when, print)
    if is_ours(any_loop):
        with pytest.raises(TypeError):
            any_loop.call_at(when, print)
        any_loop.run_forever()
    timer.cancel()
