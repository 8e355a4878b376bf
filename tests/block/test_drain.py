"""Drained sections, after QEMU's own tests: who waits for whom, who may go first."""

from __future__ import annotations

import asyncio
import errno
import gc
from typing import TYPE_CHECKING, Any

import pytest

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
