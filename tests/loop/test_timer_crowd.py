"""Many timers that are due at once: they are taken out of the heap in one go.

What a callback, or a timer of the context among them, does meanwhile: the order of all
and what is cancelled stay as they are for a few.
"""

from __future__ import annotations

import gc
import random
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from .helpers import new_like, one_pass

if TYPE_CHECKING:
    import asyncio

CROWD = 300
FAR = 3_600


class Payload:
    """Something to watch."""

    loop: object = None

    def __call__(self) -> None:
        """Do nothing, as a callback."""


def make_crowd(loop: Any, call: Any, count: int = CROWD) -> list[asyncio.TimerHandle]:
    """Timers that are due, made in no order; sorted: number i calls `call(i)`."""
    base = loop.time() - 1
    order = list(range(count))
    random.Random(1).shuffle(order)
    handles = {i: loop.call_at(base + i * 1e-6, call, i) for i in order}
    return [handles[i] for i in range(count)]


def at_ns(loop: Any, handle: asyncio.TimerHandle) -> int:
    """A time for a timer of the context: just before this one's."""
    return int(handle.when() * 1e9) - 300


def test_a_callback_cancels_others_of_its_crowd(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    seen: list[int] = []
    payload = Payload()
    gone = weakref.ref(payload)

    def call(number: int) -> None:
        seen.append(number)
        if number == 10:
            victim.cancel()
            for handle in handles[20:40]:
                handle.cancel()
            assert all(handle.cancelled() for handle in handles[20:40])
            # What it held is free at once.
            assert gone() is None

    handles = make_crowd(any_loop, call)
    victim = any_loop.call_at(handles[50].when(), print, payload)
    del payload
    one_pass(any_loop)
    assert seen == [i for i in range(CROWD) if not 20 <= i < 40]


def test_cancelling_what_has_left_the_heap_leaves_the_heap_alone(loop: Any) -> None:
    """Its place there is another timer's now."""
    seen: list[int] = []

    def call(number: int) -> None:
        if number == 0:
            assert not any(handle._scheduled for handle in handles)
            for handle in handles[1:]:
                handle.cancel()
        seen.append(number)

    handles: list[Any] = make_crowd(loop, call)
    far: list[Any] = [loop.call_later(FAR, seen.append, -1) for _ in range(CROWD)]
    assert all(handle._scheduled for handle in handles + far)
    one_pass(loop)
    assert seen == [0]
    assert loop.stats()["timers_pending"] == CROWD
    assert all(handle._scheduled for handle in far)
    for handle in far:
        handle.cancel()
    assert loop.stats()["timers_pending"] == 0


def test_a_timer_of_the_context_comes_in_its_place(loop: Any) -> None:
    """What it queues runs between the timers before and after it."""
    seen: list[Any] = []
    handles = make_crowd(loop, seen.append)
    timer = loop.context.timer_new(lambda _: loop.call_soon(seen.append, "between"))
    timer.mod(at_ns(loop, handles[100]))
    one_pass(loop)
    assert seen == [*range(100), "between", *range(100, CROWD)]


def test_a_timer_of_the_context_cancels_handles_that_are_due(loop: Any) -> None:
    seen: list[int] = []

    def cancel(_: object) -> None:
        for handle in handles[90:110]:
            handle.cancel()

    handles = make_crowd(loop, seen.append)
    far = [loop.call_later(FAR, seen.append, -1) for _ in range(CROWD)]
    timer = loop.context.timer_new(cancel)
    timer.mod(at_ns(loop, handles[100]))
    one_pass(loop)
    assert seen == [i for i in range(CROWD) if not 90 <= i < 110]
    assert loop.stats()["timers_pending"] == CROWD
    for handle in far:
        handle.cancel()


def test_timers_of_the_context_are_set_anew_while_they_are_due(loop: Any) -> None:
    ran: list[str] = []
    seen: list[int] = []
    handles = make_crowd(loop, seen.append)
    second, third = at_ns(loop, handles[150]), at_ns(loop, handles[200])

    def first(_: object) -> None:
        ran.append("first")
        assert deleted.pending
        assert deleted.expire_time_ns == second
        deleted.delete()
        deleted.delete()
        assert not deleted.pending
        assert deleted.expire_time_ns == -1
        moved.mod_anticipate(third + 1)
        assert moved.expire_time_ns == third
        moved.mod(third - 5)
        assert moved.expire_time_ns == third - 5
        loop.call_soon(ran.append, "soon")

    deleted = loop.context.timer_new(lambda _: ran.append("deleted"))
    moved = loop.context.timer_new(lambda _: ran.append("moved"))
    loop_timer = loop.context.timer_new(first)
    loop_timer.mod(at_ns(loop, handles[100]))
    deleted.mod(second)
    moved.mod(third)
    one_pass(loop)
    assert ran == ["first", "soon"], "one that is armed anew waits for the next pass"
    one_pass(loop)
    assert ran == ["first", "soon", "moved"]
    assert seen == list(range(CROWD))


def test_a_nested_poll_goes_on_with_the_crowd(loop: Any) -> None:
    ran: list[Any] = []
    handles = make_crowd(loop, lambda number: None)
    late = loop.context.timer_new(lambda _: ran.append("late"))

    def first(_: object) -> None:
        ran.append("first")
        late.mod(0)
        ran.append(loop.context.poll(False))
        ran.append("end of first")

    timer = loop.context.timer_new(first)
    timer.mod(at_ns(loop, handles[100]))
    other = loop.context.timer_new(lambda _: ran.append("other"))
    other.mod(at_ns(loop, handles[200]))
    before = loop.stats()
    one_pass(loop)
    assert ran == ["first", "other", "late", True, "end of first"]
    assert loop.stats()["timers"] - before["timers"] == CROWD + 3
    assert loop.stats()["timers_pending"] == 0


def test_what_is_deleted_while_due_keeps_no_poll_from_sleeping(loop: Any) -> None:
    ran: list[Any] = []

    def first(_: object) -> None:
        other.delete()
        ran.append(loop.context.poll(False))

    timer = loop.context.timer_new(first)
    other = loop.context.timer_new(ran.append)
    timer.mod(1)
    other.mod(2)
    one_pass(loop)
    assert ran == [False]
    assert loop.stats()["timers"] == 1


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_an_exception_that_leaves_the_loop_leaves_the_rest_ready(
    any_loop: asyncio.AbstractEventLoop, error: type[BaseException]
) -> None:
    seen: list[int] = []

    def call(number: int) -> None:
        seen.append(number)
        if number == 100:
            raise error

    handles = make_crowd(any_loop, call)
    with pytest.raises(error):
        any_loop.run_forever()
    assert seen == list(range(101))
    handles[150].cancel()
    any_loop.call_soon(seen.append, -1)
    one_pass(any_loop)
    assert seen == [i for i in range(CROWD) if i != 150] + [-1]


def test_stop_lets_the_crowd_of_its_pass_run(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    seen: list[int] = []

    def call(number: int) -> None:
        seen.append(number)
        if number == 100:
            any_loop.stop()
            any_loop.call_soon(seen.append, -1)

    make_crowd(any_loop, call)
    any_loop.run_forever()
    assert seen == list(range(CROWD))
    one_pass(any_loop)
    assert seen[CROWD:] == [-1]


def test_a_timer_set_by_the_crowd_waits_for_a_later_pass(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    seen: list[int] = []

    def call(number: int) -> None:
        seen.append(number)
        if number < 100:
            any_loop.call_at(any_loop.time() - 10, seen.append, CROWD + number)

    any_loop.call_soon(seen.append, -1)
    make_crowd(any_loop, call)
    one_pass(any_loop)
    assert seen == [-1, *range(CROWD)], "behind what is ready, in its order"
    one_pass(any_loop)
    assert sorted(seen[CROWD + 1 :]) == list(range(CROWD, CROWD + 100))


def test_the_crowd_in_debug_mode(any_loop: asyncio.AbstractEventLoop) -> None:
    any_loop.set_debug(True)
    seen: list[int] = []
    handles = make_crowd(any_loop, seen.append)
    handles[7].cancel()
    one_pass(any_loop)
    assert seen == [i for i in range(CROWD) if i != 7]
    any_loop.set_debug(False)


def leave_ready(loop: Any) -> list[weakref.ref[Any]]:
    """A crowd that is in the queue, as an exception left the loop."""
    payloads = [Payload() for _ in range(CROWD)]
    base = loop.time() - 1
    for number, payload in enumerate(payloads):
        payload.loop = loop
        loop.call_at(base + (number * 7 % CROWD) * 1e-6, payload)

    def leave() -> None:
        raise SystemExit

    loop.call_at(base - 1, leave)
    with pytest.raises(SystemExit):
        loop.run_forever()
    return [weakref.ref(payload) for payload in payloads]


def test_close_drops_a_crowd_that_is_ready(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    loop = new_like(any_loop)
    alive = leave_ready(loop)
    assert all(ref() is not None for ref in alive)
    loop.close()
    gc.collect()
    assert [ref() for ref in alive] == [None] * CROWD


def test_the_collector_sees_a_crowd_that_is_ready(loop: Any) -> None:
    """Of a loop that is dropped without being closed."""
    other = new_like(loop)
    alive = leave_ready(other)
    gc.collect()
    assert all(ref() is not None for ref in alive), "the loop has them"
    del other
    with pytest.warns(ResourceWarning):
        gc.collect()
    assert [ref() for ref in alive] == [None] * CROWD


def test_the_collector_runs_while_a_crowd_is_due(loop: Any) -> None:
    seen: list[int] = []
    handles = make_crowd(loop, seen.append)
    timer = loop.context.timer_new(lambda _: gc.collect())
    other = loop.context.timer_new(seen.append, -1)
    timer.mod(at_ns(loop, handles[100]))
    other.mod(at_ns(loop, handles[200]))
    loop.call_at(handles[50].when(), gc.collect)
    one_pass(loop)
    assert seen == [-1, *range(CROWD)]


def test_many_crowds(loop: Any) -> None:
    """Each with timers that are not due, and some cancelled at any time."""
    rng = random.Random(5)
    seen: list[int] = []
    far: list[Any] = []
    for round_ in range(20):
        seen.clear()
        handles = make_crowd(loop, seen.append, rng.randrange(1, 700))
        far += [
            loop.call_later(FAR + rng.random(), print)
            for _ in range(rng.randrange(500))
        ]
        rng.shuffle(far)
        for _ in range(rng.randrange(len(far) + 1)):
            far.pop().cancel()
        gone = set(rng.sample(range(len(handles)), len(handles) // 3))
        for number in gone:
            handles[number].cancel()
        one_pass(loop)
        assert seen == [i for i in range(len(handles)) if i not in gone], round_
        for handle in handles:
            handle.cancel()
        assert loop.stats()["timers_pending"] == len(far)
    for handle in far:
        handle.cancel()


def test_the_queue_keeps_its_order_while_it_grows_and_turns(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    """The ring of the queue is somewhere in the middle when it becomes too small."""
    seen: list[int] = []
    expected: list[int] = []
    number = 0
    for count in (3, 40, 50, 60, 64, 10, 100, 127, 128, 129, 1, 20_000, 2, 300, 70):

        def nested(more: int) -> None:
            nonlocal number
            for _ in range(more):
                any_loop.call_soon(seen.append, number)
                expected.append(number)
                number += 1

        any_loop.call_soon(nested, count)
        for _ in range(count):
            any_loop.call_soon(seen.append, number)
            expected.append(number)
            number += 1
        one_pass(any_loop)
        any_loop.call_soon(nested, count // 2)
        one_pass(any_loop)
    one_pass(any_loop)
    one_pass(any_loop)
    assert seen == expected
