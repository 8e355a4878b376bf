"""One block request: its buffers, its way through short transfers, its completion.

Knows no engine, no device and no asyncio; service.pyx hands requests to engines.

Invariant: from its submission to `over` a request is linked into its service's list,
which holds a reference; so whatever becomes of who awaits it, its buffers stay exported
and its memory stays, until the kernel or the thread that has it has given it back.
`over` runs exactly once, from the dispatch of the context, never inside the call that
submits.  The only exception are reads that were answered from the page cache on the
spot: those are over when the call returns, have never been linked, and have no callback.
"""

import collections
import os

from cpython.buffer cimport PyBUF_SIMPLE
from cpython.buffer cimport PyBUF_WRITABLE
from cpython.buffer cimport PyBuffer_Release
from cpython.buffer cimport PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.bytes cimport PyBytes_CheckExact
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.object cimport PyTypeObject
from cpython.ref cimport Py_DECREF
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t
from libc.stdint cimport uintptr_t
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
from aioqemu._block.job cimport OP_OPENAT
from aioqemu._block.job cimport OP_READ
from aioqemu._block.job cimport OP_WRITE
from aioqemu._block.job cimport AioJob
from aioqemu._engine.core cimport Service
from aioqemu._sys.file cimport RWF_NOWAIT
from aioqemu._sys.libc cimport EAGAIN
from aioqemu._sys.libc cimport ECANCELED
from aioqemu._sys.libc cimport EINTR
from aioqemu._sys.libc cimport EIO
from aioqemu._sys.libc cimport close
from aioqemu._sys.libc cimport iovec

cdef extern from "stdlib.h" nogil:
    int posix_memalign(void **out, size_t alignment, size_t size)

cdef extern from "errno.h" nogil:
    enum:
        ENOSPC

cdef enum:
    RETRIES_MAX = 1000           # of EAGAIN and EINTR
    SHORT_MAX = 16               # of transfers of less than a unit

OP_NAMES = ("read", "write", "fsync", "fdatasync", "fallocate", "truncate", "statx",
            "openat", "close", "copy", "discard", "write_zeroes", "none", "map")


cdef class BlockPool(AIOPool):
    """Where block requests come from; each is made anew and lives once.

    A request is released by its driver.  Releasing one in flight is refused: the kernel
    still has its memory.
    """

    def __init__(self):
        self.aiocb_type = BlockRequest

    cdef BlockDriverAIOCB take(self, object bs, object cb, object opaque):
        raise RuntimeError("block requests are made by their device")

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
        self.waiting = collections.OrderedDict()
        self.watchers = []
        self.resumers = []

    @property
    def n_waiting(self):
        """How many requests wait for their turn."""
        return self.queued

    def quiesce(self):
        """Let nothing through until as many calls of `resume`."""
        self.quiesced += 1

    def resume(self):
        """Undo one `quiesce`; what has waited starts, in order."""
        cdef list resumers
        self.quiesced -= 1
        self.release()
        if not self.quiesced and self.resumers:
            resumers = self.resumers
            self.resumers = []
            for callback in resumers:
                callback()

    @property
    def busy(self):
        """How many are with the engines, or soon will be."""
        return self.active - self.idle

    def watch(self, callback):
        """Have `callback()` called, once, when nothing is busy; at once if so."""
        if self.active == self.idle:
            callback()
        else:
            self.watchers.append(callback)

    def watch_resume(self, callback):
        """Have `callback()` called, once, when the last drained section ends."""
        self.resumers.append(callback)

    def rest(self):
        """One of the active waits for another device: it touches nothing here."""
        self.idle += 1
        self._tell()

    def go_on(self):
        """Undo one `rest`."""
        self.idle -= 1

    def hold(self):
        """Count in what another device has let through, beyond the limit."""
        self.active += 1

    def let_go(self):
        """Undo one `hold`."""
        self.leave()

    cdef bint enter(self, BlockRequest req) except -1:
        if self.quiesced or self.active >= self.limit or self.queued:
            self.waiting[req] = None
            self.queued += 1
            return False
        req.entered = True
        self.active += 1
        return True

    cdef bint forget(self, BlockRequest req) except -1:
        if req not in self.waiting:
            return False
        del self.waiting[req]
        self.queued -= 1
        return True

    def turn_away(self):
        """End what waits: it will never be let through."""
        cdef BlockRequest req
        for req in list(self.waiting):
            req.what = "the device was closed while the request waited"
            req.service.cancel(req)

    cdef int release(self) except -1:
        cdef BlockRequest req
        while self.queued and self.active < self.limit and not self.quiesced:
            req = self.waiting.popitem(False)[0]
            self.queued -= 1
            req.entered = True
            self.active += 1
            req.service.launch(req)
        return 0

    cdef int leave(self) except -1:
        self.active -= 1
        if self.queued:
            self.release()
        if self.watchers:
            self._tell()
        return 0

    cdef int _tell(self) except -1:
        cdef list watchers
        if self.active == self.idle and self.watchers:
            watchers = self.watchers
            self.watchers = []
            for callback in watchers:
                callback()
        return 0


cdef class Launcher(Service):
    cdef void link(self, BlockRequest req) noexcept:
        pass

    cdef void unlink(self, BlockRequest req) noexcept:
        pass

    cdef int launch(self, BlockRequest req) except -1:
        raise NotImplementedError

    cdef int cancel(self, BlockRequest req) except -1:
        raise NotImplementedError


cdef int job_done(void *opaque) except -1:
    cdef BlockRequest req = <BlockRequest>opaque
    cdef int64_t ret = req.job.cqe.res
    cdef int64_t step
    cdef Launcher service = req.service
    cdef bint ending = req.asked or service.closing
    req.job.state = JOB_IDLE
    if ret == -ECANCELED and not ending and req.job.engine == URING:
        # By nobody here: the kernel had no thread to do it with.
        req.engine = THREADS
        ret = -EAGAIN
    if req.cut != NULL:
        req.job.iov = req.cut.iov
        req.job.niov = req.cut.niov
        free(req.cut)
        req.cut = NULL
    if ret == -EINTR or ret == -EAGAIN:
        if ending:
            ret = -ECANCELED
        elif req.retries < RETRIES_MAX and not req.job.flags & RWF_NOWAIT:
            req.retries += 1
            service.launch(req)
            return 0
    if ret < 0 or not req.full or (req.job.op != OP_READ and req.job.op != OP_WRITE):
        req.over(ret)
        return 0
    if req.moved + ret >= req.head + req.wanted:
        req.over(req.total)
        return 0
    step = ret
    if req.align > 1:
        step -= (req.moved + step) % req.align
    if ending:
        ret = -ECANCELED
    elif step <= 0:
        req.retries += 1
        if ret and req.retries < SHORT_MAX and req.job.op == OP_WRITE:
            step = 0             # less than the unit of the file: the same again
        elif req.job.op == OP_READ:
            if req.what is None:
                req.what = "the file ends before the range that is read"
            ret = -EIO
        else:
            ret = -ENOSPC
    if ret < 0:
        req.over(ret)
    else:
        _go_on(req, step)
        service.launch(req)
    return 0


cdef int _too_late(void *opaque) except -1:
    return 0                 # of a request that was abandoned


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
        # All fields are zero here; so is the job.
        self.align = 1

    def __init__(self):
        raise TypeError("block requests are made by their device")

    def __dealloc__(self):
        # Never linked, or over; one that the kernel kept is never deallocated.
        self.drop_memory()

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

    # -- memory ---------------------------------------------------------------------------

    cdef int take_bytes(self, Py_ssize_t n) except -1:
        self.value = PyBytes_FromStringAndSize(NULL, n)
        self.job.one.iov_base = PyBytes_AS_STRING(self.value)
        self.job.one.iov_len = <size_t>n
        self.job.iov = &self.job.one
        self.job.niov = 1
        self.total = self.wanted = n
        return 0

    cdef int _make_room(self, Py_ssize_t n) except -1:
        if n == 1:
            self.views = &self.lone.view
            return 0
        self.views = <Py_buffer *>malloc(n * (sizeof(Py_buffer) + sizeof(iovec)))
        if self.views == NULL:
            raise MemoryError()
        return 0

    cdef int take_buffer(self, object buffer, bint writable) except -1:
        cdef iovec *iov = &self.job.one
        if not writable and PyBytes_CheckExact(buffer):
            self.value = buffer      # nobody can change it: held, no more
            iov.iov_base = PyBytes_AS_STRING(buffer)
            iov.iov_len = <size_t>PyBytes_GET_SIZE(buffer)
        else:
            self._make_room(1)
            PyObject_GetBuffer(buffer, self.views,
                               PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
            self.n_views = 1
            iov.iov_base = self.views.buf
            iov.iov_len = <size_t>self.views.len
        self.job.iov = iov
        self.job.niov = 1
        self.total = self.wanted = <int64_t>iov.iov_len
        return 0

    cdef int take_buffers(self, object buffers, bint writable) except -1:
        cdef Py_ssize_t i
        cdef Py_ssize_t n = len(buffers)
        cdef int how = PyBUF_WRITABLE if writable else PyBUF_SIMPLE
        cdef iovec *iov
        if n == 0:
            return 0
        if n == 1:
            return self.take_buffer(buffers[0], writable)
        self._make_room(n)
        iov = <iovec *>(self.views + n)
        for i in range(n):
            try:
                PyObject_GetBuffer(buffers[i], &self.views[i], how)
            except (BufferError, TypeError, ValueError) as exc:
                raise type(exc)(f"buffer {i} of {n}: {exc}") from exc
            self.n_views = i + 1
            iov[i].iov_base = self.views[i].buf
            iov[i].iov_len = <size_t>self.views[i].len
            self.total += self.views[i].len
        self.job.iov = iov
        self.job.niov = <int>n
        self.wanted = self.total
        return 0

    cdef int align_memory(self) except -1:
        cdef int64_t mem_align = self.mem_align
        cdef int i
        cdef bint good = True
        self.mem_align = 0
        if self.job.op == OP_READ:
            good = self.job.offset % self.align == 0 and self.total % self.align == 0
        for i in range(self.job.niov):
            if <uintptr_t>self.job.iov[i].iov_base % <uintptr_t>mem_align or (
                    self.job.iov[i].iov_len % <size_t>self.align):
                good = False
                break
        if not good and self.total:
            self._bounce(<Py_ssize_t>mem_align)
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
            for i in range(self.job.niov):
                memcpy(self.bounce + place, self.job.iov[i].iov_base,
                       self.job.iov[i].iov_len)
                place += <int64_t>self.job.iov[i].iov_len
        self.job.offset = start
        self.total = end - start
        self.job.one.iov_base = self.bounce
        self.job.one.iov_len = <size_t>self.total
        self.job.iov = &self.job.one
        self.job.niov = 1
        return 0

    cdef void zero_memory(self) noexcept:
        cdef int i
        for i in range(self.job.niov):
            memset(self.job.iov[i].iov_base, 0, self.job.iov[i].iov_len)

    cdef void drop_memory(self) noexcept:
        cdef Py_ssize_t i
        cdef Py_buffer *views = self.views
        if views != NULL:
            self.views = NULL
            for i in range(self.n_views):
                PyBuffer_Release(&views[i])
            self.n_views = 0
            if views != &self.lone.view:
                free(views)
        if self.bounce != NULL:
            free(self.bounce)
            self.bounce = NULL
        if self.cut != NULL:
            free(self.cut)
            self.cut = NULL

    # -- the end --------------------------------------------------------------------------

    cdef int over(self, int64_t ret) except -1:
        cdef int64_t place = 0
        cdef Py_ssize_t i
        cdef Gate gate = self.gate
        cdef object _held = self     # the list's reference is dropped below
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
        self.drop_memory()
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
        if ret < 0:
            self.value = None
        elif self.kind == RET_COUNT:
            ret = self.wanted
            self.value = None
        elif self.kind == RET_BYTES:
            if not self.full and ret < len(self.value):
                self.value = self.value[:ret]
        elif self.kind == RET_ZERO or self.kind == RET_NONE:
            ret = 0
            self.value = None
        elif self.kind == RET_INT:
            self.value = None
        elif self.kind == RET_VALUE and callable(self.value):
            try:
                self.value = self.value(ret)
            except Exception as exc:
                self.what = f"the result cannot be read: {exc!r}"
                ret = -EIO
        self.service.unlink(self)
        try:
            if self.service.closing:
                self.forget_waiters()
            self.finish(ret)
        finally:
            if self.entered:
                self.entered = False
                gate.leave()
        return 0

    cdef int abandon(self, int64_t ret, str what) except -1:
        cdef Gate gate = self.gate
        Py_INCREF(self)
        self.job.cqe.cb = _too_late
        self.what = what
        self.service.unlink(self)
        if self.service.closing:
            self.forget_waiters()
        try:
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
        return 0 if self.service is None else self.service.cancel(self)

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

    cdef object _outcome(self):
        if self.result_code < 0 or self.cancel_wanted:
            raise self._exception()
        if self.kind == RET_BYTES or self.kind == RET_VALUE:
            return self.value
        if self.kind == RET_NONE:
            return None
        return self.result_code

    def result(self):
        """What awaiting gives.

        Raises:
            OSError: the request has failed.
            CancelledError: `cancel` ended it.
            InvalidStateError: it is in flight.
        """
        if not self.done():
            self._exception()        # raises
        return self._outcome()


# Requests have a free list: most of what one costs is else to be made and forgotten.

cdef extern from "Python.h":
    PyObject *PyObject_Init(PyObject *, PyTypeObject *)
    void PyObject_GC_Track(void *)
    void PyObject_GC_UnTrack(void *)
    bint PyObject_GC_IsFinalized(PyObject *)

cdef extern from *:
    """
    static destructor aq_request_dealloc;
    static inline void aq_set_request_dealloc(PyTypeObject *t, destructor d)
    { aq_request_dealloc = t->tp_dealloc; t->tp_dealloc = d; }
    static inline int aq_is_exactly(PyObject *op, PyTypeObject *t)
    { return Py_TYPE(op) == t; }
    """
    ctypedef void (*destructor)(PyObject *) noexcept
    void aq_request_dealloc(PyObject *op) noexcept
    void aq_set_request_dealloc(PyTypeObject *t, destructor d)
    bint aq_is_exactly(PyObject *op, PyTypeObject *t)

cdef enum:
    FREE_MAX = 256
    DEPTH_MAX = 20

cdef PyObject *free_requests[FREE_MAX]
cdef Py_ssize_t n_free_requests = 0
cdef int depth = 0                 # of _dealloc on the stack
cdef PyObject *unheld = NULL       # what waits for it to return, linked by `behind`
cdef PyTypeObject *REQUEST_TYPE = <PyTypeObject *>BlockRequest


cdef BlockRequest new_request():
    global n_free_requests
    cdef BlockRequest req
    cdef PyObject *op
    if not n_free_requests:
        return BlockRequest.__new__(BlockRequest)
    n_free_requests -= 1
    op = PyObject_Init(free_requests[n_free_requests], REQUEST_TYPE)
    PyObject_GC_Track(op)
    req = <BlockRequest>op
    Py_DECREF(req)      # PyObject_Init gave one reference, the cast took another
    return req


cdef void _dealloc(PyObject *op) noexcept:
    global depth, unheld
    # One that is counted is lost, which its finaliser has to tell; where that has run
    # already, the collector would not run it again for the next request.
    if ((<BlockRequest>op).counted or not aq_is_exactly(op, REQUEST_TYPE)
            or PyObject_GC_IsFinalized(op)):
        aq_request_dealloc(op)
        return
    PyObject_GC_UnTrack(op)
    if depth == DEPTH_MAX:
        # What a request holds may be another one, and so on: not one inside the other.
        (<BlockRequest>op).behind = unheld
        unheld = op
        return
    depth += 1
    _take_back(op)
    while depth == 1 and unheld != NULL:
        op = unheld
        unheld = (<BlockRequest>op).behind
        _take_back(op)
    depth -= 1


cdef void _take_back(PyObject *op) noexcept:
    global n_free_requests
    _blank(op)      # which may take others back
    if n_free_requests == FREE_MAX:
        aq_request_dealloc(op)
        return
    free_requests[n_free_requests] = op
    n_free_requests += 1


cdef void _blank(PyObject *op) noexcept:
    """Make a request that nobody holds like a new one."""
    # No variable of the type: each would take and drop a reference.
    (<BlockRequest>op).drop_memory()
    if (<BlockRequest>op).pool is not None:
        (<BlockRequest>op).pool = None
    if (<BlockRequest>op).bs is not None:
        (<BlockRequest>op).bs = None
    if (<BlockRequest>op).cb is not None:
        (<BlockRequest>op).cb = None
    if (<BlockRequest>op).opaque is not None:
        (<BlockRequest>op).opaque = None
    if (<BlockRequest>op).ctx is not None:
        (<BlockRequest>op).ctx = None
    if (<BlockRequest>op).unplaced is not None:
        (<BlockRequest>op).unplaced = None
    if (<BlockRequest>op).loop is not None:
        (<BlockRequest>op).loop = None
    if (<BlockRequest>op).waiter is not None:
        (<BlockRequest>op).waiter = None
    if (<BlockRequest>op).waiter_context is not None:
        (<BlockRequest>op).waiter_context = None
    if (<BlockRequest>op).more_waiters is not None:
        (<BlockRequest>op).more_waiters = None
    if (<BlockRequest>op).cancel_message is not None:
        (<BlockRequest>op).cancel_message = None
    if (<BlockRequest>op).service is not None:
        (<BlockRequest>op).service = None
    if (<BlockRequest>op).gate is not None:
        (<BlockRequest>op).gate = None
    if (<BlockRequest>op).value is not None:
        (<BlockRequest>op).value = None
    if (<BlockRequest>op).hook is not None:
        (<BlockRequest>op).hook = None
    if (<BlockRequest>op).after is not None:
        (<BlockRequest>op).after = None
    if (<BlockRequest>op).steps is not None:
        (<BlockRequest>op).steps = None
    if (<BlockRequest>op).child is not None:
        (<BlockRequest>op).child = None
    if (<BlockRequest>op).timer is not None:
        (<BlockRequest>op).timer = None
    if (<BlockRequest>op).what is not None:
        (<BlockRequest>op).what = None
    if (<BlockRequest>op).filename is not None:
        (<BlockRequest>op).filename = None
    (<BlockRequest>op).result_code = 0
    (<BlockRequest>op).stamp = 0
    (<BlockRequest>op).loop_thread = 0
    (<BlockRequest>op).life = 0
    (<BlockRequest>op).state = 0
    (<BlockRequest>op).asked = 0
    (<BlockRequest>op).asking = 0
    (<BlockRequest>op).cancel_wanted = 0
    (<BlockRequest>op).release_wanted = 0
    (<BlockRequest>op).guarded = 0
    (<BlockRequest>op)._asyncio_future_blocking = 0
    (<BlockRequest>op).linked = 0
    (<BlockRequest>op).entered = 0
    (<BlockRequest>op).full = 0
    (<BlockRequest>op).kernel_has = 0
    (<BlockRequest>op).zeroes = 0
    (<BlockRequest>op).engine = 0
    (<BlockRequest>op).kind = 0
    (<BlockRequest>op).retries = 0
    (<BlockRequest>op).moved = 0
    (<BlockRequest>op).total = 0
    (<BlockRequest>op).head = 0
    (<BlockRequest>op).wanted = 0
    (<BlockRequest>op).behind = NULL
    (<BlockRequest>op).align = 1
    (<BlockRequest>op).mem_align = 0
    memset(&(<BlockRequest>op).job, 0, sizeof(AioJob))


aq_set_request_dealloc(REQUEST_TYPE, _dealloc)
