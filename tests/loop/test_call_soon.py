"""Rules of call_soon and its kin: order, contexts, cancelling, refusals.

The order within one pass is part of what the loop promises, so it is asserted
here callback by callback and not by outcome.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import sys
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from .helpers import new_like, on_loop, one_pass

if TYPE_CHECKING:
    from collections.abc import Callable

VAR: contextvars.ContextVar[str] = contextvars.ContextVar("VAR", default="outer")


def test_call_soon_runs_in_order(any_loop: asyncio.AbstractEventLoop) -> None:
    seen: list[int] = []
    for number in range(1000):
        any_loop.call_soon(seen.append, number)
    one_pass(any_loop)
    assert seen == list(range(1000))


@pytest.mark.parametrize("count", range(7))
def test_call_soon_passes_every_argument(
    any_loop: asyncio.AbstractEventLoop, count: int
) -> None:
    seen: list[tuple[int, ...]] = []

    def callback(*args: int) -> None:
        seen.append(args)

    any_loop.call_soon(callback, *range(count))
    any_loop.call_soon_threadsafe(callback, *range(count))
    any_loop.call_later(0, callback, *range(count))
    one_pass(any_loop)
    assert seen == [tuple(range(count))] * 3


def test_arguments_are_released_after_the_call(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    class Payload:
        pass

    payload = Payload()
    alive = weakref.ref(payload)
    any_loop.call_soon(lambda _payload: None, payload)
    del payload
    one_pass(any_loop)
    gc.collect()
    assert alive() is None


def test_call_soon_from_call_soon_runs_in_the_next_pass(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    seen: list[str] = []

    def first() -> None:
        seen.append("first")
        any_loop.call_soon(seen.append, "second")
        any_loop.stop()

    any_loop.call_soon(first)
    any_loop.run_forever()
    assert seen == ["first"]
    one_pass(any_loop)
    assert seen == ["first", "second"]


def test_call_soon_and_call_later_zero_keep_their_order(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    seen: list[str] = []
    any_loop.call_soon(seen.append, "a")
    any_loop.call_later(0, seen.append, "b")
    any_loop.call_later(0.01, any_loop.stop)
    any_loop.run_forever()
    assert seen == ["a", "b"]


def test_threadsafe_and_plain_calls_share_one_order(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    seen: list[int] = []
    for number in range(20):
        if number % 2:
            any_loop.call_soon(seen.append, number)
        else:
            any_loop.call_soon_threadsafe(seen.append, number)
    one_pass(any_loop)
    one_pass(any_loop)
    assert seen == list(range(20))


def test_threadsafe_in_the_loop_thread_runs_in_the_next_pass(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    seen: list[str] = []

    def first() -> None:
        any_loop.call_soon_threadsafe(seen.append, "safe")
        any_loop.call_soon(seen.append, "plain")
        any_loop.stop()

    any_loop.call_soon(first)
    any_loop.run_forever()
    assert seen == []
    one_pass(any_loop)
    assert seen == ["safe", "plain"]


def test_what_a_handler_schedules_runs_in_the_same_pass(loop: Any) -> None:
    seen: list[str] = []
    reader, writer = os.pipe()

    def readable() -> None:
        loop.remove_reader(reader)
        loop.call_soon(seen.append, "scheduled")
        loop.stop()

    try:
        os.write(writer, b"x")
        loop.add_reader(reader, readable)
        loop.run_forever()
    finally:
        os.close(reader)
        os.close(writer)
    assert seen == ["scheduled"]


def test_what_a_bottom_half_schedules_runs_in_the_same_pass(loop: Any) -> None:
    seen: list[str] = []

    def bottom_half(_opaque: object) -> None:
        loop.call_soon(seen.append, "scheduled")
        loop.stop()

    half = loop.context.bh_new(bottom_half)
    half.schedule()
    loop.run_forever()
    half.delete()
    assert seen == ["scheduled"]


def test_a_pass_serves_bottom_halves_fds_timers_then_callbacks(loop: Any) -> None:
    seen: list[str] = []
    reader, writer = os.pipe()
    half = loop.context.bh_new(lambda _opaque: seen.append("bottom half"))

    def arrange() -> None:
        os.write(writer, b"x")
        loop.add_reader(reader, readable)
        loop.call_soon(seen.append, "callback")
        loop.call_later(0, seen.append, "timer")
        half.schedule()

    def readable() -> None:
        loop.remove_reader(reader)
        seen.append("fd")
        loop.call_soon(loop.stop)

    try:
        loop.call_soon(arrange)
        loop.run_forever()
    finally:
        half.delete()
        os.close(reader)
        os.close(writer)
    assert sorted(seen) == ["bottom half", "callback", "fd", "timer"]
    assert seen.index("bottom half") < seen.index("fd")
    assert seen.index("callback") < seen.index("timer")
    assert seen.index("bottom half") < seen.index("callback")


def test_a_cancelled_callback_does_not_run(any_loop: asyncio.AbstractEventLoop) -> None:
    seen: list[str] = []
    first = any_loop.call_soon(seen.append, "first")
    second = any_loop.call_soon_threadsafe(seen.append, "second")
    any_loop.call_soon(seen.append, "third")
    first.cancel()
    second.cancel()
    assert first.cancelled()
    assert second.cancelled()
    one_pass(any_loop)
    assert seen == ["third"]


def test_a_callback_can_cancel_one_of_the_same_pass(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    seen: list[str] = []
    handles: list[asyncio.Handle] = []
    any_loop.call_soon(lambda: handles[0].cancel())
    handles.append(any_loop.call_soon(seen.append, "cancelled"))
    one_pass(any_loop)
    assert seen == []


def test_cancel_releases_the_callback_at_once(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    class Payload:
        def __call__(self, *_args: object) -> None:
            raise AssertionError("cancelled")

    callback, argument = Payload(), Payload()
    alive = [weakref.ref(callback), weakref.ref(argument)]
    handle = any_loop.call_soon(callback, argument)
    handle.cancel()
    handle.cancel()
    del callback, argument
    gc.collect()
    assert [ref() for ref in alive] == [None, None]
    one_pass(any_loop)


@pytest.mark.parametrize("way", ["run", "closed"])
def test_a_kept_handle_is_seen_by_the_collector(
    any_loop: asyncio.AbstractEventLoop, way: str
) -> None:
    """Queued handles are left out of its work; afterwards they may be in a cycle."""

    class Owner:
        handle: asyncio.Handle

        def call(self) -> None:
            """Do nothing."""

    loop = new_like(any_loop)
    owner = Owner()
    owner.handle = loop.call_soon(owner.call)
    alive = weakref.ref(owner)
    del owner
    gc.collect()
    assert alive() is not None, "the queue has it"
    if way == "run":
        one_pass(loop)
    loop.close()
    gc.collect()
    assert alive() is None


def _collect_after(call: Callable[[], object]) -> None:
    call()
    gc.collect()


def test_a_dropped_loop_goes_with_what_is_queued(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    class Callback:
        def __call__(self) -> None:
            """Do nothing."""

    alive = []

    def drop() -> None:
        loop, callback = new_like(any_loop), Callback()
        alive.append(weakref.ref(callback))
        loop.call_soon(callback)
        loop.call_soon(loop.stop)

    with pytest.warns(ResourceWarning):
        _collect_after(drop)
    assert alive[0]() is None


def test_handles_are_asyncio_handles(any_loop: asyncio.AbstractEventLoop) -> None:
    soon = any_loop.call_soon(print)
    later = any_loop.call_later(1, print)
    assert isinstance(soon, asyncio.Handle)
    assert isinstance(later, asyncio.TimerHandle)
    assert not isinstance(soon, asyncio.TimerHandle)
    assert "print" in repr(soon)
    soon.cancel()
    later.cancel()
    assert "cancelled" in repr(soon)
    assert "cancelled" in repr(later)


def test_callbacks_run_in_a_copy_of_the_context(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    seen: list[str] = []

    def callback() -> None:
        seen.append(VAR.get())
        VAR.set("inner")

    def outer() -> None:
        VAR.set("set before")
        any_loop.call_soon(callback)
        any_loop.call_soon_threadsafe(callback)
        any_loop.call_later(0, callback)
        VAR.set("set after")

    contextvars.copy_context().run(outer)
    one_pass(any_loop)
    one_pass(any_loop)
    # Each had the context of its call; what the first two set is seen by none.
    assert seen == ["set before"] * 3
    assert VAR.get() == "outer"


def test_a_context_given_is_the_one_entered(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    context = contextvars.copy_context()
    any_loop.call_soon(VAR.set, "one", context=context)
    one_pass(any_loop)
    assert context[VAR] == "one"
    any_loop.call_soon_threadsafe(VAR.set, "two", context=context)
    one_pass(any_loop)
    assert context[VAR] == "two"
    handle = any_loop.call_later(0, VAR.set, "three", context=context)
    one_pass(any_loop)
    assert context[VAR] == "three"
    if sys.version_info >= (3, 12):
        assert handle.get_context() is context


@pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe"])
def test_names_of_arguments_are_compared_by_value(
    any_loop: asyncio.AbstractEventLoop, method: str
) -> None:
    """Tasks and futures pass a string of their own, which equals any other."""
    context = contextvars.copy_context()
    call = getattr(any_loop, method)
    for name in ("con", "context_", "kontext"):
        with pytest.raises(TypeError):
            call(VAR.set, "never", **{name: context})
    for value in ("one", "two"):
        call(VAR.set, value, **{"".join(["con", "text"]): context})
        one_pass(any_loop)
        assert context[VAR] == value
    with pytest.raises(TypeError):
        call(VAR.set, "never", context=context, name="both")
    with pytest.raises(TypeError):
        call(context=context)
    one_pass(any_loop)
    assert context[VAR] == "two"


def test_a_closed_loop_refuses_calls(any_loop: asyncio.AbstractEventLoop) -> None:
    with on_loop(any_loop):
        pass
    for call in (any_loop.call_soon, any_loop.call_soon_threadsafe):
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            call(print)
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        any_loop.call_later(1, print)
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        any_loop.call_at(1, print)


def test_debug_mode_refuses_what_is_no_callback(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    async def coroutine() -> None:
        pass

    any_loop.set_debug(True)
    with pytest.raises(TypeError, match=r"coroutines cannot be used with call_soon\("):
        any_loop.call_soon(coroutine)
    with pytest.raises(TypeError, match="a callable object was expected by call_soon"):
        any_loop.call_soon(7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a callable object was expected by call_at"):
        any_loop.call_later(1, None)  # type: ignore[arg-type]


def test_call_soon_takes_its_context_by_any_string_of_that_name(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    name = "".join(["con", "text"])  # equal to the one in code, but another object
    context = contextvars.copy_context()
    context.run(VAR.set, "inner")
    seen: list[Any] = []
    any_loop.call_soon(lambda: seen.append(VAR.get()), **{name: context})
    any_loop.call_soon(lambda *args: seen.append(args), 1, 2, 3, 4, **{name: context})
    one_pass(any_loop)
    assert seen == ["inner", (1, 2, 3, 4)]


@pytest.mark.parametrize(
    "args, options", [((), {}), ((print,), {"other": 1}), ((), {"context": None})]
)
def test_call_soon_refuses_what_it_does_not_know(
    any_loop: asyncio.AbstractEventLoop, args: Any, options: Any
) -> None:
    with pytest.raises(TypeError, match=r"call_soon\(\)"):
        any_loop.call_soon(*args, **options)


def test_a_task_belongs_to_the_loop_that_makes_it(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    async def nothing() -> None:
        pass

    early = any_loop.create_task(nothing())  # no loop runs yet

    async def main() -> None:
        late = any_loop.create_task(nothing())
        named = any_loop.create_task(coro=nothing(), name="so called")
        assert named.get_name() == "so called"
        for task in (early, late, named):
            assert task.get_loop() is any_loop
            assert await task is None

    any_loop.run_until_complete(main())
    other = asyncio.new_event_loop()
    try:

        async def elsewhere() -> asyncio.Task[None]:
            return any_loop.create_task(nothing())

        task = other.run_until_complete(elsewhere())
        assert task.get_loop() is any_loop
    finally:
        other.close()
    any_loop.run_until_complete(task)


def test_create_task_refuses_what_is_no_coroutine(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    async def main() -> None:
        for wrong in (None, 5, print):
            with pytest.raises(TypeError, match="a coroutine was expected"):
                any_loop.create_task(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            any_loop.create_task()  # type: ignore[call-arg]

    any_loop.run_until_complete(main())
    any_loop.close()
    idle = asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="closed"):
        any_loop.create_task(idle)
    idle.close()
