"""Rules of a loop's life: run, stop, close, again, elsewhere.

After close() nothing of the loop may be left: no descriptor, no thread.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from support.guards import native_threads, open_fds

from .helpers import Recorder, is_ours, new_like, one_pass

if TYPE_CHECKING:
    from collections.abc import Callable


def _in_thread(function: Callable[[], object]) -> object:
    """Run a function in a new thread; give back its result or raise its error."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((True, function()))
        except BaseException as error:
            outcome.append((False, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert outcome, "the thread did not end"
    fine, value = outcome[0]
    if not fine:
        raise value
    return value


def _drop(held: list[Any]) -> None:
    held.clear()
    gc.collect()


async def _use_everything() -> None:
    """Touch fds, timers, threads, signals, servers, processes and names."""
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, threading.get_ident)
    await loop.getaddrinfo("localhost", 80)
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
    process = await asyncio.create_subprocess_exec("true")
    await process.wait()
    loop.call_later(3600, print)
    left, right = socket.socketpair()
    with left, right:
        loop.add_reader(left, print)
        await asyncio.sleep(0.001)
        loop.remove_reader(left)


def test_nothing_is_left_after_close(any_loop: asyncio.AbstractEventLoop) -> None:
    # The first run in a process may import and open for good.
    for attempt in range(3):
        fds, threads = open_fds(), native_threads()
        loop = new_like(any_loop)
        loop.run_until_complete(_use_everything())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
        gc.collect()
        if attempt:
            assert open_fds().keys() <= fds.keys()
            # A joined thread leaves the kernel's list a moment later.
            deadline = time.monotonic() + 2
            while not native_threads() <= threads and time.monotonic() < deadline:
                time.sleep(0.01)
            assert native_threads() <= threads


def test_nothing_is_left_when_it_was_never_run(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    fds = open_fds()
    for _ in range(5):
        loop = new_like(any_loop)
        loop.call_soon(print)
        loop.call_later(1, print)
        loop.close()
    assert open_fds().keys() == fds.keys()


def test_registered_fds_are_left_open_by_close(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    left, right = socket.socketpair()
    with left, right:
        any_loop.add_reader(left, print)
        any_loop.add_writer(right, print)
        one_pass(any_loop)
        any_loop.close()
        left.send(b"x")
        assert right.recv(1) == b"x"


def test_twenty_loops_in_one_process(any_loop: asyncio.AbstractEventLoop) -> None:
    loops = [new_like(any_loop) for _ in range(20)]
    for number, loop in enumerate(loops):
        assert loop.run_until_complete(asyncio.sleep(0.001, number)) == number
    for loop in loops[::2]:
        loop.close()
    for number, loop in enumerate(loops[1::2]):
        assert loop.run_until_complete(asyncio.sleep(0, number)) == number
        loop.close()


def test_loops_in_several_threads_at_once(any_loop: asyncio.AbstractEventLoop) -> None:
    results: list[int] = []

    def run(number: int) -> None:
        async def main() -> None:
            server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            for _ in range(10):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                assert await reader.read() == b""
                writer.close()
                await writer.wait_closed()
            server.close()
            await server.wait_closed()
            results.append(number)

        loop = new_like(any_loop)
        loop.run_until_complete(main())
        loop.close()

    threads = [threading.Thread(target=run, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(results) == list(range(6))


def test_a_loop_moves_from_thread_to_thread(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    made: Any = _in_thread(lambda: new_like(any_loop))
    left, right = socket.socketpair()
    left.setblocking(False)
    right.setblocking(False)
    seen: list[bytes] = []
    with left, right:
        # Registered where nobody runs it, and it lives on from run to run.
        made.add_reader(left, lambda: seen.append(left.recv(10)))

        async def talk(data: bytes) -> int:
            right.send(data)
            for _ in range(200):
                if seen and seen[-1] == data:
                    break
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.002)
            return threading.get_ident()

        idents = [
            _in_thread(lambda: made.run_until_complete(talk(b"two"))),
            _in_thread(lambda: made.run_until_complete(talk(b"three"))),
            made.run_until_complete(talk(b"main")),
        ]
        assert seen == [b"two", b"three", b"main"]
        assert idents[2] == threading.get_ident()
        made.remove_reader(left)
    _in_thread(made.close)
    assert made.is_closed()


def test_closing_twice_does_nothing(any_loop: asyncio.AbstractEventLoop) -> None:
    any_loop.close()
    any_loop.close()
    assert any_loop.is_closed()


def test_a_running_loop_is_not_closed(any_loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="Cannot close a running event loop"):
            any_loop.close()

    any_loop.run_until_complete(main())
    assert not any_loop.is_closed()


def test_a_closed_loop_does_not_run(any_loop: asyncio.AbstractEventLoop) -> None:
    any_loop.close()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        any_loop.run_forever()
    coroutine = asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        any_loop.run_until_complete(coroutine)
    coroutine.close()


def test_a_running_loop_is_not_run_again(any_loop: asyncio.AbstractEventLoop) -> None:
    other = new_like(any_loop)

    async def main() -> None:
        with pytest.raises(
            RuntimeError, match="Cannot run the event loop while another loop is r"
        ):
            other.run_forever()
        if is_ours(any_loop):  # early 3.13 forgets that the loop runs
            with pytest.raises(RuntimeError, match="event loop is already running"):
                any_loop.run_forever()
            assert asyncio.get_running_loop() is any_loop

    any_loop.run_until_complete(main())
    other.close()


def test_a_loop_that_runs_in_another_thread_is_refused(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    running = threading.Event()
    any_loop.call_soon(running.set)
    thread = threading.Thread(target=any_loop.run_forever)
    thread.start()
    running.wait(5)
    with pytest.raises(RuntimeError, match="already running"):
        any_loop.run_forever()
    any_loop.call_soon_threadsafe(any_loop.stop)
    thread.join(5)


def test_stop_before_run_makes_one_pass(any_loop: asyncio.AbstractEventLoop) -> None:
    seen: list[str] = []
    any_loop.stop()
    any_loop.call_soon(seen.append, "ran")
    any_loop.call_soon(any_loop.call_soon, seen.append, "not yet")
    any_loop.run_forever()
    assert seen == ["ran"]


def test_run_until_complete_returns_and_raises(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    async def failing() -> None:
        raise ZeroDivisionError

    assert any_loop.run_until_complete(asyncio.sleep(0, "result")) == "result"
    with pytest.raises(ZeroDivisionError):
        any_loop.run_until_complete(failing())
    future = any_loop.create_future()
    any_loop.call_soon(future.set_result, 5)
    assert any_loop.run_until_complete(future) == 5
    with pytest.raises(TypeError):
        any_loop.run_until_complete(7)  # type: ignore[arg-type]


def test_stop_before_the_future_is_done_is_an_error(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    future = any_loop.create_future()
    any_loop.call_soon(any_loop.stop)
    with pytest.raises(RuntimeError, match="stopped before Future completed"):
        any_loop.run_until_complete(future)


def test_the_running_loop_is_told_while_it_runs(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    async def main() -> None:
        assert asyncio.get_running_loop() is any_loop
        assert any_loop.is_running()

    any_loop.run_until_complete(main())
    assert not any_loop.is_running()
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


def test_a_closed_loop_lets_go_of_what_it_held(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    class Payload:
        def __call__(self) -> None:
            pass

    def fill() -> tuple[asyncio.AbstractEventLoop, list[weakref.ref[Payload]]]:
        loop = new_like(any_loop)
        soon, later, safe = Payload(), Payload(), Payload()
        loop.call_soon(soon)
        loop.call_later(1000, later)
        loop.call_soon_threadsafe(safe)
        return loop, [weakref.ref(item) for item in (soon, later, safe)]

    loop, alive = fill()
    loop.close()
    gc.collect()
    assert [ref() for ref in alive] == [None] * 3


def test_a_dropped_loop_is_collected(any_loop: asyncio.AbstractEventLoop) -> None:
    loop = new_like(any_loop)
    loop.run_until_complete(asyncio.sleep(0.001))
    loop.close()
    alive = weakref.ref(loop)
    del loop
    gc.collect()
    assert alive() is None


def test_transports_of_a_closed_loop_can_be_dropped(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    loop = new_like(any_loop)
    left, right = socket.socketpair()

    async def main() -> tuple[Any, Any]:
        return await loop.create_connection(Recorder, sock=left)

    transport, _ = loop.run_until_complete(main())
    loop.close()
    held = [transport, _]
    del transport, _
    with pytest.warns(ResourceWarning, match="unclosed"):
        # Its loop is gone: it says so, and gives the socket back.
        _drop(held)
    left.close()
    right.close()


def test_shutdown_asyncgens_closes_them(any_loop: asyncio.AbstractEventLoop) -> None:
    ended: list[str] = []

    async def numbers() -> Any:
        try:
            while True:
                yield 1
        finally:
            await asyncio.sleep(0)
            ended.append("closed")

    agens: list[Any] = []

    async def main() -> None:
        agens.append(numbers())
        await agens[0].__anext__()

    any_loop.run_until_complete(main())
    any_loop.run_until_complete(any_loop.shutdown_asyncgens())
    assert ended == ["closed"]


def test_task_factories_are_used(any_loop: asyncio.AbstractEventLoop) -> None:
    made: list[Any] = []

    def factory(loop: Any, coroutine: Any, **options: Any) -> Any:
        made.append(coroutine)
        return asyncio.Task(coroutine, loop=loop, **options)

    assert any_loop.get_task_factory() is None
    any_loop.set_task_factory(factory)  # type: ignore[arg-type]
    assert any_loop.get_task_factory() is factory
    any_loop.run_until_complete(asyncio.sleep(0))
    assert len(made) == 1
    with pytest.raises(TypeError, match="task factory must be a callable or None"):
        any_loop.set_task_factory(5)  # type: ignore[arg-type]
    any_loop.set_task_factory(None)
    assert any_loop.get_task_factory() is None
