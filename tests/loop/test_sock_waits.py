"""Rules of an fd that sock_recv has waited for: it may stay watched, and nobody sees.

Between two waits of the same socket its fd may be closed, its number reused, its file
exchanged, or be wanted by add_reader, a transport or the AioContext.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import shutil
import socket
import subprocess
import sys
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from .helpers import (
    NEW_LOOP,
    Recorder,
    collect_reports,
    cpu_seconds,
    eventually,
    fill,
    is_ours,
    kind_of,
    skip_control,
    socket_pair,
)

if TYPE_CHECKING:
    from pathlib import Path


async def _wait_once(sock: socket.socket, peer: socket.socket) -> None:
    """One sock_recv that has to wait."""
    loop = asyncio.get_running_loop()
    waiting = asyncio.ensure_future(loop.sock_recv(sock, 100))
    await asyncio.sleep(0.001)
    assert not waiting.done()
    peer.send(b"waited for")
    assert await asyncio.wait_for(waiting, 5) == b"waited for"


@pytest.mark.parametrize("family", ["tcp", "unix"])
@pytest.mark.asyncio
async def test_waits_of_one_socket_follow_each_other(family: str) -> None:
    left, right = socket_pair(family)
    with left, right:
        for _ in range(20):
            await _wait_once(left, right)


@pytest.mark.parametrize("size", [4, 100])
@pytest.mark.asyncio
async def test_what_is_there_is_had_however_the_last_receives_went(size: int) -> None:
    """After waits a receive may wait before it tries; it must not wait for ever."""
    loop = asyncio.get_running_loop()
    left, right = socket_pair("unix")
    with left, right:
        for turn in range(30):
            waiting = asyncio.ensure_future(loop.sock_recv(left, size))
            await asyncio.sleep(0)
            right.send(b"wait")
            assert await asyncio.wait_for(waiting, 5) == b"wait"
            assert await loop.sock_recv(left, 0) == b""
            assert await loop.sock_recv_into(left, bytearray()) == 0
            for _ in range(turn % 4):
                right.send(b"here")
                received = await asyncio.wait_for(loop.sock_recv(left, size), 5)
                assert received == b"here"
        right.send(b"more than one receive takes")
        assert await loop.sock_recv(left, 9) == b"more than"
        assert await loop.sock_recv(left, 100) == b" one receive takes"
        right.shutdown(socket.SHUT_WR)
        for _ in range(3):
            assert await asyncio.wait_for(loop.sock_recv(left, size), 5) == b""


@pytest.mark.parametrize("how", ["close", "detach", "os.close"])
@pytest.mark.asyncio
async def test_the_number_may_be_reused_between_waits(how: str) -> None:
    reports = collect_reports(asyncio.get_running_loop())
    left, right = socket_pair("unix")
    number = left.fileno()
    with right:
        await _wait_once(left, right)
        if how == "close":
            left.close()
        else:
            os.close(left.detach() if how == "detach" else number)
        other, far = socket_pair("unix")
        with other, far:
            assert other.fileno() == number
            await _wait_once(other, far)
            await _wait_once(other, far)
        if how == "os.close":
            left.detach()
    assert reports == []


@pytest.mark.asyncio
async def test_the_file_may_be_exchanged_between_waits() -> None:
    skip_control("takes the same path each time")
    left, right = socket_pair("unix")
    other, far = socket_pair("unix")
    with left, right, other, far:
        await _wait_once(left, right)
        os.dup2(other.fileno(), left.fileno())
        await _wait_once(left, far)
        await _wait_once(left, far)


@pytest.mark.asyncio
async def test_another_object_may_wait_for_the_same_file() -> None:
    left, right = socket_pair("unix")
    with right:
        await _wait_once(left, right)
        with socket.socket(fileno=left.detach()) as same:
            same.setblocking(False)
            await _wait_once(same, right)


@pytest.mark.asyncio
async def test_a_close_after_a_wait_is_seen_at_once() -> None:
    reports = collect_reports(asyncio.get_running_loop())
    left, right = socket_pair("unix")
    with right:
        await _wait_once(left, right)
        left.close()
        assert right.recv(1) == b""
        await asyncio.sleep(0.01)
    assert reports == []


@pytest.mark.asyncio
async def test_a_socket_is_not_kept_alive_by_its_wait() -> None:
    left, right = socket_pair("unix")
    with right:
        await _wait_once(left, right)
        known = weakref.ref(left)
        os.close(left.detach())
        del left
        gc.collect()
        assert known() is None


@pytest.mark.asyncio
async def test_what_comes_between_waits_costs_nothing() -> None:
    loop = asyncio.get_running_loop()
    left, right = socket_pair("unix")
    with left, right:
        await _wait_once(left, right)
        right.send(b"nobody waits")
        began = cpu_seconds()
        await asyncio.sleep(0.2)
        assert cpu_seconds() - began < 0.1
        assert await loop.sock_recv(left, 100) == b"nobody waits"
        await _wait_once(left, right)


@pytest.mark.asyncio
async def test_readers_and_writers_may_take_turns_with_waits() -> None:
    loop = asyncio.get_running_loop()
    left, right = socket_pair("unix")
    seen: list[bytes] = []
    with left, right:
        await _wait_once(left, right)
        loop.add_reader(left, lambda: seen.append(left.recv(100)))
        right.send(b"for the reader")
        await eventually(lambda: seen)
        assert loop.remove_reader(left) is True
        await _wait_once(left, right)
        assert loop.remove_reader(left) is False
        await _wait_once(left, right)
        loop.add_writer(left, lambda: seen.append(b"room"))
        await eventually(lambda: b"room" in seen)
        await _wait_once(left, right)
        assert loop.remove_writer(left) is True
        await _wait_once(left, right)
        await loop.sock_sendall(left, b"answer")
        assert right.recv(100) == b"answer"
        await _wait_once(left, right)


@pytest.mark.asyncio
async def test_a_transport_may_follow_a_wait() -> None:
    loop = asyncio.get_running_loop()
    left, right = socket_pair("unix")
    with right:
        await _wait_once(left, right)
        transport, protocol = await loop.create_connection(Recorder, sock=left)
        right.send(b"for the transport")
        await eventually(lambda: protocol.data == b"for the transport")
        transport.close()
        await protocol.lost


@pytest.mark.asyncio
async def test_the_context_may_watch_what_was_waited_for() -> None:
    loop: Any = asyncio.get_running_loop()
    if not is_ours(loop):
        pytest.skip("the stock loop has no context")
    left, right = socket_pair("unix")
    seen: list[bytes] = []
    with left, right:
        await _wait_once(left, right)
        loop.context.set_fd_handler(left, lambda _: seen.append(left.recv(100)), None)
        right.send(b"for the context")
        await eventually(lambda: seen)
        loop.context.set_fd_handler(left, None, None)
        await _wait_once(left, right)


@pytest.mark.asyncio
async def test_a_cancelled_wait_leaves_the_socket_alone() -> None:
    loop = asyncio.get_running_loop()
    left, right = socket_pair("unix")
    with left, right:
        for _ in range(3):
            await _wait_once(left, right)
            waiting = asyncio.ensure_future(loop.sock_recv(left, 100))
            await asyncio.sleep(0)
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiting
            right.send(b"kept")
            assert await loop.sock_recv(left, 100) == b"kept"


@pytest.mark.asyncio
async def test_a_listening_socket_is_waited_for_again_and_again() -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        address = listener.getsockname()
        for _ in range(3):
            waiting = asyncio.ensure_future(loop.sock_accept(listener))
            await asyncio.sleep(0.001)
            with socket.create_connection(address):
                (await asyncio.wait_for(waiting, 5))[0].close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


WAITS = """
import socket
loop = new_loop()
left, right = socket.socketpair()
left.setblocking(False)

async def main():
    for _ in range(300):
        loop.call_soon(right.send, b"x")
        await loop.sock_recv(left, 1)

loop.run_until_complete(main())
loop.close()
left.close(); right.close()
print("ok")
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_system_calls_of_a_wait(loop: Any, tmp_path: Path) -> None:
    # The wait and the receive; one time of eight a receive that finds nothing.
    trace = tmp_path / "trace"
    words = ["strace", "-f", "-c", "-o", trace]
    words += [sys.executable, "-P", "-c", NEW_LOOP + WAITS, kind_of(loop)]
    # Debug mode shows more, and asks for it.
    env = {key: text for key, text in os.environ.items() if "ASYNCIO" not in key}
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=env)
    if "not permitted" in done.stderr:
        pytest.skip("may not trace")
    assert done.stdout == "ok\n", done.stderr
    counts = {
        line.split()[-1]: int(line.split()[3])
        for line in trace.read_text().splitlines()
        if line.split() and line.split()[-1] in ("epoll_ctl", "recvfrom")
    }
    assert counts["recvfrom"] <= 300 + 300 // 8 + 20
    assert counts.get("epoll_ctl", 0) <= 60, trace.read_text()


@pytest.mark.asyncio
async def test_what_cannot_be_received_is_refused_at_once() -> None:
    loop = asyncio.get_running_loop()
    left, right = socket_pair("tcp")
    left.setblocking(False)
    with left, right:
        for _ in range(3):  # it is known that nothing is there
            await _wait_once(left, right)
        with pytest.raises(ValueError, match="negative"):
            await asyncio.wait_for(loop.sock_recv(left, -1), 5)
        with pytest.raises((TypeError, BufferError)):
            await asyncio.wait_for(loop.sock_recv_into(left, b"read only"), 5)
        with pytest.raises(TypeError):
            await asyncio.wait_for(loop.sock_recv_into(left, 5), 5)  # type: ignore[arg-type]
        right.send(b"x")
        assert await loop.sock_recv(left, 10) == b"x"


def test_a_wait_for_room_that_was_ended_is_not_ended_again(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    # What ends the run in the same pass comes before the step of the task.
    reports = collect_reports(any_loop)
    left, right = socket_pair("unix")
    ends, end = socket_pair("unix")
    for sock in (left, right):
        sock.setblocking(False)
    fill(left)
    task = any_loop.create_task(any_loop.sock_sendall(left, b"tail"))
    any_loop.run_until_complete(asyncio.sleep(0.001))

    def leave() -> None:
        ends.recv(1)
        raise SystemExit

    any_loop.add_reader(ends, leave)
    with contextlib.suppress(BlockingIOError):
        while True:
            right.recv(1 << 20)
    end.send(b"x")
    with pytest.raises(SystemExit):
        any_loop.run_until_complete(asyncio.sleep(5))
    any_loop.run_until_complete(asyncio.wait_for(task, 5))
    any_loop.remove_reader(ends)
    for sock in (left, right, ends, end):
        sock.close()
    assert reports == []
