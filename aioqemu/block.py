"""Block requests: disk I/O that can be awaited, served by the loop's own engine.

Two levels over one kind of request.  The fd level is named and ordered as in `os` and
reports short transfers; the device level (`open`) transfers in full or fails.  Each
call submits at once and returns an awaitable request: no task is made, and it works in
`gather`, `wait`, `wait_for` and `TaskGroup`.  Errors come from awaiting, as OSError.

A request holds its buffers until the kernel is done with them, whatever became of who
awaited it: a `bytearray` in flight cannot be resized, and data that is being written
must not be changed.  Cancelling the await asks the kernel to cancel; CancelledError
comes out when the kernel has let go.

Works on our loop, and on any other asyncio loop by way of a context attached to it.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple

from aioqemu._block.engines import ENGINE_NAMES
from aioqemu._block.request import BlockRequest, Kind
from aioqemu._block.service import Op
from aioqemu._loop import blockdev
from aioqemu._loop.blockdev import BlockDevice, NullDevice, Opening
from aioqemu._loop.faults import MAX_DELAY, Fault, FaultyDevice, with_faults

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aioqemu._engine.context import AioContext

__all__ = [
    "BlockDevice",
    "BlockRequest",
    "Fault",
    "FaultyDevice",
    "NullDevice",
    "StatxResult",
    "close",
    "fallocate",
    "faults",
    "fdatasync",
    "fsync",
    "null",
    "open",
    "openat",
    "pread",
    "preadv",
    "probe",
    "pwrite",
    "pwritev",
    "statx",
]

_AT_EMPTY_PATH = 0x1000
_AT_FDCWD = -100
_STATX_BASIC = 0x0FFF


# -- fd level -------------------------------------------------------------------------


def _engine(served: Any) -> int:
    return blockdev.pick(served, "auto", False)


def _number(fd: Any) -> int:
    """The number of an fd, or of an object that has one.

    Raises:
        TypeError: it has none.
    """
    if hasattr(fd, "__index__"):
        return index(fd)
    if not hasattr(fd, "fileno"):
        text = f"an fd or an object with fileno() is expected, got {fd!r}"
        raise TypeError(text)
    return int(fd.fileno())


def _may_read_now(fd: int) -> bool:
    """Direct reads would wait for the disk on the spot."""
    import fcntl

    try:
        return not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT
    except OSError:
        return False


def _transfer(
    op: int, fd: Any, what: Any, offset: int, flags: int, kind: int, now: bool = False
) -> BlockRequest:
    served, number = blockdev.service(), _number(fd)
    try:
        mode = os.fstat(number).st_mode
    except OSError as exc:
        return served.fail(exc.errno or errno.EBADF)
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        # They have no places: the ring would leave the offset out and do it.
        return served.fail(errno.ESPIPE)
    return served.rw(
        op,
        number,
        what,
        offset,
        index(flags),
        _engine(served),
        kind=kind,
        now=now and _may_read_now(number),
    )


def pread(fd: Any, n: int, offset: int) -> BlockRequest:
    """`os.pread`: awaiting gives at most `n` bytes, fewer at the end of the file."""
    n = index(n)
    if n < 0:
        raise ValueError(f"the number of bytes must not be negative: {n}")
    return _transfer(Op.READ, fd, n, offset, 0, Kind.RET_BYTES, now=True)


def preadv(
    fd: Any, buffers: Sequence[Any], offset: int, flags: int = 0
) -> BlockRequest:
    """`os.preadv`: awaiting gives the number of bytes read."""
    return _transfer(
        Op.READ, fd, list(buffers), offset, flags, Kind.RET_INT, now=flags == 0
    )


def pwrite(fd: Any, data: Any, offset: int) -> BlockRequest:
    """`os.pwrite`: awaiting gives the number of bytes written."""
    return pwritev(fd, [data], offset)


def pwritev(
    fd: Any, buffers: Sequence[Any], offset: int, flags: int = 0
) -> BlockRequest:
    """`os.pwritev`: awaiting gives the number of bytes written."""
    return _transfer(Op.WRITE, fd, list(buffers), offset, flags, Kind.RET_INT)


def fsync(fd: Any) -> BlockRequest:
    """`os.fsync`."""
    served = blockdev.service()
    return served.control(Op.FSYNC, _number(fd), _engine(served))


def fdatasync(fd: Any) -> BlockRequest:
    """`os.fdatasync`."""
    served = blockdev.service()
    return served.control(Op.FDATASYNC, _number(fd), _engine(served))


def fallocate(fd: Any, mode: int, offset: int, length: int) -> BlockRequest:
    """fallocate(2): space, holes, zeroes."""
    served = blockdev.service()
    return served.control(
        Op.FALLOCATE,
        _number(fd),
        _engine(served),
        offset=offset,
        length=length,
        flags=index(mode),
    )


class StatxResult(NamedTuple):
    """What `statx` gives: the names of `os.stat_result`, times in ns."""

    st_mode: int
    st_ino: int
    st_dev: int
    st_nlink: int
    st_uid: int
    st_gid: int
    st_size: int
    st_blksize: int
    st_blocks: int
    st_rdev: int
    st_atime_ns: int
    st_mtime_ns: int
    st_ctime_ns: int
    st_birthtime_ns: int
    stx_mask: int
    stx_attributes: int
    stx_dio_mem_align: int
    stx_dio_offset_align: int


def _parse_statx(out: bytearray) -> StatxResult:
    mask, blksize, attributes, nlink, uid, gid, mode = struct.unpack_from(
        "=IIQIIIH", out
    )
    ino, size, blocks = struct.unpack_from("=QQQ", out, 32)
    times = [
        seconds * 10**9 + ns
        for seconds, ns in (
            struct.unpack_from("=qI", out, 64 + 16 * i) for i in range(4)
        )
    ]
    rmajor, rminor, major, minor = struct.unpack_from("=IIII", out, 128)
    dio_memory, dio_offset = struct.unpack_from("=II", out, 152)
    return StatxResult(
        mode,
        ino,
        os.makedev(major, minor),
        nlink,
        uid,
        gid,
        size,
        blksize,
        blocks,
        os.makedev(rmajor, rminor),
        times[0],
        times[3],
        times[2],
        times[1],
        mask,
        attributes,
        dio_memory,
        dio_offset,
    )


def statx(
    path: Any, *, flags: int = 0, mask: int = _STATX_BASIC, dir_fd: int | None = None
) -> BlockRequest:
    """statx(2) of a path or an open fd; awaiting gives a `StatxResult`."""
    served = blockdev.service()
    fd = _AT_FDCWD if dir_fd is None else dir_fd
    opened = hasattr(path, "__index__") or hasattr(path, "fileno")
    if opened:
        fd, name, flags = _number(path), b"", flags | _AT_EMPTY_PATH
    else:
        name = os.fsencode(path)
    out = bytearray(256)
    return served.control(
        Op.STATX,
        fd,
        _engine(served),
        path=name,
        out=out,
        flags=index(mask),
        mode=index(flags),
        kind=Kind.RET_VALUE,
        value=lambda _: _parse_statx(out),
        filename=None if opened else path,
    )


def openat(
    path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None
) -> BlockRequest:
    """`os.open`: awaiting gives a file descriptor, not inheritable."""
    served = blockdev.service()
    return served.control(
        Op.OPENAT,
        _AT_FDCWD if dir_fd is None else dir_fd,
        _engine(served),
        path=os.fsencode(path),
        flags=index(flags) | os.O_CLOEXEC,
        mode=index(mode),
        kind=Kind.RET_INT,
        filename=path,
    )


def close(fd: int) -> BlockRequest:
    """`os.close`; the number is gone whatever awaiting gives."""
    served = blockdev.service()
    return served.control(Op.CLOSE, fd, _engine(served))


# -- device level ---------------------------------------------------------------------


def open(
    path: Any,
    mode: str = "r",
    *,
    engine: str = "auto",
    direct: bool = False,
    max_in_flight: int = 128,
    strict_alignment: bool = False,
    context: AioContext | None = None,
) -> Opening:
    """Open an image file or block device: `async with block.open(...) as blk`.

    Args:
        path: a path, or "null://".
        mode: "r"; "r+" to write, too; "w" to make it anew or empty; "x" to make it.
        engine: "io_uring", "linux_aio" (only with `direct`), "threads" or "auto".
        direct: past the page cache (O_DIRECT).
        max_in_flight: how many requests the engine has at most; others wait in order.
        strict_alignment: refuse what is not in units of `request_alignment`.
        context: the AioContext to serve it, by default the running loop's.

    Returns:
        For `await` or `async with`; `.now()` opens it without a loop.

    Raises:
        ValueError: an argument is out of range.

    Raises (when opened):
        BackendUnavailable: the engine asked for by name cannot serve here.
        OSError: the file cannot be opened.
    """
    return Opening(
        path,
        mode,
        engine=engine,
        direct=direct,
        max_in_flight=max_in_flight,
        strict_alignment=strict_alignment,
        ctx=context,
    )


def null(
    size: int = blockdev.NULL_SIZE,
    latency: float = 0.0,
    *,
    read_zeroes: bool = False,
    max_in_flight: int = 128,
    context: AioContext | None = None,
) -> NullDevice:
    """A device that forgets what is written (QEMU's `null-co`).

    Args:
        size: in bytes.
        latency: seconds that each request takes.
        read_zeroes: whether reads fill the buffers they are given with zeroes; these
            are left as they are otherwise, so that nothing but the framework is
            measured.  What `pread` makes is always zeroes.
        max_in_flight: as for `open`.
        context: as for `open`.

    Raises:
        ValueError: a negative size, or a latency that is not 0 to 1e6 seconds.
    """
    size = index(size)
    if size < 0:
        raise ValueError(f"size must not be negative: {size}")
    if not 0 <= latency <= MAX_DELAY:
        raise ValueError(f"latency must be 0 to {MAX_DELAY:g} seconds, not {latency}")
    served = blockdev.service(context)
    return NullDevice(served, size, latency, max_in_flight, read_zeroes=read_zeroes)


def faults(inner: Any, rules: Iterable[Fault]) -> Any:
    """Wrap a device, or `open(...)`, so that chosen requests go wrong.

    Gives a `FaultyDevice`, or the opening of one.  The inner device works as before,
    and may be used beside it.  The first rule that matches a submission applies; a
    request may be submitted several times.
    """
    listed = list(rules)
    for rule in listed:
        if not isinstance(rule, Fault):
            raise TypeError(f"a Fault is expected, got {rule!r}")

    return with_faults(inner, listed)


def probe(context: AioContext | None = None) -> dict[str, Any]:
    """What the engines can do here, for the running loop or a context.

    Returns:
        "engines": for each name None or why it cannot serve; "auto": what is picked for
        buffered and for direct files; "operations": who serves each, if the file's
        engine is the one that is picked for buffered files.
    """
    served = blockdev.service(context)
    engines = blockdev.refusals(served)
    buffered = "threads" if engines["io_uring"] else "io_uring"
    direct = buffered
    if engines["io_uring"] and not engines["linux_aio"]:
        direct = "linux_aio"
    return {
        "engines": engines,
        "auto": {"buffered": buffered, "direct": direct},
        "operations": {
            str(op.name).lower(): ENGINE_NAMES[served.engine_of(op, _engine(served))]
            for op in Op
            if op is not Op.NOTHING
        },
    }
