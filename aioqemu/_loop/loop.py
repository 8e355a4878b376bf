"""EventLoop: the core and all mixins put together, and the life of a loop.

Knows how a context is chosen and in which order things are closed; everything else is
in the mixins.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aioqemu._engine import main_context

from .aiocontext import AioContext
from .connect import ConnectMixin
from .core import LoopCore
from .datagram import make_datagram_transport
from .datagrams import DatagramMixin
from .dns import DnsMixin
from .executor import ExecutorMixin
from .hooks import HooksMixin
from .pipe import make_read_pipe_transport, make_write_pipe_transport
from .pipes import PipesMixin
from .private import logger
from .process import ProcessMixin
from .sendfile import SendfileMixin
from .serve_unix import ServeUnixMixin
from .signals import SignalsMixin
from .sockets import SocketsMixin
from .stream import make_stream_transport
from .tls import TlsMixin

if TYPE_CHECKING:
    import socket

# The context of the process is of the public class, with its awaitable methods.
main_context.factory = AioContext

_HOLD_GIL_NS = 100_000  # the default of AioContext


class EventLoop(
    HooksMixin,
    LoopCore,  # early: a call of its methods from C looks through the bases in order
    ConnectMixin,
    ServeUnixMixin,
    DatagramMixin,
    TlsMixin,
    SendfileMixin,
    SocketsMixin,
    DnsMixin,
    PipesMixin,
    ProcessMixin,
    SignalsMixin,
    ExecutorMixin,
    asyncio.AbstractEventLoop,
):
    """An asyncio event loop whose engine is an `AioContext`.

    Everything of `asyncio.AbstractEventLoop` is there, with the signatures, defaults
    and exceptions of the running Python's stock loop.

    Args:
        fdmon: "io_uring", "epoll" or "poll"; None or "auto" for the best that works
            (the environment variable AIOQEMU_FDMON then decides if it is set).
        poll_max_ns: longest adaptive polling before a wait, in ns; 0 switches it off.
        poll_grow: factor by which polling grows, 0 for 2.
        poll_shrink: divisor by which it shrinks, 0 for back to nothing.
        hold_gil_ns: longest look for events with the GIL kept, before a wait and while
            another thread computes, in ns; so long, too, waits that find something at
            once may keep it. 0 switches both off.

    Raises:
        BackendUnavailable: the backend asked for by name cannot run here.
        ValueError: An option is out of range.
    """

    def __init__(
        self,
        *,
        fdmon: str | None = None,
        poll_max_ns: int = 0,
        poll_grow: int = 0,
        poll_shrink: int = 0,
        hold_gil_ns: int = _HOLD_GIL_NS,
    ) -> None:
        polling = {
            name: value
            for name, value, default in (
                ("poll_max_ns", poll_max_ns, 0),
                ("poll_grow", poll_grow, 0),
                ("poll_shrink", poll_shrink, 0),
                ("hold_gil_ns", hold_gil_ns, _HOLD_GIL_NS),
            )
            if value != default
        }
        context = main_context.adopt(fdmon, **polling)
        if context is None:
            context = AioContext(fdmon, "seed", **polling)
        self._init_core(context)
        self._polling = polling
        self._init_hooks()
        self._init_executor()
        self._init_signals()
        self._init_process()
        self._init_serve()

    def _new_context(self) -> AioContext:
        """Make a context like the loop's own, for a forked child."""
        self._forget_threads()
        return AioContext(self.fdmon, "seed", **self._polling)

    def close(self) -> None:
        """Close the loop; what is queued does not run.

        No file descriptor of the loop is open afterwards and no thread of it runs, but
        for a default executor that was not shut down and still has work.

        Raises:
            RuntimeError: The loop is running.
        """
        if self.is_running():
            raise RuntimeError("Cannot close a running event loop")
        if self.is_closed():
            return
        if self._debug:
            logger.debug("Close %r", self)
        self._close_signals()
        self._close_process()
        self._close_serve()
        self._close_executor()
        self._close_core()
        main_context.release(self.context)

    def _make_socket_transport(
        self,
        sock: socket.socket,
        protocol: Any,
        waiter: asyncio.Future[Any] | None = None,
        *,
        extra: dict[str, Any] | None = None,
        server: Any = None,
    ) -> asyncio.Transport:
        return make_stream_transport(
            self, sock, protocol, waiter, extra=extra, server=server
        )

    def _make_datagram_transport(
        self,
        sock: socket.socket,
        protocol: Any,
        address: Any = None,
        waiter: asyncio.Future[Any] | None = None,
        extra: dict[str, Any] | None = None,
        exclusive: bool = False,
    ) -> asyncio.DatagramTransport:
        return make_datagram_transport(
            self, sock, protocol, address, waiter, extra, exclusive
        )

    def _make_read_pipe_transport(
        self,
        pipe: Any,
        protocol: Any,
        waiter: asyncio.Future[Any] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> asyncio.ReadTransport:
        return make_read_pipe_transport(self, pipe, protocol, waiter, extra)

    def _make_write_pipe_transport(
        self,
        pipe: Any,
        protocol: Any,
        waiter: asyncio.Future[Any] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> asyncio.WriteTransport:
        return make_write_pipe_transport(self, pipe, protocol, waiter, extra)
