"""The server object: a group of listening sockets and the connections they gave.

It tells its loop to begin and to stop listening; who is connected, `clients` counts.
Must never know how connections are accepted, nor what a transport is beyond `close`
and `abort`.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from .clients import ServerClients
from .private import TransportSocket

if TYPE_CHECKING:
    import socket
    import ssl as ssl_module

    from ._typing import LoopBase, ProtocolFactory


class Server(ServerClients, asyncio.Server):
    """A group of listening sockets; what `create_server` returns.

    It is an `asyncio.Server` so that `isinstance` says what it says of the stock
    loop's.  Nothing of that class is used: this one behaves alike on every Python
    version where that one changed, but for `wait_closed`, whose meaning is the running
    version's.
    """

    def __init__(
        self,
        loop: LoopBase,
        sockets: list[socket.socket],
        protocol_factory: ProtocolFactory,
        ssl_context: ssl_module.SSLContext | None,
        backlog: int,
        ssl_handshake_timeout: float | None,
        ssl_shutdown_timeout: float | None = None,
    ) -> None:
        self._loop = loop
        self._sockets: list[socket.socket] | None = sockets
        self._protocol_factory = protocol_factory
        self._ssl_context = ssl_context
        self._backlog = backlog
        self._ssl_handshake_timeout = ssl_handshake_timeout
        self._ssl_shutdown_timeout = ssl_shutdown_timeout
        # None once the server is closed and the last client gone.
        self._waiters: list[asyncio.Future[None]] | None = []
        self._serving = False
        self._serving_forever_fut: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} sockets={self.sockets!r}>"

    def _all_gone(self) -> None:
        """Closed, and the last connection has gone: wake who waits for that."""
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    # -- the public methods ----------------------------------------------------

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop that serves."""
        return self._loop

    def is_serving(self) -> bool:
        """Tell whether connections are being accepted."""
        return self._serving

    @property
    def sockets(self) -> tuple[TransportSocket, ...]:  # type: ignore[override]
        """The listening sockets, none once the server is closed."""
        return tuple(TransportSocket(sock) for sock in self._sockets or ())

    def close(self) -> None:
        """Stop accepting and close the listening sockets; connections stay open."""
        sockets, self._sockets = self._sockets, None
        if sockets is None:
            return
        for sock in sockets:
            self._loop._stop_serving(sock)
        self._serving = False
        forever, self._serving_forever_fut = self._serving_forever_fut, None
        if forever is not None:
            forever.cancel()
        self._listen_no_more()

    def close_clients(self) -> None:
        """Close the connections, each after what it has to send (Python 3.13)."""
        for transport in self._clients:
            transport.close()

    def abort_clients(self) -> None:
        """Close the connections at once, unsent data is lost (Python 3.13)."""
        for transport in self._clients:
            transport.abort()

    def _start_serving(self) -> None:
        if self._serving:
            return
        self._serving = True
        for sock in self._sockets or ():
            sock.listen(self._backlog)
            self._loop._start_serving(
                self._protocol_factory,
                sock,
                self._ssl_context,
                self,
                self._backlog,
                self._ssl_handshake_timeout,
                self._ssl_shutdown_timeout,
            )

    def _check_open(self) -> None:
        if self._sockets is None:
            raise RuntimeError(f"server {self!r} is closed")

    async def start_serving(self) -> None:
        """Begin to accept connections; does nothing if the server accepts already.

        Raises:
            RuntimeError: The server is closed.
        """
        self._check_open()
        self._start_serving()
        await asyncio.sleep(0)  # the handlers are watched when this returns

    async def serve_forever(self) -> None:
        """Accept connections until cancelled, which closes the server.

        Raises:
            RuntimeError: The server is closed, or somebody waits here already.
        """
        if self._serving_forever_fut is not None:
            raise RuntimeError(
                f"server {self!r} is already being awaited on serve_forever()"
            )
        self._check_open()
        self._start_serving()
        self._serving_forever_fut = self._loop.create_future()
        try:
            await self._serving_forever_fut
        except asyncio.CancelledError:
            self.close()
            if sys.version_info >= (3, 12):
                # wait_closed() waits for them, so they have to go.
                self.close_clients()
            await self.wait_closed()
            raise
        finally:
            self._serving_forever_fut = None

    async def wait_closed(self) -> None:
        """Wait until the server is closed and its last connection gone.

        Note:
            On Python 3.11 it returns at once when the server is closed, as the stock
            server there does: programs of that version may not expect to wait.
        """
        if self._waiters is None:
            return
        if sys.version_info < (3, 12) and self._sockets is None:
            return
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter
