"""What a file is: its size, its kind, and how direct I/O must be aligned.

Blocking calls on an open file, microseconds each, made once when a device is opened.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import struct
from dataclasses import dataclass

from aioqemu._block import buffers

_AT_EMPTY_PATH = 0x1000
_STATX_DIOALIGN = 0x2000
_STATX_BUFFER = 256
_BLKSSZGET = 0x1268
_PROBED = (1, 512, 1024, 2048, 4096)


@dataclass(slots=True)
class FileInfo:
    """What was found out about an open file."""

    size: int
    is_block_device: bool
    request_alignment: int = 1
    memory_alignment: int = 1


def inspect(fd: int, direct: bool) -> FileInfo:
    """Look at an open file or block device.

    Raises:
        OSError: it is neither (EINVAL, EISDIR), or direct I/O does not work (EINVAL).
    """
    st = os.fstat(fd)
    is_block = stat.S_ISBLK(st.st_mode)
    if stat.S_ISDIR(st.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not is_block and not stat.S_ISREG(st.st_mode):
        raise OSError(errno.EINVAL, "neither a regular file nor a block device")
    size = os.lseek(fd, 0, os.SEEK_END) if is_block else st.st_size
    info = FileInfo(size, is_block)
    if direct:
        info.request_alignment, info.memory_alignment = alignment(fd, is_block)
    return info


def alignment(fd: int, is_block: bool) -> tuple[int, int]:
    """The units of file offset and memory for O_DIRECT.

    The kernel tells since Linux 6.1; before, they are found by trial reads as in QEMU.
    """
    buffer = bytearray(_STATX_BUFFER)
    if buffers.statx_now(fd, _AT_EMPTY_PATH, _STATX_DIOALIGN, buffer) == 0:
        (mask,) = struct.unpack_from("=I", buffer, 0)
        memory, offset = struct.unpack_from("=II", buffer, 152)
        if mask & _STATX_DIOALIGN and offset:
            return offset, max(memory, 1)
    if is_block:
        sector = struct.unpack("=i", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))[0]
        return sector, sector
    return _probe(fd)


def _probe(fd: int) -> tuple[int, int]:
    """Trial reads; that 1 works means that nothing was found out."""
    with mmap.mmap(-1, 3 * 4096) as memory:
        base = memoryview(memory)
        unit = _first(lambda n: _tries(fd, base[:n], n))
        place = _first(lambda n: _tries(fd, base[n : n + unit], 0))
        base.release()
    return unit, place


def _first(works: object) -> int:
    assert callable(works)
    for n in _PROBED:
        if works(n):
            return 4096 if n == 1 else n
    return 4096


def _tries(fd: int, memory: memoryview, offset: int) -> bool:
    try:
        os.preadv(fd, [memory], offset)
    except OSError as exc:
        return exc.errno != errno.EINVAL
    finally:
        memory.release()
    return True


def aligned_memory(n: int, alignment: int) -> memoryview:
    """A writable buffer of `n` zero bytes, aligned to a page at least."""
    if n < 0:
        raise ValueError(f"the size must not be negative: {n}")
    if n == 0:
        return memoryview(bytearray())
    if alignment <= mmap.PAGESIZE:
        return memoryview(mmap.mmap(-1, n))[:n]
    whole = memoryview(mmap.mmap(-1, n + alignment))
    skip = -buffers.address_of(whole) % alignment
    return whole[skip : skip + n]
