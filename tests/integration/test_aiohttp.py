"""aiohttp, server and client in one process: pages, streams, websockets, TLS."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING

import pytest

aiohttp = pytest.importorskip("aiohttp")
trustme = pytest.importorskip("trustme")
from aiohttp import web  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.integration, pytest.mark.asyncio]
BODY = bytes(range(256)) * 4000


async def _hello(request: web.Request) -> web.Response:
    return web.Response(text=f"hello {request.match_info.get('name', 'you')}")


async def _length(request: web.Request) -> web.Response:
    total = 0
    async for chunk in request.content.iter_any():
        total += len(chunk)
    return web.json_response({"length": total})


async def _stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for number in range(50):
        await response.write(b"%d\n" % number)
        await asyncio.sleep(0)
    await response.write_eof()
    return response


async def _socket(request: web.Request) -> web.WebSocketResponse:
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    async for message in ws:
        await ws.send_str(message.data.upper())
    return ws


@contextlib.asynccontextmanager
async def _site(
    context: ssl.SSLContext | None = None, path: Path | None = None
) -> AsyncIterator[int]:
    app = web.Application(client_max_size=1 << 24)
    app.router.add_get("/hello/{name}", _hello)
    app.router.add_post("/length", _length)
    app.router.add_get("/stream", _stream)
    app.router.add_get("/socket", _socket)
    if path is not None:
        app.router.add_static("/files", path)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def _settled() -> None:
    """Give closed client connections the passes that they need to be gone."""
    for _ in range(10):
        await asyncio.sleep(0.001)


async def test_many_requests_over_kept_connections() -> None:
    async with _site() as port, aiohttp.ClientSession() as session:

        async def get(number: int) -> str:
            url = f"http://127.0.0.1:{port}/hello/{number}"
            async with session.get(url) as response:
                assert response.status == 200
                return await response.text()

        answers = await asyncio.gather(*(get(number) for number in range(100)))
        assert answers == [f"hello {number}" for number in range(100)]
    await _settled()


async def test_uploads_and_streams() -> None:
    async with _site() as port, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}"
        async with session.post(f"{url}/length", data=BODY) as response:
            assert await response.json() == {"length": len(BODY)}
        async with session.get(f"{url}/stream") as response:
            lines = [line async for line in response.content]
            assert lines == [b"%d\n" % number for number in range(50)]
    await _settled()


async def test_static_files_go_by_sendfile(tmp_path: Path) -> None:
    (tmp_path / "body.bin").write_bytes(BODY)
    async with _site(path=tmp_path) as port, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}/files/body.bin"
        async with session.get(url) as response:
            assert await response.read() == BODY
        async with session.get(url, headers={"Range": "bytes=10-99"}) as response:
            assert response.status == 206
            assert await response.read() == BODY[10:100]
    await _settled()


async def test_websockets_both_ways() -> None:
    async with _site() as port, aiohttp.ClientSession() as session:
        async with session.ws_connect(f"http://127.0.0.1:{port}/socket") as ws:
            for word in ("one", "two", "three" * 10_000):
                await ws.send_str(word)
                assert await ws.receive_str() == word.upper()
    await _settled()


async def test_a_client_that_leaves_early_harms_nobody() -> None:
    async with _site() as port, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{port}"
        timeout = aiohttp.ClientTimeout(total=0.001)
        for _ in range(5):
            with contextlib.suppress(asyncio.TimeoutError, aiohttp.ClientError):
                async with session.get(f"{url}/stream", timeout=timeout) as response:
                    await response.read()
        async with session.get(f"{url}/hello/again") as response:
            assert await response.text() == "hello again"
    await _settled()


async def test_pages_over_tls() -> None:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    async with _site(server) as port, aiohttp.ClientSession() as session:
        url = f"https://127.0.0.1:{port}"
        async with session.post(f"{url}/length", data=BODY, ssl=client) as response:
            assert await response.json() == {"length": len(BODY)}
        async with session.get(f"{url}/hello/tls", ssl=client) as response:
            assert await response.text() == "hello tls"
    await _settled()
