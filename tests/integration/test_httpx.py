"""httpx as a client, over anyio, against a small HTTP server written here."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

httpx = pytest.importorskip("httpx")
trustme = pytest.importorskip("trustme")

pytestmark = [pytest.mark.integration, pytest.mark.asyncio]


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each request with its path and the length of its body."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while request := await reader.readline():
            path = request.split()[1]
            length = 0
            while (header := await reader.readline()) != b"\r\n":
                name, _, value = header.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            await reader.readexactly(length)
            if path == b"/never":
                await asyncio.sleep(60)
            body = path + b" %d" % length
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
            writer.write(head)
            writer.write(body)
            await writer.drain()


@contextlib.asynccontextmanager
async def _server(context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    handlers: set[asyncio.Task[None]] = set()

    async def handle(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        try:
            await _serve(reader, writer)
            writer.close()
            await writer.wait_closed()
        except (asyncio.CancelledError, ConnectionError, ssl.SSLError):
            # Python 3.11 would report a handler that ends as cancelled.
            writer.transport.abort()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http{'s' if context else ''}://127.0.0.1:{port}"
    finally:
        server.close()
        for task in handlers:
            task.cancel()
        if handlers:
            await asyncio.wait(handlers)
        await asyncio.sleep(0)  # the transports' last calls


async def test_requests_share_connections() -> None:
    async with _server() as url, httpx.AsyncClient(trust_env=False) as client:
        answers = await asyncio.gather(
            *(client.get(f"{url}/{number}") for number in range(60))
        )
        assert [a.text for a in answers] == [f"/{number} 0" for number in range(60)]
        answer = await client.post(f"{url}/post", content=bytes(200_000))
        assert answer.text == "/post 200000"


async def test_requests_over_tls() -> None:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    verify = ssl.create_default_context()
    authority.configure_trust(verify)
    async with _server(server) as url:
        async with httpx.AsyncClient(verify=verify, trust_env=False) as client:
            answer = await client.post(f"{url}/tls", content=bytes(100_000))
            assert answer.text == "/tls 100000"


async def test_a_timeout_ends_the_request() -> None:
    async with _server() as url, httpx.AsyncClient(trust_env=False) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.get(f"{url}/never", timeout=0.02)
        assert (await client.get(f"{url}/next")).text == "/next 0"


async def test_nobody_listening_is_told() -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("http://127.0.0.1:1/")
