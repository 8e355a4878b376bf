"""Rules of the loop's own executor: its threads, what it keeps, what comes back.

The stock loop's, a ThreadPoolExecutor, is the control: programs must not see a
difference.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from .helpers import collect_reports, eventually, is_ours, skip_control

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.asyncio

THREADS = min(32, (getattr(os, "process_cpu_count", os.cpu_count)() or 1) + 4)


class Thing:
    """Something that weak references can point to."""

    def give(self, value: Any = None) -> Any:
        """Hand the argument back."""
        return value


async def _occupy(number: int = THREADS) -> threading.Event:
    """Have that many threads at work until the event is set."""
    loop = asyncio.get_running_loop()
    release, begun = threading.Event(), threading.Semaphore(0)

    def hold() -> None:
        begun.release()
        release.wait(10)

    for _ in range(number):
        loop.run_in_executor(None, hold)
    await eventually(lambda: begun._value == number)  # type: ignore[attr-defined]
    return release


def _own_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("asyncio_")]


async def test_threads_are_named_known_and_not_daemons() -> None:
    loop = asyncio.get_running_loop()
    thread = await loop.run_in_executor(None, threading.current_thread)
    assert type(thread) is threading.Thread
    assert thread.name == "asyncio_0"
    assert thread in threading.enumerate()
    assert not thread.daemon
    release = await _occupy(3)
    assert {t.name for t in _own_threads()} >= {"asyncio_0", "asyncio_1", "asyncio_2"}
    release.set()


async def test_a_daemon_threads_loop_has_daemons() -> None:
    # As threading has it: whoever starts a thread passes this on.
    kind = type(asyncio.get_running_loop())
    seen: list[bool] = []

    def run() -> None:
        loop = kind()
        seen.append(
            loop.run_until_complete(
                loop.run_in_executor(None, lambda: threading.current_thread().daemon)
            )
        )
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    await eventually(lambda: not thread.is_alive())
    assert seen == [True]


async def test_one_call_after_the_other_takes_one_thread() -> None:
    skip_control("may find its thread not idle yet")
    loop = asyncio.get_running_loop()
    for _ in range(50):
        await loop.run_in_executor(None, int)
    assert len(_own_threads()) == 1


async def test_there_are_as_many_threads_as_the_stock_executor_has() -> None:
    release = await _occupy()
    late = asyncio.get_running_loop().run_in_executor(None, int)
    await asyncio.sleep(0.02)
    assert not late.done()
    assert len(_own_threads()) == THREADS
    release.set()
    assert await late == 0


async def test_calls_that_wait_run_side_by_side() -> None:
    # The first to come must not keep the rest from threads of their own.
    loop = asyncio.get_running_loop()
    release = await _occupy()
    release.set()
    for _ in range(5):
        barrier = threading.Barrier(THREADS)
        numbers = await asyncio.gather(
            *(loop.run_in_executor(None, barrier.wait, 5) for _ in range(THREADS))
        )
        assert sorted(numbers) == list(range(THREADS))


async def test_thread_locals_stay_with_the_thread() -> None:
    loop = asyncio.get_running_loop()
    local = threading.local()
    await loop.run_in_executor(None, setattr, local, "value", 3)
    found = [
        await loop.run_in_executor(None, getattr, local, "value", None)
        for _ in range(2 * THREADS)
    ]
    assert 3 in found
    assert not hasattr(local, "value")


async def test_traces_and_profiles_see_what_is_called() -> None:
    loop = asyncio.get_running_loop()
    seen: set[tuple[str, str]] = set()

    def called() -> None:
        pass

    def trace(frame: Any, event: str, _arg: Any) -> None:
        seen.add((event, frame.f_code.co_name))

    threading.settrace(trace)
    threading.setprofile(trace)
    try:
        await loop.run_in_executor(None, called)  # makes the thread
    finally:
        threading.settrace(None)  # type: ignore[arg-type]
        threading.setprofile(None)
    assert {("call", "called"), ("return", "called")} <= seen


EXCEPTIONS: list[Callable[[], BaseException]] = [
    lambda: ValueError("value"),
    lambda: KeyboardInterrupt("interrupt"),
    lambda: SystemExit(3),
    lambda: GeneratorExit("generator"),
    lambda: asyncio.CancelledError("asyncio"),
    lambda: concurrent.futures.CancelledError("concurrent"),
    lambda: concurrent.futures.InvalidStateError("state"),
    lambda: asyncio.InvalidStateError("state"),
    lambda: TimeoutError("time"),
    lambda: concurrent.futures.TimeoutError("time"),
    lambda: ExceptionGroup("group", [ValueError(1)]),
    lambda: StopAsyncIteration("iteration"),
]


@pytest.mark.parametrize("number", range(len(EXCEPTIONS)))
async def test_what_is_raised_arrives_as_from_a_stock_executor(number: int) -> None:
    loop = asyncio.get_running_loop()

    def fail() -> None:
        raise EXCEPTIONS[number]()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        outcomes = []
        for executor in (pool, None):
            future = loop.run_in_executor(executor, fail)
            await asyncio.wait([future])
            assert not future.cancelled()
            outcomes.append(future.exception())
        stock, ours = outcomes
        assert type(ours) is type(stock)
        assert repr(ours) == repr(stock)
        # Where it was raised can be seen, if the stock loop lets it be seen.
        assert ours is not None
        assert stock is not None
        assert (ours.__traceback__ is None) == (stock.__traceback__ is None)


async def test_a_stop_iteration_arrives_as_from_a_stock_executor() -> None:
    loop = asyncio.get_running_loop()
    reports = collect_reports(loop)

    def stop() -> None:
        raise StopIteration("over")

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        futures = [loop.run_in_executor(executor, stop) for executor in (pool, None)]
        await asyncio.wait(futures, timeout=0.1)
    if futures[0].done():
        errors = [future.exception() for future in futures]
        assert [type(error) for error in errors] == [RuntimeError] * 2
        assert [repr(e.__cause__) for e in errors if e] == ["StopIteration('over')"] * 2
        assert reports == []
    else:
        # No future of older Pythons takes one: it is reported, and nobody is told.
        assert not futures[1].done()
        assert [type(report["exception"]) for report in reports] == [TypeError] * 2
        assert sys.version_info < (3, 13)


async def test_what_is_cancelled_before_it_began_is_not_called() -> None:
    loop = asyncio.get_running_loop()
    ran: list[int] = []
    release = await _occupy()
    waiting = [loop.run_in_executor(None, ran.append, n) for n in range(6)]
    for future in waiting[::2]:
        assert future.cancel()
    await asyncio.wait(waiting[::2])
    await asyncio.sleep(0)
    release.set()
    await asyncio.wait(waiting)
    assert sorted(ran) == [1, 3, 5]
    assert [future.cancelled() for future in waiting] == [True, False] * 3


async def test_what_is_cancelled_later_is_dropped() -> None:
    loop = asyncio.get_running_loop()
    reports = collect_reports(loop)
    begun, release = threading.Event(), threading.Event()
    ended = threading.Semaphore(0)

    def work(fail: bool) -> Thing:
        begun.set()
        release.wait(10)
        ended.release()
        if fail:
            raise ValueError("nobody wants to know")
        return Thing()

    for fail in (False, True):
        begun.clear()
        release.clear()
        future = loop.run_in_executor(None, work, fail)
        await eventually(begun.is_set)
        future.cancel()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await future
        await eventually(lambda: ended.acquire(blocking=False))
        await asyncio.sleep(0.01)
    assert reports == []


async def test_a_future_that_was_ended_elsewhere_is_reported() -> None:
    loop = asyncio.get_running_loop()
    reports = collect_reports(loop)
    begun, release = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        release.wait(10)

    future: asyncio.Future[Any] = loop.run_in_executor(None, work)
    await eventually(begun.is_set)
    future.set_result("mine")
    release.set()
    await eventually(lambda: reports)
    assert future.result() == "mine"


@pytest.mark.parametrize("fail", [False, True])
async def test_nothing_of_a_call_is_kept(fail: bool) -> None:
    loop = asyncio.get_running_loop()
    thing, argument = Thing(), Thing()
    refs = [weakref.ref(thing), weakref.ref(argument)]

    def work(it: Thing) -> Thing:
        if fail:
            raise ValueError(it)
        return it

    refs.append(weakref.ref(work))
    gc.collect()
    gc.disable()  # no cycles: all goes at once
    try:
        assert await loop.run_in_executor(None, thing.give, 5) == 5
        if fail:
            with pytest.raises(ValueError, match="Thing"):
                await loop.run_in_executor(None, work, argument)
        else:
            assert await loop.run_in_executor(None, work, argument) is argument
    finally:
        gc.enable()
    del thing, argument, work
    if fail:
        gc.collect()  # pytest's own holds the traceback, in a cycle
    await eventually(lambda: [ref() for ref in refs] == [None] * 3, 2)


async def test_a_cancelled_call_is_not_kept_after_its_turn() -> None:
    loop = asyncio.get_running_loop()
    release = await _occupy()
    thing = Thing()
    ref = weakref.ref(thing)
    future = loop.run_in_executor(None, thing.give)
    future.cancel()
    del thing, future
    await asyncio.sleep(0.001)
    release.set()
    await eventually(lambda: ref() is None, 2)


async def test_callbacks_of_a_call_come_before_its_result() -> None:
    loop = asyncio.get_running_loop()
    for _ in range(200):
        order: list[str] = []

        def work(order: list[str] = order) -> None:
            loop.call_soon_threadsafe(order.append, "one")
            loop.call_soon_threadsafe(order.append, "two")

        future = loop.run_in_executor(None, work)
        future.add_done_callback(lambda _f, order=order: order.append("result"))
        await future
        await asyncio.sleep(0)
        assert order == ["one", "two", "result"]


async def test_ten_thousand_calls_in_flight() -> None:
    loop = asyncio.get_running_loop()
    numbers = range(10_000)
    found = await asyncio.gather(
        *(loop.run_in_executor(None, divmod, n, 7) for n in numbers)
    )
    assert found == [divmod(n, 7) for n in numbers]
    assert len(_own_threads()) <= THREADS


async def test_a_stream_of_builtins_does_not_keep_the_loop_out() -> None:
    # They run no Python code, where a thread would be asked for the GIL.
    skip_control("may get no turn before the last of them has ended")
    loop = asyncio.get_running_loop()
    go = await _occupy()
    ended = bytearray()  # a byte for each, found among many zeroes
    zeroes = bytes(10_000) + b"!"
    calls = [
        loop.run_in_executor(None, ended.extend, filter(None, zeroes))
        for _ in range(10_000)
    ]
    turns = {len(ended)}
    go.set()
    while not all(call.done() for call in calls[-100:]):
        await asyncio.sleep(0.001)
        turns.add(len(ended))
    await asyncio.gather(*calls)
    assert len(ended) == len(calls)
    # Turns are counted, not timed: a machine that is slow is so for all threads.
    assert len(turns) > 3


async def test_threads_post_while_calls_end() -> None:
    skip_control("has a result at once if the thread was very quick")
    loop = asyncio.get_running_loop()
    posted: list[int] = []

    def post(number: int) -> int:
        for _ in range(20):
            loop.call_soon_threadsafe(posted.append, number)
        return number

    calls = [loop.run_in_executor(None, post, n) for n in range(300)]
    for number, call in enumerate(calls):
        assert await call == number
        assert posted.count(number) == 20


async def test_calls_from_calls() -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(False)  # it is not what the documentation allows

    def again(depth: int) -> asyncio.Future[Any] | int:
        return loop.run_in_executor(None, again, depth - 1) if depth else 7

    found: Any = 5
    found = again(found)
    while asyncio.isfuture(found):
        found = await asyncio.wait_for(found, 5)
    assert found == 7


async def test_debug_mode_works_and_reports_no_slow_call() -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    assert await loop.run_in_executor(None, pow, 2, 10) == 1024
    with pytest.raises(ZeroDivisionError):
        await loop.run_in_executor(None, divmod, 1, 0)


async def test_a_loop_that_overrides_call_soon_threadsafe_is_asked() -> None:
    skip_control("does without it if the thread was very quick")
    loop = asyncio.get_running_loop()
    asked: list[Any] = []
    stock = loop.call_soon_threadsafe

    def instead(callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        asked.append(callback)
        return stock(callback, *args, context=context)

    loop.call_soon_threadsafe = instead  # type: ignore[method-assign, assignment]
    try:
        assert await loop.run_in_executor(None, int) == 0
    finally:
        del loop.call_soon_threadsafe  # type: ignore[method-assign]
    assert len(asked) == 1


async def test_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    skip_control("raises, but makes the call all the same when it can")
    loop = asyncio.get_running_loop()
    ran: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            loop.run_in_executor(None, ran.append, "refused")
    await loop.run_in_executor(None, ran.append, "first")
    release = await _occupy(1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _refuse)
        waits = loop.run_in_executor(None, ran.append, "second")
    release.set()
    await waits
    assert ran == ["first", "second"]


def _refuse(_thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


async def test_an_interrupt_while_a_thread_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loop.run_in_executor(None, int)
    for _ in range(5):
        assert await loop.run_in_executor(None, int) == 0
    if is_ours(loop):
        assert len(_own_threads()) == 1
