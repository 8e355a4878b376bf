"""Numbers that are none, files that have no places."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from aioqemu import block

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_floats_are_no_numbers(
    run: Any, image: Path, engine: str, direct: bool
) -> None:
    """Neither offsets nor lengths: TypeError, and nothing happens."""
    before = image.read_bytes()

    async def main() -> None:
        async with block.open(image, "r+", engine=engine, direct=direct) as blk:
            fd = blk.fileno()
            calls: list[Callable[[Any], Any]] = [
                lambda x: blk.pread(x, 0),
                lambda x: blk.pread(1, x),
                lambda x: blk.pread_into(bytearray(1), x),
                lambda x: blk.pwrite(b"x", x),
                lambda x: blk.pwritev([b"x"], x),
                lambda x: blk.write_zeroes(x, 10),
                lambda x: blk.write_zeroes(0, x),
                lambda x: blk.discard(x, 10),
                lambda x: blk.truncate(x),
                lambda x: blk.map(0, x),
                lambda x: blk.copy_range(0, blk, x, 1),
                lambda x: block.pread(fd, x, 0),
                lambda x: block.pread(fd, 1, x),
                lambda x: block.pwrite(fd, b"x", x),
                lambda x: block.fallocate(fd, 0, x, 1),
                lambda x: block.fallocate(fd, 0, 0, x),
                lambda x: block.fallocate(fd, x, 0, 1),
                lambda x: block.openat(image, x),
                lambda x: block.openat(image, os.O_RDONLY, x),
                lambda x: block.statx(image, flags=x),
                lambda x: block.statx(image, mask=x),
                lambda x: block.preadv(fd, [bytearray(1)], 0, x),
            ]
            for call in calls:
                for number in (1.5, "1", None):
                    with pytest.raises(TypeError):
                        call(number)
            assert blk.in_flight == 0

    run(main())
    assert image.read_bytes() == before


def test_what_has_no_places_is_refused(run: Any) -> None:
    """As by `os.pread` and `os.pwrite`: nothing is read or written."""
    r, w = os.pipe()
    one, other = socket.socketpair()
    read_only = os.open(os.devnull, os.O_RDONLY)

    async def main() -> None:
        for fd in (w, one, one.fileno()):
            with pytest.raises(OSError, match="seek") as caught:
                await block.pwrite(fd, b"x", 7)
            assert caught.value.errno == errno.ESPIPE
        for fd in (r, other):
            with pytest.raises(OSError, match="seek"):
                await block.pread(fd, 1, 0)
            with pytest.raises(OSError, match="seek"):
                await block.preadv(fd, [bytearray(1)], 0)
        with pytest.raises(OSError, match="Bad file"):
            await block.preadv(1 << 20, [], 0)
        with pytest.raises(OSError, match="Bad file"):
            await block.pwritev(read_only, [], 0)

    run(main())
    os.close(read_only)
    os.set_blocking(r, False)
    with pytest.raises(BlockingIOError):
        os.read(r, 1)
    os.close(r)
    os.close(w)
    one.close()
    other.close()


def test_statx_takes_what_has_a_fileno(run: Any, image: Path) -> None:
    async def main() -> None:
        with image.open("rb") as f:
            assert (await block.statx(f)).st_size == (await block.statx(image)).st_size

    run(main())


def test_which_of_several_buffers_is_wrong(run: Any, image: Path) -> None:
    async def main() -> None:
        async with block.open(image, "r+") as blk:
            for wrong, kind in (
                (b"read-only", BufferError),
                (None, TypeError),
                (memoryview(bytearray(8))[::2], BufferError),
            ):
                with pytest.raises(kind, match="buffer 1 of 3: "):
                    block.preadv(blk.fileno(), [bytearray(1), wrong, bytearray(1)], 0)
            assert blk.in_flight == 0

    run(main())


def test_what_is_no_fd_is_a_type_error(run: Any, image: Path) -> None:
    """As in `os`; numbers need not be `int`."""

    class Number:
        def __init__(self, fd: int) -> None:
            self._fd = fd

        def __index__(self) -> int:
            return self._fd

    async def main() -> None:
        for wrong in ("3", None, 3.0):
            with pytest.raises(TypeError, match="fd or an object with fileno"):
                block.pread(wrong, 1, 0)
            with pytest.raises(TypeError, match="fd or an object with fileno"):
                block.fsync(wrong)
        with image.open("rb") as f:
            with pytest.raises(TypeError, match="integer"):
                block.pread(f, "1", 0)  # type: ignore[arg-type]
            number = Number(f.fileno())
            assert await block.pread(number, 8, 8) == (1).to_bytes(8, "big")
            assert (await block.statx(number)).st_size == 1 << 20

    run(main())


@pytest.mark.parametrize("latency", [-1.0, float("nan"), float("inf")])
def test_null_devices_take_possible_numbers_only(run: Any, latency: float) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="latency"):
            block.null(latency=latency)
        with pytest.raises(ValueError, match="negative"):
            block.null(-1)
        with pytest.raises(TypeError, match="integer"):
            block.null(5.5)  # type: ignore[arg-type]

    run(main())
