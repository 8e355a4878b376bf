"""The fd level: names, order and results of `os`, awaited."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import importlib
import os
import stat
from typing import TYPE_CHECKING, Any

import pytest

from aioqemu import block

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


# Its first loop makes a pipe for signals that stays for good.
with contextlib.suppress(ImportError):
    importlib.import_module("uvloop").new_event_loop().close()


@pytest.fixture
def fd(image: Path) -> Iterator[int]:
    """The pattern file, open for reading and writing."""
    number = os.open(image, os.O_RDWR)
    yield number
    os.close(number)


async def _everything(fd: int, image: Path) -> None:
    data = os.pread(fd, 1 << 20, 0)
    assert await block.pread(fd, 100, 8) == data[8:108]
    assert await block.pread(fd, 100, len(data) - 10) == data[-10:]
    assert await block.pread(fd, 100, len(data) + 10) == b""
    a, b = bytearray(10), bytearray(20)
    assert await block.preadv(fd, [a, b], 4) == 30
    assert a + b == data[4:34]
    assert await block.pwrite(fd, b"hello", 3) == 5
    assert await block.pwritev(fd, [b"x", b"", b"yz"], 100) == 3
    await block.fsync(fd)
    await block.fdatasync(fd)
    assert os.pread(fd, 5, 3) + os.pread(fd, 3, 100) == b"helloxyz"
    await block.fallocate(fd, 0, 0, len(data) + 4096)
    for what in (fd, image, str(image), os.fsencode(image)):
        st = await block.statx(what)
        assert st.st_size == len(data) + 4096
        assert stat.S_ISREG(st.st_mode)
        assert (st.st_ino, st.st_mtime_ns) == (
            os.fstat(fd).st_ino,
            os.fstat(fd).st_mtime_ns,
        )
    other = await block.openat(image.name, os.O_RDONLY, dir_fd=_folder(image))
    assert not os.get_inheritable(other)
    assert await block.pread(other, 5, 3) == b"hello"
    assert await block.close(other) is None
    with pytest.raises(OSError, match="Bad file"):
        await block.close(other)


_folders: list[int] = []


def _folder(image: Path) -> int:
    _folders.append(os.open(image.parent, os.O_RDONLY))
    return _folders[-1]


@pytest.fixture(autouse=True)
def _close_folders() -> Iterator[None]:
    yield
    while _folders:
        os.close(_folders.pop())


def test_as_in_os(run: Any, fd: int, image: Path) -> None:
    run(_everything(fd, image))


@pytest.mark.parametrize("module", ["asyncio", "uvloop"])
def test_on_loops_that_are_not_ours(module: str, fd: int, image: Path) -> None:
    pytest.importorskip(module).run(_everything(fd, image))


def test_a_stranger_that_forgets_its_asyncgens(fd: int) -> None:
    loop = asyncio.SelectorEventLoop()

    async def main() -> bytes:
        data: bytes = await block.pread(fd, 8, 8)
        return data

    assert loop.run_until_complete(main()) == (1).to_bytes(8, "big")
    loop.close()


def test_errors_come_from_the_await(run: Any, fd: int, disk: Path) -> None:
    async def main() -> None:
        closed = fcntl.fcntl(fd, fcntl.F_DUPFD, 500)  # a number that stays unused
        os.close(closed)
        for use, code in (
            (lambda: block.pread(closed, 10, 0), errno.EBADF),
            (lambda: block.pread(fd, 10, -1), errno.EINVAL),
            (lambda: block.pread(fd, 10, 1 << 63), errno.EINVAL),
            (lambda: block.pread(fd, 10, (1 << 63) - 5), errno.EINVAL),
            (lambda: block.pwrite(fd, b"x", -5), errno.EINVAL),
            (lambda: block.pwritev(fd, [b"x"] * 1025, 0), errno.EINVAL),
            (lambda: block.fallocate(fd, 0, -1, 10), errno.EINVAL),
            (lambda: block.openat(disk / "none", os.O_RDONLY), errno.ENOENT),
            (lambda: block.statx(disk / "none"), errno.ENOENT),
            (lambda: block.fsync(closed), errno.EBADF),
        ):
            request = use()
            assert not request.done(), "never inside the call"
            with pytest.raises(OSError, match="Errno") as caught:
                await request
            assert caught.value.errno == code
        for bad in (
            lambda: block.preadv(fd, [b"read-only"], 0),
            lambda: block.preadv(fd, [memoryview(bytearray(8))[::2]], 0),
            lambda: block.pwrite(fd, "text", 0),
            lambda: block.pread(fd, -1, 0),
        ):
            with pytest.raises((TypeError, ValueError, BufferError)):
                bad()

    run(main())


def test_awaitables_of_every_kind(run: Any, fd: int) -> None:
    async def main() -> None:
        def one(i: int) -> block.BlockRequest:
            return block.pread(fd, 8, 8 * i)

        wanted = [i.to_bytes(8, "big") for i in range(100)]
        assert await asyncio.gather(*map(one, range(100))) == wanted
        done, _ = await asyncio.wait([one(1), one(2)])
        assert {r.result() for r in done} == set(wanted[1:3])
        assert await asyncio.wait_for(one(3), 5) == wanted[3]
        got = {await r for r in asyncio.as_completed([one(4), one(5)])}
        assert got == set(wanted[4:6])

        async def awaiting(i: int) -> bytes:
            data: bytes = await one(i)
            return data

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(awaiting(i)) for i in range(10)]
        assert [t.result() for t in tasks] == wanted[:10]

    run(main())


def test_a_hot_read_needs_no_pass_until_the_budget_is_spent(run: Any, fd: int) -> None:
    async def main() -> None:
        await block.pread(fd, 1 << 20, 0)
        await asyncio.sleep(0.001)
        requests = [block.pread(fd, 65536, 0) for _ in range(40)]
        done = [r.done() for r in requests]
        assert done[0]
        assert not done[-1]
        assert 1 <= sum(done) <= 16
        await asyncio.gather(*requests)

    run(main())


def test_another_thread_is_refused(run: Any, fd: int) -> None:
    from aioqemu._loop import blockdev

    async def main() -> None:
        served = blockdev.service()
        with pytest.raises(RuntimeError, match="thread"):
            await asyncio.to_thread(served.fail, 5)

    run(main())
