"""websockets, server and client: echo, broadcast, large messages, pings, closing."""

from __future__ import annotations

import asyncio
import os

import pytest

pytest.importorskip("websockets")
from websockets.asyncio.client import connect
from websockets.asyncio.server import (
    ServerConnection,
    broadcast,
    serve,
    unix_serve,
)
from websockets.exceptions import ConnectionClosedOK

pytestmark = [pytest.mark.integration, pytest.mark.asyncio]


async def _echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def test_messages_come_back() -> None:
    async with serve(_echo, "127.0.0.1", 0, max_size=1 << 22) as server:
        port = server.sockets[0].getsockname()[1]
        uri = f"ws://127.0.0.1:{port}"
        async with connect(uri, max_size=1 << 22, proxy=None) as client:
            for message in ("text", b"bytes", "", os.urandom(1 << 20), "ü" * 1000):
                await client.send(message)
                assert await client.recv() == message
            latency = await (await client.ping())
            assert latency >= 0


async def test_a_broadcast_reaches_everybody() -> None:
    connections: set[ServerConnection] = set()

    everybody = asyncio.Event()

    async def register(connection: ServerConnection) -> None:
        connections.add(connection)
        if len(connections) == 20:
            everybody.set()
        await connection.wait_closed()

    async with serve(register, "127.0.0.1", 0) as server:
        uri = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        clients = [await connect(uri, proxy=None) for _ in range(20)]
        await everybody.wait()
        broadcast(connections, "to all")
        heard = await asyncio.gather(*(client.recv() for client in clients))
        assert heard == ["to all"] * 20
        await asyncio.gather(*(client.close() for client in clients))


async def test_a_server_that_closes_is_noticed() -> None:
    async def close(connection: ServerConnection) -> None:
        await connection.send("bye")
        await connection.close(1000, "done")

    async with serve(close, "127.0.0.1", 0) as server:
        uri = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with connect(uri, proxy=None) as client:
            assert await client.recv() == "bye"
            with pytest.raises(ConnectionClosedOK):
                await client.recv()


async def test_over_a_unix_socket(tmp_path: object) -> None:
    from websockets.asyncio.client import unix_connect

    path = f"{tmp_path}/socket"
    async with unix_serve(_echo, path), unix_connect(path) as client:
        await client.send("unix")
        assert await client.recv() == "unix"
