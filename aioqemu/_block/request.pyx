"""One block request from its submission to its completion, on whichever engine.

Knows no asyncio and no device; the device's own rules are in device.py.

Invariant: from _start to _over a request is linked into its service's list, which holds a
reference; so whatever becomes of who awaits it, its buffers stay exported and its memory
stays, until the kernel or the thread that has it has given it back.  _over runs exactly
once, from the dispatch of the context, never inside the call that submits.  The only
exception are reads that were answered from the page cache on the spot: those are over
when the call returns, have never been linked, and have no callback.
"""

import collections
import os

from cpython.buffer cimport PyBUF_SIMPLE
from cpython.buffer cimport PyBUF_WRITABLE
from cpython.buffer cimport PyBuffer_Release
from cpython.buffer cimport PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from cpython.object cimport PyTypeObject
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport Py_DECREF
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t
from libc.stdint cimport uint32_t
from libc.stdint cimport uint64_t
from libc.stdint cimport uintptr_t
from libc.stdlib cimport calloc
from libc.stdlib cimport free
from libc.stdlib cimport malloc
from libc.string cimport memcpy
from libc.string cimport memset

from aioqemu._block.aiocb cimport ACB_COMPLETING
from aioqemu._block.aiocb cimport ACB_FREE
from aioqemu._block.aiocb cimport ACB_IN_FLIGHT
from aioqemu._block.aiocb cimport AIOPool
from aioqemu._block.aiocb cimport BlockDriverAIOCB
from aioqemu._block.job cimport JOB_IDLE
from aioqemu._block.job cimport JOB_PENDING
from aioqemu._block.job cimport JOB_QUEUED
from aioqemu._block.job cimport JOB_RUNNING
from aioqemu._block.job cimport OP_CLOSE
from aioqemu._block.job cimport OP_FAIL
from aioqemu._block.job cimport OP_FALLOCATE
from aioqemu._block.job cimport OP_FDATASYNC
from aioqemu._block.job cimport OP_FSYNC
from aioqemu._block.job cimport OP_FTRUNCATE
from aioqemu._block.job cimport OP_OPENAT
from aioqemu._block.job cimport OP_READ
from aioqemu._block.job cimport OP_STATX
from aioqemu._block.job cimport OP_WRITE
from aioqemu._block.job cimport AioJob
from aioqemu._block.job cimport job_push
from aioqemu._block.job cimport job_unlink
from aioqemu._block.linux_aio cimport LinuxAio
from aioqemu._block.threads cimport ThreadPool
from aioqemu._engine.context cimport AioContext
from aioqemu._engine.context cimport Service
from aioqemu._engine.lists cimport done_pop
from aioqemu._engine.lists cimport done_push
from aioqemu._engine.types cimport CqeHandler
from aioqemu._sys.file cimport RWF_NOWAIT
from aioqemu._sys.file cimport aq_preadv
from aioqemu._sys.file cimport aq_statx
from aioqemu._sys.libc cimport EAGAIN
from aioqemu._sys.libc cimport ECANCELED
from aioqemu._sys.libc cimport EINTR
from aioqemu._sys.libc cimport EINVAL
from aioqemu._sys.libc cimport EIO
from aioqemu._sys.libc cimport ENOMEM
from aioqemu._sys.libc cimport close
from aioqemu._sys.libc cimport iovec
from aioqemu._sys.uring cimport AQ_OP_ASYNC_CANCEL
from aioqemu._sys.uring cimport AQ_OP_CLOSE
from aioqemu._sys.uring cimport AQ_OP_FALLOCATE
from aioqemu._sys.uring cimport AQ_OP_FSYNC
from aioqemu._sys.uring cimport AQ_OP_FTRUNCATE
from aioqemu._sys.uring cimport AQ_OP_OPENAT
from aioqemu._sys.uring cimport AQ_OP_READ
from aioqemu._sys.uring cimport AQ_OP_READV
from aioqemu._sys.uring cimport AQ_OP_STATX
from aioqemu._sys.uring cimport AQ_OP_WRITE
from aioqemu._sys.uring cimport AQ_OP_WRITEV
from aioqemu._sys.uring cimport aq_has_op
from aioqemu._sys.uring cimport aq_ring
from aioqemu._sys.uring cimport aq_ring_exit
from aioqemu._sys.uring cimport aq_ring_setup
from aioqemu._sys.uring cimport aq_sqe

cdef extern from "stdlib.h" nogil:
    int posix_memalign(void **out, size_t alignment, size_t size)

cdef extern from "errno.h" nogil:
    enum:
        ENOSPC

cdef enum:
    RETRIES_MAX = 1000           # of EAGAIN and EINTR
    IOV_MAX = 1024
    FSYNC_DATASYNC = 1

# Most that one call transfers (MAX_RW_COUNT).
cdef int64_t TRANSFER_MAX = 0x7ffff000

cpdef enum Engine:
    AUTO = 0
    URING = 1
    THREADS = 2
    AIO = 3
    NULL_DEVICE = 4

cpdef enum Kind:
    RET_INT = 0                  # what the system call gave
    RET_COUNT = 1                # bytes that the user wanted
    RET_BYTES = 2
    RET_NONE = 3
    RET_ZERO = 4                 # QEMU's: 0 for success
    RET_VALUE = 5                # `value`, or value(ret) if that can be called

cpdef enum Op:
    READ = 0
    WRITE = 1
    FSYNC = 2
    FDATASYNC = 3
    FALLOCATE = 4
    FTRUNCATE = 5
    STATX = 6
    OPENAT = 7
    CLOSE = 8
    COPY = 9
    BLKDISCARD = 10
    BLKZEROOUT = 11
    NOTHING = 12

OP_NAMES = ("read", "write", "fsync", "fdatasync", "fallocate", "truncate", "statx",
            "openat", "close", "copy", "discard", "write_zeroes", "none")

# The operation of the ring for each of ours, 0 for none, and which the kernel has.
cdef int[13] RING_OPS
RING_OPS[:] = [AQ_OP_READV, AQ_OP_WRITEV, AQ_OP_FSYNC, AQ_OP_FSYNC, AQ_OP_FALLOCATE,
               AQ_OP_FTRUNCATE, AQ_OP_STATX, AQ_OP_OPENAT, AQ_OP_CLOSE, 0, 0, 0, 0]
cdef bint[13] ring_has
cdef bint ring_probed = False


cdef void _probe_ring() noexcept:
    global ring_probed
    cdef aq_ring ring
    cdef int i
    ring_probed = True
    if aq_ring_setup(&ring, 4, 8, 0) < 0:
        return
    for i in range(13):
        ring_has[i] = RING_OPS[i] != 0 and aq_has_op(&ring, RING_OPS[i])
    aq_ring_exit(&ring)


cdef class BlockPool(AIOPool):
    """Where block requests come from; each is made anew and lives once.

    A request is released by its driver.  Releasing one in flight is refused: the kernel
    still has its memory.
    """

    cdef int put(self, BlockDriverAIOCB acb, bint guarded) except -1:
        if acb.pool is not self:
            raise RuntimeError("the request is not of this pool")
        if acb.state == ACB_FREE:
            raise RuntimeError("the request has been released before")
        if acb.state == ACB_IN_FLIGHT or acb.state == ACB_COMPLETING:
            raise RuntimeError("the request is in flight: cancel it or wait for it")
        acb.state = ACB_FREE
        acb.cb = None
        acb.opaque = None
        return 0


cdef class Gate:
    """Lets `limit` requests through at a time, and none in a drained section."""

    def __init__(self, Py_ssize_t limit):
        if limit < 1:
            raise ValueError(f"max_in_flight must be at least 1, not {limit}")
        self.limit = limit
        self.waiting = collections.deque()
        self.watchers = []

    @property
    def n_waiting(self):
        """How many requests wait for their turn."""
        return len(self.waiting)

    def quiesce(self):
        """Let nothing through until as many calls of `resume`."""
        self.quiesced += 1

    def resume(self):
        """Undo one `quiesce`; what has waited starts, in order."""
        self.quiesced -= 1
        self.release()

    def watch(self, callback):
        """Have `callback()` called, once, when nothing is active; at once if so."""
        if self.active == 0:
            callback()
        else:
            self.watchers.append(callback)

    cdef int release(self) except -1:
        cdef BlockRequest req
        while self.waiting and self.active < self.limit and not self.quiesced:
            req = self.waiting.popleft()
            req.entered = True
            self.active += 1
            req.service._launch(req)
        return 0

    cdef int leave(self) except -1:
        cdef list watchers
        self.active -= 1
        if self.waiting:
            self.release()
        if self.active == 0 and self.watchers:
            watchers = self.watchers
            self.watchers = []
            for callback in watchers:
                callback()
        return 0


cdef int _job_done(void *opaque) except -1:
    cdef BlockRequest req = <BlockRequest>opaque
    cdef int64_t ret = req.job.cqe.res
    cdef int64_t step
    cdef BlockService service = req.service
    req.job.state = JOB_IDLE
    if req.cut_from != NULL:
        req.job.iov = req.cut_from
        req.job.niov = req.cut_niov
        req.cut_from = NULL
    if (ret == -EINTR or ret == -EAGAIN) and not req.asked and not service.closing and (
            req.retries < RETRIES_MAX and not req.job.flags & RWF_NOWAIT):
        req.retries += 1
        service._launch(req)
        return 0
    if (req.asked or service.closing) and (ret == -EINTR or ret == -EAGAIN):
        ret = -ECANCELED
    if ret >= 0 and req.full and (req.job.op == OP_READ or req.job.op == OP_WRITE):
        step = ret
        if req.align > 1 and req.moved + step < req.total:
            step -= (req.moved + step) % req.align
        if req.moved + ret < req.head + req.wanted:
            if req.asked or service.closing:
                ret = -ECANCELED
            elif step <= 0:
                req.retries += 1
                if ret and req.retries < 16 and req.job.op == OP_WRITE:
                    step = 0     # less than the unit of the file: the same again
                elif req.job.op == OP_READ:
                    if req.what is None:
                        req.what = "the file ends before the range that is read"
                    ret = -EIO
                else:
                    ret = -ENOSPC
            if ret >= 0:
                _go_on(req, step)
                service._launch(req)
                return 0
        else:
            ret = req.total
    req._over(ret)
    return 0


cdef void _go_on(BlockRequest req, int64_t n) noexcept:
    """Take what was transferred off the front of what is to be."""
    cdef AioJob *job = &req.job
    req.moved += n
    job.offset += n
    while n and n >= <int64_t>job.iov.iov_len:
        n -= <int64_t>job.iov.iov_len
        job.iov += 1
        job.niov -= 1
    if n:
        job.iov.iov_base = <char *>job.iov.iov_base + n
        job.iov.iov_len -= <size_t>n


cdef class BlockRequest(BlockDriverAIOCB):
    """A block request: submitted when it is made, awaitable, and QEMU's AIOCB.

    Awaiting it gives the result or raises OSError.  Cancelling the await asks the kernel
    to cancel; CancelledError comes out when the kernel has let go of the buffers.
    """

    def __cinit__(self):
        memset(&self.job, 0, sizeof(self.job))
        self.align = 1

    def __dealloc__(self):
        # Never linked, or over; a lost one is never deallocated.
        self._drop_memory()

    @property
    def op(self):
        """What it does: "read", "write", "fdatasync", ..."""
        return OP_NAMES[self.job.op]

    @property
    def offset(self):
        """Where in the file the part that is still to be transferred begins."""
        return self.job.offset

    @property
    def length(self):
        """How many bytes are still to be transferred, or the length of the range."""
        return self.total - self.moved if self.total else self.job.length

    def complete(self, ret):
        """Not for users: the kernel completes a block request."""
        raise RuntimeError("a block request is completed by its engine")

    cdef int _setup_iov(self) except -1:
        """From the views to the iovecs of the job."""
        cdef Py_ssize_t i
        cdef iovec *iov = &self.job.one
        if self.n_views > 1:
            iov = <iovec *>malloc(self.n_views * sizeof(iovec))
            if iov == NULL:
                raise MemoryError()
            self.iov_heap = iov
        self.total = 0
        for i in range(self.n_views):
            iov[i].iov_base = self.views[i].buf
            iov[i].iov_len = <size_t>self.views[i].len
            self.total += self.views[i].len
        if self.total > 0x7fffffffffffffff - self.job.offset:
            self.what = f"{self.total} bytes at {self.job.offset} are beyond all files"
        self.job.iov = iov
        self.job.niov = <int>self.n_views
        self.wanted = self.total
        return 0

    cdef int _bounce(self, Py_ssize_t mem_align) except -1:
        """Use aligned memory of our own, for a whole number of the file's units."""
        cdef int64_t start = self.job.offset - self.job.offset % self.align
        cdef int64_t end = self.job.offset + self.total
        cdef int64_t place = 0
        cdef Py_ssize_t i
        cdef void *memory = NULL
        cdef int err
        end += (self.align - end % self.align) % self.align
        err = posix_memalign(&memory, mem_align if mem_align > 512 else 512,
                             <size_t>(end - start) if end > start else 1)
        if err:
            raise MemoryError()
        self.bounce = <char *>memory
        self.head = self.job.offset - start
        if self.job.op == OP_WRITE:
            for i in range(self.n_views):
                memcpy(self.bounce + place, self.views[i].buf, <size_t>self.views[i].len)
                place += self.views[i].len
        self.job.offset = start
        self.total = end - start
        self.job.one.iov_base = self.bounce
        self.job.one.iov_len = <size_t>self.total
        self.job.iov = &self.job.one
        self.job.niov = 1
        return 0

    cdef void _drop_memory(self) noexcept:
        cdef Py_ssize_t i
        cdef Py_buffer *views = self.views
        cdef Py_ssize_t n = self.n_views
        self.views = NULL
        self.n_views = 0
        for i in range(n):
            PyBuffer_Release(&views[i])
        free(views)
        free(self.iov_heap)
        self.iov_heap = NULL
        free(self.bounce)
        self.bounce = NULL

    cdef int _over(self, int64_t ret) except -1:
        """The kernel has nothing of it any more: tell everybody, once."""
        cdef BlockService service = self.service
        cdef int64_t place = 0
        cdef Py_ssize_t i
        cdef Gate gate = self.gate
        cdef object held = self      # the list's reference is dropped below
        if ret >= 0 and self.bounce != NULL and self.job.op == OP_READ:
            place = self.head
            if self.kind == RET_BYTES:
                self.value = PyBytes_FromStringAndSize(
                    self.bounce + place, <Py_ssize_t>self.wanted)
            else:
                for i in range(self.n_views):
                    memcpy(self.views[i].buf, self.bounce + place,
                           <size_t>self.views[i].len)
                    place += self.views[i].len
        self._drop_memory()
        if self.job.op == OP_OPENAT and ret >= 0 and self.cancel_wanted:
            close(<int>ret)          # nobody will ever know its number
        if self.after is not None:
            after = self.after
            self.after = None
            try:
                ret = after(ret)
            except BaseException as exc:
                self.ctx.report("Exception at the end of a block request", exc,
                                {"request": self})
        self.hook = None
        self.steps = None
        self.child = None
        if ret >= 0:
            if self.kind == RET_BYTES:
                if not self.full and ret < len(self.value):
                    self.value = self.value[:ret]
            elif self.kind == RET_COUNT:
                ret = self.wanted
            elif self.kind == RET_ZERO or self.kind == RET_NONE:
                ret = 0
            elif self.kind == RET_VALUE and callable(self.value):
                try:
                    self.value = self.value(ret)
                except Exception as exc:
                    self.what = f"the result cannot be read: {exc!r}"
                    ret = -EIO
        else:
            self.value = None
        service._unlink(self)
        try:
            if service.closing:
                self.forget_waiters()
            self.finish(ret)
        finally:
            if self.entered:
                self.entered = False
                gate.leave()
        return 0

    cdef int forget_waiters(self) except -1:
        if self.loop is not None and self.loop.is_closed():
            self.waiter = None       # nobody can be told any more
            self.waiter_context = None
            self.more_waiters = None
        return 0

    cdef int request_cancel(self) except -1:
        return self.service._cancel(self)

    cdef object _exception(self):
        if self.done() and not self.cancel_wanted and self.result_code < 0:
            code = -self.result_code
            text = os.strerror(code)
            if self.what is not None:
                text = f"{text}: {self.what}"
            if self.filename is not None:
                return OSError(code, text, self.filename)
            return OSError(code, text)
        return BlockDriverAIOCB._exception(self)

    def result(self):
        """What awaiting gives.

        Raises:
            OSError: the request has failed.
            CancelledError: `cancel` ended it.
            InvalidStateError: it is in flight.
        """
        exc = self._exception()
        if exc is not None:
            raise exc
        if self.kind == RET_BYTES or self.kind == RET_VALUE:
            return self.value
        if self.kind == RET_NONE:
            return None
        return self.result_code


cdef class BlockService(Service):
    """Takes the block requests of one context; `service_of` makes it."""

    def __init__(self, AioContext ctx not None):
        ctx.check_usable()
        if ctx.service is not None:
            raise RuntimeError("the AioContext has a block service already")
        self.ctx = ctx
        self.requests = BlockPool(None, BlockRequest)
        self.pool = None
        self.aio = None
        self.first = self.last = NULL
        self.pending.head = self.pending.tail = NULL
        self.read_now_bytes = 1 << 20
        self.budget = self.read_now_bytes
        self.max_threads = 64
        self.counts = collections.Counter()
        if not ring_probed:
            _probe_ring()
        ctx.service = self

    # -- engines --------------------------------------------------------------------------

    @property
    def context(self):
        """The AioContext."""
        return self.ctx

    @property
    def threads(self):
        """How many threads the pool has now."""
        return 0 if self.pool is None else self.pool.threads

    @property
    def in_flight(self):
        """How many requests there are, those that wait for their turn included."""
        cdef PyObject *op = self.first
        cdef Py_ssize_t n = 0
        while op != NULL:
            n += 1
            op = (<BlockRequest>op).behind
        return n

    def engine_of(self, int op, int engine):
        """Which engine serves an operation if `engine` was picked for its file."""
        if engine == URING and (op == READ or op == WRITE or (
                0 <= op < 13 and ring_has[op])):
            return Engine.URING
        if engine == AIO and (op == READ or op == WRITE):
            return Engine.AIO
        if engine == NULL_DEVICE:
            return Engine.NULL_DEVICE
        return Engine.THREADS

    cdef ThreadPool _threads(self):
        if self.pool is None:
            self.pool = ThreadPool(self.ctx, self.max_threads)
        return self.pool

    def use_linux_aio(self):
        """Make the Linux AIO context.

        Raises:
            OSError: the kernel refuses.
        """
        if self.aio is None:
            self.aio = LinuxAio(self.ctx)

    # -- making requests --------------------------------------------------------------------

    cdef int _check_thread(self) except -1:
        self.ctx.check_usable()
        if self.closing:
            raise RuntimeError("the AioContext is closing")
        if self.ctx.home != 0 and self.ctx.home != PyThread_get_thread_ident():
            raise RuntimeError("block requests are made in the context's own thread")
        return 0

    cdef BlockRequest _new(self, object bs, object cb, object opaque, int op, int fd):
        cdef BlockRequest req
        self._check_thread()
        req = <BlockRequest>self.requests.take(self.ctx, cb, opaque)
        if bs is not None:
            req.bs = bs
        req.service = self
        req.job.op = op
        req.job.fd = fd
        return req

    def rw(self, int op, int fd, buffers, offset, int flags, int engine, *,
           bint full=False, int kind=RET_COUNT, Gate gate=None, bs=None, cb=None,
           opaque=None, filename=None, what=None, int64_t align=1, int64_t mem_align=1,
           after=None, hook=None, bint now=False):
        """Transfer between a file and buffers; see device.py and the public module.

        Args:
            op: READ or WRITE.
            buffers: a list of buffers; for `kind` RET_BYTES a number of bytes.
            full: go on after short transfers, and fail if that does not help.
            align: unit of the file, if reads must keep to it; `mem_align` that of memory.
            now: answer from the page cache on the spot if that is possible.
            after: called with the result, gives what the result shall be.
            hook: called with the request before each submission.

        Raises:
            TypeError: a buffer is no buffer.
            BufferError, ValueError: it is not contiguous, or read-only for reading.
            RuntimeError: not in the context's thread, or the context is closed.
        """
        cdef BlockRequest req = self._new(bs, cb, opaque, op, fd)
        cdef Py_ssize_t i, n
        cdef int how
        cdef bint aligned = True
        req.kind = kind
        req.full = full
        req.engine = engine
        req.gate = gate
        req.filename = filename
        req.what = what
        req.after = after
        req.hook = hook
        req.align = align
        req.job.flags = <uint32_t>flags
        try:
            if kind == RET_BYTES:
                n = buffers
                req.value = PyBytes_FromStringAndSize(NULL, n)
                req.job.one.iov_base = PyBytes_AS_STRING(req.value)
                req.job.one.iov_len = <size_t>n
                req.job.iov = &req.job.one
                req.job.niov = 1
                req.total = req.wanted = n
            else:
                n = len(buffers)
                req.views = <Py_buffer *>calloc(n if n else 1, sizeof(Py_buffer))
                if req.views == NULL:
                    raise MemoryError()
                how = PyBUF_WRITABLE if op == READ else PyBUF_SIMPLE
                for i in range(n):
                    PyObject_GetBuffer(buffers[i], &req.views[i], how)
                    req.n_views = i + 1
            if not 0 <= offset <= 0x7fffffffffffffff:
                req.what = f"offset {offset} is out of range"
                return self._failed(req, EINVAL)
            req.job.offset = offset
            if kind != RET_BYTES:
                if n > IOV_MAX and not full:
                    req.what = f"{n} buffers are more than {IOV_MAX}"
                    return self._failed(req, EINVAL)
                req._setup_iov()
            if req.total > 0x7fffffffffffffff - req.job.offset:
                req.what = f"{req.total} bytes at {offset} are beyond all files"
                return self._failed(req, EINVAL)
            if align > 1 or mem_align > 1:
                if op == READ:
                    aligned = req.job.offset % align == 0 and req.total % align == 0
                for i in range(req.job.niov):
                    if <uintptr_t>req.job.iov[i].iov_base % <uintptr_t>mem_align or (
                            req.job.iov[i].iov_len % <size_t>align):
                        aligned = False
                if not aligned and req.total:
                    req._bounce(mem_align)
        except BaseException:
            req._drop_memory()
            raise
        if req.job.niov == 0 or req.total == 0 and full:
            req.job.op = OP_FAIL     # nothing to do: succeeds
            req.job.cqe.res = 0
        elif now and op == READ and cb is None and req.total <= self.budget and (
                hook is None and (gate is None or not gate.quiesced)):
            if self._read_now(req):
                return req
        self._start(req)
        return req

    cdef bint _read_now(self, BlockRequest req) except -1:
        cdef int64_t ret
        if req.job.niov > IOV_MAX or req.bounce != NULL:
            return False
        ret = aq_preadv(req.job.fd, req.job.iov, req.job.niov, req.job.offset, RWF_NOWAIT)
        if ret != req.total:
            return False
        self.budget -= <Py_ssize_t>ret
        req._drop_memory()
        if req.kind != RET_COUNT and req.kind != RET_INT:
            ret = 0
        req.finish(ret)
        return True

    def control(self, int op, int fd, int engine, *, offset=0, length=0, int flags=0,
                unsigned int mode=0, path=None, out=None, int fd2=-1, offset2=0,
                int kind=RET_NONE, value=None, Gate gate=None, bs=None, cb=None,
                opaque=None, filename=None, what=None, after=None, hook=None):
        """Do anything else with a file: sync, fallocate, truncate, statx, open, close."""
        cdef BlockRequest req = self._new(bs, cb, opaque, op, fd)
        req.kind = kind
        req.engine = engine
        req.gate = gate
        req.filename = filename
        req.what = what
        req.after = after
        req.hook = hook
        req.job.flags = <uint32_t>flags
        req.job.mode = mode
        req.job.fd2 = fd2
        req.value = value
        for name, number in (("offset", offset), ("length", length),
                             ("target offset", offset2)):
            if not 0 <= number <= 0x7fffffffffffffff:
                req.what = f"{name} {number} is out of range"
                return self._failed(req, EINVAL)
        if offset + length > 0x7fffffffffffffff:
            req.what = f"{length} bytes at {offset} are beyond all files"
            return self._failed(req, EINVAL)
        req.job.offset = offset
        req.job.length = length
        req.job.offset2 = offset2
        if path is not None:
            # Held by the view until the end; bytes end with a NUL.
            if not isinstance(path, bytes) or b"\0" in path:
                req.what = "embedded null byte in the path"
                return self._failed(req, EINVAL)
            req.job.path = PyBytes_AS_STRING(path)
        req.views = <Py_buffer *>calloc(2, sizeof(Py_buffer))
        if req.views == NULL:
            raise MemoryError()
        try:
            if path is not None:
                PyObject_GetBuffer(path, &req.views[0], PyBUF_SIMPLE)
                req.n_views = 1
            if out is not None:
                PyObject_GetBuffer(out, &req.views[req.n_views], PyBUF_WRITABLE)
                req.n_views += 1
                req.job.out = req.views[req.n_views - 1].buf
        except BaseException:
            req._drop_memory()
            raise
        self._start(req)
        return req

    def fail(self, int err, str what=None, *, bs=None, cb=None, opaque=None,
             filename=None, after=None):
        """A request that fails with an errno, as a submission never does."""
        cdef BlockRequest req = self._new(bs, cb, opaque, NOTHING, -1)
        req.what = what
        req.filename = filename
        req.after = after
        return self._failed(req, err)

    def ready(self, int kind, value, int64_t ret=0, *, Gate gate=None, bs=None, cb=None,
              opaque=None, hook=None, after=None, filename=None):
        """A request that succeeds with a value in the next pass; so the null device."""
        cdef BlockRequest req = self._new(bs, cb, opaque, NOTHING, -1)
        req.kind = kind
        req.value = value
        req.full = True
        req.wanted = ret
        req.gate = gate
        req.hook = hook
        req.after = after
        req.filename = filename
        req.job.cqe.res = 0
        req.engine = NULL_DEVICE
        self._start(req)
        return req

    def parked(self):
        """A request that waits until `unpark` ends it."""
        cdef BlockRequest req = self._new(None, None, None, NOTHING, -1)
        req.kind = RET_NONE
        self._link(req)
        req.job.state = JOB_IDLE
        return req

    def unpark(self, BlockRequest req not None):
        """End a parked request."""
        if req.linked and req.job.state == JOB_IDLE:
            self._end_soon(req, 0)

    def compound(self, steps, *, int kind=RET_NONE, int64_t wanted=0, value=None,
                 Gate gate=None, bs=None, cb=None, opaque=None, filename=None,
                 after=None):
        """A request made of others: a generator that yields them, one at a time.

        Each `yield` gives the result code of the request; what is returned is that of
        the whole, None for 0.  An OSError that it raises is the result, too.
        """
        cdef BlockRequest req = self._new(bs, cb, opaque, NOTHING, -1)
        req.kind = kind
        req.wanted = wanted
        req.value = value
        req.full = True
        req.gate = gate
        req.filename = filename
        req.after = after
        req.steps = steps
        self._start(req)
        return req

    def _failed(self, BlockRequest req, int err):
        req._drop_memory()
        req.gate = None
        req.job.op = OP_FAIL
        self._link(req)
        self._end_soon(req, -err)
        return req

    # -- the way of a request ----------------------------------------------------------------

    cdef void _link(self, BlockRequest req) noexcept:
        req.linked = True
        Py_INCREF(req)
        req.behind = NULL
        req.before = self.last
        if self.last == NULL:
            self.first = <PyObject *>req
        else:
            (<BlockRequest>self.last).behind = <PyObject *>req
        self.last = <PyObject *>req

    cdef void _unlink(self, BlockRequest req) noexcept:
        if not req.linked:
            return
        req.linked = False
        if req.before == NULL:
            self.first = req.behind
        else:
            (<BlockRequest>req.before).behind = req.behind
        if req.behind == NULL:
            self.last = req.before
        else:
            (<BlockRequest>req.behind).before = req.before
        req.before = req.behind = NULL
        Py_DECREF(req)

    cdef int _start(self, BlockRequest req) except -1:
        cdef Gate gate = req.gate
        self._link(req)
        if gate is not None:
            if gate.quiesced or gate.active >= gate.limit or gate.waiting:
                gate.waiting.append(req)
                return 0
            req.entered = True
            gate.active += 1
        self._launch(req)
        return 0

    cdef int _launch(self, BlockRequest req) except -1:
        """Give it to its engine, now or, where a fault injector says so, later."""
        if req.asked:
            return self._end_soon(req, -ECANCELED)
        if req.hook is not None:
            try:
                verdict = req.hook(req)
            except Exception as exc:
                self.ctx.report("Exception in a fault rule", exc, {"request": req})
                verdict = -EIO
            if verdict is not None:
                if isinstance(verdict, int):
                    return self._end_soon(req, verdict)
                self._delay(req, verdict)
                return 0
        if req.steps is not None:
            self._advance(req, None)
            return 0
        return self._issue(req)

    def _delay(self, BlockRequest req, seconds):
        req.timer = self.ctx.timer_new(self._delayed, req)
        req.timer.mod(self._monotonic_ns() + <int64_t>(seconds * 1e9))

    def _monotonic_ns(self):
        import time
        return time.monotonic_ns()

    def _delayed(self, BlockRequest req):
        req.timer = None
        if req.steps is not None:
            self._advance(req, None)
        else:
            self._issue(req)

    def shorten(self, BlockRequest req not None, int64_t n):
        """Have the next submission transfer only `n` bytes; for fault injection."""
        n = n if n < req.align else n - n % req.align    # or the kernel refuses it
        n = n if n > req.align else req.align
        if req.job.niov < 1 or not 0 < n < <int64_t>req.job.iov.iov_len:
            return
        if req.cut_from == NULL:
            req.cut_from = req.job.iov
            req.cut_niov = req.job.niov
        req.cut.iov_base = req.cut_from.iov_base
        req.cut.iov_len = <size_t>n
        req.job.iov = &req.cut
        req.job.niov = 1

    cdef int _end_soon(self, BlockRequest req, int ret) noexcept:
        """End it in the next pass, without any engine."""
        req.job.cqe.cb = _job_done
        req.job.cqe.opaque = <void *>req
        req.job.cqe.res = ret
        req.job.engine = AUTO
        req.job.state = JOB_RUNNING
        done_push(&self.ctx.st, &req.job.cqe)
        if self.ctx.always_write:
            self.ctx.wake()
        return 0

    cdef int _issue(self, BlockRequest req) except -1:
        cdef AioJob *job = &req.job
        cdef int engine = req.engine
        job.cqe.cb = _job_done
        job.cqe.opaque = <void *>req
        if job.op == OP_FAIL:
            return self._end_soon(req, job.cqe.res)
        if engine == URING and ring_has[job.op]:
            job.engine = URING
            if self.pending.head != NULL or not self._to_ring(job):
                job.state = JOB_PENDING
                job_push(&self.pending, job)
                self.ctx.wake()
            elif self.ctx.always_write:
                self.ctx.wake()
            return 0
        if engine == AIO and self.aio is not None and (
                job.op == OP_READ or job.op == OP_WRITE):
            job.engine = AIO
            self.aio.add(job)
            if self.ctx.always_write:
                self.ctx.wake()
            return 0
        job.engine = THREADS
        try:
            self._threads().submit(job)
        except OSError as exc:
            return self._end_soon(req, -(exc.errno or EIO))
        except MemoryError:
            return self._end_soon(req, -ENOMEM)
        return 0

    cdef bint _to_ring(self, AioJob *job) noexcept:
        cdef aq_sqe *sqe
        cdef int op = job.op
        cdef int64_t n
        if self.ctx.mon_thread != self.ctx.home or self.ctx.mon.waiting:
            return False             # the ring is another thread's, or in use there
        sqe = self.ctx.mon.add_sqe(&job.cqe)
        if sqe == NULL:
            return False
        job.state = JOB_RUNNING
        sqe.fd = job.fd
        sqe.opcode = <unsigned char>RING_OPS[op]
        if op == OP_READ or op == OP_WRITE:
            if job.niov == 1:
                sqe.opcode = AQ_OP_READ if op == OP_READ else AQ_OP_WRITE
                n = <int64_t>job.iov.iov_len
                sqe.addr = <uint64_t><uintptr_t>job.iov.iov_base
                sqe.len = <uint32_t>(n if n < TRANSFER_MAX else TRANSFER_MAX)
            else:
                sqe.addr = <uint64_t><uintptr_t>job.iov
                sqe.len = <uint32_t>(job.niov if job.niov < IOV_MAX else IOV_MAX)
            sqe.off = <uint64_t>job.offset
            sqe.op_flags = job.flags
        elif op == OP_FDATASYNC:
            sqe.op_flags = FSYNC_DATASYNC
        elif op == OP_FALLOCATE:
            sqe.off = <uint64_t>job.offset
            sqe.addr = <uint64_t>job.length
            sqe.len = job.flags
        elif op == OP_FTRUNCATE:
            sqe.off = <uint64_t>job.length
        elif op == OP_STATX:
            sqe.addr = <uint64_t><uintptr_t>job.path
            sqe.len = job.flags
            sqe.off = <uint64_t><uintptr_t>job.out
            sqe.op_flags = job.mode
        elif op == OP_OPENAT:
            sqe.addr = <uint64_t><uintptr_t>job.path
            sqe.len = job.mode
            sqe.op_flags = job.flags
        return True

    # -- requests made of requests ------------------------------------------------------------

    cdef int _advance(self, BlockRequest req, object ret) except -1:
        cdef BlockRequest child
        cdef object result
        try:
            if req.asked or self.closing:
                req.steps.close()
                result = -ECANCELED
            else:
                child = req.steps.send(ret)
                if child.done():
                    raise RuntimeError("a step is over before it was waited for")
                child.cb = _child_over
                child.opaque = req
                req.child = child
                return 0
        except StopIteration as exc:
            result = exc.value
        except OSError as exc:
            result = -(exc.errno or EIO)
            if req.what is None and exc.strerror:
                req.what = exc.strerror
        except BaseException as exc:
            result = -EIO
            req.what = f"{exc!r}"
            self.ctx.report("Exception in a step of a block request", exc,
                            {"request": req})
        self._end_soon(req, result or 0)
        return 0

    # -- cancelling ---------------------------------------------------------------------------

    cdef int _cancel(self, BlockRequest req) except -1:
        cdef AioJob *job = &req.job
        if not req.linked:
            return 0
        if req.gate is not None and not req.entered:
            try:
                req.gate.waiting.remove(req)
            except ValueError:
                return 0             # over: its completion is being told
            return self._end_soon(req, -ECANCELED)
        if req.timer is not None:
            req.timer.delete()
            req.timer = None
            return self._end_soon(req, -ECANCELED)
        if req.child is not None:
            req.child._ask()
            return 0
        if job.state == JOB_PENDING:
            job_unlink(&self.pending, job)
            return self._end_soon(req, -ECANCELED)
        if job.state == JOB_IDLE:
            if req.job.op == OP_FAIL and req.steps is None:
                return self._end_soon(req, -ECANCELED)    # parked
            return 0
        if job.engine == THREADS:
            self.pool.cancel(job)
        elif job.engine == AIO:
            if self.aio.cancel(job):
                self._end_soon(req, -ECANCELED)
        elif job.engine == URING and not self._tell_ring(req):
            req.kernel_has = True
            self.untold = True
            self.ctx.wake()
        return 0

    cdef bint _tell_ring(self, BlockRequest req) noexcept:
        cdef aq_sqe *sqe
        if self.ctx.mon_thread != self.ctx.home or self.ctx.mon.waiting:
            return False
        sqe = self.ctx.mon.add_sqe(NULL)
        if sqe == NULL:
            return False
        self.ctx.mon.requests -= 1   # it has no CqeHandler
        sqe.user_data = 0            # nobody's: collect() drops its completion
        sqe.opcode = AQ_OP_ASYNC_CANCEL
        sqe.fd = -1
        sqe.addr = <uint64_t><uintptr_t>&req.job.cqe | 1
        if self.ctx.always_write:
            self.ctx.wake()
        return True

    # -- the context's calls --------------------------------------------------------------------

    cdef int submit(self) except -1:
        cdef AioJob *job
        cdef BlockRequest req
        cdef PyObject *op
        while self.pending.head != NULL:
            job = self.pending.head
            if not self._to_ring(job):
                break
            job_unlink(&self.pending, job)
        if self.untold:
            self.untold = False
            op = self.first
            while op != NULL:
                req = <BlockRequest>op
                if req.kernel_has:
                    req.kernel_has = False
                    if req.job.state == JOB_RUNNING and not self._tell_ring(req):
                        req.kernel_has = True
                        self.untold = True
                op = req.behind
        if self.aio is not None and self.aio.queue.head != NULL:
            self.aio.submit()
        return 0

    cdef int collect(self) noexcept:
        self.budget = self.read_now_bytes
        if self.pool is not None:
            self.pool.collect(&self.ctx.st)
        return 0

    def flush(self):
        """Hand everything that was prepared to the kernel now."""
        self._check_thread()
        if self.ctx.mon_thread == self.ctx.home:
            self.submit()
            self.ctx.mon.flush()

    cdef int shut(self, bint child) except -1:
        cdef PyObject *op
        cdef BlockRequest req
        cdef CqeHandler *cqe
        cdef list everyone = []
        cdef int rounds, left
        self.closing = True
        op = self.first
        while op != NULL:
            req = <BlockRequest>op
            everyone.append(req)
            op = req.behind
        if child:
            # Nothing of it happens in this process.
            if self.pool is not None:
                self.pool.stop(True)
            if self.aio is not None:
                self.aio.stop(True)
            for req in everyone:
                self._unlink(req)
            return 0
        for req in everyone:
            try:
                req.asked = True
                self._cancel(req)
            except BaseException as exc:
                self.ctx.report("Exception while a context closes", exc, {"request": req})
        # Completions may start what waited: it ends at once, since it has been asked.
        for rounds in range(3):
            if self.pool is not None:
                self.pool.stop(False)
                self.pool = None
            if self.aio is not None:
                self.aio.stop(False)
            if self.untold or self.pending.head != NULL:
                self.submit()
            left = self.ctx.mon.settle(5000)
            while True:
                cqe = done_pop(&self.ctx.st)
                if cqe == NULL:
                    break
                try:
                    cqe.cb(cqe.opaque)
                except BaseException as exc:
                    self.ctx.report("Exception while a context closes", exc, {})
            if self.first == NULL or left:
                break
        while self.first != NULL:
            # The kernel has it and does not give it back (its ring is another thread's).
            # The memory must outlive that: it is never freed.
            req = <BlockRequest>self.first
            req.lost = True
            Py_INCREF(req)
            self._unlink(req)
            req.forget_waiters()
            req.finish(-ECANCELED)
        self.ctx.mon.requests = 0
        return 0


def _child_over(BlockRequest parent not None, ret):
    parent.child = None
    parent.service._advance(parent, ret)


def service_of(AioContext ctx not None):
    """The block service of a context, made when it is first asked for."""
    ctx.check_usable()
    if ctx.service is None:
        BlockService(ctx)
    return ctx.service


# What is in flight is referred to by the list alone; the collector must see it there, or
# a context that was dropped with requests in flight would never be found.

cdef extern from *:
    """
    static traverseproc aq_service_traverse;
    static inline void aq_service_traverse_set(PyTypeObject *t, traverseproc f)
    { aq_service_traverse = t->tp_traverse; t->tp_traverse = f; }
    """
    ctypedef int (*visitproc)(PyObject *, void *) noexcept
    ctypedef int (*traverseproc)(PyObject *, visitproc, void *) noexcept
    int aq_service_traverse(PyObject *op, visitproc visit, void *arg) noexcept
    void aq_service_traverse_set(PyTypeObject *t, traverseproc f)


cdef int _traverse(PyObject *op, visitproc visit, void *arg) noexcept:
    cdef PyObject *one = (<BlockService>op).first
    cdef int err = aq_service_traverse(op, visit, arg)
    while err == 0 and one != NULL:
        err = visit(one, arg)
        one = (<BlockRequest>one).behind
    return err


aq_service_traverse_set(<PyTypeObject *>BlockService, _traverse)


def statx_now(int fd, int flags, unsigned int mask, out not None):
    """Fill `out`, 256 bytes at least, with the statx of an open file; 0 or -errno."""
    cdef Py_buffer view
    PyObject_GetBuffer(out, &view, PyBUF_WRITABLE)
    try:
        if view.len < 256:
            raise ValueError("statx needs 256 bytes")
        return aq_statx(fd, b"", flags, mask, view.buf)
    finally:
        PyBuffer_Release(&view)


def address_of(memory not None):
    """Where the memory of a buffer begins."""
    cdef Py_buffer view
    PyObject_GetBuffer(memory, &view, PyBUF_SIMPLE)
    address = <uintptr_t>view.buf
    PyBuffer_Release(&view)
    return address


def size_of(memory not None):
    """How many bytes a contiguous buffer has; TypeError or BufferError if it is none."""
    cdef Py_buffer view
    PyObject_GetBuffer(memory, &view, PyBUF_SIMPLE)
    size = view.len
    PyBuffer_Release(&view)
    return size
