"""Disks for the block tests: always on a real file system, never tmpfs."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.evidence import kernel_state

from aioqemu._engine import backends

if TYPE_CHECKING:
    import aioqemu

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def _on_disk(path: str) -> bool:
    best, kind = "", "?"
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _, where, name, *_ = line.split()
        if os.path.realpath(path).startswith(where) and len(where) >= len(best):
            best, kind = where, name
    return kind not in {"tmpfs", "ramfs", "overlay", "?"}


@pytest.fixture
def disk(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory on a real file system."""
    places = [
        os.environ.get("AIOQEMU_TEST_DISK"),
        "/var/tmp",
        tempfile.gettempdir(),
        ".",
    ]
    for place in places:
        if place and os.access(place, os.W_OK) and _on_disk(place):
            folder = tempfile.mkdtemp(prefix="aioqemu-test-", dir=place)
            yield Path(folder)
            shutil.rmtree(folder)
            return
    pytest.skip("no directory on a real file system: set AIOQEMU_TEST_DISK")


@pytest.fixture(params=["buffered", "direct"])
def direct(request: pytest.FixtureRequest) -> bool:
    """Through the page cache and past it."""
    return bool(request.param == "direct")


@pytest.fixture(params=["io_uring", "linux_aio", "threads"])
def engine(request: pytest.FixtureRequest, direct: bool) -> str:
    """Each engine that can serve the file."""
    name: str = request.param
    refusal = backends.uring_refusal()
    if name == "io_uring" and refusal is not None:
        pytest.skip(str(refusal))
    if name == "linux_aio" and not direct:
        pytest.skip("Linux AIO is for direct files")
    return name


@pytest.fixture
def run(loop: aioqemu.EventLoop) -> Run:
    """Run a coroutine on a loop of the backend under test, for 30 s at most."""

    async def bounded(coro: Coroutine[Any, Any, Any]) -> Any:
        task = asyncio.ensure_future(coro)
        done, _ = await asyncio.wait([task], timeout=30)
        if not done:
            state = kernel_state()
            task.cancel()
            await asyncio.wait([task])
            pytest.fail(f"not over after 30 s: {task!r}\n{state}")
        return task.result()

    def start(coro: Coroutine[Any, Any, Any]) -> Any:
        return loop.run_until_complete(bounded(coro))

    return start


@pytest.fixture
def image(disk: Path) -> Path:
    """A file of 1 MiB with a pattern that tells where each byte belongs."""
    path = disk / "image"
    path.write_bytes(pattern())
    return path


def pattern(n: int = 1 << 20) -> bytes:
    """Bytes whose every 8 tell their place."""
    return b"".join(i.to_bytes(8, "big") for i in range(n // 8))
