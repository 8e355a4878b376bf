"""Making servers: TCP on any number of addresses, sockets bound elsewhere.

A socket made here belongs to its server, or is closed when there will be none.  The
file of a Unix socket goes with its server, unless somebody put another there.
Must never know how connections are accepted, nor how a transport reads and writes.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any

from .dial import bind_error
from .listen import Listener
from .private import constants, logger
from .server import Server
from .tls import check_ssl_socket, check_ssl_timeouts

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._typing import AddrInfo, LoopBase, ProtocolFactory
    from .tls import SSLArgument
else:
    LoopBase = object


def set_reuse_port(sock: socket.socket) -> None:
    """Let several sockets be bound to the address of `sock`.

    Raises:
        ValueError: The kernel does not offer it for this socket.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError:
        raise ValueError(
            "reuse_port not supported by socket module, "
            "SO_REUSEPORT defined but not implemented."
        ) from None


class ServeMixin(LoopBase):
    """Listening sockets of the loop."""

    _listeners: dict[socket.socket, Listener]
    # Path, device and inode of Unix sockets whose file goes when the server closes.
    _socket_files: dict[socket.socket, tuple[Any, int, int]]

    def _init_serve(self) -> None:
        self._listeners = {}
        self._socket_files = {}

    def _close_serve(self) -> None:
        """Stop accepting.  The sockets are their servers', which close them."""
        for listener in self._listeners.values():
            listener.stop()
        self._listeners.clear()

    # -- for servers -----------------------------------------------------------

    def _start_serving(
        self,
        protocol_factory: ProtocolFactory,
        sock: socket.socket,
        sslcontext: Any = None,
        server: Any = None,
        backlog: int = 100,
        ssl_handshake_timeout: float | None = constants.SSL_HANDSHAKE_TIMEOUT,
        ssl_shutdown_timeout: float | None = constants.SSL_SHUTDOWN_TIMEOUT,
    ) -> None:
        """Accept connections on a listening socket and serve them."""
        self._pause_serving(sock)
        self._listeners[sock] = Listener(
            self,
            protocol_factory,
            sock,
            sslcontext,
            server,
            backlog,
            (ssl_handshake_timeout, ssl_shutdown_timeout),
        )

    def _pause_serving(self, sock: socket.socket) -> None:
        """Accept no more on a socket that stays open."""
        listener = self._listeners.pop(sock, None)
        if listener is not None:
            listener.stop()

    def _stop_serving(self, sock: socket.socket) -> None:
        """Accept no more and close the socket; its file goes too if it is our own."""
        self._pause_serving(sock)
        sock.close()
        path, device, inode = self._socket_files.pop(sock, (None, 0, 0))
        if path is None:
            return
        try:
            now = os.stat(path)
            # Somebody else may have put another socket there.
            if (now.st_dev, now.st_ino) == (device, inode):
                os.unlink(path)
        except FileNotFoundError:
            return
        except OSError as exc:
            logger.error("Unable to clean up listening UNIX socket %r: %r", path, exc)

    async def _begin(self, server: Server, owned: bool) -> None:
        """Make a new server serve; if it cannot, or is cancelled, undo it."""
        try:
            server._start_serving()
            await asyncio.sleep(0)  # the handlers are watched when this returns
        except BaseException:
            if owned:
                server.close()
            else:
                for sock in server._sockets or ():
                    self._pause_serving(sock)
            raise

    # -- TCP -------------------------------------------------------------------

    async def _resolve_hosts(
        self, host: Any, port: Any, family: int, flags: int
    ) -> list[AddrInfo]:
        """Resolve what a server shall be bound to, each address once."""
        hosts: Iterable[Any]
        if host == "":
            hosts = [None]
        elif isinstance(host, str) or not isinstance(host, Iterable):
            hosts = [host]
        else:
            hosts = host

        async def resolve(name: Any) -> list[AddrInfo]:
            infos = await self._ensure_resolved(
                (name, port),
                family=family,
                type=socket.SOCK_STREAM,
                flags=flags,
                loop=self,
            )
            if not infos:
                raise OSError(f"getaddrinfo({name!r}) returned empty list")
            return infos

        answers = await asyncio.gather(*[resolve(name) for name in hosts])
        return list(dict.fromkeys(chain.from_iterable(answers)))

    def _bind_tcp(
        self, info: AddrInfo, options: list[tuple[int, int]], reuse_port: bool
    ) -> socket.socket | None:
        """Make a socket bound to one address; None if this machine lacks the family."""
        family, type_, proto, _, address = info
        try:
            sock = socket.socket(family, type_, proto)
        except OSError:
            if self._debug:
                logger.warning(
                    "create_server() failed to create socket.socket(%r, %r, %r)",
                    family,
                    type_,
                    proto,
                    exc_info=True,
                )
            return None
        try:
            for level, option in options:
                sock.setsockopt(level, option, True)
            # Linux allows it to the internet families only.
            if reuse_port and family in (socket.AF_INET, socket.AF_INET6):
                set_reuse_port(sock)
            if family == socket.AF_INET6:
                # Or it would take the IPv4 port that another of our sockets is for.
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, True)
            try:
                sock.bind(address)
            except OSError as exc:
                error = bind_error(address, exc)
                if exc.errno == errno.EADDRNOTAVAIL and sys.version_info >= (3, 13):
                    # The family may be known and switched off.
                    sock.close()
                    if self._debug:
                        logger.warning(error.strerror)
                    return None
                raise error from None
        except BaseException:
            sock.close()
            raise
        return sock

    async def _open_server(
        self,
        protocol_factory: ProtocolFactory,
        host: Any,
        port: Any,
        *,
        family: int,
        flags: int,
        sock: socket.socket | None,
        backlog: int,
        ssl: SSLArgument,
        reuse_address: bool | None,
        reuse_port: bool | None,
        keep_alive: bool | None = None,
        ssl_handshake_timeout: float | None,
        ssl_shutdown_timeout: float | None,
        start_serving: bool,
    ) -> Server:
        """Do what `create_server` promises, on every Python version."""
        if isinstance(ssl, bool):
            raise TypeError("ssl argument must be an SSLContext or None")
        check_ssl_timeouts(ssl is not None, ssl_handshake_timeout, ssl_shutdown_timeout)
        if sock is not None:
            check_ssl_socket(sock)

        owned = sock is None
        if host is not None or port is not None:
            if sock is not None:
                raise ValueError(
                    "host/port and sock can not be specified at the same time"
                )
            options = []
            if reuse_address or reuse_address is None:
                options.append((socket.SOL_SOCKET, socket.SO_REUSEADDR))
            if keep_alive:
                options.append((socket.SOL_SOCKET, socket.SO_KEEPALIVE))
            infos = await self._resolve_hosts(host, port, family, flags)
            sockets: list[socket.socket] = []
            try:
                for info in infos:
                    bound = self._bind_tcp(info, options, bool(reuse_port))
                    if bound is not None:
                        sockets.append(bound)
                if not sockets:
                    raise OSError(
                        f"could not bind on any address out of "
                        f"{[info[4] for info in infos]!r}"
                    )
            except BaseException:
                for bound in sockets:
                    bound.close()
                raise
        elif sock is None:
            raise ValueError("Neither host/port nor sock were specified")
        elif sock.type != socket.SOCK_STREAM:
            raise ValueError(f"A Stream Socket was expected, got {sock!r}")
        else:
            sockets = [sock]

        for bound in sockets:
            bound.setblocking(False)
        server = Server(
            self,
            sockets,
            protocol_factory,
            ssl,
            backlog,
            ssl_handshake_timeout,
            ssl_shutdown_timeout,
        )
        if start_serving:
            await self._begin(server, owned)
        if self._debug:
            logger.info("%r is serving", server)
        return server

    if sys.version_info >= (3, 13):

        async def create_server(
            self,
            protocol_factory: Callable[[], Any],
            host: Any = None,
            port: Any = None,
            *,
            family: int = socket.AF_UNSPEC,
            flags: int = socket.AI_PASSIVE,
            sock: socket.socket | None = None,
            backlog: int = 100,
            ssl: SSLArgument = None,
            reuse_address: bool | None = None,
            reuse_port: bool | None = None,
            keep_alive: bool | None = None,
            ssl_handshake_timeout: float | None = None,
            ssl_shutdown_timeout: float | None = None,
            start_serving: bool = True,
        ) -> Server:
            """Serve stream connections on hosts and a port, or on a bound socket.

            As `asyncio.loop.create_server`.

            Args:
                protocol_factory: Gives the protocol of each connection.
                host: A name or literal, or several; "" and None are all interfaces.
                port: Number or service name; 0 lets the kernel choose.
                family: Address family to look up, 0 for any.
                flags: Passed to getaddrinfo.
                sock: A bound stream socket instead; it belongs to the server.
                backlog: Connections that the kernel keeps waiting.
                ssl: A context, to answer a TLS handshake on each connection.
                reuse_address: Bind although old connections linger; True if None.
                reuse_port: Let other sockets bind to the same port.
                keep_alive: Probe idle connections (Python 3.13).
                ssl_handshake_timeout: Seconds, 60 if None.
                ssl_shutdown_timeout: Seconds, 30 if None.
                start_serving: Accept at once, not at `start_serving()`.

            Returns:
                The server.

            Raises:
                OSError: An address could not be bound to.
                ValueError: The arguments contradict each other.
            """
            return await self._open_server(
                protocol_factory,
                host,
                port,
                family=family,
                flags=flags,
                sock=sock,
                backlog=backlog,
                ssl=ssl,
                reuse_address=reuse_address,
                reuse_port=reuse_port,
                keep_alive=keep_alive,
                ssl_handshake_timeout=ssl_handshake_timeout,
                ssl_shutdown_timeout=ssl_shutdown_timeout,
                start_serving=start_serving,
            )

    else:

        async def create_server(
            self,
            protocol_factory: Callable[[], Any],
            host: Any = None,
            port: Any = None,
            *,
            family: int = socket.AF_UNSPEC,
            flags: int = socket.AI_PASSIVE,
            sock: socket.socket | None = None,
            backlog: int = 100,
            ssl: SSLArgument = None,
            reuse_address: bool | None = None,
            reuse_port: bool | None = None,
            ssl_handshake_timeout: float | None = None,
            ssl_shutdown_timeout: float | None = None,
            start_serving: bool = True,
        ) -> Server:
            """Serve stream connections; see the form of Python 3.13 above."""
            return await self._open_server(
                protocol_factory,
                host,
                port,
                family=family,
                flags=flags,
                sock=sock,
                backlog=backlog,
                ssl=ssl,
                reuse_address=reuse_address,
                reuse_port=reuse_port,
                ssl_handshake_timeout=ssl_handshake_timeout,
                ssl_shutdown_timeout=ssl_shutdown_timeout,
                start_serving=start_serving,
            )
