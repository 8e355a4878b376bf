"""Rules of the loop's own executor as programs find it, and of its end.

With the stock loop as control; what happens at exit is looked at in processes.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from support.procs import run_script

from .helpers import (
    NEW_LOOP,
    collect_reports,
    eventually,
    is_ours,
    kind_of,
    new_like,
    one_pass,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.001)


def _call(loop: asyncio.AbstractEventLoop, func: Callable[..., Any], *args: Any) -> Any:
    return loop.run_until_complete(_called(loop, func, *args))


async def _called(loop: asyncio.AbstractEventLoop, func: Any, *args: Any) -> Any:
    return await loop.run_in_executor(None, func, *args)


def _executor(loop: asyncio.AbstractEventLoop) -> Any:
    return loop._default_executor  # type: ignore[attr-defined]


def _thread(loop: asyncio.AbstractEventLoop) -> threading.Thread:
    thread: threading.Thread = _call(loop, threading.current_thread)
    return thread


def test_there_is_none_before_it_is_needed(any_loop: asyncio.AbstractEventLoop) -> None:
    assert _executor(any_loop) is None
    any_loop.run_until_complete(any_loop.shutdown_default_executor())
    assert _executor(any_loop) is None


def test_it_is_a_thread_pool_executor(any_loop: asyncio.AbstractEventLoop) -> None:
    thread = _thread(any_loop)
    executor = _executor(any_loop)
    assert isinstance(executor, concurrent.futures.ThreadPoolExecutor)
    assert thread in executor._threads
    assert executor._work_queue.qsize() == 0
    assert executor._work_queue.empty()
    assert executor._max_workers > 4
    assert executor._thread_name_prefix == "asyncio"
    assert not executor._shutdown
    assert executor.submit(divmod, 7, 2).result(5) == (3, 1)
    assert list(executor.map(abs, [-1, 2])) == [1, 2]
    keywords = executor.submit(dict, fn=1, self=2).result(5)
    assert keywords == {"fn": 1, "self": 2}
    failed = executor.submit(divmod, 1, 0)
    assert isinstance(failed.exception(5), ZeroDivisionError)
    assert failed.running() is False
    # Handed to the loop by name it is an executor like any other.
    found = any_loop.run_in_executor(executor, threading.current_thread)
    assert any_loop.run_until_complete(found) in executor._threads
    with executor:
        pass
    assert executor._shutdown
    assert not thread.is_alive()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(print)
    with pytest.raises(RuntimeError, match="after shutdown"):
        any_loop.run_in_executor(None, print)


def test_its_size_can_be_set(any_loop: asyncio.AbstractEventLoop) -> None:
    _thread(any_loop)
    executor = _executor(any_loop)
    executor._max_workers = 2
    barrier = threading.Barrier(3)
    calls = [executor.submit(barrier.wait, 0.3) for _ in range(3)]
    assert {type(call.exception(5)) for call in calls} == {threading.BrokenBarrierError}
    if not is_ours(any_loop):
        return  # may count a thread as idle that is not
    executor._max_workers = 3
    barrier.reset()
    assert sorted(executor.map(barrier.wait, [5] * 3)) == [0, 1, 2]


def test_what_waits_can_be_cancelled_by_its_shutdown(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    ran: list[int] = []
    begun, release = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        release.wait(5)

    async def main() -> None:
        await any_loop.run_in_executor(None, int)
        executor = _executor(any_loop)
        executor._max_workers = len(executor._threads)
        holding = [any_loop.run_in_executor(None, hold) for _ in executor._threads]
        await eventually(executor._work_queue.empty)
        waiting = [any_loop.run_in_executor(None, ran.append, n) for n in range(5)]
        submitted = executor.submit(ran.append, 5)
        executor.shutdown(wait=False, cancel_futures=True)
        await asyncio.wait(waiting, timeout=5)
        assert all(future.cancelled() for future in waiting)
        assert submitted.cancelled()
        release.set()
        await asyncio.gather(*holding)
        executor.shutdown()

    any_loop.run_until_complete(main())
    assert ran == []


def test_a_submitted_call_can_be_cancelled(any_loop: asyncio.AbstractEventLoop) -> None:
    _thread(any_loop)
    executor = _executor(any_loop)
    executor._max_workers = 1
    release = threading.Event()
    ran: list[str] = []
    first = executor.submit(release.wait, 5)
    second = executor.submit(ran.append, "second")
    assert second.cancel()
    release.set()
    done, _ = concurrent.futures.wait([first, second], 5)
    assert len(done) == 2
    assert ran == []


def test_another_executor_takes_its_place(any_loop: asyncio.AbstractEventLoop) -> None:
    thread = _thread(any_loop)
    old = weakref.ref(_executor(any_loop))
    with concurrent.futures.ThreadPoolExecutor(1, "mine") as pool:
        any_loop.set_default_executor(pool)
        assert _thread(any_loop).name == "mine_0"
        gc.collect()
        assert old() is None
        _until(lambda: not thread.is_alive())


def test_it_can_be_set_again(any_loop: asyncio.AbstractEventLoop) -> None:
    thread = _thread(any_loop)
    executor = _executor(any_loop)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        any_loop.set_default_executor(pool)
        any_loop.set_default_executor(executor)
    assert _thread(any_loop) in executor._threads
    assert thread.is_alive()


def test_whatever_is_put_in_its_place_is_asked(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    class Direct(concurrent.futures.Executor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            future: concurrent.futures.Future[Any] = concurrent.futures.Future()
            future.set_result(fn(*args, **kwargs))
            return future

    any_loop._default_executor = Direct()  # type: ignore[attr-defined]
    assert _thread(any_loop) is threading.current_thread()
    any_loop._default_executor = None  # type: ignore[attr-defined]
    assert _thread(any_loop).name == "asyncio_0"


def test_a_dropped_executor_finishes_what_waits(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    loop = new_like(any_loop)
    release = threading.Event()
    ran: list[int] = []

    calls: list[asyncio.Future[Any]] = [
        loop.run_in_executor(None, release.wait, 5) for _ in range(40)
    ]
    calls += [loop.run_in_executor(None, ran.append, n) for n in range(9)]
    one_pass(loop)
    threads = list(_executor(loop)._threads)
    loop.close()  # does not wait
    del loop
    assert all(thread.is_alive() for thread in threads)
    assert ran == []
    release.set()
    for thread in threads:
        thread.join(5)
    assert sorted(ran) == list(range(9))
    assert not any(call.done() for call in calls)


def test_a_loop_dropped_without_close_keeps_no_threads(loop: Any) -> None:
    # The stock loop of some versions is not collected in time.
    others = [new_like(loop)]
    thread = _thread(others[0])
    ref = weakref.ref(others[0])
    others.clear()
    with pytest.warns(ResourceWarning, match="unclosed"):
        gc.collect()
    assert ref() is None
    _until(lambda: not thread.is_alive())


def test_calls_that_end_after_close_are_dropped(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    loop = new_like(any_loop)
    reports = collect_reports(loop)
    thing = {1, 2}
    ref = weakref.ref(thing)
    release = threading.Event()

    def work(_it: object, fail: bool) -> None:
        release.wait(5)
        if fail:
            raise ValueError("nobody wants to know")

    for fail in (False, True):
        loop.run_in_executor(None, work, thing, fail)
    one_pass(loop)
    threads = list(_executor(loop)._threads)
    loop.close()
    release.set()
    del thing
    for thread in threads:
        thread.join(5)
    assert reports == []
    if is_ours(loop):  # the stock one keeps the error, and that the frames
        assert ref() is None


def test_loops_are_closed_while_calls_end(any_loop: asyncio.AbstractEventLoop) -> None:
    # A thread that is about to wake a loop writes to a descriptor that the loop closes.
    threads: list[threading.Thread] = []
    for number in range(150):
        loop = new_like(any_loop)

        async def main(loop: asyncio.AbstractEventLoop = loop) -> None:
            calls = [loop.run_in_executor(None, int) for _ in range(4)]
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)

        loop.run_until_complete(main())
        threads += _executor(loop)._threads
        if number % 2:
            loop.call_later(0.0001, loop.stop)
            loop.run_forever()
        loop.close()
    for thread in threads:
        thread.join(5)


def test_a_stopped_loop_gets_its_results_later(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    done = threading.Event()
    future = any_loop.run_in_executor(None, done.set)
    assert done.wait(5)
    time.sleep(0.01)
    assert not future.done()
    assert any_loop.run_until_complete(asyncio.wait_for(future, 5)) is None


def test_a_call_works_while_the_loop_waits_for_it_itself(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    # The thread must start without the loop's help.
    async def main() -> None:
        for _ in range(3):
            done = threading.Event()
            future = any_loop.run_in_executor(None, done.set)
            assert done.wait(5)
            await future

    any_loop.run_until_complete(main())


def test_what_is_queued_at_exit_is_done(any_loop: asyncio.AbstractEventLoop) -> None:
    script = """
import threading, time
loop = new_loop()

def work(number):
    time.sleep(0.001)
    done.append(number)
    if len(done) == 300:
        print(sorted(done) == list(range(300)), flush=True)

done = []
for number in range(300):
    loop.run_in_executor(None, work, number)
if sys.argv[2] == "closed":
    loop.close()
"""
    for how in ("closed", "open"):
        options = () if how == "open" else ("-W", "error")
        printed = run_script(NEW_LOOP + script, kind_of(any_loop), how, options=options)
        assert printed == "True\n"


def test_exit_refuses_new_calls(any_loop: asyncio.AbstractEventLoop) -> None:
    script = """
import threading, time
loop = new_loop()

def late():
    while True:
        try:
            loop.run_in_executor(None, int)
        except RuntimeError as error:
            print(error, flush=True)
            return
        time.sleep(0.001)

loop.run_in_executor(None, late)
"""
    printed = run_script(NEW_LOOP + script, kind_of(any_loop), options=())
    assert printed == "cannot schedule new futures after interpreter shutdown\n"


def test_exit_with_idle_threads_and_after_set_default_executor(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    script = """
import concurrent.futures
loop = new_loop()

async def main():
    await asyncio.gather(*(loop.run_in_executor(None, int) for _ in range(100)))
    held = loop._default_executor
    loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(1))
    await loop.run_in_executor(None, int)
    return held

held = loop.run_until_complete(main())
print("ok")
"""
    assert run_script(NEW_LOOP + script, kind_of(any_loop), options=()) == "ok\n"


def test_exit_under_debug_mode(any_loop: asyncio.AbstractEventLoop) -> None:
    script = """
loop = new_loop()
assert loop.get_debug()

async def main():
    found = await asyncio.gather(*(asyncio.to_thread(abs, -n) for n in range(100)))
    assert found == list(range(100))

loop.run_until_complete(main())
loop.run_until_complete(loop.shutdown_default_executor())
loop.close()
print("ok")
"""
    printed = run_script(
        NEW_LOOP + script, kind_of(any_loop), env={"PYTHONASYNCIODEBUG": "1"}
    )
    assert printed == "ok\n"


FORK = """
import os, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)
loop = new_loop()

async def several(number=20):
    calls = [loop.run_in_executor(None, abs, -n) for n in range(number)]
    assert await asyncio.gather(*calls) == list(range(number))

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def test_a_child_starts_threads_of_its_own(loop: Any) -> None:
    script = """
release = threading.Event()
loop.run_until_complete(several())
for _ in range(40):
    loop.run_in_executor(None, release.wait, 5)     # more than there are threads
pid = os.fork()
if pid == 0:
    loop.run_until_complete(several())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    sys.exit(3)          # joins no thread that is not there
assert ended(pid) == 3
pid = os.fork()
if pid == 0:
    executor = loop._default_executor
    assert executor.submit(abs, -3).result(5) == 3
    executor.shutdown()
    os._exit(4)
assert ended(pid) == 4
pid = os.fork()
if pid == 0:
    sys.exit(5)
assert ended(pid) == 5
release.set()
loop.run_until_complete(several())
loop.run_until_complete(loop.shutdown_default_executor())
loop.close()
print("ok")
"""
    assert run_script(NEW_LOOP + FORK + script, kind_of(loop)) == "ok\n"


def test_a_call_that_forks(loop: Any) -> None:
    script = """
def fork():
    pid = os.fork()
    return pid      # and the thread of the child ends, with the child

def fork_and_exit():
    pid = os.fork()
    if pid == 0:
        os._exit(3)
    return pid

async def main():
    await several()
    for number in range(5):
        pid = await loop.run_in_executor(None, fork_and_exit)
        assert ended(pid) == 3
        pid = await loop.run_in_executor(None, fork)
        assert ended(pid) == 0
        await several()

loop.run_until_complete(main())
loop.run_until_complete(loop.shutdown_default_executor())
loop.close()
print("ok")
"""
    assert run_script(NEW_LOOP + FORK + script, kind_of(loop)) == "ok\n"


def test_another_loop_may_be_given_the_executor(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    _thread(any_loop)
    executor = _executor(any_loop)
    other = new_like(any_loop)
    other.set_default_executor(executor)
    assert _thread(other) in executor._threads
    other.run_until_complete(other.shutdown_default_executor())
    other.close()
    with pytest.raises(RuntimeError, match="after shutdown"):
        any_loop.run_in_executor(None, print)
    if is_ours(any_loop):
        assert _executor(other) is None
