"""The measured server process: one loop, one kind of server.

``python servers.py --loop NAME --kind tcp-protocol --cpu N`` prints one JSON line with
its address, then answers commands on standard input: ``usage`` with the CPU times
of the process, ``collect`` when garbage is collected, ``begin`` and ``end`` with a mark
for tracers, ``quit`` by closing the loop. When standard input ends it dies, so
it cannot outlive whoever started it. The servers use public asyncio API only and are
the same code for every loop; nothing here knows which loop it runs on.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import json
import os
import resource
import socket
import ssl
import sys
import threading
from typing import TYPE_CHECKING, Any, cast

from clock import mark_begin, mark_end, mark_next
from counted_rows import own_streams
from loops import make_loop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HOST = "127.0.0.1"
BACKLOG = 1024
READ_SIZE = 65536
Address = dict[str, Any]


class EchoProtocol(asyncio.Protocol):
    """Writes back what comes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.write = cast("asyncio.Transport", transport).write

    def data_received(self, data: bytes) -> None:
        """Echo."""
        self.write(data)


class LeanProtocol(asyncio.Protocol):
    """The same with next to nothing of its own, to see what others take."""

    __slots__ = ("transport",)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Echo."""
        self.transport.write(data)


class EchoBufferedProtocol(asyncio.BufferedProtocol):
    """Writes back what comes, received into a buffer of its own."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport and make the buffer."""
        self.write = cast("asyncio.Transport", transport).write
        self.buffer = memoryview(bytearray(READ_SIZE))

    def get_buffer(self, sizehint: int) -> memoryview:
        """Give the whole buffer, always."""
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Echo a copy: what is written may be sent after the next read."""
        self.write(bytes(self.buffer[:nbytes]))


class ThriceProtocol(EchoProtocol):
    """Writes back what comes, in three writes."""

    def data_received(self, data: bytes) -> None:
        """Echo."""
        third = len(data) // 3
        self.write(data[:third])
        self.write(data[third : 2 * third])
        self.write(data[2 * third :])


class ClosingProtocol(asyncio.Protocol):
    """Closes every connection at once: the server of the accept storm."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close."""
        transport.close()


class EchoDatagramProtocol(asyncio.DatagramProtocol):
    """Sends every datagram back to where it came from."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.sendto = cast("asyncio.DatagramTransport", transport).sendto

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Echo."""
        self.sendto(data, addr)


async def echo_stream(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Serve one connection with streams, as programs are written."""
    try:
        while data := await reader.read(READ_SIZE):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass  # the client ends its run by closing whatever is under way
    finally:
        writer.close()


async def echo_sock(conn: socket.socket) -> None:
    """Serve one connection with the socket methods of the loop."""
    loop = asyncio.get_running_loop()
    with conn:
        try:
            while data := await loop.sock_recv(conn, READ_SIZE):
                await loop.sock_sendall(conn, data)
        except ConnectionError:
            pass  # as above


async def accept_socks(listener: socket.socket) -> None:
    """Accept for ever; each connection gets a task."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    while True:
        conn, _ = await loop.sock_accept(listener)
        conn.setblocking(False)
        if conn.family == socket.AF_INET:
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = loop.create_task(echo_sock(conn))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def echo_datagram_sock(sock: socket.socket) -> None:
    """Echo datagrams with the socket methods of the loop, for ever."""
    loop = asyncio.get_running_loop()
    while True:
        data, peer = await loop.sock_recvfrom(sock, READ_SIZE)
        await loop.sock_sendto(sock, data, peer)


class Server:
    """What a child process runs: binds, serves, and keeps what must stay alive."""

    def __init__(
        self, kind: str, path: str | None, cert: str | None, *, gone: threading.Event
    ) -> None:
        self.transport, _, self.api = kind.partition("-")
        self.path = path
        self.cert = cert
        self.gone = gone
        self.failure: BaseException | None = None
        self._keep: list[object] = []

    def bind(self) -> tuple[socket.socket, Address]:
        """Make the socket, the same way for every loop."""
        if self.transport == "unix":
            if self.path is None:
                raise ValueError("a unix server needs --path")
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.bind(self.path)
            address: Address = {"path": self.path}
        else:
            udp = self.transport == "udp"
            type_ = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
            sock = socket.socket(socket.AF_INET, type_)
            sock.bind((HOST, 0))
            address = {"host": HOST, "port": sock.getsockname()[1]}
        sock.setblocking(False)
        return sock, address

    async def start(self) -> Address:
        """Serve from now on.

        Returns:
            What the client needs to connect.
        """
        sock, address = self.bind()
        if self.transport == "udp":
            await self._start_datagram(sock)
        elif self.api == "sock":
            sock.listen(BACKLOG)
            self._spawn(accept_socks(sock))
        else:
            await self._start_stream(sock)
        return address

    async def _start_datagram(self, sock: socket.socket) -> None:
        if self.api == "sock":
            self._spawn(echo_datagram_sock(sock))
            return
        loop = asyncio.get_running_loop()
        pair = await loop.create_datagram_endpoint(EchoDatagramProtocol, sock=sock)
        self._keep.append(pair)

    async def _start_stream(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        context = self._context()
        if self.api == "spinning":
            threading.Thread(target=spin, args=(self.gone,), daemon=True).start()
        server: asyncio.AbstractServer
        if self.api in {"streams", "own"}:
            streams = own_streams(loop) if self.api == "own" else asyncio
            start: Callable[..., Awaitable[asyncio.AbstractServer]] = (
                streams.start_unix_server
                if self.transport == "unix"
                else streams.start_server
            )
            server = await start(echo_stream, sock=sock, backlog=BACKLOG, ssl=context)
        else:
            factory: Callable[[], asyncio.BaseProtocol] = {
                "protocol": EchoProtocol,
                "buffered": EchoBufferedProtocol,
                "accept": ClosingProtocol,
                "thrice": ThriceProtocol,
                "lean": LeanProtocol,
                "spinning": EchoProtocol,
            }[self.api]
            create: Callable[..., Awaitable[asyncio.AbstractServer]] = (
                loop.create_unix_server
                if self.transport == "unix"
                else loop.create_server
            )
            server = await create(factory, sock=sock, backlog=BACKLOG, ssl=context)
        self._keep.append(server)

    def _context(self) -> ssl.SSLContext | None:
        if self.transport != "tls":
            return None
        if self.cert is None:
            raise ValueError("a tls server needs --cert")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert)
        return context

    def _spawn(self, coro: Any) -> None:
        task = asyncio.get_running_loop().create_task(coro)
        task.add_done_callback(self._ended)
        self._keep.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A task that serves for ever has ended: say why, and end the process."""
        if self.gone.is_set():
            return
        self.failure = (
            RuntimeError("cancelled") if task.cancelled() else task.exception()
        )
        asyncio.get_running_loop().stop()


def spin(gone: threading.Event) -> None:
    """Compute in Python until the server goes: never sleeps, never lets the GIL go."""
    while not gone.is_set():
        sum(range(1000))


def usage() -> dict[str, float]:
    """Tell the CPU times (seconds), switches and memory (KiB) of this process."""
    found = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "user": found.ru_utime,
        "system": found.ru_stime,
        "voluntary_switches": found.ru_nvcsw,
        "involuntary_switches": found.ru_nivcsw,
        "max_rss_kib": found.ru_maxrss,
    }


def say(message: dict[str, Any]) -> None:
    """Print one JSON line to whoever started this process."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def control(loop: asyncio.AbstractEventLoop, gone: threading.Event) -> None:
    """Answer commands; runs in a thread that sleeps in read() while it measures."""
    for line in sys.stdin:
        command = line.strip()
        if command == "usage":
            say(usage())
        elif command == "collect":
            gc.collect()
            say({})
        elif command == "begin":
            mark_next()
            mark_begin()
            say({})
        elif command == "end":
            mark_end()
            say({})
        elif command == "quit":
            gone.set()
            loop.call_soon_threadsafe(loop.stop)
            return
    os._exit(0)  # whoever started this process has gone


def drain_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what is left and let it end, as asyncio.run does."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=2))


def main() -> int:
    """Run the child process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loop", required=True)
    parser.add_argument("--kind", required=True)
    parser.add_argument("--path")
    parser.add_argument("--cert")
    parser.add_argument("--cpu", type=int)
    args = parser.parse_args()
    faulthandler.enable()
    gone = threading.Event()
    server = Server(args.kind, args.path, args.cert, gone=gone)
    loop = make_loop(args.loop)
    asyncio.set_event_loop(loop)
    address = loop.run_until_complete(server.start())
    if args.cpu is not None:
        os.sched_setaffinity(0, {args.cpu})  # only now: starting may use all cores
    gc.collect()
    thread = threading.Thread(target=control, args=(loop, gone), daemon=True)
    thread.start()
    say({"address": address, "pid": os.getpid()})
    loop.run_forever()
    if server.failure is not None:
        error = server.failure
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    drain_tasks(loop)
    loop.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
