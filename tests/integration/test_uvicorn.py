"""uvicorn with httptools serves an ASGI application; httpx is its client."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

uvicorn = pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx")
pytest.importorskip("httptools")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.asyncio,
    # uvicorn's own imports of the older websockets interface.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(uvicorn|websockets).*"),
]


class App:
    """An ASGI application: says hello, counts a body, streams numbers."""

    def __init__(self) -> None:
        self.lifespan: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection or the lifespan."""
        if scope["type"] == "lifespan":
            while True:
                kind = (await receive())["type"]
                self.lifespan.append(kind)
                await send({"type": f"{kind}.complete"})
                if kind == "lifespan.shutdown":
                    return
        length, more = 0, True
        while more:
            message = await receive()
            length += len(message.get("body", b""))
            more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/stream":
            for number in range(100):
                body = b"%d," % number
                await send(
                    {"type": "http.response.body", "body": body, "more_body": True}
                )
            await send({"type": "http.response.body", "body": b"end"})
        else:
            text = f"hello {scope['path']} {length}"
            await send({"type": "http.response.body", "body": text.encode()})


@contextlib.asynccontextmanager
async def _serving(app: App) -> AsyncIterator[str]:
    sock = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[sock]))
    while not server.started:
        assert not task.done(), task.exception()
        await asyncio.sleep(0.001)
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        sock.close()


async def test_requests_are_answered() -> None:
    app = App()
    async with _serving(app) as url, httpx.AsyncClient(trust_env=False) as client:
        answers = await asyncio.gather(
            *(client.get(f"{url}/{number}") for number in range(50))
        )
        assert [a.text for a in answers] == [f"hello /{n} 0" for n in range(50)]
        answer = await client.post(f"{url}/post", content=bytes(300_000))
        assert answer.text == "hello /post 300000"
    assert app.lifespan == ["lifespan.startup", "lifespan.shutdown"]


async def test_a_response_in_parts_arrives_whole() -> None:
    async with _serving(App()) as url, httpx.AsyncClient(trust_env=False) as client:
        async with client.stream("GET", f"{url}/stream") as response:
            body = b"".join([chunk async for chunk in response.aiter_raw()])
        assert body == b"".join(b"%d," % number for number in range(100)) + b"end"


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with _serving(App()) as url:
        port = int(url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in range(10):
            writer.write(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number)
        seen = b""
        while seen.count(b"hello /") < 10 or not seen.endswith(b"0\r\n\r\n"):
            seen += await asyncio.wait_for(reader.read(1 << 16), 5)
        order = [seen.index(b"hello /%d " % number) for number in range(10)]
        assert order == sorted(order)
        writer.close()
        await writer.wait_closed()
