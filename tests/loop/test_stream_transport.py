"""Rules of the stream transport: reading, protocols, closing, what it tells.

Writing has a file of its own. The tests run as coroutines on every backend and
on the stock loop, through the hook.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Any

import pytest

from .helpers import (
    Recorder,
    collect_reports,
    connected,
    eventually,
    fill,
    skip_control,
    socket_pair,
)

pytestmark = pytest.mark.asyncio
FAMILIES = pytest.mark.parametrize("family", ["tcp", "unix"])


@FAMILIES
async def test_data_arrives_whole_and_in_order(family: str) -> None:
    sent = os.urandom(1 << 20)
    async with connected(family) as (_, protocol, peer):
        view = memoryview(sent)
        while view:
            try:
                view = view[peer.send(view) :]
            except BlockingIOError:
                await asyncio.sleep(0)
        await eventually(lambda: len(protocol.data) == len(sent))
        assert protocol.data == sent


@FAMILIES
async def test_what_was_received_is_nobody_elses(family: str) -> None:
    """Large and small ones take different ways into what the protocol gets."""

    class Keeps(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.kept: list[bytes] = []

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            assert type(data) is bytes
            self.kept.append(data)

    async with connected(family, Keeps) as (_, protocol, peer):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        sent = b""
        for size in (1 << 17, 1, 100_000, 16_384, 16_383, 40_000, 1 << 18, 5):
            part = memoryview(os.urandom(size))
            sent += part
            while part:
                with contextlib.suppress(BlockingIOError):
                    part = part[peer.send(part) :]
                await asyncio.sleep(0)
            await eventually(lambda: len(protocol.data) == len(sent))  # noqa: B023
        peer.close()
        await protocol.lost
        assert max(map(len, protocol.kept)) > 16_384
        assert b"".join(protocol.kept) == sent
        assert protocol.calls == ["made", "data", "eof", "lost"]


@FAMILIES
async def test_a_life_has_its_calls_in_order(family: str) -> None:
    async with connected(family) as (_, protocol, peer):
        peer.send(b"hello")
        await eventually(lambda: protocol.data)
        peer.close()
        await protocol.lost
        assert protocol.calls == ["made", "data", "eof", "lost"]
        assert protocol.error is None


@FAMILIES
async def test_a_protocol_can_keep_its_half_open(family: str) -> None:
    async with connected(family) as (transport, protocol, peer):
        protocol.keep_open = True
        peer.shutdown(socket.SHUT_WR)
        await eventually(lambda: "eof" in protocol.calls)
        assert not transport.is_closing()
        transport.write(b"still here")
        transport.close()
        await protocol.lost
        assert peer.recv(100) == b"still here"
        assert peer.recv(100) == b""


async def test_a_reset_is_told_once() -> None:
    async with connected() as (transport, protocol, peer):
        peer.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0" + b"\0\0\0\0"
        )
        peer.close()
        await protocol.lost
        assert isinstance(protocol.error, ConnectionResetError)
        assert protocol.calls.count("lost") == 1
        transport.close()
        transport.abort()
        await asyncio.sleep(0)
        assert protocol.calls.count("lost") == 1


@pytest.mark.parametrize("how", ["close", "abort", "close abort", "abort close"])
async def test_connection_lost_comes_once_and_later(how: str) -> None:
    async with connected() as (transport, protocol, peer):
        for word in how.split():
            getattr(transport, word)()
            assert transport.is_closing()
        assert "lost" not in protocol.calls
        await protocol.lost
        for _ in range(3):
            await asyncio.sleep(0)
        assert protocol.calls == ["made", "lost"]
        assert protocol.error is None
        await eventually(lambda: peer.recv(1) == b"")


async def test_nothing_is_received_after_close() -> None:
    async with connected("unix") as (transport, protocol, peer):
        peer.send(b"unread")
        transport.close()
        await protocol.lost
        assert protocol.calls == ["made", "lost"]


@FAMILIES
async def test_pause_reading_holds_the_data_back(family: str) -> None:
    async with connected(family) as (transport, protocol, peer):
        assert transport.is_reading()
        transport.pause_reading()
        transport.pause_reading()
        assert not transport.is_reading()
        peer.send(b"later")
        await asyncio.sleep(0.01)
        assert protocol.data == b""
        transport.resume_reading()
        transport.resume_reading()
        assert transport.is_reading()
        await eventually(lambda: protocol.data == b"later")


async def test_pause_reading_from_data_received_stops_at_once() -> None:
    chunks: list[int] = []

    class Pausing(Recorder):
        def data_received(self, data: bytes) -> None:
            chunks.append(len(data))
            self.transport.pause_reading()

    async with connected("unix", Pausing) as (transport, _, peer):
        fill(peer)
        for number in range(3):
            # The first 64 KiB are not everything that is there.
            transport.resume_reading()
            await eventually(lambda number=number: len(chunks) > number)
            await asyncio.sleep(0.005)
            assert len(chunks) == number + 1
            peer.send(bytes(1 << 10))


async def test_pausing_a_closing_transport_does_nothing() -> None:
    async with connected() as (transport, protocol, _):
        transport.close()
        transport.pause_reading()
        transport.resume_reading()
        assert not transport.is_reading()
        await protocol.lost
        assert not transport.is_reading()


async def test_connection_made_may_close_at_once() -> None:
    class Closing(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            transport.close()

    async with connected("tcp", Closing) as (transport, protocol, _):
        await protocol.lost
        assert transport.is_closing()
        assert protocol.calls == ["made", "lost"]


async def test_set_protocol_moves_the_data_to_the_new_one() -> None:
    async with connected("unix") as (transport, first, peer):
        peer.send(b"one")
        await eventually(lambda: first.data == b"one")
        second = Recorder()
        second.calls.append("made")
        transport.set_protocol(second)
        assert transport.get_protocol() is second
        peer.send(b"two")
        await eventually(lambda: second.data == b"two")
        transport.close()
        await second.lost
        assert first.data == b"one"
        assert "lost" not in first.calls


class Buffered(asyncio.BufferedProtocol):
    """Takes the data through a buffer of its own."""

    def __init__(self, size: int = 64) -> None:
        self.buffer = bytearray(size)
        self.data = bytearray()
        self.hints: list[int] = []
        self.lost = asyncio.get_running_loop().create_future()
        self.got_eof = False

    def get_buffer(self, sizehint: int) -> Any:
        self.hints.append(sizehint)
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data += self.buffer[:nbytes]

    def eof_received(self) -> None:
        self.got_eof = True

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost.set_result(exc)


@FAMILIES
async def test_a_buffered_protocol_gets_everything(family: str) -> None:
    sent = os.urandom(50_000)
    async with connected(family, Buffered) as (_, protocol, peer):
        peer.send(sent)
        await eventually(lambda: len(protocol.data) == len(sent))
        assert protocol.data == sent
        peer.close()
        assert await protocol.lost is None
        assert protocol.got_eof
        assert all(isinstance(hint, int) for hint in protocol.hints)


async def test_set_protocol_switches_to_a_buffered_protocol_and_back() -> None:
    async with connected("unix") as (transport, first, peer):
        buffered = Buffered()
        transport.set_protocol(buffered)
        peer.send(b"buffered")
        await eventually(lambda: buffered.data == b"buffered")
        transport.set_protocol(first)
        peer.send(b"plain")
        await eventually(lambda: first.data == b"plain")
        assert buffered.data == b"buffered"


async def test_data_received_may_switch_the_protocol() -> None:
    class Switching(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.next = Buffered()
            self.transport.set_protocol(self.next)

    async with connected("unix", Switching) as (_, protocol, peer):
        peer.send(b"a")
        await eventually(lambda: protocol.data == b"a")
        peer.send(b"b")
        await eventually(lambda: protocol.next.data == b"b")
        assert protocol.data == b"a"


@pytest.mark.parametrize(
    "buffer",
    [bytearray(), memoryview(b"read only"), None, 5],
    ids=["empty", "read-only", "none", "int"],
)
async def test_a_buffer_that_cannot_be_filled_ends_the_connection(buffer: Any) -> None:
    reports = collect_reports(asyncio.get_running_loop())
    async with connected("unix", Buffered) as (_, protocol, peer):
        protocol.buffer = buffer
        peer.send(b"x")
        error = await asyncio.wait_for(protocol.lost, 5)
        assert error is not None
        assert len(reports) == 1
        assert reports[0]["exception"] is error


async def test_an_exception_of_get_buffer_ends_the_connection() -> None:
    class Broken(Buffered):
        def get_buffer(self, sizehint: int) -> Any:
            raise ZeroDivisionError

    reports = collect_reports(asyncio.get_running_loop())
    async with connected("unix", Broken) as (_, protocol, peer):
        peer.send(b"x")
        error = await asyncio.wait_for(protocol.lost, 5)
        assert isinstance(error, ZeroDivisionError)
        assert "get_buffer() call failed" in reports[0]["message"]


async def test_an_exception_of_data_received_ends_the_connection() -> None:
    class Broken(Recorder):
        def data_received(self, data: bytes) -> None:
            raise ZeroDivisionError

    reports = collect_reports(asyncio.get_running_loop())
    async with connected("unix", Broken) as (transport, protocol, peer):
        peer.send(b"x")
        await protocol.lost
        assert isinstance(protocol.error, ZeroDivisionError)
        assert len(reports) == 1
        assert reports[0]["transport"] is transport
        assert reports[0]["protocol"] is protocol
        assert reports[0]["message"] == (
            "Fatal error: protocol.data_received() call failed."
        )


async def test_an_exception_of_eof_received_ends_the_connection() -> None:
    class Broken(Recorder):
        def eof_received(self) -> bool:
            raise ZeroDivisionError

    reports = collect_reports(asyncio.get_running_loop())
    async with connected("unix", Broken) as (_, protocol, peer):
        peer.close()
        await protocol.lost
        assert isinstance(protocol.error, ZeroDivisionError)
        assert "eof_received() call failed" in reports[0]["message"]


async def test_extra_info_of_tcp() -> None:
    async with connected() as (transport, protocol, peer):
        sock = transport.get_extra_info("socket")
        names = (
            transport.get_extra_info("sockname"),
            transport.get_extra_info("peername"),
        )
        assert names == (peer.getpeername(), peer.getsockname())
        assert sock.getsockname() == names[0]
        assert sock.family == socket.AF_INET
        assert sock.type == socket.SOCK_STREAM
        assert sock.fileno() >= 0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert transport.get_extra_info("nothing") is None
        assert transport.get_extra_info("nothing", 5) == 5
        transport.close()
        await protocol.lost
        assert transport.get_extra_info("sockname") == names[0]
        assert transport.get_extra_info("peername") == names[1]


async def test_peername_is_there_after_the_peer_has_gone() -> None:
    async with connected() as (transport, protocol, peer):
        name = peer.getsockname()
        protocol.keep_open = True
        peer.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0" + b"\0\0\0\0"
        )
        peer.close()
        await protocol.lost
        assert transport.get_extra_info("peername") == name


async def test_the_socket_told_of_is_not_for_io() -> None:
    async with connected() as (transport, _, _):
        sock = transport.get_extra_info("socket")
        assert type(sock).__name__ == "TransportSocket"
        for name in ("recv", "send", "close", "accept"):
            assert not hasattr(sock, name)


async def test_a_transport_is_an_asyncio_transport() -> None:
    async with connected() as (transport, _, _):
        assert isinstance(transport, asyncio.Transport)
        assert isinstance(transport, asyncio.BaseTransport)


async def test_repr_tells_the_state() -> None:
    async with connected() as (transport, protocol, _):
        fd = transport.get_extra_info("socket").fileno()
        assert f"fd={fd}" in repr(transport)
        transport.close()
        assert "clos" in repr(transport)
        await protocol.lost
        assert "closed" in repr(transport)


class _Switches(Buffered):
    """Hands over to a plain protocol while it is being asked for a buffer."""

    def __init__(self, when: str) -> None:
        super().__init__()
        self.when = when
        self.plain = Recorder()
        self.plain.calls.append("made")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def get_buffer(self, sizehint: int) -> Any:
        if self.when == "get_buffer":
            self.transport.set_protocol(self.plain)  # type: ignore[attr-defined]
        return super().get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        super().buffer_updated(nbytes)
        if self.when == "buffer_updated":
            self.transport.set_protocol(self.plain)  # type: ignore[attr-defined]


@pytest.mark.parametrize("when", ["get_buffer", "buffer_updated"])
async def test_a_buffered_protocol_may_hand_over_within_its_calls(when: str) -> None:
    if when == "get_buffer":
        skip_control("fills the buffer of the one and tells the other")
    async with connected("unix", lambda: _Switches(when)) as (_, protocol, peer):
        peer.send(b"first")
        await eventually(lambda: protocol.data or protocol.plain.data)
        peer.send(b"second")
        await eventually(lambda: b"second" in protocol.plain.data)
        assert protocol.data + protocol.plain.data == b"firstsecond"
        assert (protocol.data == b"first") is (when == "buffer_updated")


async def test_a_reused_number_is_not_the_old_transports() -> None:
    skip_control("reads what is the new owner's")
    loop = asyncio.get_running_loop()
    mine, peer = socket_pair("unix")
    transport, protocol = await loop.create_connection(Recorder, sock=mine)
    number = mine.fileno()
    mine.close()  # behind the back of the transport
    other, far = socket_pair("unix")
    with peer, other, far:
        assert other.fileno() == number
        far.send(b"for the new owner")
        await asyncio.wait([protocol.lost], timeout=0.05)
        assert not protocol.data
        transport.write(b"for the old peer")
        await asyncio.wait_for(protocol.lost, 5)
        assert isinstance(protocol.error, OSError)
        assert other.recv(100) == b"for the new owner"
        with pytest.raises(BlockingIOError):
            far.recv(100)
        assert other.fileno() == number
