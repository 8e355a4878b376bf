"""Rows that are counted and not timed: instructions and system calls of one event.

Both ends of a connection are in one process and one thread, so that the same happens
in the same order in every run: what a clock would say of them means nothing, for half
of it is the peer. `micro.py` runs them like the micro rows; the table of times has the
same paths with a client of their own (`rows.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import socket
import threading
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from clock import Clock

SIZE = 1000
READ_SIZE = 65536


class _Peer:
    """The other end of an echo: what comes back is sent again, `count` times."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self.loop = loop
        self.sock = sock
        self.data = b"x" * SIZE
        self.left = 0
        self.missing = 0
        self.done = loop.create_future()

    def start(self, count: int) -> None:
        """Send the first message."""
        self.left = count
        self.missing = SIZE
        self.sock.send(self.data)

    def answered(self) -> None:
        """An answer was written: take it in the next pass."""
        self.loop.call_soon(self._take)

    def _take(self) -> None:
        try:
            self.missing -= len(self.sock.recv(READ_SIZE))
        except BlockingIOError:
            self.loop.call_soon(self._take)  # a loop that sends later than others
            return
        if self.missing:
            return
        self.left -= 1
        if self.left:
            self.missing = SIZE
            self.sock.send(self.data)
        else:
            self.done.set_result(None)


@contextlib.contextmanager
def _peer(loop: asyncio.AbstractEventLoop) -> Iterator[tuple[_Peer, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        there.setblocking(False)
        yield _Peer(loop, there), here


class _Echo(asyncio.Protocol):
    def __init__(self, peer: _Peer) -> None:
        self.answered = peer.answered

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.write = cast("asyncio.Transport", transport).write

    def data_received(self, data: bytes) -> None:
        """Echo."""
        self.write(data)
        self.answered()


class _Thrice(_Echo):
    def data_received(self, data: bytes) -> None:
        """Echo in three writes."""
        self.write(data[:100])
        self.write(data[100:200])
        self.write(data[200:])
        self.answered()


class _EchoBuffered(asyncio.BufferedProtocol):
    def __init__(self, peer: _Peer) -> None:
        self.answered = peer.answered
        self.buffer = memoryview(bytearray(READ_SIZE))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.write = cast("asyncio.Transport", transport).write

    def get_buffer(self, sizehint: int) -> memoryview:
        """Give the whole buffer, always."""
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Echo a copy."""
        self.write(bytes(self.buffer[:nbytes]))
        self.answered()


def _protocol_row(
    factory: Callable[[_Peer], asyncio.BaseProtocol],
    loop: asyncio.AbstractEventLoop,
    count: int,
    clock: Clock,
) -> None:
    async def main() -> None:
        transport, _ = await loop.connect_accepted_socket(lambda: factory(peer), sock)
        with clock:
            peer.start(count)
            await peer.done
        transport.close()
        await asyncio.sleep(0.001)

    with _peer(loop) as (peer, sock):
        loop.run_until_complete(main())


def echo_protocol(loop: asyncio.AbstractEventLoop, count: int, clock: Clock) -> None:
    """A message of 1000 bytes echoed by a Protocol."""
    _protocol_row(_Echo, loop, count, clock)


def echo_buffered(loop: asyncio.AbstractEventLoop, count: int, clock: Clock) -> None:
    """The same by a BufferedProtocol."""
    _protocol_row(_EchoBuffered, loop, count, clock)


def echo_thrice(loop: asyncio.AbstractEventLoop, count: int, clock: Clock) -> None:
    """The same in three writes of one callback."""
    _protocol_row(_Thrice, loop, count, clock)


def _streams_row(
    streams: Any, loop: asyncio.AbstractEventLoop, count: int, clock: Clock
) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(READ_SIZE):
            writer.write(data)
            await writer.drain()
            peer.answered()

    async def main() -> None:
        reader, writer = await streams.open_connection(sock=sock)
        task = loop.create_task(echo(reader, writer))
        with clock:
            peer.start(count)
            await peer.done
        peer.sock.shutdown(socket.SHUT_WR)
        await task
        writer.close()
        await writer.wait_closed()

    with _peer(loop) as (peer, sock):
        loop.run_until_complete(main())


def echo_streams(loop: asyncio.AbstractEventLoop, count: int, clock: Clock) -> None:
    """The same with asyncio's streams."""
    _streams_row(asyncio, loop, count, clock)


def echo_own_streams(loop: asyncio.AbstractEventLoop, count: int, clock: Clock) -> None:
    """The same with the streams that come with the loop."""
    _streams_row(own_streams(loop), loop, count, clock)


def own_streams(loop: asyncio.AbstractEventLoop) -> Any:
    """The streams that come with a loop; asyncio's where it brings none."""
    package = type(loop).__module__.partition(".")[0]
    try:
        return importlib.import_module(f"{package}.streams")
    except ModuleNotFoundError:
        return asyncio


class _Sink(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.left = 0
        self.done: asyncio.Future[None] | None = None

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Count."""
        self.left -= 1
        if not self.left and self.done is not None:
            self.done.set_result(None)


BURST = 50


def udp_burst(loop: asyncio.AbstractEventLoop, count: int, clock: Clock) -> None:
    """Datagrams that wait in the socket, 50 at once, are received."""

    async def main() -> None:
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)
        address = receiver.getsockname()
        transport, sink = await loop.create_datagram_endpoint(_Sink, sock=receiver)
        sender.connect(address)
        left = count
        while left > 0:
            batch = min(BURST, left)
            left -= batch
            sink.left, sink.done = batch, loop.create_future()
            for _ in range(batch):
                sender.send(b"x" * 100)
            with clock:
                await sink.done
        transport.close()
        await asyncio.sleep(0.001)

    udp = (socket.AF_INET, socket.SOCK_DGRAM)
    with socket.socket(*udp) as receiver, socket.socket(*udp) as sender:
        loop.run_until_complete(main())


def udp_burst_send(loop: asyncio.AbstractEventLoop, count: int, clock: Clock) -> None:
    """Datagrams are sent, 50 in a callback; a plain socket takes them."""

    async def main() -> None:
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)
        transport, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=receiver.getsockname()
        )
        left = count
        while left > 0:
            batch = min(BURST, left)
            left -= batch
            with clock:
                for _ in range(batch):
                    transport.sendto(b"x" * 100)
                await asyncio.sleep(0)
            while batch:
                try:
                    receiver.recv(200)
                    batch -= 1
                except BlockingIOError:
                    await asyncio.sleep(0)
        transport.close()
        await asyncio.sleep(0.001)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        loop.run_until_complete(main())


def threadsafe_busy(loop: asyncio.AbstractEventLoop, count: int, clock: Clock) -> None:
    """Another thread posts callbacks to a loop that always has something to do."""
    done = False

    def last() -> None:
        nonlocal done
        done = True

    def post() -> None:
        for _ in range(count):
            loop.call_soon_threadsafe(_nothing)
        loop.call_soon_threadsafe(last)

    def work() -> None:
        if done:
            loop.stop()
        else:
            loop.call_soon(work)

    thread = threading.Thread(target=post)
    with clock:
        loop.call_soon(thread.start)
        loop.call_soon(work)
        loop.run_forever()
        thread.join()


def _nothing() -> None:
    """Do nothing, for one event."""


COUNTED: dict[str, Callable[[asyncio.AbstractEventLoop, int, Clock], None]] = {
    function.__name__: function
    for function in (
        echo_protocol,
        echo_buffered,
        echo_thrice,
        echo_streams,
        echo_own_streams,
        udp_burst,
        udp_burst_send,
        threadsafe_busy,
    )
}
DEFAULT = dict.fromkeys(COUNTED, 2000)
"""How many events `micro.py` runs where nobody says."""
