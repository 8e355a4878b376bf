"""Rules of fork: the child cannot disturb the parent, and can start anew."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
from support.procs import run_script

from .helpers import NEW_LOOP, is_ours, kind_of

if TYPE_CHECKING:
    import asyncio

FORK = """
import os, socket, warnings
warnings.simplefilter("ignore", DeprecationWarning)

def in_child(function):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    return pid

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def _run(loop: asyncio.AbstractEventLoop, script: str) -> None:
    assert run_script(NEW_LOOP + FORK + script, kind_of(loop)) == "ok\n"


def test_a_fork_in_a_running_loop_leaves_it_alone(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    _run(
        any_loop,
        """
loop = new_loop()
left, right = socket.socketpair()
left.setblocking(False)

async def main():
    waiting = asyncio.ensure_future(loop.sock_recv(left, 10))
    await asyncio.sleep(0.01)
    assert ended(in_child(lambda: None)) == 0
    right.send(b"for the parent")
    assert await waiting == b"for the pa"
    await asyncio.sleep(0.01)

loop.run_until_complete(main())
loop.close()
left.close(); right.close()
print("ok")
""",
    )


def test_what_a_child_closes_stays_open_in_the_parent(
    loop: Any,
) -> None:
    # The stock loop fails here: parent and child share one epoll set.
    _run(
        loop,
        """
import contextlib, gc
loop = new_loop()
left, right = socket.socketpair()
seen = []
loop.add_reader(left, lambda: (seen.append(left.recv(10)), loop.stop()))
loop.call_soon(loop.stop)
loop.run_forever()

def child():
    # Refused or not: the parent must not feel it.
    for call in (lambda: loop.remove_reader(left), loop.close, gc.collect):
        with contextlib.suppress(RuntimeError, OSError):
            call()

assert ended(in_child(child)) == 0
right.send(b"still")
guard = loop.call_later(5, loop.stop)
loop.run_forever()
guard.cancel()
assert seen == [b"still"], seen
loop.remove_reader(left)
loop.close()
left.close(); right.close()
print("ok")
""",
    )


def test_a_child_can_make_a_loop_of_its_own(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    _run(
        any_loop,
        """
loop = new_loop()

def child():
    asyncio._set_running_loop(None)
    async def main():
        server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        process = await asyncio.create_subprocess_exec("true")
        assert await process.wait() == 0
    own = new_loop()
    own.run_until_complete(main())
    own.close()

async def main():
    await asyncio.sleep(0.001)
    pid = in_child(child)
    assert await loop.run_in_executor(None, ended, pid) == 0
    await asyncio.sleep(0.001)

loop.run_until_complete(main())
loop.run_until_complete(loop.shutdown_default_executor())
loop.close()
print("ok")
""",
    )


def test_a_child_that_uses_the_parents_loop_is_refused_or_harmless(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    _run(
        any_loop,
        """
import contextlib
loop = new_loop()
loop.run_until_complete(asyncio.sleep(0.001))

def child():
    coroutine = asyncio.sleep(0.001)
    with contextlib.suppress(RuntimeError, OSError):
        loop.run_until_complete(coroutine)
    coroutine.close()
    with contextlib.suppress(RuntimeError, OSError):
        loop.call_soon_threadsafe(print)

assert ended(in_child(child)) == 0
loop.run_until_complete(asyncio.sleep(0.001))
loop.close()
print("ok")
""",
    )


def test_a_signal_in_the_child_is_not_the_parents(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    if sys.version_info < (3, 12) and not is_ours(any_loop):
        pytest.skip("the stock loop of 3.11 shares its wakeup fd with a child")
    _run(
        any_loop,
        """
import signal
loop = new_loop()
seen = []
loop.add_signal_handler(signal.SIGUSR1, seen.append, "parent")
loop.run_until_complete(asyncio.sleep(0.001))

def child():
    os.kill(os.getpid(), signal.SIGUSR1)

assert ended(in_child(child)) in (0, -signal.SIGUSR1)
loop.run_until_complete(asyncio.sleep(0.01))
assert seen == [], seen
loop.close()
print("ok")
""",
    )


@pytest.mark.slow
def test_multiprocessing_by_fork_under_a_running_loop(loop: Any) -> None:
    _run(
        loop,
        """
import concurrent.futures, multiprocessing
loop = new_loop()

async def main():
    method = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=method) as pool:
        calls = [loop.run_in_executor(pool, pow, n, 2) for n in range(10)]
        assert await asyncio.gather(*calls) == [n * n for n in range(10)]

loop.run_until_complete(main())
loop.close()
print("ok")
""",
    )


RUNNER = """
import warnings
warnings.simplefilter("ignore", RuntimeWarning)

async def talk():
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert await reader.read() == b""
    writer.close()
    server.close()
    return await asyncio.to_thread(int, "7")

def status(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


def test_a_runner_can_be_left_in_a_child(any_loop: asyncio.AbstractEventLoop) -> None:
    _run(
        any_loop,
        RUNNER
        + """
with asyncio.Runner(loop_factory=new_loop) as runner:
    runner.run(asyncio.sleep(0.001))
    pid = os.fork()
if pid:
    assert status(pid) == 0
    print("ok")
""",
    )


def test_a_runner_goes_on_in_a_child(loop: Any) -> None:
    # Stock loops share one epoll set with the child.
    _run(
        loop,
        RUNNER
        + """
with asyncio.Runner(loop_factory=new_loop) as runner:
    fired = []
    timer = runner.get_loop().call_later(0.01, fired.append, 1)
    runner.run(asyncio.sleep(0.001))
    pid = os.fork()
    if pid == 0:
        assert runner.run(talk()) == 7
        runner.run(asyncio.sleep(0.02))
        assert fired == [1]
    else:
        assert runner.run(talk()) == 7
        assert status(pid) == 0
if pid:
    print("ok")
""",
    )


@pytest.mark.parametrize("how", ["exit", "return", "run"])
def test_a_child_leaves_through_the_parents_runner(
    any_loop: asyncio.AbstractEventLoop, how: str
) -> None:
    if sys.version_info >= (3, 14):
        # There is no running loop in the child, and asyncio's tasks do not end then.
        if how == "return":
            pytest.skip("a task that forked cannot return in the child")
        if not is_ours(any_loop):
            pytest.skip("the stock loop runs on for ever in the child")
    _run(
        any_loop,
        f"how = {how!r}"
        + RUNNER
        + """
async def main():
    other = asyncio.create_task(asyncio.sleep(0.05))
    await asyncio.sleep(0.001)
    pid = os.fork()
    if pid == 0:
        if how == "exit":
            sys.exit(3)
        if how == "run":
            with asyncio.Runner(loop_factory=new_loop) as inner:
                assert inner.run(talk()) == 7
            sys.exit(3)
    else:
        assert status(pid) == (0 if how == "return" else 3)
    await other
    return pid

with asyncio.Runner(loop_factory=new_loop) as runner:
    if runner.run(main()):
        print("ok")
""",
    )
