"""Rules of the sock_* methods, the cancelling of each of them above all.

A cancelled call must lose no data and must leave the descriptor alone, whoever
has its number afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from .helpers import eventually, socket_pair

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.asyncio
HOST = "127.0.0.1"


@contextlib.contextmanager
def _pair(family: str = "tcp") -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket_pair(family)
    with left, right:
        yield left, right


def _udp() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind((HOST, 0))
    return sock


@pytest.mark.parametrize("family", ["tcp", "unix"])
async def test_recv_takes_what_is_there_and_waits_for_the_rest(family: str) -> None:
    loop = asyncio.get_running_loop()
    with _pair(family) as (left, right):
        right.send(b"there")
        assert await loop.sock_recv(left, 100) == b"there"
        waiting = asyncio.ensure_future(loop.sock_recv(left, 2))
        await asyncio.sleep(0)
        assert not waiting.done()
        right.send(b"later")
        assert await waiting == b"la"
        assert await loop.sock_recv(left, 100) == b"ter"
        right.shutdown(socket.SHUT_WR)
        assert await loop.sock_recv(left, 100) == b""


async def test_recv_into_fills_the_buffer() -> None:
    loop = asyncio.get_running_loop()
    with _pair() as (left, right):
        buffer = bytearray(8)
        right.send(b"abc")
        assert await loop.sock_recv_into(left, buffer) == 3
        waiting = asyncio.ensure_future(
            loop.sock_recv_into(left, memoryview(buffer)[4:])
        )
        await asyncio.sleep(0)
        right.send(b"defgh")
        assert await waiting == 4
        assert buffer == b"abc\0defg"


async def test_sendall_sends_more_than_fits() -> None:
    loop = asyncio.get_running_loop()
    data = os.urandom(3 << 20)
    with _pair() as (left, right):
        sending = asyncio.ensure_future(loop.sock_sendall(left, data))
        received = bytearray()
        while len(received) < len(data):
            received += await loop.sock_recv(right, 1 << 18)
        assert await sending is None
        assert received == data
        assert await loop.sock_sendall(left, b"") is None


async def test_sendall_takes_any_buffer() -> None:
    loop = asyncio.get_running_loop()
    with _pair() as (left, right):
        for data in (bytearray(b"ab"), memoryview(b"cd"), b"ef"):
            await loop.sock_sendall(left, data)
        assert await loop.sock_recv(right, 100) == b"abcdef"


async def test_two_directions_of_one_socket_wait_at_once() -> None:
    loop = asyncio.get_running_loop()
    data = bytes(2 << 20)
    with _pair("unix") as (left, right):
        receiving = asyncio.ensure_future(loop.sock_recv(left, 10))
        sending = asyncio.ensure_future(loop.sock_sendall(left, data))
        await asyncio.sleep(0.005)
        assert not sending.done()
        await loop.sock_sendall(right, b"hello")
        assert await receiving == b"hello"
        got = 0
        while got < len(data):
            got += len(await loop.sock_recv(right, 1 << 18))
        await sending


async def test_accept_and_connect() -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server((HOST, 0)) as listener:
        listener.setblocking(False)
        accepting = asyncio.ensure_future(loop.sock_accept(listener))
        await asyncio.sleep(0)
        with socket.socket() as client:
            client.setblocking(False)
            await loop.sock_connect(client, listener.getsockname())
            conn, address = await accepting
            with conn:
                assert address == client.getsockname()
                assert conn.gettimeout() == 0
                assert not conn.get_inheritable()
                await loop.sock_sendall(client, b"x")
                assert await loop.sock_recv(conn, 1) == b"x"


async def test_connect_to_nobody_is_refused() -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        with socket.socket() as client:
            client.setblocking(False)
            with pytest.raises(ConnectionRefusedError):
                await loop.sock_connect(client, probe.getsockname())


async def test_connect_resolves_a_name() -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server((HOST, 0)) as listener, socket.socket() as client:
        client.setblocking(False)
        await loop.sock_connect(client, ("localhost", listener.getsockname()[1]))
        assert client.getpeername() == listener.getsockname()


async def test_sendto_and_recvfrom() -> None:
    loop = asyncio.get_running_loop()
    with _udp() as one, _udp() as two:
        waiting = asyncio.ensure_future(loop.sock_recvfrom(two, 100))
        await asyncio.sleep(0)
        assert await loop.sock_sendto(one, b"datagram", two.getsockname()) == 8
        assert await waiting == (b"datagram", one.getsockname())
        buffer = bytearray(20)
        await loop.sock_sendto(one, b"again", two.getsockname())
        assert await loop.sock_recvfrom_into(two, buffer) == (5, one.getsockname())
        assert buffer[:5] == b"again"
        await loop.sock_sendto(one, b"short", two.getsockname())
        count, _ = await loop.sock_recvfrom_into(two, buffer, 3)
        assert (count, buffer[:5]) == (3, b"shoin")


async def test_errors_of_the_kernel_are_raised() -> None:
    loop = asyncio.get_running_loop()
    with _pair("unix") as (left, right):
        right.close()
        with pytest.raises(BrokenPipeError):
            await loop.sock_sendall(left, b"x")
    with socket.socket() as fresh:
        fresh.setblocking(False)
        with pytest.raises(OSError, match="not connected"):
            await loop.sock_recv(fresh, 1)


async def test_debug_mode_refuses_blocking_sockets() -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    with socket.socket() as sock:
        for call in (
            lambda: loop.sock_recv(sock, 1),
            lambda: loop.sock_recv_into(sock, bytearray(1)),
            lambda: loop.sock_sendall(sock, b"x"),
            lambda: loop.sock_connect(sock, (HOST, 1)),
            lambda: loop.sock_accept(sock),
            lambda: loop.sock_recvfrom(sock, 1),
            lambda: loop.sock_sendto(sock, b"x", (HOST, 1)),
        ):
            with pytest.raises(ValueError, match="the socket must be non-blocking"):
                await call()


async def test_a_cancelled_recv_loses_no_data() -> None:
    loop = asyncio.get_running_loop()
    with _pair() as (left, right):
        received = b""
        for number in range(50):
            task = asyncio.ensure_future(loop.sock_recv(left, 100))
            await asyncio.sleep(0)
            if number % 3 == 0:
                right.send(b"%02d" % number)
            if number % 2:
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                received += await task
        right.shutdown(socket.SHUT_WR)
        while chunk := await loop.sock_recv(left, 100):
            received += chunk
        assert received == b"".join(b"%02d" % n for n in range(0, 50, 3))


async def test_data_and_cancel_in_the_same_pass_lose_nothing() -> None:
    loop = asyncio.get_running_loop()
    with _pair("unix") as (left, right):
        for number in range(20):
            task = asyncio.ensure_future(loop.sock_recv(left, 1))
            await asyncio.sleep(0)
            loop.call_soon(right.send, b"%c" % (65 + number))
            loop.call_soon(task.cancel)
            try:
                data = await task
            except asyncio.CancelledError:
                data = await loop.sock_recv(left, 1)
            assert data == b"%c" % (65 + number)


async def test_a_cancelled_accept_loses_no_connection() -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server((HOST, 0)) as listener:
        listener.setblocking(False)
        for _ in range(10):
            task = asyncio.ensure_future(loop.sock_accept(listener))
            await asyncio.sleep(0)
            client = socket.create_connection(listener.getsockname())
            task.cancel()
            try:
                conn, address = await task
            except asyncio.CancelledError:
                conn, address = await loop.sock_accept(listener)
            assert address == client.getsockname()
            conn.close()
            client.close()


async def test_a_cancelled_sendall_stops_sending() -> None:
    loop = asyncio.get_running_loop()
    with _pair("unix") as (left, right):
        task = asyncio.ensure_future(loop.sock_sendall(left, bytes(8 << 20)))
        await asyncio.sleep(0.002)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while True:
            try:
                right.recv(1 << 20)
            except BlockingIOError:
                break
        await asyncio.sleep(0.005)
        with pytest.raises(BlockingIOError):
            right.recv(1)


async def test_a_cancelled_recv_into_leaves_the_buffer_alone() -> None:
    loop = asyncio.get_running_loop()
    with _pair() as (left, right):
        buffer = bytearray(10)
        task = asyncio.ensure_future(loop.sock_recv_into(left, buffer))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        buffer.clear()  # nothing exports it any more
        right.send(b"mine")
        assert await loop.sock_recv(left, 10) == b"mine"


@pytest.mark.parametrize("what", ["recv", "sendall", "accept"])
async def test_a_number_reused_after_a_cancel_is_left_alone(what: str) -> None:
    loop = asyncio.get_running_loop()
    left, right = socket_pair("unix")
    number = left.fileno()
    if what == "recv":
        task = asyncio.ensure_future(loop.sock_recv(left, 10))
    elif what == "sendall":
        task = asyncio.ensure_future(loop.sock_sendall(left, bytes(8 << 20)))
    else:
        left.close()
        left = socket.create_server((HOST, 0))
        left.setblocking(False)
        number = left.fileno()
        task = asyncio.ensure_future(loop.sock_accept(left))
    await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    left.close()
    await _new_owner_is_whole(number)
    right.close()


async def test_a_cancelled_connect_does_not_touch_the_next_owner() -> None:
    loop = asyncio.get_running_loop()
    # A listener whose backlog is full keeps a connect waiting.
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen(0)
        fillers = []
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            fillers.append(filler)
        await asyncio.sleep(0.005)
        client = socket.socket()
        client.setblocking(False)
        number = client.fileno()
        task = asyncio.ensure_future(loop.sock_connect(client, listener.getsockname()))
        await asyncio.sleep(0.005)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        client.close()
        await _new_owner_is_whole(number)
        for filler in fillers:
            filler.close()


async def _new_owner_is_whole(number: int) -> None:
    """Give a number to a new socket pair and see it served in both directions."""
    loop = asyncio.get_running_loop()
    one, two = socket_pair("unix")
    moved: Any = one
    if number not in (one.fileno(), two.fileno()):
        os.dup2(one.fileno(), number)
        moved = socket.socket(fileno=number)
        moved.setblocking(False)
        one.close()
    elif two.fileno() == number:
        moved, two = two, one
    seen: list[str] = []
    try:
        loop.add_writer(moved, seen.append, "writable")
        await eventually(lambda: seen)
        loop.remove_writer(moved)
        await loop.sock_sendall(two, b"data")
        assert await loop.sock_recv(moved, 10) == b"data"
    finally:
        moved.close()
        two.close()


async def test_closing_the_socket_under_a_waiting_call_harms_nobody() -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)
    left, right = socket_pair("unix")
    task = asyncio.ensure_future(loop.sock_recv(left, 10))
    await asyncio.sleep(0)
    left.close()
    right.close()
    await asyncio.sleep(0.005)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, OSError):
        await task
    with _pair() as (one, two):
        two.send(b"fine")
        assert await loop.sock_recv(one, 10) == b"fine"


async def test_sendfile_sends_the_part_asked_for(tmp_path: Any) -> None:
    loop = asyncio.get_running_loop()
    data = os.urandom(500_000)
    path = tmp_path / "file"
    path.write_bytes(data)
    with _pair() as (left, right), path.open("rb") as file:
        sending = asyncio.ensure_future(loop.sock_sendfile(left, file, 1000, 450_000))
        received = bytearray()
        while len(received) < 450_000:
            received += await loop.sock_recv(right, 1 << 18)
        assert await sending == 450_000
        assert received == data[1000:451_000]
        assert file.tell() == 451_000


@pytest.mark.parametrize("host", ["127.0.0.1\0.example.org", "::1\0x"])
async def test_a_host_with_a_null_character_is_refused(host: str) -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(ValueError, match="null"):
        await loop.create_connection(asyncio.Protocol, host, 1)
    with pytest.raises(ValueError, match="null"):
        await loop.create_server(asyncio.Protocol, host, 0)
    with pytest.raises(ValueError, match="null"):
        await loop.create_datagram_endpoint(asyncio.DatagramProtocol, (host, 0))
    with socket.socket() as sock:
        sock.setblocking(False)
        with pytest.raises(ValueError, match="null"):
            await loop.sock_connect(sock, (host, 1))
