"""What StreamWriter has that waits and is not hot: closing, TLS, foreign protocols.

Knows the writer only by the names that asyncio's has too.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl


async def drain(writer: Any) -> None:
    """`StreamWriter.drain` where the protocol is not the native one.

    Raises:
        ConnectionResetError: The connection is lost.
    """
    reader = writer._reader
    if reader is not None and (exc := reader.exception()) is not None:
        raise exc
    if writer._transport.is_closing():
        # connection_lost comes in the next pass; a loop of writes and drains would
        # otherwise never let it come.
        await asyncio.sleep(0)
    await writer._protocol._drain_helper()


async def wait_closed(writer: Any) -> None:
    """`StreamWriter.wait_closed`."""
    await writer._protocol._get_close_waiter(writer)


async def start_tls(
    writer: Any,
    sslcontext: ssl.SSLContext,
    server_hostname: str | None,
    ssl_handshake_timeout: float | None,
    ssl_shutdown_timeout: float | None,
) -> None:
    """`StreamWriter.start_tls`."""
    protocol = writer._protocol
    loop = writer._loop
    server_side = protocol._client_connected_cb is not None
    await writer.drain()
    if server_side and hasattr(protocol, "_take_read_ahead"):
        # Loops know of asyncio's own reader only; ours does this by itself, and before.
        loop.call_soon(_hand_over, writer._transport, protocol)
    transport = await loop.start_tls(
        writer._transport,
        protocol,
        sslcontext,
        server_side=server_side,
        server_hostname=server_hostname,
        ssl_handshake_timeout=ssl_handshake_timeout,
        ssl_shutdown_timeout=ssl_shutdown_timeout,
    )
    writer._transport = transport
    if hasattr(protocol, "_replace_transport"):
        protocol._replace_transport(transport)
    else:  # asyncio's of before 3.14
        protocol._replace_writer(writer)


def _hand_over(transport: Any, protocol: Any) -> None:
    """Give TLS what the reader had read before: the peer's first records.

    Called before the TLS protocol hears of its connection: it keeps them until then.
    """
    tls = transport.get_protocol()
    if tls is protocol:
        return  # it came to nothing
    rest = memoryview(protocol._take_read_ahead())
    while rest:
        buffer = tls.get_buffer(len(rest))
        n = min(len(buffer), len(rest))
        buffer[:n] = rest[:n]
        tls.buffer_updated(n)
        rest = rest[n:]
