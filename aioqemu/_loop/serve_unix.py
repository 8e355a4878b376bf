"""Making Unix stream servers, and what becomes of the files of their sockets.

A stale file is removed before a bind.  The file of a socket goes with its server,
unless somebody put another there.  Must never know how connections are accepted.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
from typing import TYPE_CHECKING, Any

from .private import logger
from .serve import ServeMixin
from .server import Server
from .tls import check_ssl_timeouts

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._typing import ProtocolFactory
    from .tls import SSLArgument


def is_abstract(path: Any) -> bool:
    """Tell whether a Unix socket address has no file: abstract, or unnamed."""
    return not path or path[0] in (0, "\0")


def remove_stale_socket(path: Any) -> None:
    """Remove the socket file that an earlier bind to `path` left behind."""
    if is_abstract(path):
        return
    try:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            os.remove(path)
    except FileNotFoundError:
        return
    except OSError as exc:
        # The directory may allow making a socket and nothing else: bind will tell.
        logger.error("Unable to check or remove stale UNIX socket %r: %r", path, exc)


class ServeUnixMixin(ServeMixin):
    """Listening sockets of the loop, the Unix ones too."""

    def _bind_unix(self, path: Any) -> socket.socket:
        """Make a Unix stream socket bound to a path or an abstract name."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            remove_stale_socket(path)
            sock.bind(path)
        except BaseException as exc:
            sock.close()
            if isinstance(exc, OSError) and exc.errno == errno.EADDRINUSE:
                raise OSError(
                    errno.EADDRINUSE, f"Address {path!r} is already in use"
                ) from None
            raise
        return sock

    def _remember_socket_file(self, sock: socket.socket) -> None:
        """Note the file of a bound Unix socket, to remove it with the server."""
        path = sock.getsockname()
        if is_abstract(path):
            return
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return  # removed already
        self._socket_files[sock] = (path, status.st_dev, status.st_ino)

    async def _open_unix_server(
        self,
        protocol_factory: ProtocolFactory,
        path: Any,
        *,
        sock: socket.socket | None,
        backlog: int,
        ssl: SSLArgument,
        ssl_handshake_timeout: float | None,
        ssl_shutdown_timeout: float | None,
        start_serving: bool,
        cleanup_socket: bool,
    ) -> Server:
        """Do what `create_unix_server` promises, on every Python version."""
        if isinstance(ssl, bool):
            raise TypeError("ssl argument must be an SSLContext or None")
        check_ssl_timeouts(ssl, ssl_handshake_timeout, ssl_shutdown_timeout)
        owned = sock is None
        if path is not None:
            if sock is not None:
                raise ValueError("path and sock can not be specified at the same time")
            sock = self._bind_unix(os.fspath(path))
        elif sock is None:
            raise ValueError("path was not specified, and no sock specified")
        elif sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            raise ValueError(f"A UNIX Domain Stream Socket was expected, got {sock!r}")
        if cleanup_socket:
            self._remember_socket_file(sock)
        sock.setblocking(False)
        server = Server(
            self,
            [sock],
            protocol_factory,
            ssl,
            backlog,
            ssl_handshake_timeout,
            ssl_shutdown_timeout,
        )
        if start_serving:
            await self._begin(server, owned)
        return server

    if sys.version_info >= (3, 13):

        async def create_unix_server(
            self,
            protocol_factory: Callable[[], Any],
            path: str | bytes | os.PathLike[Any] | None = None,
            *,
            sock: socket.socket | None = None,
            backlog: int = 100,
            ssl: SSLArgument = None,
            ssl_handshake_timeout: float | None = None,
            ssl_shutdown_timeout: float | None = None,
            start_serving: bool = True,
            cleanup_socket: bool = True,
        ) -> Server:
            """Serve connections to a Unix stream socket.

            As `asyncio.loop.create_unix_server`.  A socket file left behind by an
            earlier server is removed first.

            Args:
                protocol_factory: Gives the protocol of each connection.
                path: Where the socket shall be; a name that begins with a null
                    character is in the abstract namespace.
                sock: A bound Unix stream socket instead; it belongs to the server.
                backlog: Connections that the kernel keeps waiting.
                ssl: A context, to answer a TLS handshake on each connection.
                ssl_handshake_timeout: Seconds, 60 if None.
                ssl_shutdown_timeout: Seconds, 30 if None.
                start_serving: Accept at once, not at `start_serving()`.
                cleanup_socket: Remove the socket file when the server closes, unless
                    another one is there by then (Python 3.13).

            Returns:
                The server.

            Raises:
                OSError: The path could not be bound to.
                ValueError: The arguments contradict each other.
            """
            return await self._open_unix_server(
                protocol_factory,
                path,
                sock=sock,
                backlog=backlog,
                ssl=ssl,
                ssl_handshake_timeout=ssl_handshake_timeout,
                ssl_shutdown_timeout=ssl_shutdown_timeout,
                start_serving=start_serving,
                cleanup_socket=cleanup_socket,
            )

    else:

        async def create_unix_server(
            self,
            protocol_factory: Callable[[], Any],
            path: str | bytes | os.PathLike[Any] | None = None,
            *,
            sock: socket.socket | None = None,
            backlog: int = 100,
            ssl: SSLArgument = None,
            ssl_handshake_timeout: float | None = None,
            ssl_shutdown_timeout: float | None = None,
            start_serving: bool = True,
        ) -> Server:
            """Serve a Unix stream socket; see the form of Python 3.13 above."""
            return await self._open_unix_server(
                protocol_factory,
                path,
                sock=sock,
                backlog=backlog,
                ssl=ssl,
                ssl_handshake_timeout=ssl_handshake_timeout,
                ssl_shutdown_timeout=ssl_shutdown_timeout,
                start_serving=start_serving,
                cleanup_socket=False,
            )
