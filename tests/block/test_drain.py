"""Drained sections, after QEMU's own tests: who waits for whom, who may go first."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
from typing import TYPE_CHECKING, Any

import pytest

import aioqemu
from aioqemu import block
from aioqemu.block import Fault

if TYPE_CHECKING:
    from pathlib import Path


def test_the_read_is_over_and_told_when_the_section_begins(run: Any) -> None:
    async def main() -> None:
        blk = block.null(latency=0.002)
        told: list[int] = []
        blk.aio_preadv(0, bytearray(8), 0, lambda _, ret: told.append(ret))
        assert told == [], "only from the dispatch"
        async with blk.drained():
            assert told == [0]
            assert blk.in_flight == 0
        await blk.close()

    run(main())


def test_nested_sections_end_with_the_last(run: Any) -> None:
    async def main() -> None:
        async with block.null() as blk:
            async with blk.drained():
                async with blk.drained(), blk.drained():
                    waiting = blk.pread(4, 0)
                await asyncio.sleep(0.005)
                assert not waiting.done()
                assert blk.in_flight == 1
            assert await waiting == bytes(4)

    run(main())


def test_what_waited_starts_in_order(run: Any) -> None:
    async def main() -> None:
        order: list[int] = []
        async with block.null(max_in_flight=2) as blk:
            async with blk.drained():
                requests = [
                    blk.aio_preadv(0, bytearray(4), 0, lambda i, _: order.append(i), i)
                    for i in range(10)
                ]
                requests[4].cancel_async()
                await asyncio.sleep(0.005)
                assert order == [4], "what waits can be cancelled, nothing else ends"
            await asyncio.wait(requests)
        assert order == [4, 0, 1, 2, 3, 5, 6, 7, 8, 9]

    run(main())


def test_a_completion_that_makes_requests_while_the_drain_waits(run: Any) -> None:
    async def main() -> None:
        later: list[Any] = []
        async with block.null(latency=0.002) as blk:

            def over(_: object, ret: int) -> None:
                later.append(blk.pread(4, 0))

            blk.aio_preadv(0, bytearray(4), 0, over)
            async with blk.drained():
                assert not later[0].done()
            assert await later[0] == bytes(4)

    run(main())


def test_a_completion_that_drops_the_device(run: Any) -> None:
    async def main() -> None:
        held = [block.null(latency=0.002)]

        def over(_: object, ret: int) -> None:
            held.clear()
            gc.collect()

        held[0].aio_preadv(0, bytearray(4), 0, over)
        async with held[0].drained():
            assert held == []

    run(main())


def test_a_drain_that_is_cancelled_still_ends_quiet(run: Any) -> None:
    async def main() -> None:
        blk = block.null(latency=0.01)
        request = blk.pread(4, 0)

        async def drain() -> None:
            async with blk.drained():
                raise AssertionError("never entered")

        task = asyncio.ensure_future(drain())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert request.done()
        assert await blk.pread(4, 0) == bytes(4), "the section is over"
        await blk.close()

    run(main())


def test_an_error_during_the_drain(run: Any, image: Path, engine: str) -> None:
    async def main() -> None:
        rules = [Fault("fdatasync", error=errno.ENOMEDIUM, delay=0.0)]
        async with block.faults(block.open(image, "r+"), rules) as blk:
            flush = blk.aio_flush()
            assert not flush.done(), "never inside the call"
            async with blk.drained():
                assert flush.ret == -errno.ENOMEDIUM
            with pytest.raises(OSError, match="medium"):
                await flush

    run(main())


def test_unaligned_writes_are_drained_whole(run: Any, image: Path, engine: str) -> None:
    async def main() -> None:
        opening = block.open(image, "r+", engine=engine, direct=True)
        async with opening as blk:
            writes = [blk.pwrite(b"x" * 7, 7 * i) for i in range(40)]
            async with blk.drained():
                assert all(w.done() for w in writes)
                assert await asyncio.gather(*writes) == [7] * 40

    run(main())
    assert image.read_bytes()[:280] == b"x" * 280


def test_closing_waits_and_refuses(run: Any, image: Path) -> None:
    async def main() -> None:
        rules = [Fault("read", delay=0.01)]
        blk = await block.open(image)
        slow = block.faults(blk, rules)
        request = slow.pread(8, 8)
        closing = asyncio.ensure_future(blk.close())
        await asyncio.sleep(0)
        late = blk.pread(8, 8)
        with pytest.raises(OSError, match="closed"):
            await late
        await closing
        assert request.result() == (1).to_bytes(8, "big")
        with pytest.raises(RuntimeError, match="closed"):
            blk.detach()

    run(main())


def test_closing_turns_away_what_waits_for_the_end_of_a_drained_section(
    run: Any, image: Path, engine: str, direct: bool, tmp_path: Path
) -> None:
    """It never starts: the number of the fd may be another file's by then."""
    before = image.read_bytes()
    other = tmp_path / "other"
    other.write_bytes(b"o" * 4096)

    async def main() -> None:
        blk = await block.open(image, "r+", engine=engine, direct=direct)
        fd = blk.fileno()
        async with blk.drained():
            waiting = [
                blk.pwrite(b"X" * 512, 0),
                blk.flush(),
                blk.write_zeroes(0, 512),
                blk.pread(8, 0),
            ]
            await blk.close()
            assert os.open(other, os.O_RDWR) == fd
        for request in waiting:
            with pytest.raises(OSError, match="closed while the request waited"):
                await request
        os.close(fd)

    run(main())
    assert image.read_bytes() == before
    assert other.read_bytes() == b"o" * 4096


def test_a_copy_is_in_flight_on_both_devices(
    run: Any, image: Path, disk: Path, engine: str, direct: bool
) -> None:
    """Draining or closing either waits for it; copies each way do not lock up."""
    data = image.read_bytes()
    target = disk / "target"
    target.write_bytes(bytes(len(data)))

    async def main() -> None:
        a = await block.open(image, "r+", engine=engine, direct=direct, max_in_flight=1)
        b = await block.open(
            target, "r+", engine=engine, direct=direct, max_in_flight=1
        )
        for source, sink in ((a, b), (b, a)):
            copying = source.copy_range(0, sink, 0, len(data))
            async with source.drained():
                assert source._gate.active == 0
            await copying
            async with source.drained():
                copying = source.copy_range(0, sink, 0, 4096)
                await asyncio.sleep(0.05)
                assert not copying.done()
            assert await copying == 4096
        both = [a.copy_range(0, b, 0, 65536) for _ in range(5)]
        both += [b.copy_range(0, a, 0, 65536) for _ in range(5)]
        assert await asyncio.gather(*both) == [65536] * 10
        copying = a.copy_range(0, b, 0, len(data))
        await a.close()
        assert await copying == len(data)
        await b.close()

    run(main())
    assert target.read_bytes() == data


@pytest.mark.parametrize(
    "offset, target, n",
    [
        (0, 100, 700_000),
        (0, 4096, 500_000),
        (4096, 0, 500_000),
        (7, 5000, 3),
        (9, 9, 9),
    ],
)
def test_copies_that_overlap(
    run: Any,
    image: Path,
    engine: str,
    direct: bool,
    offset: int,
    target: int,
    n: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aioqemu._block.steps._CHUNK", 128 << 10)
    wanted = bytearray(image.read_bytes())
    wanted[target : target + n] = wanted[offset : offset + n]

    async def main() -> None:
        async with (
            block.open(image, "r+", engine=engine, direct=direct) as blk,
            block.open(image, "r+", engine=engine, direct=direct) as again,
        ):
            sink = blk if n % 2 else again
            assert await blk.copy_range(offset, sink, target, n) == n

    run(main())
    assert image.read_bytes() == wanted


def test_devices_belong_to_their_thread(image: Path) -> None:
    async def main() -> None:
        async with block.open(image) as blk:

            async def enter() -> None:
                async with blk.drained():
                    pass

            for work in (blk.close, enter):
                with pytest.raises(RuntimeError, match="thread"):
                    await asyncio.to_thread(asyncio.run, work())
            assert await blk.pread(8, 8) == (1).to_bytes(8, "big")

    aioqemu.run(main())


def test_another_loop_cannot_wait_for_what_is_in_flight(fdmon: str) -> None:
    """It would wait for ever: nobody runs the context that ends the requests."""

    async def start() -> Any:
        return blk.pread(4, 0)

    async def close() -> None:
        await blk.close()

    async def drain() -> None:
        async with blk.drained():
            pass

    with contextlib.closing(aioqemu.new_event_loop(fdmon=fdmon)) as loop:
        blk = block.null(latency=0.001, context=loop.context)
        request = loop.run_until_complete(start())
        for wait in (close, drain):
            with pytest.raises(RuntimeError, match="another event loop"):
                asyncio.run(wait())
        assert not blk.closed
        assert loop.run_until_complete(request) == bytes(4)
        asyncio.run(drain())
        asyncio.run(close())
        assert blk.closed


@pytest.mark.parametrize("first", [0, 1])
def test_draining_both_devices_of_a_copy_that_waits(
    run: Any, image: Path, disk: Path, first: int
) -> None:
    """It waits for the source; drained sections and close() of either do not hang."""
    data = image.read_bytes()
    target = disk / "target"
    target.write_bytes(bytes(len(data)))

    async def main() -> None:
        a = await block.open(image)
        b = await block.open(target, "r+")
        one, other = (a, b) if first == 0 else (b, a)
        async with one.drained():
            copying = a.copy_range(0, b, 0, len(data))
            async with other.drained():
                await asyncio.sleep(0.01)
                assert not copying.done()
        assert await copying == len(data)
        async with a.drained():
            copying = a.copy_range(0, b, 0, len(data))
            await b.close()
        with pytest.raises(OSError, match="Bad file"):
            await copying
        async with a.drained():
            assert a.in_flight == 0
        await a.close()

    run(main())
    assert target.read_bytes() == data
