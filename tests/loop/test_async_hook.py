"""Plain async tests: every backend and stock asyncio, through pytest-asyncio's hook.

They use nothing but public asyncio, as a user's own suite would.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from .programs import EXPECTED, echo, program

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def port() -> AsyncIterator[int]:
    """The port of an echo server on the test's own loop."""
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    # On 3.11 wait_closed() does not wait, and a handler that is cancelled is reported.
    for _ in range(100):
        if len(asyncio.all_tasks()) == 1:
            break
        await asyncio.sleep(0.01)


async def test_an_async_fixture_lives_on_the_same_loop(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"hello\n")
    assert await reader.readline() == b"hello\n"
    writer.close()
    await writer.wait_closed()


async def test_the_whole_program() -> None:
    seen = await program()
    assert {**seen, "loop": EXPECTED["loop"]} == EXPECTED


async def test_synchronisation_primitives() -> None:
    lock, event = asyncio.Lock(), asyncio.Event()
    condition, barrier = asyncio.Condition(), asyncio.Barrier(5)
    order: list[int] = []

    async def worker(number: int) -> None:
        await event.wait()
        async with lock:
            order.append(number)
            await asyncio.sleep(0)
        await barrier.wait()
        async with condition:
            condition.notify()

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(worker(number))
        await asyncio.sleep(0)
        async with condition:
            event.set()
            await condition.wait()
    assert order == list(range(5))


async def test_cancellation_runs_every_finally() -> None:
    seen: list[str] = []

    async def inner() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.001)
            seen.append("inner")

    shielded = asyncio.ensure_future(inner())

    async def outer() -> None:
        try:
            await asyncio.shield(shielded)
        finally:
            seen.append("outer")

    task = asyncio.create_task(outer())
    await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["outer"]
    shielded.cancel()
    with pytest.raises(asyncio.CancelledError):
        await shielded
    assert seen == ["outer", "inner"]


async def test_sendfile_over_a_transport(tmp_path: Path, port: int) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"a line of the file\n" * 10_000)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with path.open("rb") as file:
        sending = asyncio.create_task(
            asyncio.get_running_loop().sendfile(writer.transport, file)
        )
        assert await reader.readexactly(path.stat().st_size) == path.read_bytes()
        assert await sending == path.stat().st_size
    writer.close()
    await writer.wait_closed()


async def test_eager_tasks_where_there_are_any() -> None:
    factory = getattr(asyncio, "eager_task_factory", None)
    if factory is None:
        pytest.skip("eager tasks are of 3.12")
    loop = asyncio.get_running_loop()
    loop.set_task_factory(factory)
    try:

        async def at_once() -> int:
            return 5

        task = asyncio.create_task(at_once())
        assert task.done()
        assert await task == 5
    finally:
        loop.set_task_factory(None)
