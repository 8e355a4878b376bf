"""Making stream connections: TCP, Unix, sockets made elsewhere.

A socket belongs to whoever called until its transport is made, which then closes it;
one that was made here is closed if there will be no transport.
Must never know how a transport reads and writes, nor how a socket gets connected.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING, Any

from .dial import DialMixin, interleave_families
from .private import logger
from .tls import check_ssl_socket, check_ssl_timeouts

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._typing import Address, AddrInfo, LoopBase, ProtocolFactory
    from .tls import SSLArgument
else:
    LoopBase = object


class ConnectMixin(DialMixin):
    """Outgoing stream connections of the loop."""

    # -- from a connected socket to a transport --------------------------------

    async def _create_connection_transport(
        self,
        sock: socket.socket,
        protocol_factory: ProtocolFactory,
        ssl: SSLArgument,
        server_hostname: str | None,
        server_side: bool = False,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> tuple[Any, Any]:
        """Give a connected socket a transport and a protocol, and wait for both.

        The socket is the transport's from here on; it is closed if none can be made.
        """
        try:
            sock.setblocking(False)
            protocol = protocol_factory()
            waiter = self.create_future()
            if ssl:
                transport = self._make_ssl_transport(
                    sock,
                    protocol,
                    None if isinstance(ssl, bool) else ssl,
                    waiter,
                    server_side=server_side,
                    server_hostname=server_hostname,
                    ssl_handshake_timeout=ssl_handshake_timeout,
                    ssl_shutdown_timeout=ssl_shutdown_timeout,
                )
            else:
                transport = self._make_socket_transport(sock, protocol, waiter)
        except BaseException:
            sock.close()
            raise
        try:
            await waiter
        except BaseException:
            transport.close()
            raise
        finally:
            # The exception of a failed handshake holds this frame, the waiter it.
            del waiter
        return transport, protocol

    async def _resolve(
        self, address: tuple[Any, ...], family: int, proto: int, flags: int
    ) -> list[AddrInfo]:
        """Resolve the address of a stream, which has to give something."""
        infos = await self._ensure_resolved(
            address,
            family=family,
            type=socket.SOCK_STREAM,
            proto=proto,
            flags=flags,
            loop=self,
        )
        if not infos:
            raise OSError("getaddrinfo() returned empty list")
        return infos

    async def _open_connection(
        self,
        protocol_factory: ProtocolFactory,
        host: Any,
        port: Any,
        *,
        ssl: SSLArgument,
        family: int,
        proto: int,
        flags: int,
        sock: socket.socket | None,
        local_addr: tuple[Any, ...] | None,
        server_hostname: str | None,
        ssl_handshake_timeout: float | None,
        ssl_shutdown_timeout: float | None,
        happy_eyeballs_delay: float | None,
        interleave: int | None,
        all_errors: bool = False,
    ) -> tuple[Any, Any]:
        """Do what `create_connection` promises, on every Python version."""
        if not ssl and server_hostname is not None:
            raise ValueError("server_hostname is only meaningful with ssl")
        if ssl and server_hostname is None:
            # An empty name switches the check off, so it must be asked for by name.
            if not host:
                raise ValueError(
                    "You must set server_hostname when using ssl without a host"
                )
            server_hostname = host
        check_ssl_timeouts(ssl, ssl_handshake_timeout, ssl_shutdown_timeout)
        if sock is not None:
            check_ssl_socket(sock)

        if host is not None or port is not None:
            if sock is not None:
                raise ValueError(
                    "host/port and sock can not be specified at the same time"
                )
            infos = await self._resolve((host, port), family, proto, flags)
            local_infos = None
            if local_addr is not None:
                local_infos = await self._resolve(local_addr, family, proto, flags)
            if interleave is None and happy_eyeballs_delay is not None:
                interleave = 1
            if interleave:
                infos = interleave_families(infos, interleave)
            sock = await self._connect_any(
                infos, local_infos, happy_eyeballs_delay, all_errors
            )
        elif sock is None:
            raise ValueError("host and port was not specified and no sock specified")
        elif sock.type != socket.SOCK_STREAM:
            # Any family will do, Unix sockets too.
            raise ValueError(f"A Stream Socket was expected, got {sock!r}")

        transport, protocol = await self._create_connection_transport(
            sock,
            protocol_factory,
            ssl,
            server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        if self._debug:
            logger.debug(
                "%r connected to %s:%r: (%r, %r)",
                transport.get_extra_info("socket"),
                host,
                port,
                transport,
                protocol,
            )
        return transport, protocol

    # -- the public methods ----------------------------------------------------

    if sys.version_info >= (3, 12):

        async def create_connection(
            self,
            protocol_factory: Callable[[], Any],
            host: Any = None,
            port: Any = None,
            *,
            ssl: SSLArgument = None,
            family: int = 0,
            proto: int = 0,
            flags: int = 0,
            sock: socket.socket | None = None,
            local_addr: Any = None,
            server_hostname: str | None = None,
            ssl_handshake_timeout: float | None = None,
            ssl_shutdown_timeout: float | None = None,
            happy_eyeballs_delay: float | None = None,
            interleave: int | None = None,
            all_errors: bool = False,
        ) -> tuple[Any, Any]:
            """Open a stream connection to a host and port, or on a connected socket.

            As `asyncio.loop.create_connection`.  A cancelled or failed call leaves no
            socket behind.

            Args:
                protocol_factory: Called without arguments, gives the protocol.
                host: Name or literal; None is this machine.
                port: Number or service name.
                ssl: A context, or True for a default one.
                family: Address family to look up, 0 for any.
                proto: Passed to getaddrinfo.
                flags: Passed to getaddrinfo.
                sock: A connected stream socket instead of host and port; it belongs
                    to the transport.
                local_addr: Host and port to bind to.
                server_hostname: Name that the certificate must have; `host` if None.
                ssl_handshake_timeout: Seconds, 60 if None.
                ssl_shutdown_timeout: Seconds, 30 if None.
                happy_eyeballs_delay: Seconds until the next address is tried beside
                    those that have not answered; None tries one at a time.
                interleave: Addresses of the first family before the families take
                    turns; 1 if None and `happy_eyeballs_delay` is given.
                all_errors: Raise an ExceptionGroup of all errors (Python 3.12).

            Returns:
                The transport and the protocol.

            Raises:
                OSError: No address could be connected to.
                ValueError: The arguments contradict each other.
            """
            return await self._open_connection(
                protocol_factory,
                host,
                port,
                ssl=ssl,
                family=family,
                proto=proto,
                flags=flags,
                sock=sock,
                local_addr=local_addr,
                server_hostname=server_hostname,
                ssl_handshake_timeout=ssl_handshake_timeout,
                ssl_shutdown_timeout=ssl_shutdown_timeout,
                happy_eyeballs_delay=happy_eyeballs_delay,
                interleave=interleave,
                all_errors=all_errors,
            )

    else:

        async def create_connection(
            self,
            protocol_factory: Callable[[], Any],
            host: Any = None,
            port: Any = None,
            *,
            ssl: SSLArgument = None,
            family: int = 0,
            proto: int = 0,
            flags: int = 0,
            sock: socket.socket | None = None,
            local_addr: Any = None,
            server_hostname: str | None = None,
            ssl_handshake_timeout: float | None = None,
            ssl_shutdown_timeout: float | None = None,
            happy_eyeballs_delay: float | None = None,
            interleave: int | None = None,
        ) -> tuple[Any, Any]:
            """Open a stream connection; see the form of Python 3.12 above."""
            return await self._open_connection(
                protocol_factory,
                host,
                port,
                ssl=ssl,
                family=family,
                proto=proto,
                flags=flags,
                sock=sock,
                local_addr=local_addr,
                server_hostname=server_hostname,
                ssl_handshake_timeout=ssl_handshake_timeout,
                ssl_shutdown_timeout=ssl_shutdown_timeout,
                happy_eyeballs_delay=happy_eyeballs_delay,
                interleave=interleave,
            )

    async def create_unix_connection(
        self,
        protocol_factory: Callable[[], Any],
        path: str | bytes | os.PathLike[Any] | None = None,
        *,
        ssl: SSLArgument = None,
        sock: socket.socket | None = None,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> tuple[Any, Any]:
        """Open a connection to a Unix stream socket.

        As `asyncio.loop.create_unix_connection`.

        Args:
            protocol_factory: Called without arguments, gives the protocol.
            path: Where the socket is; a name that begins with a null character is in
                the abstract namespace.
            ssl: A context, or True for a default one.
            sock: A connected Unix stream socket instead of the path.
            server_hostname: Name that the certificate must have; needed with `ssl`.
            ssl_handshake_timeout: Seconds, 60 if None.
            ssl_shutdown_timeout: Seconds, 30 if None.

        Returns:
            The transport and the protocol.

        Raises:
            OSError: The connection could not be made.
            ValueError: The arguments contradict each other.
        """
        if server_hostname is not None and not isinstance(server_hostname, str):
            raise TypeError(f"server_hostname must be str, got {server_hostname!r}")
        if ssl and server_hostname is None:
            raise ValueError("you have to pass server_hostname when using ssl")
        if not ssl and server_hostname is not None:
            raise ValueError("server_hostname is only meaningful with ssl")
        check_ssl_timeouts(ssl, ssl_handshake_timeout, ssl_shutdown_timeout)

        if path is not None:
            if sock is not None:
                raise ValueError("path and sock can not be specified at the same time")
            address: Address = os.fspath(path)
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0)
            try:
                sock.setblocking(False)
                await self.sock_connect(sock, address)
            except BaseException:
                self._drop_socket(sock)
                raise
        elif sock is None:
            raise ValueError("no path and sock were specified")
        elif sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            raise ValueError(f"A UNIX Domain Stream Socket was expected, got {sock!r}")

        return await self._create_connection_transport(
            sock,
            protocol_factory,
            ssl,
            server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )

    async def connect_accepted_socket(
        self,
        protocol_factory: Callable[[], Any],
        sock: socket.socket,
        *,
        ssl: SSLArgument = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> tuple[Any, Any]:
        """Serve a connection that was accepted outside of asyncio.

        As `asyncio.loop.connect_accepted_socket`, for stream sockets of any family.

        Args:
            protocol_factory: Called without arguments, gives the protocol.
            sock: The accepted socket; it belongs to the transport.
            ssl: A context, to answer a TLS handshake.
            ssl_handshake_timeout: Seconds, 60 if None.
            ssl_shutdown_timeout: Seconds, 30 if None.

        Returns:
            The transport and the protocol.
        """
        if sock.type != socket.SOCK_STREAM:
            raise ValueError(f"A Stream Socket was expected, got {sock!r}")
        check_ssl_timeouts(ssl, ssl_handshake_timeout, ssl_shutdown_timeout)
        check_ssl_socket(sock)
        transport, protocol = await self._create_connection_transport(
            sock,
            protocol_factory,
            ssl,
            "",
            server_side=True,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        if self._debug:
            logger.debug(
                "%r handled: (%r, %r)",
                transport.get_extra_info("socket"),
                transport,
                protocol,
            )
        return transport, protocol
