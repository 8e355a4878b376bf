"""BlockService: makes the block requests of one context, and ends them when it closes.

Knows no device and no asyncio; the device's own rules are above, the engines below.
"""

import cython

from cpython.object cimport PyObject
from cpython.object cimport PyTypeObject
from cpython.buffer cimport PyBUF_SIMPLE
from cpython.buffer cimport PyBUF_WRITABLE
from cpython.buffer cimport PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport int64_t
from libc.stdint cimport uint32_t

from aioqemu._block.aiocb cimport ACB_IN_FLIGHT
from aioqemu._block.engines cimport Engines
from aioqemu._block.job cimport JOB_IDLE
from aioqemu._block.job cimport OP_FAIL
from aioqemu._block.job cimport OP_READ
from aioqemu._block.request cimport IOV_MAX
from aioqemu._block.request cimport RET_BYTES
from aioqemu._block.request cimport RET_COUNT
from aioqemu._block.request cimport RET_INT
from aioqemu._block.request cimport RET_NONE
from aioqemu._block.request cimport BlockPool
from aioqemu._block.request cimport BlockRequest
from aioqemu._block.request cimport Gate
from aioqemu._block.request cimport new_request
from aioqemu._engine.context cimport AioContext
from aioqemu._engine.lists cimport done_pop
from aioqemu._engine.types cimport CqeHandler
from aioqemu._sys.file cimport RWF_NOWAIT
from aioqemu._sys.file cimport aq_preadv
from aioqemu._sys.libc cimport ECANCELED
from aioqemu._sys.libc cimport EINVAL
from aioqemu._sys.libc cimport EIO

from operator import index

from aioqemu._engine import unclosed

cdef enum:
    SETTLE_MS = 5000         # how long close() waits for the kernel

cdef object _warn_unclosed = unclosed.warn_unclosed


@cython.final
cdef class _Both:
    """Two hooks, asked in order until one has something to say."""

    cdef object outer
    cdef object inner

    def __init__(self, outer, inner):
        self.outer = outer
        self.inner = inner

    def __call__(self, req):
        verdict = self.outer(req)
        return self.inner(req) if verdict is None else verdict


cdef class BlockService(Engines):
    """Takes the block requests of one context; `service_of` makes it."""

    def __cinit__(self, AioContext ctx not None):
        self.requests = BlockPool()
        self.read_now_bytes = 1 << 20
        self.budget = self.read_now_bytes
        ctx.service = self

    def swap_hook(self, hook):
        """Have `hook(request)` called before each submission of what is made from now on.

        It returns None to go on, a negative errno to fail, seconds to wait, or a pair of
        seconds and a negative errno, to fail late.  What it does not know: requests that
        fail before they are submitted.

        Returns:
            The hook that was there before, to be put back.
        """
        before = self.hook_now
        self.hook_now = hook
        return before

    # -- making requests ------------------------------------------------------------------

    cdef BlockRequest new(self, object bs, object cb, object opaque, int op, int fd):
        cdef BlockRequest req
        self.check_thread()
        if cb is not None and not callable(cb):
            raise TypeError(f"a callable object or None is expected, got {cb!r}")
        req = new_request()
        req.pool = self.requests
        req.bs = bs if bs is not None else self.ctx
        req.cb = cb
        req.opaque = opaque
        req.life = 1
        req.state = ACB_IN_FLIGHT
        req._count(self.ctx)
        req.service = self
        req.hook = self.hook_now
        req.job.op = op
        req.job.fd = fd
        return req

    cdef int hook_too(self, BlockRequest req, object hook) except -1:
        if hook is not None:
            req.hook = hook if req.hook is None else _Both(req.hook, hook)
        return 0

    def rw(self, int op, int fd, buffers, offset, int flags, int engine, *,
           bint full=False, int kind=RET_COUNT, Gate gate=None, bs=None, cb=None,
           opaque=None, filename=None, int64_t align=1, int64_t mem_align=1,
           after=None, bint now=False):
        """Transfer between a file and buffers.

        Args:
            op: READ or WRITE.
            buffers: a list of buffers; for `kind` RET_BYTES a number of bytes.
            full: go on after short transfers, and fail if that does not help.
            align: unit of the file, if transfers must keep to it; `mem_align` that of
                memory.
            after: called with the result, gives what the result shall be.
            now: answer from the page cache on the spot if that is possible.

        Raises:
            TypeError: a buffer is no buffer.
            BufferError, ValueError: it is not contiguous, or read-only for reading.
            RuntimeError: not in the context's thread, or the context is closed.
        """
        cdef BlockRequest req = self.new(bs, cb, opaque, op, fd)
        offset = index(offset)
        req.kind = <unsigned char>kind
        req.full = full
        req.engine = <unsigned char>engine
        req.gate = gate
        req.filename = filename
        req.after = after
        req.align = align
        req.job.flags = <uint32_t>flags
        if kind == RET_BYTES:
            req.take_bytes(buffers)
        else:
            req.take_buffers(buffers, op == OP_READ)
        if not 0 <= offset <= 0x7fffffffffffffff:
            self.fail_soon(req, EINVAL, f"offset {offset} is out of range")
        else:
            self.set_off(req, offset, mem_align, now)
        return req

    cdef int set_off(self, BlockRequest req, int64_t offset, int64_t mem_align,
                     bint now) except -1:
        if req.job.niov > IOV_MAX and not req.full:
            return self.fail_soon(
                req, EINVAL, f"{req.job.niov} buffers are more than {IOV_MAX}")
        if req.total > 0x7fffffffffffffff - offset:
            return self.fail_soon(
                req, EINVAL, f"{req.total} bytes at {offset} are beyond all files")
        req.job.offset = offset
        if req.align > 1 or mem_align > 1:
            req.mem_align = mem_align
        if req.job.niov == 0 and not req.full:
            req.job.iov = &req.job.one       # no bytes: the kernel still looks at the file
            req.job.niov = 1
        if req.job.niov == 0 or req.total == 0 and req.full:
            req.job.op = OP_FAIL     # nothing to do: succeeds
            req.job.cqe.res = 0
        elif now and req.total <= self.budget and req.job.op == OP_READ and (
                req.cb is None and req.hook is None and not req.mem_align and (
                    req.gate is None or not req.gate.quiesced)):
            if self._read_now(req):
                return 0
        return self.start(req)

    cdef bint _read_now(self, BlockRequest req) except -1:
        cdef int64_t ret
        if req.job.niov > IOV_MAX:
            return False
        ret = aq_preadv(req.job.fd, req.job.iov, req.job.niov, req.job.offset, RWF_NOWAIT)
        if ret != req.total:
            return False
        self.budget -= <Py_ssize_t>ret
        self.n_now += 1
        req.drop_memory()
        if req.kind != RET_COUNT and req.kind != RET_INT:
            ret = 0
        req.finish(ret)
        return True

    def control(self, int op, int fd, int engine, *, offset=0, length=0, int flags=0,
                unsigned int mode=0, path=None, out=None, int fd2=-1, offset2=0,
                int kind=RET_NONE, value=None, Gate gate=None, bs=None, cb=None,
                opaque=None, filename=None, after=None, hook=None):
        """Do anything else with a file: sync, fallocate, truncate, statx, open, close."""
        cdef BlockRequest req = self.new(bs, cb, opaque, op, fd)
        offset = index(offset)
        length = index(length)
        offset2 = index(offset2)
        self.hook_too(req, hook)
        req.kind = <unsigned char>kind
        req.engine = <unsigned char>engine
        req.gate = gate
        req.filename = filename
        req.after = after
        req.job.flags = <uint32_t>flags
        req.job.mode = mode
        req.job.fd2 = fd2
        req.value = value
        for name, number in (("offset", offset), ("length", length),
                             ("target offset", offset2)):
            if not 0 <= number <= 0x7fffffffffffffff:
                self.fail_soon(req, EINVAL, f"{name} {number} is out of range")
                return req
        if offset + length > 0x7fffffffffffffff:
            self.fail_soon(req, EINVAL, f"{length} bytes at {offset} are beyond all files")
            return req
        req.job.offset = offset
        req.job.length = length
        req.job.offset2 = offset2
        if path is not None:
            # Held by the view until the end; bytes end with a NUL.
            if not isinstance(path, bytes) or b"\0" in path:
                self.fail_soon(req, EINVAL, "embedded null byte in the path")
                return req
            req.job.path = PyBytes_AS_STRING(path)
        if path is not None or out is not None:
            req._make_room(2)
        if path is not None:
            PyObject_GetBuffer(path, &req.views[0], PyBUF_SIMPLE)
            req.n_views = 1
        if out is not None:
            PyObject_GetBuffer(out, &req.views[req.n_views], PyBUF_WRITABLE)
            req.n_views += 1
            req.job.out = req.views[req.n_views - 1].buf
        self.start(req)
        return req

    def fail(self, int err, str what=None, *, bs=None, cb=None, opaque=None,
             filename=None, after=None):
        """A request that fails with an errno, as a submission never does."""
        cdef BlockRequest req = self.new(bs, cb, opaque, OP_FAIL, -1)
        req.filename = filename
        req.after = after
        self.fail_soon(req, err, what)
        return req

    def parked(self):
        """A request that waits until `unpark` ends it."""
        cdef BlockRequest req = self.new(None, None, None, OP_FAIL, -1)
        req.kind = RET_NONE
        self.link(req)
        req.job.state = JOB_IDLE
        return req

    def unpark(self, BlockRequest req not None):
        """End a parked request."""
        if req.linked and req.job.state == JOB_IDLE:
            self.end_soon(req, 0)

    def compound(self, steps, *, int kind=RET_NONE, int64_t wanted=0, value=None,
                 Gate gate=None, bs=None, cb=None, opaque=None, filename=None,
                 after=None, hook=None):
        """A request made of others: a generator that yields them, one at a time.

        Each `yield` gives the result code of the request; what is returned is that of
        the whole, None for 0.  An OSError that it raises is the result, too.  Fault
        rules see the steps, not the whole.
        """
        cdef BlockRequest req = self.new(bs, cb, opaque, OP_FAIL, -1)
        self.hook_too(req, hook)
        req.kind = <unsigned char>kind
        req.wanted = wanted
        req.value = value
        req.full = True
        req.gate = gate
        req.filename = filename
        req.after = after
        req.steps = steps
        self.start(req)
        return req

    cdef int fail_soon(self, BlockRequest req, int err, str what) except -1:
        req.drop_memory()
        req.what = what
        req.gate = None
        req.job.op = OP_FAIL
        self.link(req)
        return self.end_soon(req, -err)

    cdef int start(self, BlockRequest req) except -1:
        self.link(req)
        if req.gate is None or req.gate.enter(req):
            self.launch(req)
        return 0

    # -- requests made of requests --------------------------------------------------------

    cdef int advance(self, BlockRequest req, object ret) except -1:
        cdef BlockRequest child
        cdef object result
        cdef object before = self.hook_now
        self.hook_now = req.hook     # what the steps make comes from who made the whole
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
        finally:
            self.hook_now = before
        self.end_soon(req, result or 0)
        return 0

    # -- the context's calls --------------------------------------------------------------

    cdef int collect(self) noexcept:
        self.budget = self.read_now_bytes
        return Engines.collect(self)

    cdef int shut(self, bint child) except -1:
        cdef PyObject *op
        cdef BlockRequest req
        cdef CqeHandler *cqe
        cdef list everyone = []
        cdef int _round
        cdef int left = 0
        self.closing = True
        op = self.first
        while op != NULL:
            req = <BlockRequest>op
            everyone.append(req)
            op = req.behind
        if child:
            # Nothing of it happens in this process.
            if self.pool is not None:
                self.pool.stop(True, 0)
            if self.aio is not None:
                self.aio.stop(True)
            if self.ring is not None:
                self.ring.stop(True)
            for req in everyone:
                self.unlink(req)
            return 0
        for req in everyone:
            try:
                req.asked = True
                self.cancel(req)
            except BaseException as exc:
                self.ctx.report("Exception while a context closes", exc, {"request": req})
        # Completions may start what waited: it ends at once, since it has been asked.
        for _round in range(3):
            if self.pool is not None:
                self.pool.stop(False, SETTLE_MS)
                self.pool = None
            if self.aio is not None:
                self.aio.stop(False)
            if self.ring is not None:
                self.submit()
                left = self.ring.settle(SETTLE_MS)
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
        self._give_up()
        if self.ring is not None:
            self.ring.stop(False)
        return 0

    cdef int _give_up(self) except -1:
        """The kernel has requests and does not give them back (its ring is another
        thread's, or the file never answers): their memory must outlive that, so it is
        never freed."""
        cdef BlockRequest req
        while self.first != NULL:
            req = <BlockRequest>self.first
            try:
                _warn_unclosed(
                    f"the kernel keeps the memory of a {req.op} of {req.length} bytes at "
                    f"{req.offset} (fd {req.job.fd}) beyond the close of its context: it "
                    "is leaked", req)
            except Exception as exc:     # warnings are errors
                self.ctx.report("Memory is leaked", exc, {"request": req})
            req.abandon(-ECANCELED, None)
        return 0


def _child_over(BlockRequest parent not None, ret):
    parent.child = None
    (<BlockService>parent.service).advance(parent, ret)


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
