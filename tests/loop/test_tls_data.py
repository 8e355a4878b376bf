"""Rules of TLS data: odd records, pausing, buffers of any size, large and small writes.

The other end is `tls_peer.Peer`, which sends what no well-behaved TLS library would
send at that moment.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from .helpers import Recorder, eventually, is_ours, skip_control
from .tls_peer import Contexts, Peer, tls_connected

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.asyncio


class Buffered(asyncio.BufferedProtocol):
    """A buffered protocol with a buffer of `size` bytes."""

    size = 7

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.data = bytearray()
        self.buffer = bytearray(self.size)
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.error: BaseException | None = None
        self.then: Callable[[], object] = lambda: None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        # The stock protocol cannot fill a bytearray in steps.
        return memoryview(self.buffer)

    def buffer_updated(self, nbytes: int) -> None:
        self.data += self.buffer[:nbytes]
        self.then()

    def eof_received(self) -> None:
        self.calls.append("eof")

    def connection_lost(self, exc: BaseException | None) -> None:
        self.calls.append("lost")
        self.error = exc
        self.lost.set_result(None)


async def test_bytes_may_come_one_by_one(versioned: Contexts) -> None:
    async with tls_connected(versioned, step=1) as (_, protocol, peer):
        await peer.send(b"one", b"two", b"three")
        await eventually(lambda: protocol.data == b"onetwothree")
        await peer.send_raw(peer.farewell())
        await protocol.lost
        assert protocol.calls == ["made", "data", "eof", "lost"]


@pytest.mark.parametrize("cut", [1, 5, 6, 40, 1400, 16000])
async def test_records_may_be_cut_anywhere(versioned: Contexts, cut: int) -> None:
    sent = [os.urandom(n) for n in (1, 900, 16384, 3, 16384, 7000)]
    async with tls_connected(versioned) as (_, protocol, peer):
        wire = peer.encrypt(*sent)
        await peer.send_raw(wire[:cut])
        await asyncio.sleep(0.01)
        await peer.send_raw(wire[cut:-cut])
        await asyncio.sleep(0.01)
        await peer.send_raw(wire[-cut:])
        await eventually(lambda: len(protocol.data) == sum(map(len, sent)))
        assert protocol.data == b"".join(sent)


async def test_what_came_together_is_one_delivery(contexts: Contexts) -> None:
    deliveries: list[bytes] = []

    class Listing(Recorder):
        def data_received(self, data: bytes) -> None:
            deliveries.append(data)

    async with tls_connected(contexts, Listing) as (_, _, peer):
        await peer.send(*[b"%d," % n for n in range(100)])
        await eventually(lambda: b"".join(deliveries).endswith(b"99,"))
        assert len(deliveries) == 1
        assert type(deliveries[0]) is bytes


@pytest.mark.parametrize("size", [1, 7, 1000, 1 << 17])
async def test_a_buffered_protocol_may_have_a_small_buffer(
    versioned: Contexts, size: int
) -> None:
    class Sized(Buffered):
        pass

    Sized.size = size
    data = os.urandom(40_000)
    async with tls_connected(versioned, Sized) as (transport, protocol, peer):
        await peer.send(data[:5], data[5:20000], data[20000:])
        await eventually(lambda: len(protocol.data) == len(data), 20)
        assert protocol.data == data
        transport.write(b"answer")
        assert await peer.recv(6) == b"answer"
        await peer.send_raw(peer.encrypt(b"last") + peer.farewell())
        await protocol.lost
        assert protocol.data == data + b"last"
        assert protocol.calls == ["eof", "lost"]


async def test_a_buffered_protocol_may_pause_between_buffers(
    contexts: Contexts,
) -> None:
    async with tls_connected(contexts, Buffered) as (transport, protocol, peer):
        protocol.then = transport.pause_reading
        data = os.urandom(70)
        await peer.send(data[:30], data[30:])
        for n in range(1, 11):
            await eventually(lambda n=n: len(protocol.data) >= min(7 * n, 70))
            if is_ours(asyncio.get_running_loop()):
                await asyncio.sleep(0.002)
                assert len(protocol.data) == 7 * n
            transport.resume_reading()
        assert protocol.data == data


@pytest.mark.loop_errors
async def test_an_empty_buffer_is_an_error(contexts: Contexts) -> None:
    skip_control("takes it for the end of the stream")

    class Empty(Buffered):
        size = 0

    reports: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, c: reports.append(c))
    async with tls_connected(contexts, Empty) as (_, protocol, peer):
        await peer.send(b"x")
        await protocol.lost
        assert "empty buffer" in str(protocol.error)
    assert reports[0]["message"] == "Fatal error on SSL protocol"


async def test_pausing_in_data_received_holds_the_rest(contexts: Contexts) -> None:
    class Pausing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.pause_reading()

    async with tls_connected(contexts, Pausing) as (transport, protocol, peer):
        await peer.send(b"first")
        await eventually(lambda: protocol.data == b"first")
        data = os.urandom(600_000)
        sending = asyncio.ensure_future(
            peer.send(*[data[n : n + 10_000] for n in range(0, len(data), 10_000)])
        )
        await asyncio.sleep(0.05)
        assert protocol.data == b"first"
        low, high = transport.get_read_buffer_limits()
        assert (low, high) == (64 << 10, 256 << 10)
        # One read more than the limit, which ends the reading below.
        assert high <= transport.get_read_buffer_size() <= 2 * high + (64 << 10)
        while len(protocol.data) < len(data) + 5:
            transport.resume_reading()
            await asyncio.sleep(0.001)
        assert protocol.data == b"first" + data
        await sending
        assert transport.get_read_buffer_size() == 0


async def test_a_low_read_limit_does_not_stop_the_reading(contexts: Contexts) -> None:
    skip_control("pauses at the limit of 0 for ever")
    async with tls_connected(contexts) as (transport, protocol, peer):
        transport.set_read_buffer_limits(high=0)
        wire = peer.encrypt(b"text")
        await peer.send_raw(wire[:3])
        await asyncio.sleep(0.01)
        await peer.send_raw(wire[3:])
        await eventually(lambda: protocol.data == b"text")


async def test_the_protocol_may_change_in_data_received(contexts: Contexts) -> None:
    after: list[Any] = []

    class First(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            after.append(Buffered() if not after else Recorder())
            after[-1].calls.append("made")
            after[-1].transport = self.transport
            self.transport.set_protocol(after[-1])

    async with tls_connected(contexts, First) as (transport, protocol, peer):
        await peer.send(b"one")
        await eventually(lambda: protocol.data == b"one")
        assert transport.get_protocol() is after[0]
        await peer.send(b"number two")
        await eventually(lambda: after[0].data == b"number two")
        transport.set_protocol(protocol)
        await peer.send(b"three")
        await eventually(lambda: protocol.data == b"onethree")
        await peer.send(b"four")
        await eventually(lambda: after[1].data == b"four")
        peer.sock.close()
        await after[1].lost


async def test_a_large_write_is_held_back(versioned: Contexts) -> None:
    skip_control("keeps all of one write in the transport below, and does not pause")
    data = os.urandom(1 << 20) * 16
    async with tls_connected(versioned) as (transport, protocol, peer):
        transport.write(data)
        assert protocol.calls == ["made", "pause"]
        assert transport.get_write_buffer_size() > 512 << 10
        taken = await peer.recv(len(data))
        assert taken == data
        await eventually(lambda: protocol.calls == ["made", "pause", "resume"])
        assert transport.get_write_buffer_size() == 0


async def test_the_buffers_of_openssl_stay_small(contexts: Contexts) -> None:
    skip_control("puts all of it there")
    data = bytes(4 << 20)
    async with tls_connected(contexts) as (transport, protocol, peer):
        tls = transport._ssl_protocol
        transport.write(data)
        assert tls._outgoing.pending == 0
        assert await peer.recv(len(data)) == data
        transport.pause_reading()
        sending = asyncio.ensure_future(peer.send(data[: 1 << 20]))
        await asyncio.sleep(0.05)
        assert transport.get_read_buffer_size() > 128 << 10
        assert tls._incoming.pending < 64 << 10
        transport.resume_reading()
        await sending
        await eventually(lambda: len(protocol.data) == 1 << 20)


def records(wire: bytes) -> list[int]:
    """The lengths of the records in some ciphertext."""
    found = []
    while wire:
        found.append(int.from_bytes(wire[3:5], "big"))
        wire = wire[5 + found[-1] :]
    return found


async def _received(peer: Peer, size: int) -> bytes:
    wire = b""
    while sum(records(wire)) < size:
        wire += await asyncio.get_running_loop().sock_recv(peer.sock, 1 << 20)
    return wire


async def test_small_writes_share_a_record(contexts: Contexts) -> None:
    skip_control("makes a record of each")
    async with tls_connected(contexts) as (transport, _, peer):
        data = os.urandom(1000)
        for n in range(len(data)):
            transport.write(data[n : n + 1])
        wire = await _received(peer, len(data))
        assert len(records(wire)) == 1
        peer.incoming.write(wire)
        assert peer.tls.read(2000) == data

        parts = [os.urandom(n) for n in (5, 10_000, 1, 20_000, 40, 16384, 16385, 2)]
        transport.writelines([*parts, b"", bytearray(b"end"), memoryview(b"!")])
        assert await peer.recv(sum(map(len, parts)) + 4) == b"".join(parts) + b"end!"


async def test_what_is_written_may_change_afterwards(contexts: Contexts) -> None:
    async with tls_connected(contexts) as (transport, _, peer):
        block = bytearray(b"before")
        transport.write(block)
        transport.write(memoryview(block)[:3])
        block[:] = b"after!"
        assert await peer.recv(9) == b"beforebef"
        with pytest.raises(TypeError, match="expecting a bytes-like"):
            transport.write("text")
        with pytest.raises(TypeError):
            transport.writelines([b"not sent", 3])
        with pytest.raises(NotImplementedError):
            transport.write_eof()


async def test_the_program_may_write_while_the_transport_is_full(
    contexts: Contexts,
) -> None:
    skip_control("keeps all of one write in the transport below, and does not pause")

    class Writing(Recorder):
        def pause_writing(self) -> None:
            super().pause_writing()
            self.transport.write(b"p")

        def resume_writing(self) -> None:
            super().resume_writing()
            self.transport.write(b"r")

    async with tls_connected(contexts, Writing) as (transport, protocol, peer):
        transport.set_write_buffer_limits(high=1000, low=10)
        assert transport.get_write_buffer_limits() == (10, 1000)
        size = 8 << 20
        transport.write(bytes(size))
        got = await peer.recv(size + 2)
        assert got == bytes(size) + b"pr"
        assert protocol.calls == ["made", "pause", "resume"]


@pytest.mark.parametrize("big", [False, True])
async def test_tls_within_tls_carries_much(contexts: Contexts, big: bool) -> None:
    """Two ends of the loop; the inner one's records are cut by the outer one's."""
    data = os.urandom(1 << 21 if big else 3000)
    done = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        await writer.start_tls(contexts[0])
        writer.write(await reader.readexactly(len(data)))
        await writer.drain()
        assert await reader.read() == b""
        writer.close()
        done.set_result(None)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=contexts[0])
    async with server:
        host, port = server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(host, port, ssl=contexts[1])
        writer.write(b"!")
        await writer.start_tls(contexts[1], server_hostname="localhost")
        writer.write(data)
        assert await reader.readexactly(len(data)) == data
        writer.close()
        await asyncio.wait_for(done, 5)
        await writer.wait_closed()


async def test_a_certificate_may_be_asked_for_later(contexts: Contexts) -> None:
    """TLS 1.3: the answer is sent though the program writes nothing."""
    server, client = contexts
    server.post_handshake_auth = client.post_handshake_auth = True
    server.verify_mode = ssl.CERT_REQUIRED
    try:
        async with tls_connected((server, client)) as (_, protocol, peer):
            peer.tls.verify_client_post_handshake()
            await peer.send(b"who is it?")
            assert peer.tls.getpeercert() is None
            await eventually(lambda: protocol.data == b"who is it?")
            assert await peer.fill()
            with pytest.raises(ssl.SSLWantReadError):
                peer.tls.read(10)
            assert peer.tls.getpeercert(binary_form=True)
    finally:
        server.post_handshake_auth = client.post_handshake_auth = False
        server.verify_mode = ssl.CERT_NONE


async def test_a_session_object_of_the_programs_class_is_used(
    contexts: Contexts,
) -> None:
    calls: set[str] = set()

    class Watched(ssl.SSLObject):
        def read(self, len: int = 1024, buffer: Any = None) -> Any:
            calls.add("read")
            return super().read(len) if buffer is None else super().read(len, buffer)

        def write(self, data: Any) -> int:
            calls.add("write")
            return super().write(data)

    client = contexts[1]
    client.sslobject_class = Watched
    try:
        for factory in (Recorder, Buffered):
            data = os.urandom(50_000)
            async with tls_connected(contexts, factory) as (transport, protocol, peer):
                transport.write(data)
                assert await peer.recv(len(data)) == data
                await peer.send(data)
                await eventually(lambda p=protocol: len(p.data) == 50_000)
                assert protocol.data == data
    finally:
        del client.sslobject_class
    assert calls == {"read", "write"}


async def test_a_file_is_sent_over_tls(contexts: Contexts, tmp_path: Any) -> None:
    loop = asyncio.get_running_loop()
    path = tmp_path / "file"
    data = os.urandom(300_000)
    path.write_bytes(data)
    async with tls_connected(contexts) as (transport, protocol, peer):
        with path.open("rb") as file:
            sending = asyncio.ensure_future(loop.sendfile(transport, file))
            assert await peer.recv(len(data)) == data
            assert await sending == len(data)
        assert transport.get_protocol() is protocol
        await peer.send(b"on")
        await eventually(lambda: protocol.data == b"on")


async def test_what_a_transport_tells(contexts: Contexts) -> None:
    async with tls_connected(contexts) as (transport, protocol, peer):
        assert isinstance(transport, asyncio.Transport)
        assert isinstance(transport, asyncio.transports._FlowControlMixin)
        assert transport.get_extra_info("peercert")["subject"]
        assert transport.get_extra_info("peercert") is transport.get_extra_info(
            "peercert"
        )
        assert transport.get_extra_info("cipher") == peer.tls.cipher()
        assert transport.get_extra_info("compression") is None
        assert transport.get_extra_info("compression", 3) is None
        assert transport.get_extra_info("sslcontext") is contexts[1]
        assert transport.get_extra_info("ssl_object").version() == peer.tls.version()
        assert transport.get_extra_info("socket").fileno() > 0
        assert transport.get_extra_info("no such thing", 5) == 5
        assert transport._ssl_protocol._app_transport is transport
        assert transport._ssl_protocol._app_protocol is protocol
        assert transport._ssl_protocol._transport.get_protocol() is (
            transport._ssl_protocol
        )
        assert not transport.is_closing()
        if is_ours(asyncio.get_running_loop()):
            assert "TlsProtocol WRAPPED" in repr(transport)
