"""A small program that the test_choice_* modules run on a loop they chose.

It knows no loop: it uses streams, a subprocess, threads, timers and a queue, and
returns what it saw.
"""

from __future__ import annotations

import asyncio
import subprocess
from typing import Any


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each line with itself, until the end."""
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def _client(port: int, number: int, queue: asyncio.Queue[bytes]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(3):
        writer.write(b"line %d\n" % number)
        await queue.put(await reader.readline())
        await asyncio.sleep(0.001)
    writer.close()
    await writer.wait_closed()


async def program() -> dict[str, Any]:
    """Run a server with ten clients, a child process and a thread."""
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with asyncio.TaskGroup() as group:
        for number in range(10):
            group.create_task(_client(port, number, queue))
        process = group.create_task(
            asyncio.create_subprocess_exec("echo", "child", stdout=subprocess.PIPE)
        )
        thread = group.create_task(asyncio.to_thread(sum, range(10)))
    server.close()
    await server.wait_closed()
    out, _ = await process.result().communicate()
    try:
        async with asyncio.timeout(0.005):
            await asyncio.sleep(10)
        timed_out = False
    except TimeoutError:
        timed_out = True
    return {
        "lines": sorted(queue.get_nowait() for _ in range(queue.qsize())),
        "child": out,
        "thread": thread.result(),
        "timed out": timed_out,
        "loop": type(asyncio.get_running_loop()).__name__,
    }


EXPECTED: dict[str, Any] = {
    "lines": sorted(b"line %d\n" % number for number in range(10) for _ in range(3)),
    "child": b"child\n",
    "thread": 45,
    "timed out": True,
    "loop": "EventLoop",
}
