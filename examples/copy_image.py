#!/usr/bin/env python3
"""Copy a raw disk image: parallel, sparse where the source is, in bounded memory.

    python examples/copy_image.py disk.img copy.img --verify

Holes are found by asking the file system, zeroes by looking at the data; neither is
written. A few workers take pieces of one plan and hold one buffer each, so memory does
not grow with the image. The copy is as long as the source and on stable storage at the
end; an existing target is replaced. `qemu-img compare` finds no difference.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aioqemu
from aioqemu import block

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

# So much of the source is mapped at a time: the plan of a huge image is not held.
MAP_BYTES = 1 << 30
# Zeroes are detected in units of what a file system stores.
ZERO_UNIT = 64 * 1024


@dataclass(slots=True)
class Progress:
    """What has become of the image so far, in bytes."""

    total: int
    copied: int = 0
    holes: int = 0
    zeroes: int = 0
    verified: int = 0

    @property
    def done(self) -> int:
        """Bytes that are settled, one way or another."""
        return self.copied + self.holes + self.zeroes


class Copier:
    """Copies one open device to another."""

    def __init__(
        self, source: Any, target: Any, *, jobs: int = 8, piece: int = 1 << 20
    ) -> None:
        self.source, self.target = source, target
        self.jobs, self.piece = jobs, piece
        self.progress = Progress(source.length)
        # The detector's zeroes, compared with what was read without a copy of either.
        self._zeroes = memoryview(bytes(piece))

    async def _plan(self) -> AsyncGenerator[tuple[int, int]]:
        """Where there is data, in pieces; holes are only counted."""
        for start in range(0, self.source.length, MAP_BYTES):
            n = min(MAP_BYTES, self.source.length - start)
            for offset, length, is_data in await self.source.map(start, n):
                if not is_data:
                    self.progress.holes += length
                    continue
                for at in range(offset, offset + length, self.piece):
                    yield at, min(self.piece, offset + length - at)

    async def _in_parallel(self, work: Any) -> None:
        """Run `work(buffer, offset, n)` on all pieces, `jobs` of them at a time."""
        plan = self._plan()
        turn = asyncio.Lock()

        async def worker() -> None:
            buffer = self.source.alloc(self.piece)
            while True:
                async with turn:
                    try:
                        offset, n = await anext(plan)
                    except StopAsyncIteration:
                        return
                await work(buffer[:n], offset, n)

        try:
            async with contextlib.aclosing(plan), asyncio.TaskGroup() as group:
                for _ in range(self.jobs):
                    group.create_task(worker())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None  # one reason is enough

    async def copy(self) -> None:
        """Copy all data and flush."""
        await self._in_parallel(self._copy_piece)
        await self.target.flush()

    async def _copy_piece(self, buffer: memoryview, offset: int, n: int) -> None:
        await self.source.pread_into(buffer, offset)
        written = 0
        for start, end in self._data(buffer, n):
            await self.target.pwrite(buffer[start:end], offset + start)
            written += end - start
        self.progress.copied += written
        self.progress.zeroes += n - written

    def _data(self, buffer: memoryview, n: int) -> list[tuple[int, int]]:
        """The parts of a buffer that are not zero, in as few ranges as possible."""
        if buffer == self._zeroes[:n]:
            return []
        found: list[tuple[int, int]] = []
        for start in range(0, n, ZERO_UNIT):
            end = min(start + ZERO_UNIT, n)
            if buffer[start:end] == self._zeroes[: end - start]:
                continue
            if found and found[-1][1] == start:
                found[-1] = (found[-1][0], end)
            else:
                found.append((start, end))
        return found

    async def verify(self) -> None:
        """Read both and compare.

        Raises:
            ValueError: they differ; says where.
        """
        self.progress.holes = 0
        await self._in_parallel(self._verify_piece)
        # What the source does not store must read as zeroes in the copy, too.
        for offset, length, is_data in await self.target.map(0, self.target.length):
            if is_data:
                await self._verify_stored(offset, length)

    async def _verify_piece(self, buffer: memoryview, offset: int, n: int) -> None:
        request = self.target.pread(n, offset)
        await self.source.pread_into(buffer, offset)
        if buffer != await request:
            raise ValueError(f"the copy differs within {n} bytes at {offset}")
        self.progress.verified += n

    async def _verify_stored(self, offset: int, length: int) -> None:
        for at in range(offset, offset + length, self.piece):
            n = min(self.piece, offset + length - at)
            ours, theirs = await asyncio.gather(
                self.target.pread(n, at), self.source.pread(n, at)
            )
            if ours != theirs:
                raise ValueError(f"the copy differs within {n} bytes at {at}")


async def _show(progress: Progress) -> None:
    while True:
        share = 100 * progress.done // max(progress.total, 1)
        print(f"\r{share:3d} %", end="", file=sys.stderr, flush=True)
        await asyncio.sleep(0.2)


def _check_distinct(source: str, target: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        # Opening the target empties it: links and other names of the source, too.
        if os.path.samefile(source, target):
            raise ValueError(f"{target} and {source} are one file")


async def copy_image(options: argparse.Namespace) -> Progress:
    """Open both files, copy, and verify if that is wanted.

    Raises:
        OSError: a file cannot be opened, or a request failed.
        ValueError: both are one file, or the copy differs.
    """
    async with (
        block.open(options.source, direct=options.direct) as source,
        block.open(options.target, "w", direct=options.direct) as target,
    ):
        await target.truncate(source.length)
        copier = Copier(source, target, jobs=options.jobs, piece=options.piece)
        shower = None
        if sys.stderr.isatty():
            shower = asyncio.create_task(_show(copier.progress))
        try:
            await copier.copy()
            if options.verify:
                await copier.verify()
        finally:
            if shower is not None:
                shower.cancel()
                print(file=sys.stderr)
        return copier.progress


def main() -> int:
    """Read the command line and copy."""
    parser = argparse.ArgumentParser(description="Copy a raw disk image.")
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--jobs", type=int, default=8, help="pieces at a time (8)")
    parser.add_argument("--piece", type=int, default=1 << 20, help="bytes each (1 MiB)")
    parser.add_argument("--direct", action="store_true", help="past the page cache")
    parser.add_argument("--verify", action="store_true", help="compare at the end")
    options = parser.parse_args()
    if options.jobs < 1 or options.piece < ZERO_UNIT or options.piece % ZERO_UNIT:
        parser.error(f"--jobs must be positive, --piece a multiple of {ZERO_UNIT}")
    began = time.monotonic()
    try:
        _check_distinct(options.source, options.target)
        done = aioqemu.run(copy_image(options))
    except (OSError, ValueError) as exc:
        print(f"copy_image: {exc}", file=sys.stderr)
        return 1
    rate = done.total / (1 << 20) / max(time.monotonic() - began, 1e-9)
    print(
        f"{done.total} bytes: {done.copied} copied, {done.zeroes} zero, "
        f"{done.holes} in holes ({rate:.0f} MiB/s)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
