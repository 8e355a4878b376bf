"""What the loop tests share: recording protocols, small waits, child processes.

Nothing here knows a backend: a test gets its loop from a fixture or from the
pytest-asyncio hook, and asks `kind_of` when it must make another one like it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

__all__ = [
    "NEW_LOOP",
    "Recorder",
    "collect_reports",
    "connected",
    "cpu_seconds",
    "data_segments_sent",
    "eventually",
    "fill",
    "free_port",
    "is_ours",
    "kind_of",
    "new_like",
    "on_loop",
    "one_pass",
    "recv_all",
    "shut",
    "skip_control",
    "socket_pair",
]

#: Source that a child process starts with: `new_loop()` makes the loop whose kind
#: was given as the first argument of `support.procs.run_script`.
NEW_LOOP = """
import asyncio, sys
def new_loop(kind=sys.argv[1]):
    if kind == "asyncio":
        return asyncio.SelectorEventLoop()
    import aioqemu
    return aioqemu.new_event_loop(fdmon=kind.removeprefix("aioqemu-"))
"""


def is_ours(loop: asyncio.AbstractEventLoop) -> bool:
    """True for a loop of aioqemu, false for the stock one that is the control."""
    return any(c.__module__.startswith("aioqemu") for c in type(loop).__mro__)


def kind_of(loop: asyncio.AbstractEventLoop) -> str:
    """The loop's name as in the hook: "asyncio" or "aioqemu-<backend>"."""
    return f"aioqemu-{loop.fdmon}" if is_ours(loop) else "asyncio"  # type: ignore[attr-defined]


def new_like(loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
    """One more loop of the same kind and backend."""
    if is_ours(loop):
        import aioqemu

        return aioqemu.new_event_loop(fdmon=loop.fdmon)  # type: ignore[attr-defined]
    return asyncio.SelectorEventLoop()


def skip_control(reason: str) -> None:
    """Skip on the stock loop, which is known to fail here, and go on with ours."""
    if not is_ours(asyncio.get_running_loop()):
        pytest.skip(f"the stock loop {reason}")


def one_pass(loop: asyncio.AbstractEventLoop) -> None:
    """Let the loop make the one pass that what is ready now needs."""
    loop.call_soon(loop.stop)
    loop.run_forever()


@contextlib.contextmanager
def on_loop(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Close the loop at the end even if the test fails."""
    try:
        yield
    finally:
        loop.close()


def collect_reports(loop: asyncio.AbstractEventLoop) -> list[dict[str, Any]]:
    """Let what reaches the loop's exception handler be gathered in a list."""
    reports: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: reports.append(context))
    return reports


async def eventually(condition: Callable[[], object], timeout: float = 5.0) -> None:
    """Wait until the condition holds; fail when that takes too long."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        await asyncio.sleep(0.001)


def cpu_seconds() -> float:
    """CPU time of this thread, to see that a loop does not spin."""
    return time.clock_gettime(time.CLOCK_THREAD_CPUTIME_ID)


class Recorder(asyncio.Protocol):
    """A protocol that writes down each call it gets, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.data = bytearray()
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.error: BaseException | None = None
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.keep_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.calls.append("made")
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Keep the data; several calls in a row are written down as one."""
        if self.calls[-1] != "data":
            self.calls.append("data")
        self.data += data

    def eof_received(self) -> bool:
        """Answer as the test asked for."""
        self.calls.append("eof")
        return self.keep_open

    def pause_writing(self) -> None:
        """Write it down."""
        self.calls.append("pause")

    def resume_writing(self) -> None:
        """Write it down."""
        self.calls.append("resume")

    def connection_lost(self, exc: BaseException | None) -> None:
        """Keep the error and let `lost` be done."""
        self.calls.append("lost")
        self.error = exc
        self.lost.set_result(None)


def socket_pair(family: str = "tcp") -> tuple[socket.socket, socket.socket]:
    """Two connected stream sockets that do not block, over TCP or Unix."""
    if family == "unix":
        left, right = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            left = socket.create_connection(listener.getsockname())
            right, _ = listener.accept()
    left.setblocking(False)
    right.setblocking(False)
    return left, right


@contextlib.asynccontextmanager
async def connected(
    family: str = "tcp", factory: Callable[[], Any] = Recorder
) -> AsyncIterator[tuple[Any, Any, socket.socket]]:
    """A transport of the running loop, its protocol, and the peer as a socket."""
    loop = asyncio.get_running_loop()
    mine, peer = socket_pair(family)
    with peer:
        transport, protocol = await loop.create_connection(factory, sock=mine)
        try:
            yield transport, protocol, peer
        finally:
            # The stock transport cannot be aborted once its connection is lost.
            with contextlib.suppress(AttributeError):
                transport.abort()
            for _ in range(3):
                await asyncio.sleep(0)


def fill(sock: socket.socket) -> None:
    """Send until nothing more fits."""
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(bytes(1 << 14))


async def recv_all(sock: socket.socket) -> bytes:
    """Read from a plain socket until its end of file, off the loop's own paths."""
    chunks = []
    while True:
        try:
            chunk = sock.recv(1 << 16)
        except BlockingIOError:
            await asyncio.sleep(0.001)
            continue
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)


def data_segments_sent(sock: socket.socket) -> int:
    """How many segments with data a TCP socket has sent, as the kernel counts.

    `tcp_info.tcpi_data_segs_out` is a 32-bit number at offset 156.
    """
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int(struct.unpack_from("=I", info, 156)[0])


async def shut(server: asyncio.AbstractServer) -> None:
    """Close a server and wait for it, and on 3.11 for its handlers too."""
    server.close()
    await server.wait_closed()
    if sys.version_info < (3, 12):
        handlers = asyncio.all_tasks() - {asyncio.current_task()}
        if handlers:
            await asyncio.wait(handlers, timeout=1)


def free_port() -> int:
    """A TCP port of the loopback address that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
