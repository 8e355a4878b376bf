"""Requests made of requests: read-modify-write, zeroes, discard, copies, maps.

Generators that yield requests of one device, one at a time, and get their result codes;
what they return is the result code of the whole.  They bypass the device's gate, which
counts the whole, and leave taking turns to ranges.py.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
import struct
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from aioqemu._block.ranges import Range
from aioqemu._block.request import BlockRequest, Kind
from aioqemu._block.service import Op

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioqemu._block.device import BlockDevice

Steps = Generator[BlockRequest, int, int | None]

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16
# What the kernel says when a file cannot do a thing, and not that it went wrong.
_UNSUPPORTED = (-errno.EOPNOTSUPP, -errno.ENOSYS, -errno.ENOTTY)
_CANNOT_COPY = (-errno.EXDEV, -errno.EINVAL, -errno.EBADF, *_UNSUPPORTED)
_CHUNK = 1 << 20
_COPY_MAX = 1 << 30
_SECTOR = 512
_MAP_EXTENTS = 128  # of job.pxd


def nothing(_blk: BlockDevice) -> Steps:
    """Succeed."""
    yield from ()
    return 0


def write_alone(
    blk: BlockDevice,
    mine: Range,
    views: list[memoryview],
    offset: int,
    n: int,
    flags: int,
) -> Steps:
    """Read, modify, write whole units: the head and the tail are read first."""
    unit = blk.request_alignment
    memory = blk.alloc(mine.end - mine.start)
    whole = len(memory)
    heads = []
    if offset % unit:
        heads.append(0)
    if (offset + n) % unit and (whole - unit not in heads):
        heads.append(whole - unit)
    for place in heads:
        at = mine.start + place
        there = min(unit, blk.length - at)
        ret = yield blk._read_step(memory[place : place + there], at)
        if ret < 0:
            return ret
    place = offset - mine.start
    for view in views:
        memory[place : place + len(view)] = view
        place += len(view)
    ret = yield blk._write_step(memory, mine.start, flags)
    if ret >= 0 and mine.end > blk.length and not blk._is_block:
        ret = yield blk._control(Op.FTRUNCATE, length=blk.length, gated=False)
    return min(ret, 0)


def _write_piece(blk: BlockDevice, data: Any, offset: int) -> Steps:
    """Write a buffer where this request has the others wait already."""
    unit = blk.request_alignment
    n = len(data)
    if offset % unit == 0 and n % unit == 0:
        ret = yield blk._write_step(data, offset)
        return min(ret, 0)
    start, end = offset - offset % unit, offset + n + -(offset + n) % unit
    piece = Range(start, end, alone=True)
    return (yield from write_alone(blk, piece, [data], offset, n, 0))


def discard(blk: BlockDevice, offset: int, n: int) -> Steps:
    """Punch a hole, or discard the whole units of a block device."""
    if n == 0:
        return 0
    if blk._is_block:
        unit = max(blk.request_alignment, _SECTOR)
        start, end = offset + -offset % unit, (offset + n) - (offset + n) % unit
        if start >= end:
            return 0
        ret = yield blk._control(
            Op.BLKDISCARD, offset=start, length=end - start, gated=False
        )
        return 0 if ret in _UNSUPPORTED or ret == -errno.EINVAL else ret
    mode = _PUNCH_HOLE | _KEEP_SIZE
    ret = yield blk._control(
        Op.FALLOCATE, offset=offset, length=n, flags=mode, gated=False
    )
    return 0 if ret in _UNSUPPORTED else ret


def write_zeroes(blk: BlockDevice, offset: int, n: int, may_unmap: bool) -> Steps:
    """By the file system or the device where they can, by writing else."""
    if n == 0:
        return 0
    modes = [_ZERO_RANGE | _KEEP_SIZE]
    if may_unmap:
        modes.insert(0, _PUNCH_HOLE | _KEEP_SIZE)
    if not blk._is_block:
        for mode in modes:
            ret = yield blk._control(
                Op.FALLOCATE, offset=offset, length=n, flags=mode, gated=False
            )
            if ret not in _UNSUPPORTED:
                return ret
    elif offset % _SECTOR == 0 and n % _SECTOR == 0:
        ret = yield blk._control(Op.BLKZEROOUT, offset=offset, length=n, gated=False)
        if ret not in (*_UNSUPPORTED, -errno.EINVAL):
            return ret
    unit = blk.request_alignment
    zeroes = blk.alloc(min(n, _CHUNK))
    while n:
        # Up to the next unit first, and whole units while there are any.
        part = min(n, unit - offset % unit) if offset % unit else min(n, _CHUNK)
        if part > unit:
            part -= part % unit
        error = yield from _write_piece(blk, zeroes[:part], offset)
        if error:
            return error
        offset += part
        n -= part
    return 0


def truncate(blk: BlockDevice, n: int, resized: Callable[[int], int]) -> Steps:
    """Change the size in turn with the writes."""
    ret = yield blk._control(Op.FTRUNCATE, length=n, gated=False)
    return resized(ret)


def map_extents(
    blk: BlockDevice, start: int, end: int, found: list[tuple[int, int, bool]]
) -> Steps:
    """Collect the extents of a range, without gaps."""
    out = bytearray(16 * _MAP_EXTENTS + 8)
    while start < end:
        ret = yield blk._control(
            Op.MAP,
            offset=start,
            length=end - start,
            out=out,
            kind=Kind.RET_INT,
            gated=False,
        )
        if ret in (-errno.EINVAL, *_UNSUPPORTED):
            found.append((start, end - start, True))  # it does not know holes
            return 0
        if ret < 0:
            return ret
        places = struct.unpack_from(f"={2 * ret}q", out)
        (stopped,) = struct.unpack_from("=q", out, 16 * _MAP_EXTENTS)
        for data, hole in zip(places[::2], places[1::2], strict=True):
            if data > start:
                found.append((start, data - start, False))
            found.append((data, hole - data, True))
            start = hole
        if stopped > start:
            found.append((start, stopped - start, False))
            start = stopped
    return 0


def on_both(blk: BlockDevice, target: BlockDevice, todo: Steps) -> Steps:
    """What the target has let through, in flight on the source as well.

    It waits for the end of drained sections of either, and hinders none meanwhile.
    """
    source, sink = blk._gate, target._gate
    served = target._service
    while source.quiesced or sink.quiesced:
        waiter = served.parked()
        drained = source if source.quiesced else sink
        drained.watch_resume(functools.partial(served.unpark, waiter))
        sink.rest()
        try:
            ret = yield waiter
        finally:
            sink.go_on()
        if ret < 0:
            return ret
    if blk._closed or target._closed:
        return -errno.EBADF
    source.hold()
    try:
        return (yield from todo)
    finally:
        source.let_go()


def _same_file(blk: BlockDevice, target: BlockDevice) -> bool:
    if blk is target:
        return True
    if blk._fd < 0 or target._fd < 0:
        return False
    one, other = os.fstat(blk._fd), os.fstat(target._fd)
    if stat.S_ISBLK(one.st_mode) and stat.S_ISBLK(other.st_mode):
        return one.st_rdev == other.st_rdev
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def copy(
    blk: BlockDevice, offset: int, target: BlockDevice, target_offset: int, n: int
) -> Steps:
    """In the kernel as far as it goes, by reading and writing else."""
    kernel = blk._fd >= 0 and target._fd >= 0
    memory = None
    if abs(offset - target_offset) < n and _same_file(blk, target):
        # What is overwritten must have been read: from the end, if it moves there.
        kernel = False
        if offset == target_offset:
            return 0
        if offset < target_offset:
            memory = target.alloc(min(n, _CHUNK))
            while n:
                part = memory[: min(n, _CHUNK)]
                n -= len(part)
                ret = yield blk._read_step(part, offset + n)
                if ret < 0:
                    return ret
                error = yield from _write_piece(target, part, target_offset + n)
                if error:
                    return error
            return 0
    while n:
        if kernel:
            ret = yield blk._control(
                Op.COPY,
                offset=offset,
                fd2=target._fd,
                offset2=target_offset,
                length=min(n, _COPY_MAX),
                kind=Kind.RET_INT,
                gated=False,
            )
            if ret < 0 and ret not in _CANNOT_COPY:
                return ret
            if ret <= 0:
                kernel = False  # not these files: by hand
                continue
        else:
            if memory is None:
                memory = target.alloc(min(n, _CHUNK))
            part = memory[: min(n, _CHUNK)]
            ret = yield blk._read_step(part, offset)
            if ret < 0:
                return ret
            error = yield from _write_piece(target, part, target_offset)
            if error:
                return error
            ret = len(part)
        offset += ret
        target_offset += ret
        n -= ret
    return 0
