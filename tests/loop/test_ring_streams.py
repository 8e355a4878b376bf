"""Rules of stream sockets that a lasting request of io_uring receives from.

Whatever the kernel has received before anybody asked is delivered once, whole and in
order, or dropped with the connection; and nobody but the counters can tell.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
import threading
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from support.procs import run_script

from .helpers import (
    NEW_LOOP,
    Recorder,
    collect_reports,
    connected,
    eventually,
    is_ours,
    recv_all,
    socket_pair,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.asyncio
Contexts = tuple[ssl.SSLContext, ssl.SSLContext]
LARGE = 1 << 18


def info() -> dict[str, Any]:
    """What the running loop's backend tells of itself."""
    loop: Any = asyncio.get_running_loop()
    found: dict[str, Any] = loop.stats()["fdmon_info"]
    return found


@pytest_asyncio.fixture(autouse=True)
async def _on_a_ring() -> Any:
    """Skip where no such request is made; at the end no buffer may be missing."""
    loop: Any = asyncio.get_running_loop()
    if not is_ours(loop) or loop.fdmon != "io_uring":
        pytest.skip("about io_uring")
    if "DEFER_TASKRUN" not in info().get("setup_flags", ["DEFER_TASKRUN"]):
        pytest.skip("this kernel has no deferred task work")
    yield
    await asyncio.sleep(0)
    assert info()["receive_held"] == 0


@contextlib.asynccontextmanager
async def company() -> AsyncIterator[Callable[[], None]]:
    """Connections that are busy whenever what this gives is called."""
    loop = asyncio.get_running_loop()
    pairs = [socket_pair() for _ in range(4)]
    transports = [
        (await loop.create_connection(Recorder, sock=mine))[0] for mine, _ in pairs
    ]

    def chat() -> None:
        for _, peer in pairs:
            peer.send(b"chat")

    try:
        yield chat
    finally:
        for transport in transports:
            transport.abort()
        for _, peer in pairs:
            peer.close()
        await asyncio.sleep(0.001)


async def warm(protocol: Any, peer: socket.socket, chat: Callable[[], None]) -> None:
    """Send small messages until a request receives them; forget them again."""
    for _ in range(200):
        before = info()["received"]
        chat()
        peer.send(b"warm")
        await asyncio.sleep(0.002)
        if info()["received"] - before == 20:  # by all five
            break
    else:
        pytest.fail("no request ever received")
    protocol.data.clear()
    protocol.calls[1:] = []


@contextlib.asynccontextmanager
async def warmed(
    factory: Any = Recorder,
) -> AsyncIterator[tuple[Any, Any, socket.socket]]:
    """Like `connected`, and a request receives for it."""
    async with company() as chat, connected("tcp", factory) as ends:
        await warm(*ends[1:], chat)
        yield ends


class Buffered(Recorder, asyncio.BufferedProtocol):
    """Takes data a few bytes at a time."""

    data_received = None  # type: ignore[assignment]

    def get_buffer(self, sizehint: int) -> bytearray:
        self.memory = bytearray(7)
        return self.memory

    def buffer_updated(self, nbytes: int) -> None:
        Recorder.data_received(self, bytes(self.memory[:nbytes]))


@pytest.mark.parametrize("factory", [Recorder, Buffered])
async def test_small_messages_arrive_whole(factory: Any) -> None:
    async with company() as chat, connected("tcp", factory) as (_, protocol, peer):
        await warm(protocol, peer, chat)
        sent = b""
        before = info()["received"]
        for turn in range(300):
            chat()
            message = os.urandom(1 + turn % 97)
            peer.send(message)
            sent += message
            await asyncio.sleep(0)
        await eventually(lambda: len(protocol.data) == len(sent))
        assert protocol.data == sent
        await eventually(lambda: info()["received"] - before == len(sent) + 300 * 16)
        assert protocol.calls == ["made", "data"]


async def test_a_connection_alone_is_not_received_for() -> None:
    async with connected() as (_, protocol, peer):
        for turn in range(50):
            peer.send(b"word")
            await eventually(lambda turn=turn: len(protocol.data) == 4 * (turn + 1))
        assert info()["received"] == 0


async def test_a_connection_that_is_left_alone_goes_back_to_plain_calls() -> None:
    async with warmed() as (_, protocol, peer):
        before = info()["received"]
        for turn in range(100):
            peer.send(b"word")
            await eventually(lambda turn=turn: len(protocol.data) == 4 * (turn + 1))
        assert 0 < info()["received"] - before < 300


async def test_other_sockets_than_tcp_are_not_received_for() -> None:
    async with company() as chat, connected("unix") as (_, protocol, peer):
        for turn in range(50):
            chat()
            before = info()["received"]
            peer.send(b"word")
            await eventually(lambda turn=turn: len(protocol.data) == 4 * (turn + 1))
            assert (info()["received"] - before) % 16 in (0, 4, 8, 12)
        await asyncio.sleep(0.01)
        before = info()["received"]
        peer.send(b"word")
        await eventually(lambda: len(protocol.data) == 204)
        assert info()["received"] == before


async def test_a_flood_arrives_whole_and_by_plain_calls() -> None:
    sent = os.urandom(1 << 21)
    async with company() as chat, connected() as (_, protocol, peer):
        await warm(protocol, peer, chat)
        before = info()["received"]
        view = memoryview(sent)
        while view:
            try:
                view = view[peer.send(view) :]
            except BlockingIOError:
                await asyncio.sleep(0)
        await eventually(lambda: len(protocol.data) == len(sent))
        assert protocol.data == sent
        assert info()["received"] - before < len(sent) // 2
        await warm(protocol, peer, chat)  # small messages win it back


async def test_data_then_the_end_of_file() -> None:
    async with warmed() as (_, protocol, peer):
        peer.send(b"last words")
        peer.shutdown(socket.SHUT_WR)
        await protocol.lost
        assert protocol.data == b"last words"
        assert protocol.calls == ["made", "data", "eof", "lost"]
        assert protocol.error is None


async def test_half_open_after_the_end_of_file() -> None:
    async with warmed() as (transport, protocol, peer):
        protocol.keep_open = True
        peer.shutdown(socket.SHUT_WR)
        await eventually(lambda: "eof" in protocol.calls)
        await asyncio.sleep(0.01)
        transport.write(b"still here")
        transport.close()
        await protocol.lost
        assert peer.recv(100) == b"still here"
        assert protocol.calls.count("eof") == 1


async def test_a_reset_is_told() -> None:
    async with warmed() as (_, protocol, peer):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        await protocol.lost
        assert isinstance(protocol.error, ConnectionResetError)


async def test_a_reset_that_comes_with_data_is_told() -> None:
    """Kernels differ: the request may have slept on."""
    async with warmed() as (transport, protocol, peer):
        transport.pause_reading()
        await asyncio.sleep(0.01)
        peer.send(b"last words")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        transport.resume_reading()
        await asyncio.wait_for(protocol.lost, 5)
        assert protocol.error is None or isinstance(
            protocol.error, ConnectionResetError
        )


@pytest.mark.parametrize("ending", ["eof", "reset"])
async def test_the_end_is_told_whenever_it_comes(ending: str) -> None:
    loop = asyncio.get_running_loop()
    ends = []
    async with company() as chat:
        for _ in range(40):
            mine, peer = socket_pair()
            ends.append(((await loop.create_connection(Recorder, sock=mine))[1], peer))
        await warm(*ends[-1], chat)
        for _, peer in ends:
            for _ in range(8):
                peer.send(b"w")
        for _ in range(8):
            for _, peer in ends:
                peer.send(b"w")
            await asyncio.sleep(0.001)
        for turn, (_, peer) in enumerate(ends):
            peer.send(b"last")
            if ending == "reset":
                peer.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
            peer.close()
            if turn % 5 == 0:
                await asyncio.sleep(0)
        for protocol, _ in ends:
            await asyncio.wait_for(protocol.lost, 5)
            if ending == "eof":
                assert protocol.data.endswith(b"last")


async def test_nothing_comes_while_paused() -> None:
    async with warmed() as (transport, protocol, peer):
        peer.send(b"one ")  # before, and perhaps received already
        transport.pause_reading()
        for word in (b"two ", b"three "):
            await asyncio.sleep(0.005)
            peer.send(word)
        peer.shutdown(socket.SHUT_WR)
        await asyncio.sleep(0.02)
        assert protocol.calls == ["made"]
        transport.resume_reading()
        await protocol.lost
        assert protocol.data == b"one two three "
        assert protocol.calls == ["made", "data", "eof", "lost"]


async def test_pausing_and_resuming_at_random_loses_nothing() -> None:
    async with warmed() as (transport, protocol, peer):
        sent = b""
        for turn in range(400):
            message = bytes([turn % 251]) * (1 + turn % 50)
            peer.send(message)
            sent += message
            if turn % 3 == 0:
                transport.pause_reading()
            if turn % 5 == 0:
                await asyncio.sleep(0)
            if turn % 4 == 0:
                transport.resume_reading()
            if turn % 7 == 0:
                await asyncio.sleep(0.001)
        transport.resume_reading()
        await eventually(lambda: len(protocol.data) == len(sent))
        assert protocol.data == sent


class Reacting(Recorder):
    """Does something in `data_received`, once."""

    react: Any = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.react is not None:
            react, self.react = self.react, None
            react()


@pytest.mark.parametrize("way", ["close", "abort"])
async def test_nothing_is_delivered_after_closing(way: str) -> None:
    async with warmed(Reacting) as (transport, protocol, peer):

        def react() -> None:
            peer.send(b"too late")
            getattr(transport, way)()
            peer.send(b"much too late")

        protocol.react = react
        peer.send(b"now")
        await protocol.lost
        assert protocol.data == b"now"
        assert protocol.calls == ["made", "data", "lost"]
        await asyncio.sleep(0)
        assert await asyncio.wait_for(recv_all_quietly(peer), 2) == b""


async def recv_all_quietly(peer: socket.socket) -> bytes:
    """Read until the other side is gone, whichever way."""
    with contextlib.suppress(ConnectionError):
        return await recv_all(peer)
    return b""


async def test_closing_while_a_request_is_in_flight_tells_the_peer() -> None:
    async with warmed() as (transport, protocol, peer):
        transport.close()
        await protocol.lost
        assert await asyncio.wait_for(recv_all(peer), 2) == b""


async def test_pausing_inside_data_received() -> None:
    async with warmed(Reacting) as (transport, protocol, peer):
        protocol.react = transport.pause_reading
        peer.send(b"first")
        await eventually(lambda: protocol.data)
        peer.send(b"second")
        await asyncio.sleep(0.02)
        assert protocol.data == b"first"
        transport.resume_reading()
        await eventually(lambda: protocol.data == b"firstsecond")


async def test_another_protocol_gets_the_rest() -> None:
    async with warmed(Reacting) as (transport, protocol, peer):
        heir = Buffered()
        heir.calls.append("made")

        def react() -> None:
            transport.set_protocol(heir)
            peer.send(b"for the heir")

        protocol.react = react
        peer.send(b"first")
        await eventually(lambda: heir.data == b"for the heir")
        assert protocol.data == b"first"
        peer.close()
        await heir.lost
        assert protocol.calls == ["made", "data"]


@pytest.mark.parametrize("factory", [Reacting, Buffered])
async def test_an_exception_ends_one_connection(factory: Any) -> None:
    loop = asyncio.get_running_loop()
    reports = collect_reports(loop)

    class Failing(factory):  # type: ignore[misc]
        fail = False

        def data_received(self, data: bytes) -> None:
            if self.fail:
                raise ValueError("broken")
            super().data_received(data)

        def buffer_updated(self, nbytes: int) -> None:
            if self.fail:
                raise ValueError("broken")
            super().buffer_updated(nbytes)

    if factory is Buffered:
        Failing.data_received = None
    async with warmed(Failing) as (_, protocol, peer):
        protocol.fail = True
        peer.send(b"so many bytes that some are left")
        await protocol.lost
        assert [str(report["exception"]) for report in reports] == ["broken"]


async def test_reading_goes_on_while_writing_is_blocked() -> None:
    async with warmed() as (transport, protocol, peer):
        transport.write(bytes(1 << 24))
        assert transport.get_write_buffer_size() > 0
        for turn in range(50):
            peer.send(b"small")
            await eventually(lambda turn=turn: len(protocol.data) == 5 * (turn + 1))
        transport.close()
        received = await asyncio.wait_for(recv_all_quietly(peer), 20)
        assert len(received) == 1 << 24
        await protocol.lost


async def test_a_stream_of_its_own_makes_buffers_no_more_than_bounded() -> None:
    """Data that nobody takes, while the ring is entered again and again."""
    loop: Any = asyncio.get_running_loop()
    left, right = socket_pair("unix")
    async with company() as chat, connected() as (_, protocol, peer):
        await warm(protocol, peer, chat)
        done = loop.create_future()

        def hoard() -> None:
            for _ in range(1500):
                peer.send(b"x")
                loop.add_reader(left, print)
                loop.remove_reader(left)  # enters the ring
            done.set_result(info()["receive_buffers"])

        loop.call_soon(hoard)
        assert await done <= 1024
        await eventually(lambda: len(protocol.data) == 1500)
        assert protocol.data == b"x" * 1500
        await warm(protocol, peer, chat)
    left.close()
    right.close()


async def test_a_burst_of_many_connections() -> None:
    loop = asyncio.get_running_loop()
    pairs = [socket_pair() for _ in range(150)]
    ends = [await loop.create_connection(Recorder, sock=mine) for mine, _ in pairs]
    protocols: list[Any] = [protocol for _, protocol in ends]
    for turn in range(20):
        for number, (_, peer) in enumerate(pairs):
            peer.send(b"%04d%04d" % (turn, number))
        await eventually(
            lambda turn=turn: all(len(p.data) == 8 * (turn + 1) for p in protocols)
        )
    for number, protocol in enumerate(protocols):
        assert protocol.data == b"".join(b"%04d%04d" % (t, number) for t in range(20))
    for transport, _ in ends:
        transport.close()
    for protocol in protocols:
        await protocol.lost
    for _, peer in pairs:
        peer.close()


async def test_one_that_floods_does_not_keep_the_others_waiting() -> None:
    loop = asyncio.get_running_loop()
    flooded, flooding = socket_pair()
    loud, _ = await loop.create_connection(Recorder, sock=flooded)
    stop = threading.Event()

    def flood() -> None:
        flooding.setblocking(True)
        with contextlib.suppress(OSError):
            while not stop.is_set():
                flooding.sendall(bytes(3000))

    async with warmed() as (_, protocol, peer):
        thread = threading.Thread(target=flood)
        thread.start()
        try:
            for turn in range(50):
                peer.send(b"q")
                await eventually(lambda turn=turn: len(protocol.data) > turn)
        finally:
            stop.set()
            loud.abort()
            await asyncio.sleep(0.01)
            flooding.close()
            await loop.run_in_executor(None, thread.join)


async def test_sendfile_beside_what_is_received(tmp_path: Any) -> None:
    loop = asyncio.get_running_loop()
    path = tmp_path / "file"
    path.write_bytes(bytes(LARGE))
    async with warmed() as (transport, protocol, peer):
        peer.send(b"before ")
        with path.open("rb") as file:
            sending = asyncio.ensure_future(loop.sendfile(transport, file))
            await asyncio.sleep(0)
            peer.send(b"meanwhile ")
            got = 0
            while got < LARGE:
                try:
                    got += len(peer.recv(1 << 16))
                except BlockingIOError:
                    await asyncio.sleep(0.001)
            assert await sending == LARGE
        peer.send(b"after")
        await eventually(lambda: protocol.data.endswith(b"after"))
        assert protocol.data == b"before meanwhile after"


async def test_start_tls_on_such_a_connection(contexts: Contexts) -> None:
    loop = asyncio.get_running_loop()
    server, client = contexts
    mine, theirs = socket_pair()
    left, first = await loop.create_connection(Recorder, sock=mine)
    right, second = await loop.create_connection(Recorder, sock=theirs)
    async with company() as chat:
        for _ in range(20):
            chat()
            left.write(b"ping")
            right.write(b"pong")
            await asyncio.sleep(0.001)
    secure = [Recorder(), Recorder()]
    upgraded = await asyncio.gather(
        loop.start_tls(left, secure[0], server, server_side=True),
        loop.start_tls(right, secure[1], client, server_hostname="localhost"),
    )
    for protocol in secure:
        protocol.calls.append("made")
    async with company() as chat:
        for turn in range(100):
            chat()
            for transport in upgraded:
                assert transport is not None
                transport.write(b"%05d" % turn)
            await asyncio.sleep(0)
    await eventually(lambda: all(len(p.data) == 500 for p in secure))
    for protocol in secure:
        assert protocol.data == b"".join(b"%05d" % turn for turn in range(100))
    for transport in upgraded:
        assert transport is not None
        transport.abort()
    for protocol in secure:
        await protocol.lost
    assert bytes(first.data) == b"pong" * 20
    assert bytes(second.data) == b"ping" * 20


async def test_asyncio_streams_and_our_own() -> None:
    import aioqemu.streams

    loop: Any = asyncio.get_running_loop()
    for module in (asyncio, aioqemu.streams):

        async def serve(reader: Any, writer: Any) -> None:
            while line := await reader.readline():
                writer.write(line)
                await writer.drain()
            writer.close()

        before = loop.stats()["fdmon_info"]["received"]
        server = await module.start_server(serve, "127.0.0.1", 0)
        reader, writer = await module.open_connection(*server.sockets[0].getsockname())
        async with company() as chat:
            for turn in range(100):
                chat()
                writer.write(b"%d\n" % turn)
                assert await reader.readline() == b"%d\n" % turn
        assert loop.stats()["fdmon_info"]["received"] > before
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0.01)


async def test_an_fd_that_is_closed_behind_our_back() -> None:
    loop = asyncio.get_running_loop()
    mine, peer = socket_pair()
    transport, protocol = await loop.create_connection(Recorder, sock=mine)
    async with company() as chat:
        await warm(protocol, peer, chat)
    mine.close()
    peer.send(b"for nobody")
    await protocol.lost
    assert protocol.data == b""
    assert transport.is_closing()
    peer.close()


async def test_the_counters_tell() -> None:
    async with warmed():
        found = info()
        assert found["receive_error"] == 0
        assert 0 < found["receive_buffers"] <= 1024


FORK = """
import os, socket, warnings
warnings.simplefilter("ignore")
loop = new_loop()

class Echo(asyncio.Protocol):
    forked = None
    got = b""
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.got += data
        if data == b"fork" and Echo.forked is None:
            pid = os.fork()
            if pid == 0:
                Echo.forked = 0
                # The rest of this pass, and a pass more, as the child.
                loop.call_soon(loop.call_soon, os._exit, 7)
            else:
                Echo.forked = pid

async def main():
    ends = []
    for _ in range(20):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            mine = socket.create_connection(listener.getsockname())
            peer, _ = listener.accept()
        mine.setblocking(False)
        ends.append((await loop.create_connection(Echo, sock=mine), peer))
    for _ in range(20):
        for _, peer in ends:
            peer.send(b"warm")
        await asyncio.sleep(0.002)
    assert loop.stats()["fdmon_info"]["received"] > 0
    for (_, protocol), peer in ends:
        protocol.got = b""
        peer.send(b"fork")
    await asyncio.sleep(0.05)
    assert Echo.forked
    code = os.waitstatus_to_exitcode(os.waitpid(Echo.forked, 0)[1])
    assert code == 7, code
    for (_, protocol), peer in ends:
        peer.send(b" on")
    await asyncio.sleep(0.05)
    for (transport, protocol), peer in ends:
        assert protocol.got == b"fork on", protocol.got
        transport.close()
        peer.close()
    await asyncio.sleep(0.01)

loop.run_until_complete(main())
loop.close()
print("ok")
"""


async def test_a_child_that_is_forked_while_data_is_held() -> None:
    assert run_script(NEW_LOOP + FORK, "aioqemu-io_uring") == "ok\n"


OUTER = """
import select, socket, warnings
warnings.simplefilter("ignore")
loop = new_loop()

def pair():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        end = socket.create_connection(listener.getsockname())
        end.setblocking(False)
        return end, listener.accept()[0]

mine, peer = pair()
others = [pair() for _ in range(4)]

class Keep(asyncio.Protocol):
    got = b""
    def data_received(self, data):
        self.got += data

async def main():
    protocol = (await loop.create_connection(Keep, sock=mine))[1]
    for end, _ in others:
        await loop.create_connection(Keep, sock=end)
    for _ in range(20):
        peer.send(b"warm")
        for _, other in others:
            other.send(b"warm")
        await asyncio.sleep(0.001)
    assert loop.stats()["fdmon_info"]["received"] > 0
    return protocol

protocol = loop.run_until_complete(main())
protocol.got = b""
fd = loop.context.fileno()
before = loop.stats()["fdmon_info"]["received"]
while select.select([fd], [], [], 0.05)[0]:
    loop.context.dispatch()
for turn in range(20):
    peer.send(b"%02d" % turn)
    assert select.select([fd], [], [], 2)[0], "never told"
    while len(protocol.got) < 2 * (turn + 1):
        loop.context.dispatch()
assert protocol.got == b"".join(b"%02d" % t for t in range(20)), protocol.got
assert not select.select([fd], [], [], 0.05)[0]
peer.close()
loop.close()
print("ok")
"""


async def test_an_outer_loop_is_told() -> None:
    assert run_script(NEW_LOOP + OUTER, "aioqemu-io_uring").endswith("ok\n")
