"""How each contender of the disk rows reads and writes; run in a process of its own.

    python disk_peers.py CONTENDER '{"file": ..., "direct": ..., ...}'

prints what it measured as JSON: events, CPU time of the process with all its threads,
wall-clock time. What is not there, or cannot do a row, says so on standard error.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import mmap
import os
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from clock import Clock, mark_next

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Transfer = Callable[[int], Awaitable[Any]]


class CannotError(Exception):
    """The contender cannot do this row; says why."""


class Row:
    """What is to be done: so many transfers of `size` bytes, `depth` at a time."""

    def __init__(self, **row: Any) -> None:
        self.file: str = row["file"]
        self.direct: bool = row["direct"]
        self.write: bool = row["write"]
        self.size: int = row["size"]
        self.depth: int = row["depth"]
        self.count: int = row["count"]
        self.marks: bool = row.get("marks", False)
        length = os.stat(self.file).st_size or 1 << 30  # null: any
        chance = random.Random(7)
        units = max(length // self.size, 1)
        self.places = [chance.randrange(units) * self.size for _ in range(self.count)]

    def data(self) -> memoryview:
        """An aligned buffer with something in it."""
        memory = memoryview(mmap.mmap(-1, self.size))
        memory[:] = b"\xa5" * self.size
        return memory

    def open(self) -> int:
        """The plain fd, for those who take one."""
        flags = os.O_RDWR if self.write else os.O_RDONLY
        return os.open(self.file, flags | (os.O_DIRECT if self.direct else 0))


def measured(row: Row, work: Callable[[], Any]) -> dict[str, float]:
    """Run `work` between two looks at the clocks."""
    began, cpu = time.perf_counter_ns(), time.process_time_ns()
    work()
    return {
        "wall_ns": time.perf_counter_ns() - began,
        "cpu_ns": time.process_time_ns() - cpu,
        "events": row.count,
    }


async def in_parallel(row: Row, transfers: list[Transfer]) -> dict[str, float]:
    """Keep one transfer a worker in flight until all places have been visited."""
    places = iter(row.places)

    async def worker(transfer: Transfer) -> None:
        for place in places:
            await transfer(place)

    clock = Clock(marks=row.marks)
    if row.marks:
        mark_next()
    with clock:
        await asyncio.gather(*map(worker, transfers))
    return {"wall_ns": clock.wall_ns, "cpu_ns": clock.cpu_ns, "events": row.count}


# -- contenders ----------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _aioqemu(row: Row, engine: str) -> AsyncIterator[list[Transfer]]:
    from aioqemu import block

    if engine == "linux_aio" and not row.direct:
        raise CannotError("Linux AIO is for direct files")
    path = "null://" if engine == "null" else row.file
    opening = block.open(
        path,
        "r+" if row.write else "r",
        engine="auto" if engine == "null" else engine,
        direct=row.direct and engine != "null",
        max_in_flight=max(row.depth, 128),
    )
    async with opening as blk:

        def one() -> Transfer:
            buffer = blk.alloc(row.size)
            buffer[:] = b"\xa5" * row.size  # there, as the others' are
            if row.write:
                return lambda place: blk.pwrite(buffer, place)
            return lambda place: blk.pread_into(buffer, place)

        yield [one() for _ in range(row.depth)]


@contextlib.asynccontextmanager
async def _executor(row: Row) -> AsyncIterator[list[Transfer]]:
    loop = asyncio.get_running_loop()
    fd = row.open()

    def one() -> Transfer:
        buffer = row.data()
        call: Any = os.pwritev if row.write else os.preadv
        return lambda place: loop.run_in_executor(None, call, fd, [buffer], place)

    with ThreadPoolExecutor(min(row.depth, 64)) as pool:
        loop.set_default_executor(pool)
        yield [one() for _ in range(row.depth)]
    os.close(fd)


@contextlib.asynccontextmanager
async def _files(row: Row, module: str) -> AsyncIterator[list[Transfer]]:
    # They have a position each: one open file a worker.
    if row.direct:
        raise CannotError("opens no direct files")
    opened = importlib.import_module(module).open
    mode = "r+b" if row.write else "rb"
    async with contextlib.AsyncExitStack() as stack:
        transfers: list[Transfer] = []
        data = bytes(row.data())
        for _ in range(row.depth):
            file = opened(row.file, mode)
            if hasattr(file, "__aenter__"):
                file = await stack.enter_async_context(file)
            else:
                file = await file
                stack.push_async_callback(file.close)

            async def transfer(place: int, file: Any = file) -> None:
                seeking = file.seek(place)
                if hasattr(seeking, "__await__"):
                    await seeking
                await (file.write(data) if row.write else file.read(row.size))
                if row.write:
                    await file.flush()

            if module == "turbofile" and not row.write:

                def transfer(place: int, file: Any = file) -> Any:  # type: ignore[misc]
                    return file.read_at(place, row.size)

            transfers.append(transfer)
        yield transfers


@contextlib.asynccontextmanager
async def _caio(row: Row, name: str) -> AsyncIterator[list[Transfer]]:
    module = importlib.import_module(f"caio.{name}_asyncio")
    fd, data = row.open(), bytes(row.data())
    async with module.AsyncioContext(max_requests=max(row.depth, 2)) as ctx:

        def one() -> Transfer:
            if row.write:
                return lambda place: ctx.write(data, fd, place)
            return lambda place: ctx.read(row.size, fd, place)

        yield [one() for _ in range(row.depth)]
    os.close(fd)


@contextlib.asynccontextmanager
async def _future(row: Row) -> AsyncIterator[list[Transfer]]:
    # What a request cannot cost less than: a future that the next pass completes.
    loop = asyncio.get_running_loop()

    def transfer(_: int) -> asyncio.Future[None]:
        future = loop.create_future()
        loop.call_soon(future.set_result, None)
        return future

    yield [transfer] * row.depth


async def _run(row: Row, contender: Any) -> dict[str, float]:
    async with contender as transfers:
        return await in_parallel(row, transfers)


def _plain_loop(row: Row) -> dict[str, float]:
    """`os.preadv` or `os.pwritev` in a row, without any loop."""
    fd, buffers = row.open(), [row.data()]
    call: Any = os.pwritev if row.write else os.preadv

    def work() -> None:
        for place in row.places:
            call(fd, buffers, place)

    result = measured(row, work)
    os.close(fd)
    return result


def main() -> int:
    """Run one contender on one row."""
    name, row = sys.argv[1], Row(**json.loads(sys.argv[2]))
    kind, _, option = name.partition(":")
    try:
        if kind == "os":
            result = _plain_loop(row)
        elif kind in ("aioqemu", "future"):
            import aioqemu

            work = _aioqemu(row, option) if kind == "aioqemu" else _future(row)
            result = aioqemu.run(_run(row, work))
        elif kind == "executor":
            result = asyncio.run(_run(row, _executor(row)))
        elif kind == "caio":
            result = asyncio.run(_run(row, _caio(row, option)))
        else:
            result = asyncio.run(_run(row, _files(row, kind)))
    except (CannotError, ImportError, OSError, SystemError, ValueError) as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
        return 1
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
