"""Patterns written by qemu-io and read by us, and the reverse."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from aioqemu import block

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    shutil.which("qemu-io") is None, reason="qemu-io is not installed"
)


def _qemu_io(image: Path, *commands: str) -> str:
    words = ["qemu-io", "-f", "raw"]
    for command in commands:
        words += ["-c", command]
    done = subprocess.run(
        [*words, str(image)], check=True, capture_output=True, text=True, timeout=30
    )
    assert "failed" not in done.stdout + done.stderr
    return done.stdout


def test_patterns(run: Any, image: Path, engine: str, direct: bool) -> None:
    _qemu_io(
        image, "write -P 0xa5 4096 8192", "write -P 7 100k 3k", "write -z 200k 64k"
    )

    async def main() -> None:
        async with block.open(image, "r+", engine=engine, direct=direct) as blk:
            a, b, c = await asyncio.gather(
                blk.pread(8192, 4096), blk.pread(3072, 102400), blk.pread(65536, 204800)
            )
            assert (a, b, c) == (b"\xa5" * 8192, b"\x07" * 3072, bytes(65536))
            await blk.pwrite(b"\x11" * 65536, 300 * 1024)
            await blk.pwrite(b"\x22" * 777, 300 * 1024 + 5)
            await blk.write_zeroes(500 * 1024 + 3, 1000)
            await blk.flush()

    run(main())
    start = 300 * 1024
    _qemu_io(
        image,
        f"read -P 0x11 {start} 5",
        f"read -P 0x22 {start + 5} 777",
        f"read -P 0x11 {start + 782} {65536 - 782}",
        f"read -P 0 {500 * 1024 + 3} 1000",
    )
