"""QEMU's test-thread-pool, where each item is an `open` of a FIFO that blocks."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from typing import TYPE_CHECKING, Any

import pytest
from support.procs import run_script

from aioqemu._block.request import BlockRequest, Engine, Kind
from aioqemu._block.service import BlockService, Op, service_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import aioqemu

_AT_FDCWD = -100


def _item(
    served: BlockService,
    path: Path,
    cb: Callable[[Any, int], object] | None = None,
    opaque: object = None,
) -> BlockRequest:
    """Open a path in a thread."""
    return served.control(
        Op.OPENAT,
        _AT_FDCWD,
        Engine.THREADS,
        path=os.fsencode(path),
        flags=os.O_RDONLY | os.O_CLOEXEC,
        kind=Kind.RET_INT,
        cb=cb,
        opaque=opaque,
    )


def test_submit_no_complete(ctx: aioqemu.AioContext, image: Path) -> None:
    request = _item(service_of(ctx), image)
    while not request.done():
        ctx.poll(True)
    assert request.ret is not None
    os.close(request.ret)


def test_submit_aio(ctx: aioqemu.AioContext, image: Path) -> None:
    told: list[int] = []
    request = _item(service_of(ctx), image, lambda _, ret: told.append(ret))
    time.sleep(0.05)
    assert (request.ret, told) == (None, []), "only from the loop"
    while not told:
        ctx.poll(True)
    assert ctx.poll(False) is False
    os.close(told[0])


def test_submit_many(ctx: aioqemu.AioContext, image: Path) -> None:
    told: list[int] = []
    served = service_of(ctx)
    for _ in range(100):
        _item(served, image, lambda _, ret: told.append(ret))
    ctx.flush()
    assert len(told) == 100
    assert served.threads <= 64
    for fd in told:
        os.close(fd)


@pytest.mark.parametrize("sync", [True, False])
def test_cancel(ctx: aioqemu.AioContext, disk: Path, sync: bool) -> None:
    fifo = disk / "fifo"
    os.mkfifo(fifo)
    told: dict[int, int] = {}
    served = service_of(ctx)
    requests = [_item(served, fifo, told.__setitem__, i) for i in range(100)]
    ctx.notify()
    ctx.poll(False)
    while served.threads < 64:
        time.sleep(0.001)
    time.sleep(0.2)
    assert told == {}
    cancelled = list(range(64, 100))
    for i in cancelled:
        if sync:
            requests[i].cancel()
            assert told[i] == -errno.ECANCELED
        else:
            requests[i].cancel_async()
            assert i not in told
    if not sync:
        while len(told) < 36:
            ctx.poll(True)
    assert sorted(told) == cancelled
    writer = os.open(fifo, os.O_RDWR)
    ctx.flush()
    assert len(told) == 100
    for i in range(64):
        assert told[i] >= 0, "running work completes"
        os.close(told[i])
    os.close(writer)


def test_a_batch_is_one_wake_up(ctx: aioqemu.AioContext, image: Path) -> None:
    served = service_of(ctx)
    told: list[int] = []
    for _ in range(50):
        _item(served, image, lambda _, ret: told.append(ret))
    time.sleep(0.3)
    before = ctx.stats()["passes"]
    while len(told) < 50:
        ctx.poll(True)
    assert ctx.stats()["passes"] - before <= 2
    for fd in told:
        os.close(fd)


def test_threads_that_cannot_start(image: Path) -> None:
    out = run_script(
        """
        import asyncio, resource, sys, aioqemu, os
        from aioqemu import block
        from support import seccomp
        import ctypes

        async def main():
            blk = await block.open(sys.argv[1], "r+", engine="threads")
            await asyncio.sleep(0)
            await asyncio.gather(*(blk.pwrite(b"x" * 512, 512 * i) for i in range(64)))
            await blk.flush()
            print(block.blockdev.service().threads)
            await blk.close()

        seccomp.deny((56, 435), 11)     # clone, clone3
        aioqemu.run(main(), fdmon="epoll")
        """,
        str(image),
    )
    assert out == "0\n"
    assert image.read_bytes()[:32768] == b"x" * 32768


def test_a_slow_disk_does_not_stop_the_loop(
    loop: aioqemu.EventLoop, disk: Path
) -> None:
    fifo = disk / "fifo"
    os.mkfifo(fifo)

    async def main() -> None:
        request = _item(service_of(loop.context), fifo)
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not request.done()
        writer = os.open(fifo, os.O_RDWR)
        os.close(await request)
        os.close(writer)

    loop.run_until_complete(main())
