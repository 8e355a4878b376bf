"""The accept loop of one listening socket.

A connection is accepted, wrapped and given to its transport within one reader callback;
no task is made for it.  What keeps one connection from being served is reported, and
the listener lives on; what keeps the listener from accepting makes it pause.
Must never know how sockets come to listen, nor how a transport reads and writes.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any

from .private import TransportSocket, constants, logger
from .stream import accept, make_accepted_transport, prepare_listener

if TYPE_CHECKING:
    import asyncio
    import ssl as ssl_module

    from ._typing import LoopBase, ProtocolFactory

# Connections taken in one pass: enough to empty a burst, few enough that the
# connections which are already served do not wait for it.
_ACCEPT_BATCH = 256
_OUT_OF_RESOURCES = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
# accept(2): errors of the connection that was lost before it was taken, not of the
# listening socket; the next one may be fine.
_LOST_BEFORE_ACCEPT = frozenset(
    (
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.ENOPROTOOPT,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENONET,
    )
)


class Listener:
    """One listening socket that is being accepted on, until `stop()`."""

    __slots__ = (
        "_batch",
        "_factory",
        "_fd",
        "_handle",
        "_kind",
        "_loop",
        "_retry",
        "_server",
        "_sock",
        "_tls",
        "_tls_timeouts",
    )

    def __init__(
        self,
        loop: LoopBase,
        factory: ProtocolFactory,
        sock: socket.socket,
        tls: ssl_module.SSLContext | None,
        server: Any,
        backlog: int,
        tls_timeouts: tuple[float | None, float | None],
    ) -> None:
        self._loop = loop
        self._factory = factory
        self._sock = sock
        self._tls = tls
        self._tls_timeouts = tls_timeouts
        self._server = server
        # One more than the backlog, so that a full one is emptied in one pass.
        self._batch = min(max(backlog, 1) + 1, _ACCEPT_BATCH)
        # What natively accepted connections are; None if the socket must accept them.
        self._kind = prepare_listener(sock)
        self._fd = sock.fileno()
        self._retry: asyncio.TimerHandle | None = None
        self._handle: asyncio.Handle | None = loop._add_reader(self._fd, self._accept)

    def stop(self) -> None:
        """Accept no more."""
        self._unwatch()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _unwatch(self) -> None:
        handle, self._handle = self._handle, None
        # A cancelled handle: whoever has the fd now, it is not us any more.
        if handle is not None and not handle.cancelled():
            self._loop._remove_reader(self._fd)

    def _pause(self, message: str, exc: OSError) -> None:
        """Report why accepting failed and rest: the fd stays readable meanwhile."""
        self._loop.call_exception_handler(
            {
                "message": message,
                "exception": exc,
                "socket": TransportSocket(self._sock),
            }
        )
        if self._handle is None:
            return  # the handler closed the server
        self._unwatch()
        self._retry = self._loop.call_later(constants.ACCEPT_RETRY_DELAY, self._resume)

    def _resume(self) -> None:
        self._retry = None
        fd = self._sock.fileno()
        if fd != self._fd:
            return  # closed behind our back; it was reported when accept failed
        self._handle = self._loop._add_reader(fd, self._accept)

    def _accept_one(self) -> tuple[int | socket.socket, Any] | None:
        """Take one connection, that does not block; None if there is none."""
        if self._kind is not None:
            return accept(self._fd)
        try:
            conn, address = self._sock.accept()
        except (BlockingIOError, InterruptedError):
            return None
        try:
            conn.setblocking(False)
        except BaseException:
            conn.close()
            raise
        return conn, address

    def _accept(self) -> None:
        """Take the connections that wait, a bounded number of them."""
        loop = self._loop
        for _ in range(self._batch):
            try:
                if self._sock.fileno() != self._fd:
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
                accepted = self._accept_one()
            except OSError as exc:
                if exc.errno in _LOST_BEFORE_ACCEPT:
                    continue
                if exc.errno in _OUT_OF_RESOURCES:
                    self._pause("socket.accept() out of system resource", exc)
                else:
                    self._pause("socket.accept() failed", exc)
                return
            if accepted is None:
                return
            conn, address = accepted
            if loop._debug or (self._tls is not None):
                conn = self._as_socket(conn)
            if loop._debug:
                logger.debug(
                    "%r got a new connection from %r: %r", self._server, address, conn
                )
            self._serve(conn, address)
            if self._handle is None:
                return  # the protocol factory closed the server

    def _as_socket(self, conn: int | socket.socket) -> socket.socket:
        if isinstance(conn, socket.socket):
            return conn
        family, type_, proto = self._kind or (-1, -1, -1)
        try:
            # It does not block already; said so, the object believes it.
            return socket.socket(
                family, type_ | socket.SOCK_NONBLOCK, proto, fileno=conn
            )
        except BaseException:
            os.close(conn)
            raise

    def _serve(self, conn: int | socket.socket, address: Any) -> None:
        """Give a connection its protocol and transport."""
        loop = self._loop
        protocol = None
        try:
            protocol = self._factory()
            if isinstance(conn, int):
                kind = self._kind or (-1, -1, -1)
                make_accepted_transport(
                    loop, conn, kind, protocol, address, self._server
                )
                return
            extra = {"peername": address}
            if self._tls is None:
                loop._make_socket_transport(
                    conn, protocol, extra=extra, server=self._server
                )
                return
            waiter = loop.create_future()
            handshake, shutdown = self._tls_timeouts
            transport = loop._make_ssl_transport(
                conn,
                protocol,
                self._tls,
                waiter,
                server_side=True,
                extra=extra,
                server=self._server,
                ssl_handshake_timeout=handshake,
                ssl_shutdown_timeout=shutdown,
            )
        except BaseException as exc:
            if isinstance(conn, int):
                os.close(conn)
            else:
                conn.close()
            if isinstance(exc, (SystemExit, KeyboardInterrupt)):
                raise
            # The program's own error, so also without debug mode.
            self._report(exc, protocol, None)
        else:
            waiter.add_done_callback(
                lambda waiter: self._handshake_over(waiter, protocol, transport)
            )

    def _handshake_over(
        self, waiter: asyncio.Future[Any], protocol: Any, transport: Any
    ) -> None:
        """Close a connection that did not get through its TLS handshake."""
        exc = None if waiter.cancelled() else waiter.exception()
        if exc is None:
            return
        transport.close()
        # Peers that fail a handshake are daily life: only worth a word in debug mode.
        if self._loop._debug:
            self._report(exc, protocol, transport)

    def _report(self, exc: BaseException, protocol: Any, transport: Any) -> None:
        context: dict[str, Any] = {
            "message": "Error on transport creation for incoming connection",
            "exception": exc,
        }
        if protocol is not None:
            context["protocol"] = protocol
        if transport is not None:
            context["transport"] = transport
        self._loop.call_exception_handler(context)
