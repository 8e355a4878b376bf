"""The device level: full transfers within bounds, on every engine."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

import aioqemu
from aioqemu import block

if TYPE_CHECKING:
    from pathlib import Path


def test_the_whole_of_it(run: Any, image: Path, engine: str, direct: bool) -> None:
    data = image.read_bytes()

    async def main() -> None:
        async with block.open(image, "r+", engine=engine, direct=direct) as blk:
            assert blk.engine == engine
            assert blk.length == len(data)
            assert (blk.request_alignment > 1) is direct
            parts = [blk.pread(4096, 4096 * i) for i in range(256)]
            assert blk.in_flight <= 256
            assert b"".join(await asyncio.gather(*parts)) == data
            assert await blk.pread(1000, 777) == data[777:1777]
            assert await blk.pread(0, len(data)) == b""
            buffer, aligned = bytearray(5000), blk.alloc(8192)
            assert await blk.pread_into(buffer, 3) == 5000
            assert buffer == data[3:5003]
            assert await blk.preadv([aligned, buffer], 4096) == 13192
            assert bytes(aligned) + buffer == data[4096:17288]
            assert await blk.pwrite(b"A" * 5000, 1234) == 5000
            assert await blk.pwrite(b"B" * 512, 512, fua=True) == 512
            assert await blk.pwritev([b"C" * 100] * 30, 100_000) == 3000
            assert await blk.flush() is None
            assert await blk.discard(200_000, 5000) is None
            assert await blk.write_zeroes(300_001, 5001) is None
            assert await blk.write_zeroes(400_000, 9000, may_unmap=True) is None
            assert await blk.copy_range(500_000, blk, 600_000, 70_001) == 70_001
            await blk.truncate(len(data) + 5000)
            assert await blk.pread(5000, len(data)) == bytes(5000)
            await blk.truncate(len(data) - 7)
            assert blk.length == len(data) - 7
            await blk.pwrite(b"end", len(data) - 10)
        assert blk.closed
        assert blk.fileno() == -1

    run(main())
    model = bytearray(data)
    model[1234:6234] = b"A" * 5000
    model[512:1024] = b"B" * 512
    model[100_000:103_000] = b"C" * 3000
    model[200_000:205_000] = bytes(5000)
    model[300_001:305_002] = bytes(5001)
    model[400_000:409_000] = bytes(9000)
    model[600_000:670_001] = data[500_000:570_001]
    model[-10:-7] = b"end"
    assert image.read_bytes() == model[:-7]


def test_more_buffers_than_one_call_takes(
    run: Any, image: Path, engine: str, direct: bool
) -> None:
    data = image.read_bytes()

    async def main() -> list[bytes]:
        async with block.open(image, "r+", engine=engine, direct=direct) as blk:
            views = [bytearray(16) for _ in range(5000)]
            assert await blk.preadv(views, 512) == 80_000
            assert b"".join(views) == data[512:80_512]
            unit = blk.request_alignment
            pages = [b"%c" % (i % 251) * unit for i in range(1500)]
            await blk.pwritev(pages, 0)
            return pages

    written = b"".join(run(main()))
    assert image.read_bytes() == written + data[len(written) :]


def test_bad_requests_say_what_and_where(
    run: Any, image: Path, engine: str, direct: bool
) -> None:
    data = image.read_bytes()

    async def main() -> None:
        async with block.open(image, "r+", engine=engine, direct=direct) as blk:
            for request, code, text in (
                (blk.pread(10, -1), errno.EINVAL, "-1"),
                (blk.pread(10, len(data)), errno.EIO, "beyond the end"),
                (blk.pread(10, len(data) - 9), errno.EIO, "beyond the end"),
                (blk.pread(10, 1 << 70), errno.EIO, "beyond the end"),
                (blk.pwrite(b"x", len(data)), errno.EIO, "beyond the end"),
                (blk.pwrite(b"x", -1), errno.EINVAL, "negative"),
                (blk.discard(0, -1), errno.EINVAL, "negative"),
                (blk.write_zeroes(len(data), 1), errno.EIO, "beyond the end"),
                (blk.truncate(-1), errno.EINVAL, "negative"),
                (blk.map(0, len(data) + 1), errno.EIO, "beyond the end"),
                (blk.copy_range(0, blk, len(data), 1), errno.EIO, "beyond"),
            ):
                with pytest.raises(OSError, match=text) as caught:
                    await request
                assert caught.value.errno == code
                assert caught.value.filename == str(image)
            with pytest.raises((TypeError, ValueError, BufferError)):
                blk.pread_into(b"read-only", 0)
            with pytest.raises((TypeError, ValueError, BufferError)):
                blk.pwrite(memoryview(b"abcdef")[::2], 0)
        with pytest.raises(OSError, match="closed"):
            await blk.pread(1, 0)
        with pytest.raises(OSError, match="closed"):
            await blk.flush()
        async with block.open(image, engine=engine, direct=direct) as blk:
            for request in (blk.pwrite(b"x", 0), blk.truncate(5), blk.discard(0, 1)):
                with pytest.raises(PermissionError, match="read-only"):
                    await request

    run(main())
    assert image.read_bytes() == data


def test_opening(run: Any, disk: Path, fdmon: str) -> None:
    async def main() -> None:
        with pytest.raises(FileNotFoundError):
            await block.open(disk / "none")
        with pytest.raises(IsADirectoryError):
            await block.open(disk)
        for bad in (
            {"mode": "a"},
            {"engine": "magic"},
            {"max_in_flight": 0},
            {"engine": "linux_aio"},
        ):
            with pytest.raises(ValueError, match=r"must|needs"):
                block.open(disk / "new", **bad)  # type: ignore[arg-type]
        async with block.open(disk / "new", "x") as blk:
            await blk.truncate(10)
            await blk.pwrite(b"0123456789", 0)
        with pytest.raises(FileExistsError):
            await block.open(disk / "new", "x")
        blk = await block.open(disk / "new")
        assert await blk.pread(10, 0) == b"0123456789"
        await blk.close()
        await blk.close()
        probe = block.probe()
        assert set(probe["engines"]) == {"io_uring", "linux_aio", "threads"}
        if probe["engines"]["io_uring"] is None:
            assert probe["auto"] == {"buffered": "io_uring", "direct": "io_uring"}
            async with block.open(disk / "new", engine="io_uring") as blk:
                assert blk.engine == "io_uring"
                assert blk.engines()["read"] == "io_uring"
                assert blk.engines()["map"] == "threads"
                assert blk._service.stats()["private_ring"] is (fdmon != "io_uring")

    run(main())


def test_an_opening_is_entered_once_at_a_time(run: Any, image: Path) -> None:
    async def main() -> None:
        opening = block.open(image)
        for _ in range(2):
            async with opening as blk:
                with pytest.raises(RuntimeError, match="in use"):
                    async with opening:
                        raise AssertionError("never entered")
                assert not blk.closed
            assert blk.closed
        missing = block.open(f"{image}.none")
        for _ in range(2):
            with pytest.raises(FileNotFoundError):
                async with missing:
                    raise AssertionError("never entered")

    run(main())


def test_map(run: Any, disk: Path) -> None:
    path = disk / "sparse"
    with path.open("wb") as f:
        f.truncate(1 << 20)
        f.seek(65536)
        f.write(b"x" * 65536)

    async def main() -> None:
        async with block.open(path) as blk:
            assert await blk.map(0, 1 << 20) == [
                (0, 65536, False),
                (65536, 65536, True),
                (131072, (1 << 20) - 131072, False),
            ]
            assert await blk.map(70000, 10) == [(70000, 10, True)]
            assert await blk.map(5, 0) == []

    run(main())


def test_strict_alignment(run: Any, image: Path) -> None:
    async def main() -> None:
        async with block.open(image, "r+", direct=True, strict_alignment=True) as blk:
            unit = blk.request_alignment
            await blk.pread_into(blk.alloc(unit), unit)
            for request in (blk.pread(unit, 1), blk.pwrite(b"x", 0)):
                with pytest.raises(OSError, match="units"):
                    await request

    run(main())


def test_unaligned_writes_do_not_lose_each_other(
    run: Any, image: Path, fdmon: str
) -> None:
    async def main() -> None:
        for engine in ("auto", "threads"):
            async with block.open(image, "r+", direct=True, engine=engine) as blk:
                writes = [blk.pwrite(bytes([i % 256]) * 7, 7 * i) for i in range(1000)]
                await asyncio.gather(*writes)
                for i in range(0, 1000, 13):
                    assert await blk.pread(7, 7 * i) == bytes([i % 256]) * 7

    run(main())


def test_max_in_flight_is_a_fifo(run: Any) -> None:
    async def main() -> None:
        order: list[int] = []
        blk = block.null(latency=0.001, max_in_flight=3)
        requests = [
            blk.aio_preadv(0, bytearray(8), 0, lambda i, ret: order.append(i), i)
            for i in range(20)
        ]
        assert blk.in_flight == 20
        requests[10].cancel_async()
        await asyncio.wait(requests)
        assert [i for i in order if i != 10] == [i for i in range(20) if i != 10]
        assert blk.in_flight == 0
        await blk.close()

    run(main())


def test_drained(run: Any) -> None:
    async def main() -> None:
        async with block.null(latency=0.01) as blk:
            before = [blk.pread(8, 0) for _ in range(4)]
            async with blk.drained():
                assert all(r.done() for r in before)
                inside = blk.pread(8, 0)
                async with blk.drained():
                    await asyncio.sleep(0.03)
                assert not inside.done()
            assert await inside == bytes(8)

    run(main())


def test_drained_with_a_completion_that_closes(run: Any) -> None:
    async def main() -> None:
        blk = block.null(latency=0.005)
        closing: list[asyncio.Task[None]] = []

        def over(_: object, ret: int) -> None:
            closing.append(asyncio.ensure_future(blk.close()))

        blk.aio_pwritev(0, [b"x"], 0, over)
        async with blk.drained():
            pass
        await closing[0]
        assert blk.closed

    run(main())


def test_batch_and_null(run: Any) -> None:
    async def main() -> None:
        async with block.open("null://", "r+") as blk:
            async with blk.batch():
                requests = [blk.pread(512, 512 * i) for i in range(10)]
            assert await asyncio.gather(*requests) == [bytes(512)] * 10
            assert await blk.pwrite(b"xyz", 0) == 3
            assert await blk.pread(3, 0) == bytes(3)
            kept = bytearray(b"kept")
            assert await blk.pread_into(kept, 0) == 4
            assert kept == b"kept"
            with pytest.raises(OSError, match="beyond"):
                await blk.pread(1, blk.length)
        async with block.null(1024, read_zeroes=True) as blk:
            filled = [bytearray(b"some"), bytearray(b"more")]
            assert await blk.preadv(filled, 8) == 8
            assert filled == [bytearray(4)] * 2
            assert await blk.copy_range(0, blk, 512, 512) == 512

    run(main())


def test_the_callback_form(run: Any, image: Path, engine: str, direct: bool) -> None:
    data = image.read_bytes()

    async def main() -> None:
        told: list[tuple[object, int]] = []

        def cb(opaque: object, ret: int) -> None:
            told.append((opaque, ret))

        async with block.open(image, "r+", engine=engine, direct=direct) as blk:
            buffer = bytearray(4096)
            acb = blk.aio_preadv(0, [buffer], 0, cb, "read")
            assert isinstance(acb, aioqemu.qemu_aio.BlockDriverAIOCB)
            assert told == []
            assert acb.bs is blk
            assert await acb == 0
            assert buffer == data[:4096]
            assert await blk.aio_pwritev(4096, [buffer], 0, cb, "write") == 0
            await blk.aio_flush(cb, "flush")
            await blk.aio_discard(0, 4096, cb, "discard")
            with pytest.raises(OSError, match="beyond"):
                await blk.aio_preadv(len(data), [buffer], 0, cb, "bad")
            await asyncio.sleep(0)
            names = ["read", "write", "flush", "discard", "bad"]
            assert told == [(n, -errno.EIO if n == "bad" else 0) for n in names]
            aioqemu.qemu_aio.qemu_aio_release(acb)
            with pytest.raises(RuntimeError):
                aioqemu.qemu_aio.qemu_aio_release(acb)

    run(main())


def test_without_any_loop(ctx: aioqemu.AioContext, image: Path) -> None:
    told: list[int] = []
    blk = block.open(image, "r+", context=ctx).now()
    buffer = bytearray(4096)
    acb = blk.aio_preadv(4096, [buffer], 0, lambda _, ret: told.append(ret))
    with pytest.raises(RuntimeError, match="flight"):
        aioqemu.qemu_aio.qemu_aio_release(acb)
    with pytest.raises(RuntimeError):
        acb.complete(0)
    with pytest.raises(BufferError):
        buffer.clear()
    ctx.flush()
    assert told == [0]
    assert buffer == image.read_bytes()[4096:8192]
    buffer.clear()
    blk.aio_flush(lambda _, ret: told.append(ret))
    ctx.flush()
    assert told == [0, 0]
    os.close(blk.detach())
