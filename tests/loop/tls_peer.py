"""The other end of a TLS connection, by hand: every byte on the wire is the test's.

A plain socket and an `ssl.SSLObject` between two memory buffers. Nothing here uses a
transport; the loop only waits for the socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, Any

from .helpers import Recorder, socket_pair

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable

Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


class Peer:
    """A TLS end on a socket; a server's, or with `server_hostname` a client's."""

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, hostname: str | None = None
    ) -> None:
        self.sock = sock
        self.step = 0  # bytes sent at a time, 0 for all
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self.incoming,
            self.outgoing,
            server_side=hostname is None,
            server_hostname=hostname,
        )

    async def flush(self) -> None:
        """Send what TLS has to say."""
        await self.send_raw(self.outgoing.read())

    async def send_raw(self, data: bytes) -> None:
        """Send bytes as they are, `step` at a time."""
        loop = asyncio.get_running_loop()
        step = self.step or len(data) or 1
        for start in range(0, len(data), step):
            await loop.sock_sendall(self.sock, data[start : start + step])
            if self.step:
                await asyncio.sleep(0)

    async def fill(self) -> bool:
        """Wait for more ciphertext; false at the end of the stream."""
        data = await asyncio.get_running_loop().sock_recv(self.sock, 1 << 18)
        self.incoming.write(data)
        return bool(data)

    async def handshake(self) -> None:
        """Shake hands; what TLS 1.3 sends afterwards is sent, too."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.flush()
                assert await self.fill(), "the connection ended in the handshake"
            else:
                await self.flush()
                return

    def encrypt(self, *messages: bytes) -> bytes:
        """Ciphertext of the messages, a record each."""
        for message in messages:
            self.tls.write(message)
        return self.outgoing.read()

    async def send(self, *messages: bytes) -> None:
        """Encrypt and send."""
        await self.send_raw(self.encrypt(*messages))

    async def recv(self, size: int) -> bytes:
        """Decrypt exactly `size` bytes, or what comes before the peer's farewell."""
        data = b""
        while len(data) < size:
            try:
                part = self.tls.read(size - len(data))
            except ssl.SSLWantReadError:
                await self.flush()
                if not await self.fill():
                    break
            else:
                if not part:
                    break
                data += part
        return data

    def farewell(self) -> bytes:
        """The bytes of close_notify."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self.outgoing.read()


@contextlib.asynccontextmanager
async def tls_connected(
    contexts: Contexts,
    factory: Callable[[], Any] = Recorder,
    step: int = 0,
    family: str = "tcp",
    **options: Any,
) -> AsyncIterator[tuple[Any, Any, Peer]]:
    """A TLS transport (the client's) of the running loop, its protocol and its peer."""
    mine, other = socket_pair(family)
    with other:
        peer = Peer(other, contexts[0])
        peer.step = step
        shaking = asyncio.ensure_future(peer.handshake())
        transport, protocol = await asyncio.get_running_loop().create_connection(
            factory,
            sock=mine,
            ssl=contexts[1],
            server_hostname="localhost",
            **options,
        )
        await shaking
        try:
            yield transport, protocol, peer
        finally:
            with contextlib.suppress(AttributeError):
                transport.abort()
            for _ in range(4):
                await asyncio.sleep(0)
