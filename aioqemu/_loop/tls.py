"""TLS on the loop's stream transports: what is checked and who is put on whom.

The native protocol sits between a stream transport and the user's protocol; it may
itself sit on another one (TLS inside TLS).  Nothing here touches a socket.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from .private import constants
from .writer import StreamReaderProtocol

if TYPE_CHECKING:
    import socket
    import ssl

    from ._typing import LoopBase
    from .tls_transport import make_tls

    HAVE_SSL: bool
else:
    LoopBase = object
    try:
        import ssl

        from .tls_transport import make_tls

        HAVE_SSL = True
    except ImportError:  # pragma: no cover - a Python built without OpenSSL
        HAVE_SSL = False

SSLArgument: TypeAlias = "ssl.SSLContext | bool | None"
"""The `ssl=` of connections: a context, True for a default one, or none."""


def check_ssl_socket(sock: object) -> None:
    """Refuse an `ssl.SSLSocket`: the loop does TLS itself, above the socket.

    Raises:
        TypeError: `sock` is an `ssl.SSLSocket`.
    """
    if HAVE_SSL and isinstance(sock, ssl.SSLSocket):
        raise TypeError("Socket cannot be of type SSLSocket")


def check_ssl_timeouts(
    enabled: object, handshake: float | None, shutdown: float | None
) -> None:
    """Refuse TLS time-outs where there is no TLS.

    Raises:
        ValueError: A time-out was given although `enabled` is false.
    """
    if enabled:
        return
    if handshake is not None:
        raise ValueError("ssl_handshake_timeout is only meaningful with ssl")
    if shutdown is not None:
        raise ValueError("ssl_shutdown_timeout is only meaningful with ssl")


def _take_read_ahead(protocol: object) -> bytes:
    """Take the bytes that a stream reader had read before TLS began.

    They are the peer's first TLS records, and no text that the program may read.
    """
    if isinstance(protocol, StreamReaderProtocol):
        return protocol._take_read_ahead()
    if isinstance(protocol, asyncio.StreamReaderProtocol):
        reader = getattr(protocol, "_stream_reader", None)
        buffer = getattr(reader, "_buffer", None)
        if buffer:
            taken = bytes(buffer)
            buffer.clear()
            return taken
    return b""


class TlsMixin(LoopBase):
    """TLS transports of the loop."""

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
        ssl_handshake_timeout: float | None = constants.SSL_HANDSHAKE_TIMEOUT,
        ssl_shutdown_timeout: float | None = constants.SSL_SHUTDOWN_TIMEOUT,
    ) -> asyncio.Transport:
        """Make a TLS transport on a connected socket; the handshake follows."""
        self._ensure_fd_no_transport(rawsock)
        if not HAVE_SSL:
            raise RuntimeError("Python ssl module is not available")
        tls = make_tls(
            cast("Any", self),
            protocol,
            cast("Any", sslcontext),
            waiter,
            server_side=server_side,
            server_hostname=server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        self._make_socket_transport(rawsock, tls, extra=extra, server=server)
        return cast("asyncio.Transport", tls._app_transport)

    async def start_tls(
        self,
        transport: Any,
        protocol: Any,
        sslcontext: Any,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> Any:
        """Put TLS on an open connection; `loop.start_tls` of asyncio.

        Args:
            transport: A stream transport of this loop, TLS ones included.
            protocol: The protocol that goes on above TLS; `connection_made` is not
                called again.
            sslcontext: The TLS settings.
            server_side: Answer a handshake instead of beginning one.
            server_hostname: The name that the peer's certificate must have.
            ssl_handshake_timeout: Seconds, 60 if None.
            ssl_shutdown_timeout: Seconds, 30 if None.

        Returns:
            The new transport, which takes the place of `transport`.

        Raises:
            TypeError: `sslcontext` or `transport` is not one that can do this.
            OSError: The handshake failed (`ssl.SSLError`) or took too long; the
                connection is closed then.
        """
        if not HAVE_SSL:
            raise RuntimeError("Python ssl module is not available")
        if not isinstance(sslcontext, ssl.SSLContext):
            raise TypeError(
                f"sslcontext is expected to be an instance of ssl.SSLContext, "
                f"got {sslcontext!r}"
            )
        if not getattr(transport, "_start_tls_compatible", False):
            raise TypeError(f"transport {transport!r} is not supported by start_tls()")

        waiter = self.create_future()
        tls = make_tls(
            cast("Any", self),
            protocol,
            sslcontext,
            waiter,
            server_side=server_side,
            server_hostname=server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
            call_connection_made=False,
        )
        # Bytes that came now would reach the TLS protocol before its connection_made.
        transport.pause_reading()
        if server_side:
            tls._take_ahead(_take_read_ahead(protocol))
        transport.set_protocol(tls)
        steps = (
            self.call_soon(tls.connection_made, transport),
            self.call_soon(transport.resume_reading),
        )
        try:
            await waiter
        except BaseException:
            transport.close()
            for step in steps:
                step.cancel()
            raise
        finally:
            # The waiter's exception holds this frame: do not let it hold the waiter.
            del waiter
        return tls._app_transport
