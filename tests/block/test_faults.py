"""What goes wrong below: by the fault injector, and by a disk that fills up."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from aioqemu import block
from aioqemu.block import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def test_eio(run: Any, image: Path, engine: str, direct: bool) -> None:
    data = image.read_bytes()

    async def main() -> None:
        rules = [Fault("read", error=errno.EIO, start=8192, end=12288)]
        opening = block.open(image, "r+", engine=engine, direct=direct)
        async with block.faults(opening, rules) as blk:
            assert await blk.pread(8192, 0) == data[:8192]
            for offset, n in ((8192, 10), (12287, 1), (0, 8193)):
                with pytest.raises(OSError, match="Input/output") as caught:
                    await blk.pread(n, offset)
                assert caught.value.errno == errno.EIO
            assert await blk.pwrite(b"fine" * 1024, 8192) == 4096
            assert await blk.pread(10, 16384) == data[16384:16394]

    run(main())


def test_interrupted_and_short_transfers_are_finished(
    run: Any, image: Path, engine: str, direct: bool
) -> None:
    data = image.read_bytes()

    async def main() -> None:
        rules = [
            Fault(error=errno.EINTR, times=3),
            Fault(error=errno.EAGAIN, after=1, times=2),
            Fault("read", short=1000),
            Fault("write", short=1536),
        ]
        opening = block.open(image, "r+", engine=engine, direct=direct)
        async with block.faults(opening, rules) as blk:
            assert await blk.pread(20_000, 4096) == data[4096:24096]
            views = [bytearray(5000), bytearray(3000), bytearray(192)]
            assert await blk.preadv(views, 8192) == 8192
            assert b"".join(views) == data[8192:16384]
            assert await blk.pwritev([b"A" * 6000, b"B" * 2192], 4096) == 8192
            assert await blk.pwrite(b"C" * 100, 50) == 100
            await blk.flush()
        assert rules[0].hits == 3

    run(main())
    wanted = data[:50] + b"C" * 100 + data[150:4096] + b"A" * 6000 + b"B" * 2192
    assert image.read_bytes() == wanted + data[12288:]


def test_short_transfers_of_several_buffers(
    run: Any, image: Path, engine: str, direct: bool
) -> None:
    """No submission transfers more than the rule lets it, wherever buffers begin."""
    data = image.read_bytes()

    async def main() -> None:
        limited = Fault("read", short=1536)
        async with block.open(image, engine=engine, direct=direct) as blk:
            faulty = block.faults(blk, [limited])
            unit = blk.request_alignment
            sizes = [512, 512, 1024, 512, 8192] if unit <= 512 else [4096] * 4
            if not direct:
                sizes = [0, *sizes[:2], 0, *sizes[2:]]
            # Aligned, and none empty: else all bounce into one buffer.
            views = [blk.alloc(n) for n in sizes]
            total = sum(sizes)
            assert await faulty.preadv(views, 4096) == total
            assert b"".join(views) == data[4096 : 4096 + total]
            assert limited.hits >= total // max(1536, unit), "each in small pieces"

    run(main())


def test_an_error_that_comes_late(run: Any, image: Path, fdmon: str) -> None:
    async def main() -> None:
        rules = [Fault("write", error=errno.ENOSPC, delay=0.03, times=2)]
        async with block.faults(block.open(image, "r+"), rules) as blk:
            loop = asyncio.get_running_loop()
            began = loop.time()
            with pytest.raises(OSError, match="No space") as caught:
                await blk.pwrite(b"lost", 0)
            assert caught.value.errno == errno.ENOSPC
            assert loop.time() - began >= 0.03
            request = blk.pwrite(b"lost", 0)
            await asyncio.sleep(0)
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            assert await blk.pwrite(b"kept", 0) == 4

    run(main())
    assert image.read_bytes()[:4] == b"kept"


def test_a_failed_flush_is_not_forgotten(run: Any, image: Path, fdmon: str) -> None:
    async def main() -> None:
        rules = [Fault("fdatasync", error=errno.EIO, times=1)]
        async with block.faults(block.open(image, "r+"), rules) as blk:
            await blk.pwrite(b"x", 0)
            for _ in range(3):
                with pytest.raises(OSError, match="Input/output"):
                    await blk.flush()
            told: list[int] = []
            with pytest.raises(OSError, match="earlier flush"):
                await blk.aio_flush(lambda _, ret: told.append(ret))
            assert told == [-errno.EIO]

    run(main())


def test_a_failed_step_of_an_unaligned_write(run: Any, image: Path, fdmon: str) -> None:
    data = image.read_bytes()

    async def main() -> None:
        rules = [Fault("read", error=errno.EIO, times=1)]
        opening = block.open(image, "r+", direct=True)
        async with block.faults(opening, rules) as blk:
            first, second = blk.pwrite(b"lost", 10), blk.pwrite(b"kept", 20)
            with pytest.raises(OSError, match="Input/output"):
                await first
            assert await second == 4

    run(main())
    assert image.read_bytes() == data[:20] + b"kept" + data[24:]


def test_delays_and_cancels(run: Any, image: Path, engine: str, direct: bool) -> None:
    data = image.read_bytes()

    async def main() -> None:
        rules = [Fault("read", delay=0.02), Fault("write", delay=30)]
        opening = block.open(image, "r+", engine=engine, direct=direct)
        async with block.faults(opening, rules) as blk:
            started = time.monotonic()
            assert await blk.pread(8, 8) == data[8:16]
            assert time.monotonic() - started >= 0.02
            for offset in (0, 5):
                request = blk.pwrite(b"never" * 1000, offset)
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(request, 0.02)
                assert request.cancelled()

    run(main())
    assert image.read_bytes() == data


def test_operations_that_the_file_does_not_know(
    run: Any, image: Path, fdmon: str
) -> None:
    data = bytearray(image.read_bytes())

    async def main() -> None:
        for direct in (False, True):
            rules = [Fault("fallocate", error=errno.EOPNOTSUPP)]
            opening = block.open(image, "r+", direct=direct)
            async with block.faults(opening, rules) as blk:
                await blk.discard(0, 4096)
                await blk.write_zeroes(1001, 20_001)

    run(main())
    data[1001:21002] = bytes(20_001)
    assert image.read_bytes() == data


def test_bad_rules(image: Path) -> None:
    with pytest.raises(TypeError):
        block.faults(block.open(image), ["rule"])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        block.faults("device", [])


def let_go(*command: str | Path) -> None:
    """Run what gives a file system or device up, again and again while it is busy.

    A closed ring lets its files go in a worker of the kernel, a little later: on a busy
    machine `umount` may be there first.
    """
    end = time.monotonic() + 30
    while True:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        if "busy" not in done.stderr or time.monotonic() > end:
            pytest.fail(f"{command[0]}: {done.stderr}")
        time.sleep(0.05)


@pytest.fixture
def small(disk: Path) -> Iterator[Path]:
    """A file system of 8 MiB, where root may mount one."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts")
    file, mounted = disk / "fs", disk / "mnt"
    with file.open("wb") as f:
        f.truncate(8 << 20)
    mounted.mkdir()
    try:
        subprocess.run(
            ["mkfs.ext4", "-q", "-m0", file], check=True, capture_output=True
        )
        subprocess.run(
            ["mount", "-o", "loop", file, mounted], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"no file system could be mounted: {exc}")
    yield mounted
    let_go("umount", mounted)


def test_a_full_disk(run: Any, small: Path, engine: str, direct: bool) -> None:
    path = small / "image"

    async def main() -> dict[int, bool]:
        async with block.open(path, "w", engine=engine, direct=direct) as blk:
            await blk.truncate(16 << 20)
            piece = 256 * 1024
            requests = {
                offset: blk.pwrite(offset.to_bytes(4, "big") * (piece // 4), offset)
                for offset in range(0, 16 << 20, piece)
            }
            await asyncio.wait(requests.values())
            written = {}
            for offset, request in requests.items():
                exc = request.exception()
                written[offset] = exc is None
                assert exc is None or exc.errno == errno.ENOSPC
            flush = blk.flush()
            await asyncio.wait([flush])
            error = flush.exception()
            assert error is None or error.errno in (errno.ENOSPC, errno.EIO)
            return written

    written = run(main())
    assert True in written.values()
    assert False in written.values()
    with path.open("rb") as f:
        for offset, good in written.items():
            if good:
                f.seek(offset)
                assert f.read(256 * 1024) == offset.to_bytes(4, "big") * 65536
    path.unlink()


@pytest.fixture
def loop_device(disk: Path) -> Iterator[str]:
    """A block device of 1 MiB, where root may have one."""
    file = disk / "backing"
    with file.open("wb") as f:
        f.truncate(1 << 20)
    try:
        made = subprocess.run(
            ["losetup", "--find", "--show", file],
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"no loop device: {exc}")
    yield made.stdout.strip()
    let_go("losetup", "--detach", made.stdout.strip())


def test_a_block_device(run: Any, loop_device: str, engine: str, direct: bool) -> None:
    async def main() -> None:
        async with block.open(loop_device, "r+", engine=engine, direct=direct) as blk:
            assert blk.length == 1 << 20
            assert await blk.pwrite(b"x" * 10_000, 777) == 10_000
            assert await blk.pread(10_002, 776) == b"\0" + b"x" * 10_000 + b"\0"
            await blk.write_zeroes(1024, 4096)
            await blk.write_zeroes(7000, 100)
            await blk.discard(8192, 5000)
            await blk.flush()
            data = await blk.pread(12_000, 0)
            assert data[777:1024] == b"x" * 247
            assert data[1024:5120] == bytes(4096)
            assert data[7000:7100] == bytes(100)
            with pytest.raises(OSError, match="size"):
                await blk.truncate(5)
            with pytest.raises(OSError, match="beyond"):
                await blk.pwrite(b"x", 1 << 20)

    run(main())


def test_the_device_beside_the_faults(run: Any, image: Path, fdmon: str) -> None:
    data = image.read_bytes()

    async def main() -> None:
        async with block.open(image, "r+", direct=True) as blk:
            inner = [Fault("read", error=errno.EIO, times=1)]
            outer = [Fault("read", error=errno.ENODEV, times=1)]
            faulty = block.faults(block.faults(blk, inner), outer)
            assert isinstance(faulty, block.FaultyDevice)
            assert await blk.pread(8, 8) == data[8:16]
            for wanted in (errno.ENODEV, errno.EIO):
                with pytest.raises(OSError, match="Errno") as caught:
                    await faulty.pread(8, 8)
                assert caught.value.errno == wanted
            assert await faulty.pread(8, 8) == data[8:16]
            # One length, one gate, one end.
            await faulty.truncate(4096)
            assert blk.length == faulty.length == 4096
            assert await blk.copy_range(0, faulty, 2048, 512) == 512
            await faulty.close()
            assert blk.closed

    run(main())


def test_steps_meet_the_rules_of_who_asked(run: Any, image: Path, fdmon: str) -> None:
    async def main() -> None:
        async with block.open(image, "r+", direct=True) as blk:
            faulty = block.faults(blk, [Fault("read", error=errno.EIO)])
            mine, theirs = faulty.pwrite(b"x", 5), blk.pwrite(b"y", 6)
            with pytest.raises(OSError, match="Input/output"):
                await mine
            assert await theirs == 1

    run(main())


def test_a_map_with_many_extents(run: Any, disk: Path, fdmon: str) -> None:
    path = disk / "holes"
    with path.open("wb") as f:
        f.truncate(300 * 65536)
        for i in range(1, 300, 2):
            f.seek(i * 65536)
            f.write(b"x" * 65536)

    async def main() -> None:
        async with block.open(path) as blk:
            found = await blk.map(0, blk.length)
            assert found == [(i * 65536, 65536, i % 2 == 1) for i in range(300)]
            assert await blk.map(65536 + 7, 10) == [(65543, 10, True)]
        rules = [Fault("map", error=errno.EOPNOTSUPP)]
        async with block.faults(block.open(path), rules) as blk:
            assert await blk.map(5, 100) == [(5, 100, True)]

    run(main())
