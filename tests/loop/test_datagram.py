"""Rules of datagram endpoints: IPv4, IPv6, Unix; connected and not.

What a broken peer or a full buffer does to an endpoint is part of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from .helpers import collect_reports, eventually, is_ours, skip_control

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.asyncio


class Datagrams(asyncio.DatagramProtocol):
    """Keeps what arrives, with its sender, and what goes wrong."""

    def __init__(self) -> None:
        self.received: list[tuple[bytes, Any]] = []
        self.errors: list[Exception] = []
        self.calls: list[str] = []
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.calls.append("made")

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.received.append((data, addr))

    def error_received(self, exc: Exception) -> None:
        self.errors.append(exc)

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")

    def connection_lost(self, exc: BaseException | None) -> None:
        self.calls.append("lost")
        self.lost.set_result(None)


async def _endpoint(**options: Any) -> tuple[Any, Datagrams]:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(Datagrams, **options)
    return transport, protocol


async def _closed(*transports: Any) -> None:
    for transport in transports:
        transport.close()
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_datagrams_go_both_ways(host: str) -> None:
    server, heard = await _endpoint(local_addr=(host, 0))
    address = server.get_extra_info("sockname")
    client, answers = await _endpoint(remote_addr=address[:2])
    client.sendto(b"question")
    await eventually(lambda: heard.received)
    data, sender = heard.received[0]
    assert data == b"question"
    assert sender[:2] == client.get_extra_info("sockname")[:2]
    assert len(sender) == (4 if ":" in host else 2)
    server.sendto(b"answer", sender)
    await eventually(lambda: answers.received)
    assert answers.received[0][0] == b"answer"
    assert client.get_extra_info("peername")[:2] == address[:2]
    await _closed(server, client)
    assert heard.calls == answers.calls == ["made", "lost"]


async def test_a_burst_arrives_in_order() -> None:
    server, heard = await _endpoint(local_addr=("127.0.0.1", 0))
    client, _ = await _endpoint(remote_addr=server.get_extra_info("sockname"))
    for number in range(100):
        client.sendto(b"%d" % number)
    await eventually(lambda: len(heard.received) == 100)
    assert [int(data) for data, _ in heard.received] == list(range(100))
    await _closed(server, client)


async def test_empty_and_largest_datagrams_arrive() -> None:
    server, heard = await _endpoint(local_addr=("127.0.0.1", 0))
    client, _ = await _endpoint(remote_addr=server.get_extra_info("sockname"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
        plain.sendto(b"", server.get_extra_info("sockname"))
    await eventually(lambda: heard.received)
    assert heard.received.pop()[0] == b""
    largest = os.urandom(65507)
    client.sendto(largest)
    await eventually(lambda: heard.received)
    assert heard.received[0][0] == largest
    await _closed(server, client)


async def test_a_datagram_too_large_is_told_to_the_protocol() -> None:
    client, protocol = await _endpoint(remote_addr=("127.0.0.1", 9))
    client.sendto(bytes(70_000))
    await eventually(lambda: protocol.errors)
    assert protocol.errors[0].errno == 90  # type: ignore[attr-defined]
    assert not client.is_closing()
    await _closed(client)


async def test_a_refused_datagram_is_told_to_the_protocol() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
        plain.bind(("127.0.0.1", 0))
        address = plain.getsockname()
    client, protocol = await _endpoint(remote_addr=address)
    client.sendto(b"nobody there")
    await eventually(lambda: protocol.errors)
    assert isinstance(protocol.errors[0], ConnectionRefusedError)
    client.sendto(b"")
    assert not client.is_closing()
    await _closed(client)


async def test_another_address_than_the_peer_is_refused() -> None:
    client, _ = await _endpoint(remote_addr=("127.0.0.1", 9))
    with pytest.raises(ValueError, match="Invalid address: must be None or"):
        client.sendto(b"x", ("127.0.0.1", 10))
    await _closed(client)


@pytest.mark.parametrize("data", ["text", None, 7])
async def test_what_is_no_buffer_is_refused(data: Any) -> None:
    client, _ = await _endpoint(remote_addr=("127.0.0.1", 9))
    with pytest.raises(TypeError, match="data argument must be a bytes"):
        client.sendto(data)
    await _closed(client)


async def test_unix_datagrams(tmp_path: Path) -> None:
    path = str(tmp_path / "server")
    server, heard = await _endpoint(local_addr=path, family=socket.AF_UNIX)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as plain:
        plain.bind(str(tmp_path / "client"))
        plain.setblocking(False)
        plain.sendto(b"question", path)
        await eventually(lambda: heard.received)
        data, sender = heard.received[0]
        assert (data, sender) == (b"question", str(tmp_path / "client"))
        server.sendto(b"answer", sender)
        await asyncio.sleep(0.005)
        assert plain.recv(100) == b"answer"
    await _closed(server)


async def test_a_socketpair_as_endpoint() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    right.setblocking(False)
    with right:
        transport, protocol = await _endpoint(sock=left)
        right.send(b"in")
        await eventually(lambda: protocol.received)
        assert protocol.received[0][0] == b"in"
        if is_ours(asyncio.get_running_loop()):
            # The stock loop takes a peer without a name for no peer.
            transport.sendto(b"out")
            await asyncio.sleep(0.005)
            assert right.recv(100) == b"out"
        await _closed(transport)


async def test_a_full_peer_pauses_the_protocol(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.bind(str(tmp_path / "peer"))
        peer.setblocking(False)
        transport, protocol = await _endpoint(
            remote_addr=str(tmp_path / "peer"), family=socket.AF_UNIX
        )
        sent = 0
        while "pause" not in protocol.calls:
            transport.sendto(b"%04d" % sent + bytes(1000))
            sent += 1
            await asyncio.sleep(0)
        assert transport.get_write_buffer_size() > 64 * 1024
        received = 0
        while received < sent:
            try:
                assert int(peer.recv(2000)[:4]) == received
                received += 1
            except BlockingIOError:
                await asyncio.sleep(0.001)
        await eventually(lambda: "resume" in protocol.calls)
        assert protocol.calls == ["made", "pause", "resume"]
        if is_ours(asyncio.get_running_loop()):  # the stock count drifts
            assert transport.get_write_buffer_size() == 0
        await _closed(transport)


async def test_abort_drops_what_is_queued(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.bind(str(tmp_path / "peer"))
        transport, protocol = await _endpoint(
            remote_addr=str(tmp_path / "peer"), family=socket.AF_UNIX
        )
        for _ in range(1000):
            transport.sendto(bytes(1000))
        transport.abort()
        await protocol.lost
        if is_ours(asyncio.get_running_loop()):
            assert transport.get_write_buffer_size() == 0


async def test_close_from_datagram_received_ends_the_burst() -> None:
    class Closing(Datagrams):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            self.transport.close()

    loop = asyncio.get_running_loop()
    server, heard = await loop.create_datagram_endpoint(
        Closing, local_addr=("127.0.0.1", 0)
    )
    client, _ = await _endpoint(remote_addr=server.get_extra_info("sockname"))
    for _ in range(20):
        client.sendto(b"x")
    await heard.lost
    await asyncio.sleep(0.005)
    assert len(heard.received) == 1
    await _closed(client)


async def test_an_exception_of_datagram_received_is_reported() -> None:
    class Broken(Datagrams):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            raise ZeroDivisionError

    loop = asyncio.get_running_loop()
    reports = collect_reports(loop)
    server, heard = await loop.create_datagram_endpoint(
        Broken, local_addr=("127.0.0.1", 0)
    )
    client, _ = await _endpoint(remote_addr=server.get_extra_info("sockname"))
    client.sendto(b"one")
    await eventually(lambda: reports)
    assert isinstance(reports[0]["exception"], ZeroDivisionError)
    assert heard.received
    await _closed(server, client)


async def test_broadcast_and_reuse_port_are_set() -> None:
    first, _ = await _endpoint(
        local_addr=("127.0.0.1", 0), reuse_port=True, allow_broadcast=True
    )
    sock = first.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST)
    second, _ = await _endpoint(
        local_addr=first.get_extra_info("sockname"), reuse_port=True
    )
    await _closed(first, second)


async def test_impossible_combinations_are_refused() -> None:
    with pytest.raises(ValueError, match="unexpected address family"):
        await _endpoint()
    with socket.socket() as stream:
        with pytest.raises(ValueError, match=r"(datagram|UDP) [sS]ocket was"):
            await _endpoint(sock=stream)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        with pytest.raises(ValueError, match="socket modifier keyword arguments"):
            await _endpoint(sock=sock, local_addr=("127.0.0.1", 0))


async def test_a_datagram_transport_is_asyncios() -> None:
    client, _ = await _endpoint(remote_addr=("127.0.0.1", 9))
    if sys.version_info >= (3, 12) or is_ours(asyncio.get_running_loop()):
        assert isinstance(client, asyncio.DatagramTransport)
    assert "fd=" in repr(client)
    await _closed(client)


async def test_a_child_sends_and_leaves_the_loop_alone() -> None:
    skip_control("watches the socket in the parent's epoll set")
    loop = asyncio.get_running_loop()
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with right:
        left.setblocking(False)
        right.setblocking(False)
        transport, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, sock=left
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for _ in range(10_000):  # more than fits
                    transport.sendto(b"from the child")
                code = 0 if transport.get_write_buffer_size() == 0 else 2
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)  # noqa: ASYNC222
        assert os.waitstatus_to_exitcode(status) == 0
        assert right.recv(100) == b"from the child"
        with contextlib.suppress(BlockingIOError):
            while True:
                right.recv(100)
        transport.sendto(b"from the parent")
        assert right.recv(100) == b"from the parent"
        transport.close()
        await asyncio.sleep(0)
