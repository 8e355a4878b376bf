"""asyncio's streams with a native reader and writer.

`asyncio.open_connection`, `start_server` and their Unix forms, with the same arguments,
methods and errors, for less time a message. The classes are protocols and no more: they
run on any asyncio loop, and gain most on this project's.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeAlias

from ._loop.reader import DEFAULT_LIMIT, StreamReader
from ._loop.writer import StreamReaderProtocol, StreamWriter

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable

    ClientConnected: TypeAlias = Callable[
        [StreamReader, StreamWriter], Awaitable[None] | None
    ]

__all__ = [
    "StreamReader",
    "StreamReaderProtocol",
    "StreamWriter",
    "open_connection",
    "open_unix_connection",
    "start_server",
    "start_unix_server",
]


async def open_connection(
    host: str | None = None,
    port: int | str | None = None,
    *,
    limit: int = DEFAULT_LIMIT,
    **kwds: Any,
) -> tuple[StreamReader, StreamWriter]:
    """Connect to a TCP server (`asyncio.open_connection`).

    Args:
        host: Name or address.
        port: Number or name of the port.
        limit: Bytes that a line may have; the transport is paused when twice as much
            waits to be read.
        **kwds: All else that `loop.create_connection` takes (`ssl`, `sock`, ...).

    Returns:
        The reader and the writer of the connection.

    Raises:
        OSError: The connection could not be made.
        ValueError: The limit is not above 0.
    """
    loop: Any = asyncio.get_running_loop()  # the stubs know less of the arguments
    reader, protocol = _pair(loop, limit)
    transport, _ = await loop.create_connection(lambda: protocol, host, port, **kwds)
    return reader, StreamWriter(transport, protocol, reader, loop)


async def open_unix_connection(
    path: str | bytes | os.PathLike[str] | None = None,
    *,
    limit: int = DEFAULT_LIMIT,
    **kwds: Any,
) -> tuple[StreamReader, StreamWriter]:
    """Connect to a Unix stream socket (`asyncio.open_unix_connection`).

    Args:
        path: Of the socket.
        limit: As for `open_connection`.
        **kwds: All else that `loop.create_unix_connection` takes.

    Returns:
        The reader and the writer of the connection.

    Raises:
        OSError: The connection could not be made.
        ValueError: The limit is not above 0.
    """
    loop: Any = asyncio.get_running_loop()
    reader, protocol = _pair(loop, limit)
    transport, _ = await loop.create_unix_connection(lambda: protocol, path, **kwds)
    return reader, StreamWriter(transport, protocol, reader, loop)


async def start_server(
    client_connected_cb: ClientConnected,
    host: Any = None,
    port: Any = None,
    *,
    limit: int = DEFAULT_LIMIT,
    **kwds: Any,
) -> asyncio.Server:
    """Serve TCP clients (`asyncio.start_server`).

    Args:
        client_connected_cb: Called with the reader and the writer of each client. A
            coroutine that it gives runs as a task; what that raises goes to the
            loop's exception handler, and the connection is closed.
        host: Address or addresses to listen on, None for all.
        port: To listen on, 0 for any.
        limit: As for `open_connection`.
        **kwds: All else that `loop.create_server` takes.

    Returns:
        The server of `loop.create_server`.

    Raises:
        OSError: An address cannot be listened on.
    """
    loop = asyncio.get_running_loop()
    return await loop.create_server(
        _factory(loop, limit, client_connected_cb), host, port, **kwds
    )


async def start_unix_server(
    client_connected_cb: ClientConnected,
    path: str | bytes | os.PathLike[str] | None = None,
    *,
    limit: int = DEFAULT_LIMIT,
    **kwds: Any,
) -> asyncio.Server:
    """Serve the clients of a Unix socket (`asyncio.start_unix_server`).

    Args:
        client_connected_cb: As for `start_server`.
        path: Of the socket, which is made.
        limit: As for `open_connection`.
        **kwds: All else that `loop.create_unix_server` takes.

    Returns:
        The server of `loop.create_unix_server`.

    Raises:
        OSError: The path cannot be listened on.
    """
    loop: Any = asyncio.get_running_loop()
    server: asyncio.Server = await loop.create_unix_server(
        _factory(loop, limit, client_connected_cb), path, **kwds
    )
    return server


def _pair(
    loop: asyncio.AbstractEventLoop, limit: int
) -> tuple[StreamReader, StreamReaderProtocol]:
    reader = StreamReader(limit=limit, loop=loop)
    return reader, StreamReaderProtocol(reader, loop=loop)


def _factory(
    loop: asyncio.AbstractEventLoop, limit: int, callback: ClientConnected
) -> Callable[[], StreamReaderProtocol]:
    def factory() -> StreamReaderProtocol:
        reader = StreamReader(limit=limit, loop=loop)
        return StreamReaderProtocol(reader, callback, loop=loop)

    return factory
