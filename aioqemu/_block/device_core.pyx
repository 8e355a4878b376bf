"""The hot part of a block device: range checks, plain reads and writes.

Knows no asyncio, and nothing of what takes more than one request: those are methods of
the Python class above (device.py), which is asked for them.
"""

import errno

from cpython.buffer cimport PyBUF_SIMPLE
from cpython.buffer cimport PyBuffer_Release
from cpython.buffer cimport PyObject_GetBuffer
from libc.stdint cimport int64_t
from libc.stdint cimport uint32_t

from aioqemu._block.job cimport OP_READ
from aioqemu._block.job cimport OP_WRITE
from aioqemu._block.request cimport RET_BYTES
from aioqemu._block.request cimport RET_COUNT
from aioqemu._block.request cimport RET_ZERO
from aioqemu._block.request cimport BlockRequest
from aioqemu._block.request cimport Gate
from aioqemu._block.service cimport BlockService
from aioqemu._sys.file cimport RWF_DSYNC

from aioqemu._block.engines import ENGINE_NAMES

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object obj, int *overflow) except? -1


cdef inline bint _fits(object number, int64_t *out) except -1:
    """Whether it is a number from 0 to 2**63 - 1; TypeError if it is none at all."""
    cdef int overflow = 0
    out[0] = PyLong_AsLongLongAndOverflow(number, &overflow)
    return overflow == 0 and out[0] >= 0


cdef object size_of(object buffer):
    """How many bytes a contiguous buffer has; TypeError or BufferError if it is none."""
    cdef Py_buffer view
    cdef Py_ssize_t size
    if isinstance(buffer, (bytes, bytearray)):
        return len(buffer)
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    size = view.len
    PyBuffer_Release(&view)
    return size


cdef object size_of_all(list buffers):
    cdef object total = 0
    for buffer in buffers:
        total += size_of(buffer)
    return total


cdef class DeviceCore:
    """What `BlockDevice` is made of; see there.

    Attributes:
        path: what was opened.
        length: size in bytes.
        request_alignment: unit of offsets and lengths that need no extra work.
        memory_alignment: unit of memory addresses that need none.
        read_only: whether writing is refused.
        direct: whether the page cache is passed by.
        strict_alignment: whether what is not in units is refused.
    """

    def __cinit__(self):
        self._fd = -1
        self._closed = True

    def __init__(self, BlockService service not None, int fd, *, int64_t length,
                 int64_t request_alignment, int64_t memory_alignment, bint is_block,
                 path, int engine, bint read_only, bint direct, Py_ssize_t max_in_flight,
                 bint strict_alignment):
        self._service = service
        self._gate = Gate(max_in_flight)
        self._fd = fd
        self._closed = False
        self._engine = engine
        self._is_block = is_block
        self._tracks = request_alignment > 1
        self.path = path
        self.length = length
        self.request_alignment = request_alignment
        self.memory_alignment = memory_alignment
        self.read_only = read_only
        self.direct = direct
        self.strict_alignment = strict_alignment

    @property
    def engine(self):
        """Which engine serves reads and writes."""
        return ENGINE_NAMES[self._engine]

    @property
    def ctx(self):
        """The AioContext that serves the device."""
        return self._served().ctx

    @property
    def in_flight(self):
        """How many requests are not over, those that wait for their turn included."""
        self._served()
        return self._gate.active + self._gate.queued

    @property
    def closed(self):
        """Whether it was closed."""
        return self._closed

    def fileno(self):
        """The file descriptor, or -1 once it is closed."""
        return -1 if self._closed else self._fd

    cdef BlockService _served(self):
        if self._service is None:
            raise RuntimeError("the device was not initialised")
        return self._service

    # -- checks ---------------------------------------------------------------------------

    cdef object problem(self, object verb, object offset, object n, bint writes):
        if self._closed:
            return errno.EBADF, "the device is closed"
        if writes and self.read_only:
            return errno.EPERM, f"{verb} on a device that was opened read-only"
        if offset < 0 or n < 0:
            return errno.EINVAL, f"{verb} of {n} bytes at {offset}: negative"
        if offset + n > self.length:
            text = f"{verb} of {n} bytes at {offset} is beyond the end ({self.length})"
            return errno.EIO, text
        if self.strict_alignment and self._tracks and verb in ("read", "write") and (
                offset % self.request_alignment or n % self.request_alignment):
            text = f"{verb} of {n} bytes at {offset}: not in units of "
            return errno.EINVAL, f"{text}{self.request_alignment}"
        return None

    def _problem(self, verb, offset, n, *, bint writes):
        """Why a request cannot be made: an errno and what is wrong, or None."""
        return self.problem(verb, offset, n, writes)

    def _refuse(self, problem, cb=None, opaque=None):
        """A request that fails with that."""
        return self._service.fail(problem[0], problem[1], bs=self, cb=cb, opaque=opaque,
                                  filename=self.path)

    # -- reading --------------------------------------------------------------------------

    cdef BlockRequest prepare(self, int op, object buffers, int64_t n, int flags, int kind,
                              object cb, object opaque, object after, bint gated):
        cdef BlockService service = self._served()
        cdef BlockRequest req = service.new(self, cb, opaque, op, self._fd)
        req.zeroes = True
        if gated:
            req.gate = self._gate
            # Memory of our own never shows what it held before.
            req.zeroes = self._reads_zeroes or kind == RET_BYTES
            if self._hook is not None:
                service.hook_too(req, self._hook)
        req.kind = <unsigned char>kind
        req.full = True
        req.engine = <unsigned char>self._engine
        req.filename = self.path
        req.after = after
        req.align = self.request_alignment
        req.job.flags = <uint32_t>flags
        if kind == RET_BYTES:
            req.take_bytes(<Py_ssize_t>n)
        elif isinstance(buffers, list):
            req.take_buffers(buffers, op == OP_READ)
        else:
            req.take_buffer(buffers, op == OP_READ)
        return req

    cdef BlockRequest check_and_start(self, BlockRequest req, object offset, bint now):
        cdef int64_t at = 0
        cdef bint writes = req.job.op == OP_WRITE
        if not _fits(offset, &at) or self._closed or self.strict_alignment or (
                req.total > self.length or at > self.length - req.total
                or writes and self.read_only):
            problem = self.problem("write" if writes else "read", offset, req.total,
                                   writes)
            if problem is not None:
                self._service.fail_soon(req, problem[0], problem[1])
                return req
        self._service.set_off(req, at, self.memory_alignment, now)
        return req

    cdef BlockRequest transfer(self, int op, object buffers, int64_t n, int64_t offset,
                               int flags, int kind, object cb, object opaque,
                               object after, bint gated, bint now):
        cdef BlockRequest req = self.prepare(op, buffers, n, flags, kind, cb, opaque, after,
                                             gated)
        self._service.set_off(req, offset, self.memory_alignment, now)
        return req

    cdef BlockRequest read(self, object buffers, object n, object offset, int flags,
                           int kind, object cb, object opaque):
        cdef int64_t size = 0
        cdef int64_t at = 0
        if not _fits(n, &size) or not _fits(offset, &at) or self._closed or (
                size > self.length or at > self.length - size or self.strict_alignment):
            problem = self.problem("read", offset, n, False)
            if problem is not None:
                return self._refuse(problem, cb, opaque)
        return self.transfer(OP_READ, buffers, size, at, flags, kind, cb, opaque, None,
                             True, self._reads_now())

    cdef bint _reads_now(self) noexcept:
        return not self.direct and self._fd >= 0

    def pread(self, n, offset):
        """Read `n` bytes at `offset`; awaiting gives bytes.

        Raises (from the await):
            OSError: beyond the end (EIO), negative (EINVAL), or what the kernel says.
        """
        return self.read(None, n, offset, 0, RET_BYTES, None, None)

    def pread_into(self, buffer, offset):
        """Fill a writable buffer from `offset`; awaiting gives the number of bytes."""
        if isinstance(buffer, list):
            raise TypeError("a buffer is expected, not a list: use preadv")
        return self.check_and_start(
            self.prepare(OP_READ, buffer, 0, 0, RET_COUNT, None, None, None, True), offset,
            self._reads_now())

    def preadv(self, buffers, offset):
        """Fill several buffers in order; awaiting gives the number of bytes."""
        cdef list listed = list(buffers)
        return self.read(listed, size_of_all(listed), offset, 0, RET_COUNT, None,
                         None)

    def aio_preadv(self, offset, iov, int flags=0, cb=None, opaque=None):
        """QEMU's `bdrv_aio_preadv`: `cb(opaque, ret)`, 0 or -errno; awaitable, too.

        `iov` is one buffer or a list of them.
        """
        cdef list listed = list(iov) if isinstance(iov, (list, tuple)) else [iov]
        return self.read(listed, size_of_all(listed), offset, flags, RET_ZERO, cb,
                         opaque)

    # -- writing --------------------------------------------------------------------------

    def pwrite(self, data, offset, bint fua=False):
        """Write a buffer at `offset`; awaiting gives the number of bytes.

        Args:
            data: not to be changed until the request is over.
            offset: in bytes; the whole must lie within the device.
            fua: complete only when the data is on stable storage.
        """
        if isinstance(data, list):
            raise TypeError("a buffer is expected, not a list: use pwritev")
        return self.write(data, offset, fua, RET_COUNT, None, None)

    def pwritev(self, buffers, offset, bint fua=False):
        """Write several buffers in order; awaiting gives the number of bytes."""
        return self.write(list(buffers), offset, fua, RET_COUNT, None, None)

    def aio_pwritev(self, offset, iov, int flags=0, cb=None, opaque=None):
        """QEMU's `bdrv_aio_pwritev`; a `flags` of RWF_DSYNC is FUA."""
        cdef list listed = list(iov) if isinstance(iov, (list, tuple)) else [iov]
        return self.write(listed, offset, flags & RWF_DSYNC != 0, RET_ZERO, cb, opaque)

    cdef object write(self, object buffers, object offset, bint fua, int kind, object cb,
                      object opaque):
        cdef int64_t size = 0
        cdef int64_t at = 0
        cdef int flags = RWF_DSYNC if fua else 0
        if not self._tracks and not isinstance(buffers, list):
            return self.check_and_start(
                self.prepare(OP_WRITE, buffers, 0, flags, kind, cb, opaque, None, True),
                offset, False)
        n = size_of_all(buffers) if isinstance(buffers, list) else size_of(buffers)
        if not _fits(n, &size) or not _fits(offset, &at) or self._closed or (
                self.read_only or size > self.length or at > self.length - size
                or self.strict_alignment):
            problem = self.problem("write", offset, n, True)
            if problem is not None:
                return self._refuse(problem, cb, opaque)
        if self._tracks and size:
            if not isinstance(buffers, list):
                buffers = [buffers]
            return self._write_in_turn(buffers, at, size, flags, kind, cb, opaque)
        return self.transfer(OP_WRITE, buffers, size, at, flags, kind, cb, opaque, None,
                             True, False)

    # -- for the steps of compound requests -----------------------------------------------

    def _read_step(self, buffer, int64_t offset):
        """Fill a buffer, past the gate."""
        return self.transfer(OP_READ, buffer, 0, offset, 0, RET_COUNT, None, None, None,
                             False, False)

    def _write_step(self, buffers, int64_t offset, int flags=0, int kind=RET_COUNT,
                    cb=None, opaque=None, after=None, bint gated=False):
        """Write whole units."""
        return self.transfer(OP_WRITE, buffers, 0, offset, flags, kind, cb, opaque, after,
                             gated, False)
