"""What the cold mixins may take for granted of the loop they are mixed into.

For type checkers only: at run time a mixin has `object` as its base, and the names
come from the native loop core.  They are the stock selector loop's names, so that a
mixin also works on a subclass of `asyncio.SelectorEventLoop`.  Holds no behaviour.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Awaitable, Callable
    from typing import Protocol, TypeVar

    from .tls import SSLArgument

Address: TypeAlias = Any
"""A socket address of any family: a tuple, a path, bytes, an int."""

AddrInfo: TypeAlias = "tuple[int, int, int, str, tuple[Any, ...]]"
"""One answer of getaddrinfo: family, type, proto, canonical name, address."""

ProtocolFactory: TypeAlias = "Callable[[], Any]"

if TYPE_CHECKING:
    _T = TypeVar("_T")

    class ClientTransport(Protocol):
        """A connection as its server sees it."""

        def close(self) -> None: ...
        def abort(self) -> None: ...

    class LoopBase(asyncio.AbstractEventLoop):
        """The loop core: everything that the mixins call and do not define."""

        @property
        def _debug(self) -> bool: ...
        @property
        def _thread_id(self) -> int | None: ...

        slow_callback_duration: float
        _current_handle: Any

        # A run: checks and thread id, the passes until stop(), the undoing.
        def _enter_run(self) -> None: ...
        def _run(self) -> None: ...
        def _leave_run(self) -> None: ...

        def _check_closed(self) -> None: ...
        def _check_thread(self) -> None: ...
        def _ensure_fd_no_transport(self, fd: Any) -> None: ...

        # As the public forms without the check for transports; a fd, never an object.
        def _add_reader(
            self, fd: int, callback: Callable[..., object], *args: Any
        ) -> asyncio.Handle: ...
        def _add_writer(
            self, fd: int, callback: Callable[..., object], *args: Any
        ) -> asyncio.Handle: ...
        def _remove_reader(self, fd: int) -> bool: ...
        def _set_ready(self, future: asyncio.Future[None]) -> None: ...
        def _taking(
            self, sock: Any, most: int, take: Callable[..., _T], *args: Any
        ) -> Awaitable[_T]: ...
        def _is_drained(self, sock: Any) -> bool: ...
        def _remove_writer(self, fd: int) -> bool: ...

        def _make_socket_transport(
            self,
            sock: socket.socket,
            protocol: Any,
            waiter: asyncio.Future[Any] | None = None,
            *,
            extra: dict[str, Any] | None = None,
            server: Any = None,
        ) -> asyncio.Transport: ...
        def _make_datagram_transport(
            self,
            sock: socket.socket,
            protocol: Any,
            address: Address | None = None,
            waiter: asyncio.Future[Any] | None = None,
            extra: dict[str, Any] | None = None,
            exclusive: bool = False,
        ) -> asyncio.DatagramTransport: ...
        def _make_read_pipe_transport(
            self,
            pipe: Any,
            protocol: Any,
            waiter: asyncio.Future[Any] | None = None,
            extra: dict[str, Any] | None = None,
        ) -> asyncio.ReadTransport: ...
        def _make_write_pipe_transport(
            self,
            pipe: Any,
            protocol: Any,
            waiter: asyncio.Future[Any] | None = None,
            extra: dict[str, Any] | None = None,
        ) -> asyncio.WriteTransport: ...

        # Of TlsMixin, DnsMixin and ServeMixin, for one another.
        def _make_ssl_transport(
            self,
            rawsock: socket.socket,
            protocol: Any,
            sslcontext: SSLArgument,
            waiter: asyncio.Future[Any] | None = None,
            *,
            server_side: bool = False,
            server_hostname: str | None = None,
            extra: dict[str, Any] | None = None,
            server: Any = None,
            ssl_handshake_timeout: float | None = None,
            ssl_shutdown_timeout: float | None = None,
        ) -> asyncio.Transport: ...
        async def _ensure_resolved(
            self,
            address: tuple[Any, ...],
            *,
            family: int = 0,
            type: int = ...,
            proto: int = 0,
            flags: int = 0,
            loop: asyncio.AbstractEventLoop,
        ) -> list[AddrInfo]: ...
        def _start_serving(
            self,
            protocol_factory: ProtocolFactory,
            sock: socket.socket,
            sslcontext: Any = None,
            server: Any = None,
            backlog: int = 100,
            ssl_handshake_timeout: float | None = None,
            ssl_shutdown_timeout: float | None = None,
        ) -> None: ...
        def _stop_serving(self, sock: socket.socket) -> None: ...
