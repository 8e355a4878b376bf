"""Callbacks share copies of the context, and none may see that it was another's.

Each rule of asyncio's, one copy for each callback, is tried on the stock loop too; the
rest says how long a value may be kept alive by the copies that are shared.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import threading
import time
import weakref
from typing import Any

import pytest
from support.procs import run_script

from .helpers import (
    NEW_LOOP,
    collect_reports,
    is_ours,
    kind_of,
    new_like,
    on_loop,
    one_pass,
)

VAR: contextvars.ContextVar[Any] = contextvars.ContextVar("VAR", default="unset")
OTHER: contextvars.ContextVar[Any] = contextvars.ContextVar("OTHER", default="unset")


class Value:
    """Something that can be seen to be gone."""


def _schedule(loop: Any, way: str, callback: Any, *args: Any) -> asyncio.Handle:
    if way == "soon":
        return loop.call_soon(callback, *args)
    if way == "timer":
        return loop.call_at(0, callback, *args)
    return loop.call_soon_threadsafe(callback, *args)


WAYS = pytest.mark.parametrize("way", ["soon", "timer", "threadsafe"])


def _passes(loop: Any, count: int = 3) -> None:
    for _ in range(count):
        one_pass(loop)


@WAYS
def test_what_one_sets_no_other_sees(any_loop: Any, way: str) -> None:
    seen = []

    def step(number: int) -> None:
        seen.append((VAR.get(), OTHER.get()))
        if number % 2:
            VAR.set(number)
        if number % 3 == 0:
            OTHER.set(number)

    for number in range(20):
        _schedule(any_loop, way, step, number)
    _passes(any_loop)
    assert seen == [("unset", "unset")] * 20
    assert VAR.get() == "unset"


@WAYS
def test_what_is_set_reaches_what_is_scheduled_by_it(any_loop: Any, way: str) -> None:
    seen = []

    def parent(number: int) -> None:
        _schedule(any_loop, way, child, "before", number)
        VAR.set(number)
        _schedule(any_loop, way, child, "after", number)
        _schedule(any_loop, way, child, "after", number)
        OTHER.set(number)
        _schedule(any_loop, way, child, "both", number)

    def child(when: str, number: int) -> None:
        seen.append((when, number, VAR.get(), OTHER.get()))
        VAR.set("mine")

    for number in range(3):
        _schedule(any_loop, way, parent, number)
    _passes(any_loop, 4)
    expected = []
    for number in range(3):
        expected += [
            ("before", number, "unset", "unset"),
            ("after", number, number, "unset"),
            ("after", number, number, "unset"),
            ("both", number, number, number),
        ]
    # The stock loop sorts nothing but the time of timers.
    assert sorted(seen, key=str) == sorted(expected, key=str)


def test_callbacks_scheduled_between_different_values(any_loop: Any) -> None:
    seen: list[Any] = []
    expected = []

    def schedule() -> None:
        for number in range(30):
            token = VAR.set(number // 2 % 3)
            any_loop.call_soon(lambda: seen.append(VAR.get()))
            expected.append(number // 2 % 3)
            if number % 5 == 0:
                VAR.reset(token)
                any_loop.call_soon(lambda: seen.append(VAR.get()))
                expected.append(VAR.get())

    contextvars.copy_context().run(schedule)
    one_pass(any_loop)
    assert seen == expected


def test_a_value_set_and_reset_is_as_if_never_set(any_loop: Any) -> None:
    seen = []

    def step() -> None:
        token = VAR.set(1)
        seen.append(VAR.get())
        VAR.reset(token)
        seen.append(VAR.get())

    for _ in range(5):
        any_loop.call_soon(step)
    one_pass(any_loop)
    assert seen == [1, "unset"] * 5


@pytest.mark.parametrize("first", [None, 5], ids=["unset", "set"])
def test_a_token_is_of_one_callback(any_loop: Any, first: int | None) -> None:
    # With the same value set before there and here, nothing but the context differs.
    outcomes: list[str] = []
    tokens: list[contextvars.Token[Any]] = []

    def setting() -> None:
        tokens.append(VAR.set(first))
        VAR.set(first)

    def using() -> None:
        VAR.set(first)
        try:
            VAR.reset(tokens.pop())
        except ValueError:
            outcomes.append("another context")
        else:
            outcomes.append("the same context")

    def outer() -> None:
        if first is not None:
            VAR.set(first)
        for _ in range(3):
            any_loop.call_soon(setting)
            any_loop.call_soon(using)
        any_loop.call_soon(lambda: None)

    any_loop.call_soon(outer)
    _passes(any_loop)
    assert outcomes == ["another context"] * 3


def test_a_token_that_sets_nothing_new_outlives_its_callback(any_loop: Any) -> None:
    # VAR.set() of the value that is there leaves the variables equal, but the token
    # knows its context, which must not be entered for others any more.
    tokens: list[contextvars.Token[Any]] = []
    outcomes = []

    def using() -> None:
        try:
            VAR.reset(tokens[-1])
        except ValueError:
            outcomes.append("another context")
        except RuntimeError:
            outcomes.append("used")
        else:
            outcomes.append("the same context")

    def setting() -> None:
        tokens.append(VAR.set("same"))

    def schedule() -> None:
        VAR.set("same")
        for _ in range(3):
            any_loop.call_soon(setting)
            any_loop.call_soon(using)

    contextvars.copy_context().run(schedule)
    one_pass(any_loop)
    assert outcomes == ["another context"] * 3


def test_a_context_that_is_kept_is_not_entered_again(any_loop: Any) -> None:
    kept: list[contextvars.Context] = []

    def keep(handle: list[asyncio.Handle]) -> None:
        if hasattr(handle[0], "get_context"):
            kept.append(handle[0].get_context())
        else:
            kept.append(handle[0]._context)  # type: ignore[attr-defined]

    def setting() -> None:
        VAR.set("set later")

    for _ in range(4):
        own: list[asyncio.Handle] = []
        own.append(any_loop.call_soon(keep, own))
        any_loop.call_soon(setting)
    one_pass(any_loop)
    assert len({id(context) for context in kept}) == 4
    assert [list(context) for context in kept] == [list(contextvars.copy_context())] * 4
    for number, context in enumerate(kept):
        context.run(VAR.set, number)
    any_loop.call_soon(kept.append, None)
    one_pass(any_loop)
    assert [context[VAR] for context in kept[:4]] == list(range(4))


@pytest.mark.parametrize("when", ["before", "during", "after"])
@pytest.mark.parametrize("timer", [False, True])
def test_who_asks_for_a_context_gets_the_callbacks_own(
    any_loop: Any, when: str, timer: bool
) -> None:
    got: list[contextvars.Context] = []
    handles: list[Any] = []

    def ask(handle: Any) -> None:
        got.append(handle._context)

    def step(number: int) -> None:
        if when == "during":
            ask(handles[number])
        VAR.set(number)
        OTHER.set("also")

    for number in range(3):
        if timer:
            handle = any_loop.call_at(0, step, number)
        else:
            handle = any_loop.call_soon(step, number)
        handles.append(handle)
        if when == "before":
            ask(handle)
            handle._context.run(OTHER.set, "told")
    _passes(any_loop)
    if when == "after":
        for handle in handles:
            ask(handle)
    assert [context[VAR] for context in got] == [0, 1, 2]
    assert [context[OTHER] for context in got] == ["also"] * 3
    for handle, context in zip(handles, got, strict=True):
        assert handle._context is context
    assert VAR.get() == "unset"


def test_what_is_told_to_a_waiting_callbacks_context_reaches_it_alone(
    any_loop: Any,
) -> None:
    seen: list[Any] = []
    handles = [
        any_loop.call_soon(lambda: seen.append(VAR.get())),
        any_loop.call_soon(lambda: seen.append(VAR.get())),
        any_loop.call_soon(lambda: seen.append(VAR.get())),
    ]
    handles[1]._context.run(VAR.set, "told")
    one_pass(any_loop)
    assert seen == ["unset", "told", "unset"]


@pytest.mark.parametrize("count", [1, 4])
def test_a_token_is_of_the_handles_context(any_loop: Any, count: int) -> None:
    # That VAR says what it said leaves no trace but the token's reference.
    tokens: list[contextvars.Token[Any]] = []
    handles: list[Any] = []

    def schedule() -> None:
        VAR.set("same")
        handles.extend(any_loop.call_soon(setting) for _ in range(count))

    def setting() -> None:
        tokens.append(VAR.set("same"))

    contextvars.copy_context().run(schedule)
    one_pass(any_loop)
    for handle, token in zip(handles, tokens, strict=True):
        handle._context.run(VAR.reset, token)
        assert handle._context[VAR] == "same"


def test_what_a_callback_returns_goes_when_its_context_was_left(any_loop: Any) -> None:
    seen: list[Any] = []
    handles: list[Any] = []

    class Result:
        def __del__(self) -> None:
            seen.append(VAR.get())
            seen.append(handles[-1]._context[VAR])

    def step(number: int) -> Result:
        VAR.set(number)
        return Result()

    def plain() -> Plain:
        return Plain()

    class Plain:
        def __del__(self) -> None:
            seen.append(VAR in handles[-1]._context)

    for number in range(3):
        handles.append(any_loop.call_soon(step, number))
        one_pass(any_loop)
        handles.append(any_loop.call_soon(plain))
        one_pass(any_loop)
    assert seen == ["unset", 0, False, "unset", 1, False, "unset", 2, False]


@pytest.mark.skipif(sys.version_info < (3, 14), reason="cancel() does not wait")
@pytest.mark.parametrize("fails", [False, True])
def test_who_waits_for_the_end_may_ask_for_the_context(loop: Any, fails: bool) -> None:
    # cancel() of another thread returns while the callback is being left.
    reports = collect_reports(loop)
    wrong: list[str] = []
    inside = threading.Event()
    passed = 0

    def step() -> None:
        inside.set()
        time.sleep(0.0005)
        if fails:
            raise ValueError

    def other() -> None:
        nonlocal passed
        while passed < 100:
            inside.clear()
            handle: Any = loop.call_soon_threadsafe(step)
            inside.wait()
            handle.cancel()
            if VAR in handle._context:
                wrong.append("set")
            handle._context.run(VAR.set, passed)
            passed += 1
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=other)
    thread.start()
    loop.run_forever()
    thread.join()
    assert wrong == []
    assert {str(type(one["exception"])) for one in reports} <= {str(ValueError)}


def test_the_collector_may_ask_for_contexts_at_any_time(any_loop: Any) -> None:
    # Until 3.11 it runs where a context is allocated.
    handles: list[Any] = []
    seen: list[Any] = []

    class Cycle:
        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            contexts.extend(handle._context for handle in handles[-6:])

    contexts: list[contextvars.Context] = []

    def step(number: int) -> None:
        Cycle()
        seen.append(VAR.get())
        if number % 4 == 1:
            VAR.set(number)
        handles.append(any_loop.call_soon(int))
        if number:
            handles.append(any_loop.call_soon(step, number - 1))
            handles.append(any_loop.call_later(0, int))

    thresholds = gc.get_threshold()
    for threshold in range(1, 6):
        gc.set_threshold(threshold)
        try:
            handles.append(any_loop.call_soon(step, 60))
            _passes(any_loop, 70)
        finally:
            gc.set_threshold(*thresholds)
    expected: list[Any] = []
    value: Any = "unset"
    for number in reversed(range(61)):
        expected.append(value)
        value = number if number % 4 == 1 else value
    assert seen == expected * 5
    assert len({id(handle._context) for handle in handles}) == len(handles)


def test_a_cancelled_callback_has_a_context(any_loop: Any) -> None:
    handle = any_loop.call_soon(print)
    later = any_loop.call_later(60, print)
    for one in (handle, later):
        one.cancel()
        assert isinstance(one._context, contextvars.Context)
        assert one._context is one._context
    one_pass(any_loop)


def test_reports_are_made_in_the_context_of_what_failed(any_loop: Any) -> None:
    reports = []

    def handler(_loop: Any, context: dict[str, Any]) -> None:
        reports.append((str(context["exception"]), VAR.get()))
        if sys.version_info >= (3, 12):  # it is in the handle's context since then
            VAR.set("of the handler")
        seen.append(context["handle"]._context[OTHER])

    seen: list[Any] = []

    def fail(number: int) -> None:
        VAR.set(number)
        OTHER.set(number)
        raise ValueError(number)

    def fail_without(number: int) -> None:
        OTHER.set(number)
        raise ValueError(number)

    any_loop.set_exception_handler(handler)
    for number in range(3):
        any_loop.call_soon(fail, number)
        any_loop.call_soon(lambda: seen.append((VAR.get(), OTHER.get())))
    any_loop.call_soon(fail_without, 3)
    one_pass(any_loop)
    handled = [0, ("unset", "unset"), 1, ("unset", "unset"), 2, ("unset", "unset"), 3]
    assert seen == handled
    assert [message for message, _ in reports] == ["0", "1", "2", "3"]
    if sys.version_info >= (3, 12):
        assert [value for _, value in reports] == [0, 1, 2, "unset"]
    assert VAR.get() == "unset"


def test_a_failing_callback_that_sets_nothing_has_a_context_of_its_own(
    any_loop: Any,
) -> None:
    reports = collect_reports(any_loop)
    contexts = []

    def fail() -> None:
        raise ValueError

    for _ in range(3):
        any_loop.call_soon(fail)
    one_pass(any_loop)
    for report in reports:
        context = report["handle"]._context
        contexts.append(context)
        assert VAR not in context
        context.run(VAR.set, 1)
    assert len({id(context) for context in contexts}) == 3
    any_loop.call_soon(lambda: contexts.append(VAR.get()))
    one_pass(any_loop)
    assert contexts[-1] == "unset"


def test_a_handle_run_by_hand_is_in_one_context_each_time(any_loop: Any) -> None:
    seen = []

    def step() -> None:
        seen.append(VAR.get())
        VAR.set(len(seen))

    handle: Any = any_loop.call_soon(step)
    handle._run()
    handle._run()
    one_pass(any_loop)
    assert seen == ["unset", 1, 2]
    assert handle._context[VAR] == 3


def test_one_runs_while_another_is_inside(any_loop: Any) -> None:
    # A callback that runs a second handle by hand, as nest_asyncio does.
    seen: list[Any] = []

    def inner(number: int) -> None:
        seen.append((number, VAR.get()))
        VAR.set(number)

    def outer() -> None:
        for number in range(3):
            inside: Any = any_loop.call_soon(inner, number)
            inside._run()
            inside.cancel()
        VAR.set("outer")
        inside = any_loop.call_soon(inner, 3)
        inside._run()
        inside.cancel()
        seen.append(VAR.get())

    any_loop.call_soon(outer)
    any_loop.call_soon(inner, 4)
    _passes(any_loop)
    assert seen == [
        (0, "unset"),
        (1, "unset"),
        (2, "unset"),
        (3, "outer"),
        "outer",
        (4, "unset"),
    ]


def test_a_nested_poll_is_in_the_context_of_its_callback(loop: Any) -> None:
    seen: list[Any] = []

    def half(_opaque: object) -> None:
        seen.append(("half", VAR.get()))
        VAR.set("half")

    half_of_outer = loop.context.bh_new(half)

    def outer() -> None:
        half_of_outer.schedule()
        loop.context.poll(False)
        seen.append(("outer", VAR.get()))

    for _ in range(3):
        loop.call_soon(outer)
        loop.call_soon(lambda: seen.append(("after", VAR.get())))
    one_pass(loop)
    half_of_outer.delete()
    assert seen == [("half", "unset"), ("outer", "half"), ("after", "unset")] * 3


def test_loops_of_several_threads_share_without_mixing(any_loop: Any) -> None:
    wrong: list[Any] = []

    def work(name: int) -> None:
        VAR.set(name)
        loop = new_like(any_loop)
        with on_loop(loop):
            left = 3000

            def step(kind: int) -> None:
                nonlocal left
                if VAR.get() != name or OTHER.get() != "unset":
                    wrong.append((name, VAR.get(), OTHER.get()))
                if kind == 1:
                    OTHER.set(name)
                elif kind == 2:
                    VAR.set(-name)
                left -= 1
                if left == 0:
                    loop.stop()

            for number in range(left):
                loop.call_soon(step, number % 3)
            loop.run_forever()

    threads = [threading.Thread(target=work, args=(name,)) for name in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert wrong == []


def test_callbacks_from_other_threads_have_those_threads_variables(
    any_loop: Any,
) -> None:
    seen: list[tuple[int, Any]] = []
    names = range(4)

    def work(name: int) -> None:
        VAR.set(name)
        for _ in range(200):
            any_loop.call_soon_threadsafe(note, name)

    def note(name: int) -> None:
        seen.append((name, VAR.get()))
        VAR.set("mine")
        if len(seen) == 200 * len(names):
            any_loop.stop()

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    any_loop.run_forever()
    for thread in threads:
        thread.join()
    assert all(name == value for name, value in seen)


async def _at_rest() -> None:
    """Let the loop sleep at least once."""
    await asyncio.sleep(0.005)


def test_a_value_is_gone_when_the_loop_sleeps(any_loop: Any) -> None:
    value = Value()
    gone = weakref.ref(value)

    async def main() -> None:
        def start() -> None:
            nonlocal value
            VAR.set(value)
            del value
            for _ in range(3):
                any_loop.call_soon(lambda: None)

        any_loop.call_soon(start)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await _at_rest()
        await _at_rest()
        assert gone() is None

    any_loop.run_until_complete(main())


def test_a_value_is_gone_when_the_loop_stops(any_loop: Any) -> None:
    value = Value()
    gone = weakref.ref(value)

    def start() -> None:
        nonlocal value
        VAR.set(value)
        del value
        for _ in range(3):
            any_loop.call_soon(lambda: None)
        any_loop.call_soon(any_loop.stop)

    any_loop.call_soon(start)
    any_loop.run_forever()
    assert gone() is None


def test_a_value_is_gone_with_the_last_handle_while_no_loop_runs(loop: Any) -> None:
    def schedule(value: Value) -> list[asyncio.Handle]:
        VAR.set(value)
        return [loop.call_later(60, print) for _ in range(3)]

    for _ in range(2):
        value = Value()
        gone = weakref.ref(value)
        handles = contextvars.copy_context().run(schedule, value)
        del value
        for handle in handles:
            handle.cancel()
        assert gone() is not None
        del handle, handles
        assert gone() is None


def test_a_loop_in_its_own_variables_goes_with_its_callbacks(fdmon: str) -> None:
    import aioqemu

    def make() -> Any:
        loop = aioqemu.new_event_loop(fdmon=fdmon)

        def schedule() -> None:
            VAR.set(loop)
            for _ in range(3):
                loop.call_soon(print)
                loop.call_later(60, print)

        contextvars.copy_context().run(schedule)
        gone = weakref.ref(loop)
        loop.close()
        return gone

    gone = make()
    gc.collect()
    assert gone() is None


def test_the_shared_copy_is_not_what_handles_show(loop: Any) -> None:
    handles = [loop.call_soon(print) for _ in range(3)]
    shown = [handle._context for handle in handles]
    assert len({id(context) for context in shown}) == 3
    for context in shown:
        # None of them is entered, and each can be.
        assert context.run(contextvars.copy_context) == context
    for handle in handles:
        handle.cancel()
    one_pass(loop)


def test_entering_the_current_context_is_refused_as_ever(any_loop: Any) -> None:
    seen = []

    def step(own: list[Any]) -> None:
        try:
            own[0]._context.run(print)
        except RuntimeError as exc:
            seen.append("already entered" in str(exc))

    own: list[Any] = []
    own.append(any_loop.call_soon(step, own))
    one_pass(any_loop)
    assert seen == [True]


def test_an_explicit_context_is_entered_itself(any_loop: Any) -> None:
    context = contextvars.copy_context()

    def step(number: int) -> None:
        assert VAR.get() == (number or "unset")
        VAR.set(number + 1)

    for number in range(3):
        any_loop.call_soon(step, number, context=context)
        any_loop.call_soon(VAR.set, "others")
    one_pass(any_loop)
    assert context[VAR] == 3


STALE = """
import contextvars, gc, weakref
VAR = contextvars.ContextVar("VAR")
class Value: pass

loop = new_loop()
async def main():
    values = []
    for number in range(50):
        def work():
            value = Value()
            values.append(weakref.ref(value))
            VAR.set(value)
            loop.call_soon(int)
            loop.call_soon(VAR.set, Value())
        contextvars.copy_context().run(work)
        if number % 7 == 0:
            await asyncio.sleep(0.001)
        else:
            await asyncio.sleep(0)
    await asyncio.sleep(0.001)
    await asyncio.sleep(0.001)
    return sum(value() is not None for value in values)

assert loop.run_until_complete(main()) == 0
VAR.set("at the end")
loop.call_soon(int)
later = loop.call_later(60, int)
loop.close()
print("ok")
# The interpreter ends with a copy that is lent.
"""


def test_the_interpreter_ends_with_a_copy_that_is_lent(any_loop: Any) -> None:
    run_script(NEW_LOOP + STALE, kind_of(any_loop))


def test_a_finalizer_of_a_value_may_schedule(any_loop: Any) -> None:
    # Letting the copies go runs any code, which may take new ones.
    ran: list[Any] = []

    class Last:
        def __del__(self) -> None:
            any_loop.call_soon(lambda: ran.append(type(VAR.get())))

    def set_and_schedule(number: int) -> None:
        VAR.set(Last())
        any_loop.call_soon(int)
        if number:
            any_loop.call_soon(set_and_schedule, number - 1)

    async def main() -> None:
        any_loop.call_soon(set_and_schedule, 20)
        for _ in range(50):
            await asyncio.sleep(0)
        await _at_rest()
        await _at_rest()

    any_loop.run_until_complete(main())
    one_pass(any_loop)
    assert len(ran) >= (20 if is_ours(any_loop) else 10)
