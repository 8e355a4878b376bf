"""BlockDevice: an image file or block device as QEMU sees one.

Full transfers or an error, within bounds, in whatever pieces the engine, the kernel and
the alignment ask for.  Knows no asyncio: a device is opened above.  The plain cases are
one native request; the others are generators that yield native requests, one at a time,
run by `BlockService.compound`.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from aioqemu._block import request
from aioqemu._block.files import FileInfo, aligned_memory
from aioqemu._block.request import Engine, Gate, Kind, Op

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from aioqemu._block.request import BlockRequest, BlockService
    from aioqemu._engine.context import AioContext

    Steps = Generator[BlockRequest, int, int | None]

ENGINE_NAMES = {
    Engine.URING: "io_uring",
    Engine.THREADS: "threads",
    Engine.AIO: "linux_aio",
    Engine.NULL_DEVICE: "null",
}
_RWF_DSYNC = 2
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16
# What the kernel says when a file cannot do a thing, and not that it went wrong.
_UNSUPPORTED = (-errno.EOPNOTSUPP, -errno.ENOSYS, -errno.ENOTTY)
_COPY_CHUNK = 1 << 20
_ZERO_CHUNK = 1 << 20


class Range:
    """A write in flight, on a device where writes may have to wait for each other."""

    __slots__ = ("alone", "end", "over", "start", "waiters")

    def __init__(self, start: int, end: int, alone: bool) -> None:
        self.start, self.end, self.alone = start, end, alone
        self.over = False
        self.waiters: list[BlockRequest] = []


class BlockDevice:
    """An open file or block device; made by `aioqemu.block.open`.

    All requests are submitted when the method is called and are awaitable.  They belong
    to the thread of the device's context.

    Attributes:
        path: what was opened.
        engine: which engine serves reads and writes: "io_uring", "threads",
            "linux_aio" or "null".
        length: size in bytes.
        request_alignment: unit of offsets and lengths that need no extra work.
        memory_alignment: unit of memory addresses that need none.
        read_only: whether writing is refused.
    """

    def __init__(
        self,
        service: BlockService,
        fd: int,
        info: FileInfo,
        *,
        path: Any = None,
        engine: int = Engine.THREADS,
        read_only: bool = True,
        direct: bool = False,
        max_in_flight: int = 128,
        strict_alignment: bool = False,
    ) -> None:
        self.path = path
        self.length = info.size
        self.request_alignment = info.request_alignment
        self.memory_alignment = info.memory_alignment
        self.read_only = read_only
        self.direct = direct
        self.strict_alignment = strict_alignment
        self._service = service
        self._fd = fd
        self._is_block = info.is_block_device
        self._engine = engine
        self._gate = Gate(max_in_flight)
        self._closed = False
        self._flush_error = 0
        self._ranges: list[Range] = []
        # Writes have to know of each other only where some must be made of reads too.
        self._tracks = self.request_alignment > 1
        self._hook: Callable[[BlockRequest], object] | None = None

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.length} bytes on {self.engine}"
        return f"<{type(self).__name__} {self.path!r} {state}>"

    @property
    def engine(self) -> str:
        """Which engine serves reads and writes."""
        return ENGINE_NAMES[self._engine]

    @property
    def ctx(self) -> AioContext:
        """The AioContext that serves the device."""
        return self._service.context

    @property
    def in_flight(self) -> int:
        """How many requests are not over, those that wait for their turn included."""
        return self._gate.active + self._gate.n_waiting

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def fileno(self) -> int:
        """The file descriptor, or -1 once it is closed."""
        return -1 if self._closed else self._fd

    def engines(self) -> dict[str, str]:
        """Which engine serves which operation."""
        return {
            op.name.lower(): ENGINE_NAMES[self._service.engine_of(op, self._engine)]
            for op in Op
            if op is not Op.NOTHING
        }

    def alloc(self, n: int) -> memoryview:
        """A writable buffer of `n` zero bytes that direct I/O takes as it is."""
        return aligned_memory(n, max(self.memory_alignment, self.request_alignment))

    # -- checks ---------------------------------------------------------------------------

    def _problem(
        self, verb: str, offset: int, n: int, *, writes: bool
    ) -> tuple[int, str] | None:
        """Why a request cannot be made: an errno and what is wrong, or None."""
        if self._closed:
            return errno.EBADF, "the device is closed"
        if writes and self.read_only:
            return errno.EPERM, f"{verb} on a device that was opened read-only"
        if offset < 0 or n < 0:
            return errno.EINVAL, f"{verb} of {n} bytes at {offset}: negative"
        if offset + n > self.length:
            return (
                errno.EIO,
                f"{verb} of {n} bytes at {offset} is beyond the end ({self.length})",
            )
        return None

    def _refuse(self, problem: tuple[int, str], cb: Any, opaque: Any) -> BlockRequest:
        return self._service.fail(
            problem[0], problem[1], bs=self, cb=cb, opaque=opaque, filename=self.path
        )

    def _unaligned(self, verb: str, offset: int, n: int) -> tuple[int, str] | None:
        unit = self.request_alignment
        if self.strict_alignment and (offset % unit or n % unit):
            text = f"{verb} of {n} bytes at {offset}: not in units of {unit}"
            return errno.EINVAL, text
        return None

    # -- reading --------------------------------------------------------------------------

    def pread(self, n: int, offset: int) -> BlockRequest:
        """Read `n` bytes at `offset`; awaiting gives bytes.

        Raises (from the await):
            OSError: beyond the end (EIO), negative (EINVAL), or what the kernel says.
        """
        return self._read(n, n, offset, Kind.RET_BYTES)

    def pread_into(self, buffer: Any, offset: int) -> BlockRequest:
        """Fill a writable buffer from `offset`; awaiting gives the number of bytes."""
        return self._read([buffer], _size(buffer), offset, Kind.RET_COUNT)

    def preadv(self, buffers: Sequence[Any], offset: int) -> BlockRequest:
        """Fill several buffers in order; awaiting gives the number of bytes."""
        listed = list(buffers)
        return self._read(listed, sum(map(_size, listed)), offset, Kind.RET_COUNT)

    def _read(
        self,
        buffers: Any,
        n: int,
        offset: int,
        kind: int,
        flags: int = 0,
        cb: Any = None,
        opaque: Any = None,
    ) -> BlockRequest:
        problem = self._problem("read", offset, n, writes=False)
        if problem is None and self._tracks:
            problem = self._unaligned("read", offset, n)
        if problem is not None:
            return self._refuse(problem, cb, opaque)
        return self._read_checked(buffers, n, offset, kind, flags, cb, opaque)

    def _read_checked(
        self,
        buffers: Any,
        n: int,
        offset: int,
        kind: int,
        flags: int,
        cb: Any,
        opaque: Any,
    ) -> BlockRequest:
        return self._service.rw(
            Op.READ,
            self._fd,
            buffers,
            offset,
            flags,
            self._engine,
            full=True,
            kind=kind,
            gate=self._gate,
            bs=self,
            cb=cb,
            opaque=opaque,
            filename=self.path,
            align=self.request_alignment,
            mem_align=self.memory_alignment,
            hook=self._hook,
            now=not self.direct,
        )

    # -- writing --------------------------------------------------------------------------

    def pwrite(self, data: Any, offset: int, fua: bool = False) -> BlockRequest:
        """Write a buffer at `offset`; awaiting gives the number of bytes.

        Args:
            data: not to be changed until the request is over.
            offset: in bytes; the whole must lie within the device.
            fua: complete only when the data is on stable storage.
        """
        return self._write([data], offset, fua, Kind.RET_COUNT)

    def pwritev(
        self, buffers: Sequence[Any], offset: int, fua: bool = False
    ) -> BlockRequest:
        """Write several buffers in order; awaiting gives the number of bytes."""
        return self._write(list(buffers), offset, fua, Kind.RET_COUNT)

    def _write(
        self,
        buffers: list[Any],
        offset: int,
        fua: bool,
        kind: int,
        cb: Any = None,
        opaque: Any = None,
    ) -> BlockRequest:
        n = sum(map(_size, buffers))
        problem = self._problem("write", offset, n, writes=True)
        if problem is None and self._tracks:
            problem = self._unaligned("write", offset, n)
        if problem is not None:
            return self._refuse(problem, cb, opaque)
        flags = _RWF_DSYNC if fua else 0
        if not self._tracks or n == 0:
            return self._write_checked(buffers, offset, flags, kind, cb, opaque)
        unit = self.request_alignment
        alone = offset % unit != 0 or n % unit != 0
        mine = Range(offset - offset % unit, offset + n + -(offset + n) % unit, alone)
        if not alone and not self._overlapping(mine):
            self._ranges.append(mine)
            try:
                return self._write_checked(
                    buffers,
                    offset,
                    flags,
                    kind,
                    cb,
                    opaque,
                    lambda ret: self._left(mine, ret),
                )
            except BaseException:
                self._left(mine, 0)
                raise
        return self._compound(
            self._write_alone(
                mine, [memoryview(b).cast("B") for b in buffers], offset, n, flags
            ),
            mine,
            kind=kind,
            wanted=n,
            cb=cb,
            opaque=opaque,
        )

    def _write_checked(
        self,
        buffers: list[Any],
        offset: int,
        flags: int,
        kind: int,
        cb: Any,
        opaque: Any,
        after: Any = None,
        gate: bool = True,
    ) -> BlockRequest:
        return self._service.rw(
            Op.WRITE,
            self._fd,
            buffers,
            offset,
            flags,
            self._engine,
            full=True,
            kind=kind,
            gate=self._gate if gate else None,
            bs=self,
            cb=cb,
            opaque=opaque,
            filename=self.path,
            align=self.request_alignment,
            mem_align=self.memory_alignment,
            after=after,
            hook=self._hook,
        )

    def _overlapping(self, mine: Range) -> list[Range]:
        """The earlier writes that `mine` has to wait for."""
        return [
            other
            for other in self._ranges
            if other.start < mine.end
            and mine.start < other.end
            and (mine.alone or other.alone)
        ]

    def _left(self, mine: Range, ret: int) -> int:
        if not mine.over:
            mine.over = True
            if mine in self._ranges:
                self._ranges.remove(mine)
            for waiter in mine.waiters:
                self._service.unpark(waiter)
            mine.waiters = []
        return ret

    def _compound(self, steps: Steps, mine: Range | None, **rest: Any) -> BlockRequest:
        """Run steps as one request; what `mine` keeps others from ends with it."""
        earlier = []
        after = rest.pop("after", None)
        if mine is not None:
            earlier = self._overlapping(mine)
            self._ranges.append(mine)
            after = lambda ret: self._left(mine, ret)  # noqa: E731
        return self._service.compound(
            self._in_turn(earlier, steps),
            gate=self._gate,
            bs=self,
            filename=self.path,
            after=after,
            **rest,
        )

    def _in_turn(self, earlier: list[Range], steps: Steps) -> Steps:
        # Only for earlier ones, which wait for still earlier ones: no circle.
        for other in earlier:
            if not other.over:
                waiter = self._service.parked()
                other.waiters.append(waiter)
                ret = yield waiter
                if ret < 0:
                    return ret
        return (yield from steps)

    def _write_alone(
        self,
        mine: Range,
        views: list[memoryview],
        offset: int,
        n: int,
        flags: int,
    ) -> Steps:
        """Read, modify, write whole units: the head and the tail are read first."""
        unit = self.request_alignment
        memory = self.alloc(mine.end - mine.start)
        whole = len(memory)
        heads = []
        if offset % unit:
            heads.append(0)
        if (offset + n) % unit and (whole - unit not in heads):
            heads.append(whole - unit)
        for place in heads:
            at = mine.start + place
            there = min(unit, self.length - at)
            ret = yield self._service.rw(
                Op.READ,
                self._fd,
                [memory[place : place + there]],
                at,
                0,
                self._engine,
                full=True,
                filename=self.path,
                align=unit,
                mem_align=self.memory_alignment,
                hook=self._hook,
            )
            if ret < 0:
                return ret
        place = offset - mine.start
        for view in views:
            memory[place : place + len(view)] = view
            place += len(view)
        ret = yield self._write_checked(
            [memory], mine.start, flags, Kind.RET_COUNT, None, None, gate=False
        )
        if ret >= 0 and mine.end > self.length and not self._is_block:
            ret = yield self._control(Op.FTRUNCATE, length=self.length, gated=False)
        return min(ret, 0)

    # -- everything else ------------------------------------------------------------------

    def _control(
        self, op: int, *, gated: bool = True, hooked: bool = True, **rest: Any
    ) -> BlockRequest:
        return self._service.control(
            op,
            self._fd,
            self._engine,
            gate=self._gate if gated else None,
            bs=self,
            filename=self.path,
            hook=self._hook if hooked else None,
            **rest,
        )

    def flush(self) -> BlockRequest:
        """Put what was written before on stable storage.

        After one that has failed on a buffered file every later one fails with the same
        error: the kernel may have dropped what it could not write.
        """
        return self._flush(None, None)

    def _flush(self, cb: Any, opaque: Any) -> BlockRequest:
        if self._closed:
            return self._refuse((errno.EBADF, "the device is closed"), cb, opaque)
        if self._flush_error:
            text = "an earlier flush has failed; data may have been lost"
            return self._refuse((self._flush_error, text), cb, opaque)
        return self._control(
            Op.FDATASYNC,
            kind=Kind.RET_ZERO if cb else Kind.RET_NONE,
            cb=cb,
            opaque=opaque,
            after=self._flushed,
        )

    def _flushed(self, ret: int) -> int:
        if ret < 0 and ret != -errno.ECANCELED and not self.direct:
            self._flush_error = self._flush_error or -ret
        return ret

    def discard(self, offset: int, n: int) -> BlockRequest:
        """Say that the contents of a range are not needed; advisory, never an error
        where the file system cannot do it."""
        return self._discard(offset, n, None, None)

    def _discard(self, offset: int, n: int, cb: Any, opaque: Any) -> BlockRequest:
        problem = self._problem("discard", offset, n, writes=True)
        if problem is not None:
            return self._refuse(problem, cb, opaque)
        kind = Kind.RET_ZERO if cb else Kind.RET_NONE
        steps = self._discard_steps(offset, n)
        return self._compound(
            steps, self._range(offset, n), kind=kind, cb=cb, opaque=opaque
        )

    def _range(self, offset: int, n: int) -> Range | None:
        return Range(offset, offset + n, alone=True) if self._tracks and n else None

    def _discard_steps(self, offset: int, n: int) -> Steps:
        if n == 0:
            return 0
        if self._is_block:
            unit = max(self.request_alignment, 512)
            start, end = offset + -offset % unit, (offset + n) - (offset + n) % unit
            if start >= end:
                return 0
            ret = yield self._control(
                Op.BLKDISCARD, offset=start, length=end - start, gated=False
            )
        else:
            ret = yield self._control(
                Op.FALLOCATE,
                offset=offset,
                length=n,
                flags=_PUNCH_HOLE | _KEEP_SIZE,
                gated=False,
            )
        return (
            0 if ret in _UNSUPPORTED or (ret == -errno.EINVAL and self._is_block) else ret
        )

    def write_zeroes(
        self, offset: int, n: int, may_unmap: bool = False
    ) -> BlockRequest:
        """Make a range read as zeroes, in the cheapest way that the file knows.

        Args:
            offset: in bytes.
            n: in bytes.
            may_unmap: whether the space may be given back.
        """
        problem = self._problem("write_zeroes", offset, n, writes=True)
        if problem is not None:
            return self._refuse(problem, None, None)
        return self._compound(
            self._zero_steps(offset, n, may_unmap), self._range(offset, n)
        )

    def _zero_steps(self, offset: int, n: int, may_unmap: bool) -> Steps:
        if n == 0:
            return 0
        modes = [_ZERO_RANGE | _KEEP_SIZE]
        if may_unmap:
            modes.insert(0, _PUNCH_HOLE | _KEEP_SIZE)
        if not self._is_block:
            for mode in modes:
                ret = yield self._control(
                    Op.FALLOCATE, offset=offset, length=n, flags=mode, gated=False
                )
                if ret not in _UNSUPPORTED:
                    return ret
        elif offset % 512 == 0 and n % 512 == 0:
            ret = yield self._control(
                Op.BLKZEROOUT, offset=offset, length=n, gated=False
            )
            if ret not in (*_UNSUPPORTED, -errno.EINVAL):
                return ret
        zeroes = self.alloc(min(n, _ZERO_CHUNK))
        while n:
            part = min(n, _ZERO_CHUNK)
            unit = self.request_alignment
            if offset % unit or part % unit:
                # This range has the others wait already: make its pieces by hand.
                part = min(n, unit - offset % unit) if offset % unit else part
                part -= part % unit if part > unit else 0
                start = offset - offset % unit
                end = offset + part + -(offset + part) % unit
                piece = Range(start, end, alone=True)
                ret = yield from self._write_alone(
                    piece, [zeroes[:part]], offset, part, 0
                )
                ret = part if not ret else ret
            else:
                ret = yield self._write_checked(
                    [zeroes[:part]], offset, 0, Kind.RET_COUNT, None, None, gate=False
                )
            if ret < 0:
                return ret
            offset += part
            n -= part
        return 0

    def truncate(self, n: int) -> BlockRequest:
        """Change the size; new space reads as zeroes.  Files only."""
        problem = self._problem("truncate", 0, 0, writes=True)
        if n < 0:
            problem = errno.EINVAL, f"truncate to {n} bytes: negative"
        if problem is None and self._is_block:
            problem = errno.EOPNOTSUPP, "a block device cannot change its size"
        if problem is not None:
            return self._refuse(problem, None, None)

        def resized(ret: int) -> int:
            if ret >= 0:
                self.length = n
            return ret

        if not self._tracks:
            return self._control(Op.FTRUNCATE, length=n, after=resized)
        return self._compound(
            self._truncate_steps(n, resized), Range(0, 1 << 63, alone=True)
        )

    def _truncate_steps(self, n: int, resized: Callable[[int], int]) -> Steps:
        ret = yield self._control(Op.FTRUNCATE, length=n, gated=False)
        return resized(ret)

    def map(self, offset: int, n: int) -> BlockRequest:
        """Which parts of a range hold data.

        Awaiting gives a list of `(offset, length, is_data)`, in order and without gaps;
        what is not data reads as zeroes.
        """
        problem = self._problem("map", offset, n, writes=False)
        if problem is not None:
            return self._refuse(problem, None, None)
        try:
            extents = self._extents(offset, offset + n)
        except OSError as exc:
            return self._refuse((exc.errno or errno.EIO, "map"), None, None)
        return self._service.ready(
            Kind.RET_VALUE, extents, bs=self, gate=self._gate, filename=self.path
        )

    def _extents(self, start: int, end: int) -> list[tuple[int, int, bool]]:
        found: list[tuple[int, int, bool]] = []
        while start < end:
            try:
                data = os.lseek(self._fd, start, os.SEEK_DATA)
            except OSError as exc:
                if exc.errno != errno.ENXIO:
                    # It does not know holes: all is data.
                    if exc.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                        return [*found, (start, end - start, True)]
                    raise
                data = end
            data = min(data, end)
            if data > start:
                found.append((start, data - start, False))
            if data < end:
                hole = min(os.lseek(self._fd, data, os.SEEK_HOLE), end)
                if hole <= data:
                    return found  # it was truncated meanwhile
                found.append((data, hole - data, True))
                start = hole
            else:
                start = end
        return found

    def copy_range(
        self, offset: int, target: BlockDevice, target_offset: int, n: int
    ) -> BlockRequest:
        """Copy within or between devices, in the kernel where it can.

        Both devices must be of the same context.  Awaiting gives the number of bytes.
        """
        if not isinstance(target, BlockDevice):
            raise TypeError(f"a block device is expected, got {target!r}")
        if target._service is not self._service:
            raise ValueError("the devices are served by different contexts")
        problem = self._problem("copy", offset, n, writes=False) or target._problem(
            "copy", target_offset, n, writes=True
        )
        if problem is not None:
            return self._refuse(problem, None, None)
        return target._compound(
            self._copy_steps(offset, target, target_offset, n),
            target._range(target_offset, n),
            kind=Kind.RET_COUNT,
            wanted=n,
        )

    def _copy_steps(
        self, offset: int, target: BlockDevice, target_offset: int, n: int
    ) -> Steps:
        kernel = self._fd >= 0 and target._fd >= 0 and self._hook is None
        unit = target.request_alignment
        memory = None
        while n:
            if kernel:
                ret = yield self._control(
                    Op.COPY,
                    offset=offset,
                    fd2=target._fd,
                    offset2=target_offset,
                    length=min(n, 1 << 30),
                    kind=Kind.RET_INT,
                    gated=False,
                )
                if ret < 0 and ret not in (
                    -errno.EXDEV,
                    -errno.EINVAL,
                    -errno.EBADF,
                    *_UNSUPPORTED,
                ):
                    return ret
                if ret <= 0:
                    kernel = False  # not these files: by hand
                    continue
            else:
                if memory is None:
                    memory = target.alloc(min(n, _COPY_CHUNK))
                part = memory[: min(n, _COPY_CHUNK)]
                ret = yield self._service.rw(
                    Op.READ,
                    self._fd,
                    [part],
                    offset,
                    0,
                    self._engine,
                    full=True,
                    filename=self.path,
                    align=self.request_alignment,
                    mem_align=self.memory_alignment,
                    hook=self._hook,
                )
                if ret < 0:
                    return ret
                if target_offset % unit or len(part) % unit:
                    start = target_offset - target_offset % unit
                    end = target_offset + len(part)
                    piece = Range(start, end + -end % unit, alone=True)
                    ret = yield from target._write_alone(
                        piece, [part], target_offset, len(part), 0
                    )
                else:
                    ret = yield target._write_checked(
                        [part], target_offset, 0, Kind.RET_COUNT, None, None, gate=False
                    )
                if ret is None or ret >= 0:
                    ret = len(part)
                if ret < 0:
                    return ret
            offset += ret
            target_offset += ret
            n -= ret
        return 0

    # -- QEMU's callback form ---------------------------------------------------------------

    def aio_preadv(
        self, offset: int, iov: Any, flags: int = 0, cb: Any = None, opaque: Any = None
    ) -> BlockRequest:
        """QEMU's `bdrv_aio_preadv`: `cb(opaque, ret)`, 0 or -errno; awaitable, too."""
        listed = _listed(iov)
        return self._read(
            listed, sum(map(_size, listed)), offset, Kind.RET_ZERO, flags, cb, opaque
        )

    def aio_pwritev(
        self, offset: int, iov: Any, flags: int = 0, cb: Any = None, opaque: Any = None
    ) -> BlockRequest:
        """QEMU's `bdrv_aio_pwritev`; a `flags` of RWF_DSYNC is FUA."""
        fua = bool(flags & _RWF_DSYNC)
        return self._write(_listed(iov), offset, fua, Kind.RET_ZERO, cb, opaque)

    def aio_flush(self, cb: Any = None, opaque: Any = None) -> BlockRequest:
        """QEMU's `bdrv_aio_flush`."""
        return self._flush(cb, opaque)

    def aio_discard(
        self, offset: int, n: int, cb: Any = None, opaque: Any = None
    ) -> BlockRequest:
        """QEMU's `bdrv_aio_pdiscard`."""
        return self._discard(offset, n, cb, opaque)


class NullDevice(BlockDevice):
    """Reads zeroes, forgets what is written, and measures the framework (`null-co`)."""

    def __init__(
        self,
        service: BlockService,
        size: int,
        latency: float,
        max_in_flight: int,
        read_only: bool = False,
    ) -> None:
        super().__init__(
            service,
            -1,
            FileInfo(size, is_block_device=False),
            path="null://",
            engine=Engine.NULL_DEVICE,
            read_only=read_only,
            max_in_flight=max_in_flight,
        )
        if latency:
            self._hook = _Latency(latency)

    def _read_checked(
        self,
        buffers: Any,
        n: int,
        offset: int,
        kind: int,
        flags: int,
        cb: Any,
        opaque: Any,
    ) -> BlockRequest:
        value = None
        if kind == Kind.RET_BYTES:
            value = bytes(n)
        else:
            for buffer in buffers:
                with memoryview(buffer).cast("B") as view:
                    view[:] = bytes(len(view))
        return self._service.ready(
            kind,
            value,
            n,
            gate=self._gate,
            bs=self,
            cb=cb,
            opaque=opaque,
            hook=self._hook,
        )

    def _write_checked(
        self,
        buffers: list[Any],
        offset: int,
        flags: int,
        kind: int,
        cb: Any,
        opaque: Any,
        after: Any = None,
        gate: bool = True,
    ) -> BlockRequest:
        return self._service.ready(
            kind,
            None,
            sum(map(_size, buffers)),
            gate=self._gate if gate else None,
            bs=self,
            cb=cb,
            opaque=opaque,
            hook=self._hook,
            after=after,
        )

    def _control(
        self, op: int, *, gated: bool = True, hooked: bool = True, **rest: Any
    ) -> BlockRequest:
        kept = {k: v for k, v in rest.items() if k in ("cb", "opaque", "after")}
        return self._service.ready(
            rest.get("kind", Kind.RET_NONE),
            None,
            rest.get("length", 0),
            gate=self._gate if gated else None,
            bs=self,
            hook=self._hook,
            **kept,
        )

    def _extents(self, start: int, end: int) -> list[tuple[int, int, bool]]:
        return [(start, end - start, False)] if end > start else []


class _Latency:
    """Delays each request once."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, req: BlockRequest) -> float:
        return float(self.seconds)


def _size(buffer: Any) -> int:
    if isinstance(buffer, (bytes, bytearray)):
        return len(buffer)
    return request.size_of(buffer)


def _listed(iov: Any) -> list[Any]:
    """An iov is a sequence of buffers, or one buffer."""
    return list(iov) if isinstance(iov, (list, tuple)) else [iov]
