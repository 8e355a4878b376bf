"""BlockDevice: an image file or block device as QEMU sees one.

Full transfers or an error, within bounds, in whatever pieces the engine, the kernel and
the alignment ask for.  Knows no asyncio: a device is opened above.  Plain reads and
writes are in the native base class; what takes several requests is a generator of
steps.py, run as one request by `BlockService.compound`.
"""

from __future__ import annotations

import errno
import os
from operator import index
from typing import TYPE_CHECKING, Any

from aioqemu._block import steps
from aioqemu._block.device_core import DeviceCore
from aioqemu._block.engines import ENGINE_NAMES
from aioqemu._block.files import FileInfo, aligned_memory
from aioqemu._block.ranges import Range, Turns
from aioqemu._block.request import Engine, Kind
from aioqemu._block.service import Op
from aioqemu._engine.unclosed import warn_unclosed

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioqemu._block.request import BlockRequest
    from aioqemu._block.service import BlockService
    from aioqemu._block.steps import Steps


class BlockDevice(DeviceCore):
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
        direct: whether the page cache is passed by.
        in_flight: how many requests are not over, the waiting ones included.
        closed: whether it was closed.
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
        super().__init__(
            service,
            fd,
            length=info.size,
            request_alignment=info.request_alignment,
            memory_alignment=info.memory_alignment,
            is_block=info.is_block_device,
            path=path,
            engine=engine,
            read_only=read_only,
            direct=direct,
            max_in_flight=max_in_flight,
            strict_alignment=strict_alignment,
        )
        self._turns = Turns(service)
        self._flush_error = 0

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.length} bytes on {self.engine}"
        return f"<{type(self).__name__} {self.path!r} {state}>"

    def __del__(self) -> None:
        # Requests in flight hold the device: there are none.
        if not getattr(self, "_closed", True) and self._fd >= 0:
            text = f"unclosed block device {self!r}"
            fd, self._fd, self._closed = self._fd, -1, True
            os.close(fd)
            warn_unclosed(text, self)

    def detach(self) -> int:
        """Give the open file away: the device is closed, and its fd the caller's.

        Raises:
            RuntimeError: requests are in flight, it is closed, or this is not the
                context's thread.
        """
        self._service.check_home()
        if self._closed:
            raise RuntimeError("the device is closed")
        if self.in_flight:
            raise RuntimeError(f"{self.in_flight} requests are in flight")
        fd, self._fd, self._closed = self._fd, -1, True
        return fd

    def engines(self) -> dict[str, str]:
        """Which engine serves which operation."""
        return {
            str(op.name).lower(): ENGINE_NAMES[
                self._service.engine_of(op, self._engine)
            ]
            for op in Op
            if op is not Op.NOTHING
        }

    def alloc(self, n: int) -> memoryview:
        """A writable buffer of `n` zero bytes that direct I/O takes as it is."""
        return aligned_memory(n, max(self.memory_alignment, self.request_alignment))

    # -- one request made of several ---------------------------------------------------

    def _compound(self, todo: Steps, mine: Range | None, **rest: Any) -> BlockRequest:
        """Run steps as one request; what `mine` keeps others from ends with it."""
        if mine is not None:
            todo = self._turns.take(mine, todo)
            rest["after"] = lambda ret: self._turns.leave(mine, ret)
        return self._service.compound(
            todo,
            gate=self._gate,
            bs=self,
            filename=self.path,
            hook=self._hook,
            **rest,
        )

    def _range(self, offset: int, n: int) -> Range | None:
        return Range(offset, offset + n, alone=True) if self._tracks and n else None

    def _write_in_turn(
        self,
        buffers: list[Any],
        offset: int,
        n: int,
        flags: int,
        kind: int,
        cb: Any,
        opaque: Any,
    ) -> BlockRequest:
        """A write where writes have to wait for each other."""
        unit = self.request_alignment
        alone = offset % unit != 0 or n % unit != 0
        mine = Range(offset - offset % unit, offset + n + -(offset + n) % unit, alone)
        if not alone and self._turns.free(mine):
            self._turns.ranges.append(mine)
            try:
                return self._write_step(
                    buffers,
                    offset,
                    flags,
                    kind,
                    cb,
                    opaque,
                    lambda ret: self._turns.leave(mine, ret),
                    True,
                )
            except BaseException:
                self._turns.leave(mine, 0)
                raise
        views = [memoryview(b).cast("B") for b in buffers]
        todo = steps.write_alone(self, mine, views, offset, n, flags)
        return self._compound(todo, mine, kind=kind, wanted=n, cb=cb, opaque=opaque)

    def _control(self, op: int, *, gated: bool = True, **rest: Any) -> BlockRequest:
        return self._service.control(
            op,
            self._fd,
            self._engine,
            gate=self._gate if gated else None,
            bs=self,
            filename=self.path,
            hook=self._hook if gated else None,
            **rest,
        )

    # -- operations --------------------------------------------------------------------

    def flush(self) -> BlockRequest:
        """Put what was written before on stable storage.

        After one that has failed on a buffered file every later one fails with the same
        error: the kernel may have dropped what it could not write.
        """
        return self.aio_flush()

    def aio_flush(
        self, cb: Callable[[Any, int], object] | None = None, opaque: Any = None
    ) -> BlockRequest:
        """QEMU's `bdrv_aio_flush`."""
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
        """Say that the contents of a range are not needed.

        Advisory: no error where the file system cannot do it.
        """
        return self.aio_discard(offset, n)

    def aio_discard(
        self,
        offset: int,
        n: int,
        cb: Callable[[Any, int], object] | None = None,
        opaque: Any = None,
    ) -> BlockRequest:
        """QEMU's `bdrv_aio_pdiscard`."""
        offset, n = index(offset), index(n)
        problem = self._problem("discard", offset, n, writes=True)
        if problem is not None:
            return self._refuse(problem, cb, opaque)
        return self._compound(
            steps.discard(self, offset, n),
            self._range(offset, n),
            kind=Kind.RET_ZERO if cb else Kind.RET_NONE,
            cb=cb,
            opaque=opaque,
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
        offset, n = index(offset), index(n)
        problem = self._problem("write_zeroes", offset, n, writes=True)
        if problem is not None:
            return self._refuse(problem)
        todo = steps.write_zeroes(self, offset, n, may_unmap)
        return self._compound(todo, self._range(offset, n))

    def truncate(self, n: int) -> BlockRequest:
        """Change the size; new space reads as zeroes.  Files only."""
        n = index(n)
        problem = self._problem("truncate", 0, 0, writes=True)
        if n < 0:
            problem = errno.EINVAL, f"truncate to {n} bytes: negative"
        if problem is None and self._is_block:
            problem = errno.EOPNOTSUPP, "a block device cannot change its size"
        if problem is not None:
            return self._refuse(problem)

        def resized(ret: int) -> int:
            if ret >= 0:
                self.length = n
            return ret

        if not self._tracks:
            return self._control(Op.FTRUNCATE, length=n, after=resized)
        todo = steps.truncate(self, n, resized)
        return self._compound(todo, Range(0, 1 << 63, alone=True))

    def map(self, offset: int, n: int) -> BlockRequest:
        """Which parts of a range hold data.

        Awaiting gives a list of `(offset, length, is_data)`, in order and without gaps;
        what is not data reads as zeroes.
        """
        offset, n = index(offset), index(n)
        problem = self._problem("map", offset, n, writes=False)
        if problem is not None:
            return self._refuse(problem)
        found: list[tuple[int, int, bool]] = []
        return self._compound(
            self._map_steps(offset, offset + n, found),
            None,
            kind=Kind.RET_VALUE,
            value=lambda _: found,
        )

    def _map_steps(
        self, start: int, end: int, found: list[tuple[int, int, bool]]
    ) -> Steps:
        return steps.map_extents(self, start, end, found)

    def copy_range(
        self, offset: int, target: Any, target_offset: int, n: int
    ) -> BlockRequest:
        """Copy within or between devices, in the kernel where it can.

        Both devices must be of the same context.  Ranges of one file may overlap.
        Awaiting gives the number of bytes.
        """
        offset, target_offset, n = index(offset), index(target_offset), index(n)
        target = getattr(target, "_faulty_device", target)
        if not isinstance(target, BlockDevice):
            raise TypeError(f"a block device is expected, got {target!r}")
        if target._service is not self._service:
            raise ValueError("the devices are served by different contexts")
        problem = self._problem("copy", offset, n, writes=False) or target._problem(
            "copy", target_offset, n, writes=True
        )
        if problem is not None:
            return self._refuse(problem)
        copying = steps.copy(self, offset, target, target_offset, n)
        mine = target._range(target_offset, n)
        if target is not self:
            copying = steps.on_both(self, target, copying)
        return target._compound(copying, mine, kind=Kind.RET_COUNT, wanted=n)


class NullDevice(BlockDevice):
    """Forgets what is written, and measures the framework (`null-co`)."""

    def __init__(
        self,
        service: BlockService,
        size: int,
        latency: float,
        max_in_flight: int,
        *,
        read_only: bool = False,
        read_zeroes: bool = False,
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
        self._reads_zeroes = read_zeroes
        if latency:
            self._hook = lambda _: float(latency)

    def _map_steps(
        self, start: int, end: int, found: list[tuple[int, int, bool]]
    ) -> Steps:
        if end > start:
            found.append((start, end - start, False))
        return steps.nothing(self)
