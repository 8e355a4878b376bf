"""Jobs as requests of an io_uring.

On a context that runs on io_uring its own ring is used: one submission per pass for fds,
timers and disk.  On any other backend the engine makes a ring of its own, whose
completions are announced by an fd that the context watches; that is one more system call
per batch each way.

A ring belongs to one thread.  When the context has moved to another and nothing is in
flight, a private ring is made anew there; the context does the same with its own.
"""

from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport int64_t
from libc.stdint cimport uint32_t
from libc.stdint cimport uint64_t
from libc.stdint cimport uintptr_t
from libc.string cimport memset

from aioqemu._block.job cimport JOB_PENDING
from aioqemu._block.job cimport JOB_RUNNING
from aioqemu._block.job cimport OP_COUNT
from aioqemu._block.job cimport OP_FALLOCATE
from aioqemu._block.job cimport OP_FDATASYNC
from aioqemu._block.job cimport OP_FTRUNCATE
from aioqemu._block.job cimport OP_OPENAT
from aioqemu._block.job cimport OP_READ
from aioqemu._block.job cimport OP_STATX
from aioqemu._block.job cimport OP_WRITE
from aioqemu._block.job cimport AioJob
from aioqemu._block.job cimport job_niov
from aioqemu._block.job cimport job_push
from aioqemu._block.job cimport job_size
from aioqemu._block.job cimport job_unlink
from aioqemu._engine.context cimport AioContext
from aioqemu._engine.lists cimport done_pop
from aioqemu._engine.lists cimport done_push
from aioqemu._engine.types cimport AIO_OWNER_INTERNAL
from aioqemu._engine.types cimport CqeHandler
from aioqemu._sys.libc cimport EAGAIN
from aioqemu._sys.libc cimport EBUSY
from aioqemu._sys.libc cimport EINTR
from aioqemu._sys.libc cimport POLLIN
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

from aioqemu._engine import backends

cdef enum:
    FSYNC_DATASYNC = 1
    # A disk that answers in batches would wait for the end of the pass that serves one;
    # so much is a batch, and few enough to keep it busy.
    EAGER_BATCH = 4
    # Through the page cache the kernel copies while it submits, on our time: from this size
    # on a thread of its own does it.
    ASYNC_BYTES = 128 * 1024
    IOSQE_ASYNC = 1 << 4

# Most that one call transfers (MAX_RW_COUNT).
cdef int64_t TRANSFER_MAX = 0x7ffff000

# The operation of the ring for each of ours, 0 for none, and which the kernel has.
cdef int[OP_COUNT] RING_OPS
RING_OPS[:] = [AQ_OP_READV, AQ_OP_WRITEV, AQ_OP_FSYNC, AQ_OP_FSYNC, AQ_OP_FALLOCATE,
               AQ_OP_FTRUNCATE, AQ_OP_STATX, AQ_OP_OPENAT, AQ_OP_CLOSE, 0, 0, 0, 0, 0]
cdef bint[OP_COUNT] ring_has
cdef bint ring_probed = False


cdef void _probe() noexcept:
    global ring_probed
    cdef aq_ring ring
    cdef int i
    ring_probed = True
    if aq_ring_setup(&ring, 4, 8, 0) < 0:
        return
    for i in range(OP_COUNT):
        ring_has[i] = RING_OPS[i] != 0 and aq_has_op(&ring, RING_OPS[i])
    aq_ring_exit(&ring)


cdef bint ring_can(int op) noexcept:
    if not ring_probed:
        _probe()
    return 0 <= op < OP_COUNT and ring_has[op]


cdef int _announced(void *opaque) except -1:
    (<RingEngine>opaque).collect()
    return 0


cdef class RingEngine:
    def __init__(self, AioContext ctx not None):
        """Use the ring of the context, or make one.

        Raises:
            OSError: the kernel refuses.
        """
        cdef int fd
        if not ring_probed:
            _probe()
        self.ctx = ctx
        memset(&self.st, 0, sizeof(self.st))
        if ctx.mon.name == "io_uring":
            self.mon = ctx.mon
            return
        refusal = backends.uring_refusal()
        if refusal is not None:
            raise OSError(refusal.errno, refusal.strerror)
        self.private = True
        self.mon = backends.FdMonUring()
        self.mon.st = &self.st
        fd = self.mon.outer_fd()
        if fd < 0:
            self.mon.close(False)
            raise OSError(-fd, "cannot watch a ring of its own")
        self.node = ctx.watch(fd, AIO_OWNER_INTERNAL, POLLIN, _announced, NULL, self)

    cdef bint _ready(self) noexcept:
        """Is there a ring, and may this thread use it now?"""
        cdef unsigned long here
        if not self.private:
            return self.ctx.mon_thread == self.ctx.home and not self.ctx.mon.waiting
        if self.broken:
            return False
        here = PyThread_get_thread_ident()
        if self.thread != here:
            if self.ctx.home != here or self.mon.requests:
                return False
            try:
                self.mon.start()
            except Exception as exc:
                self._break(-(getattr(exc, "errno", None) or EAGAIN))
                return False
            self.thread = here
        return True

    cdef bint add(self, AioJob *job, bint eager) noexcept:
        if self.broken:
            return False
        if self.pending.head != NULL or not self._put(job, eager):
            if self.broken:
                return False
            job.state = JOB_PENDING
            job_push(&self.pending, job)
            self.ctx.wake()
        elif self.ctx.always_write:
            self.ctx.wake()
        elif eager:
            self.prepared += 1
            if self.prepared >= EAGER_BATCH:
                self.prepared = 0
                self.mon.flush()     # a failure is met again by the wait
        return True

    cdef bint _put(self, AioJob *job, bint eager) noexcept:
        cdef aq_sqe *sqe
        cdef int op = job.op
        cdef int64_t n
        if not self._ready():
            return False
        sqe = self.mon.add_sqe(&job.cqe)
        if sqe == NULL:
            return False
        job.state = JOB_RUNNING
        job.cqe.res = NO_RESULT
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
                sqe.len = <uint32_t>job_niov(job)
            sqe.off = <uint64_t>job.offset
            sqe.op_flags = job.flags
            if not eager and job_size(job) >= ASYNC_BYTES:
                sqe.flags = IOSQE_ASYNC
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

    cdef bint take_back(self, AioJob *job) noexcept:
        if job.state != JOB_PENDING:
            return False
        job_unlink(&self.pending, job)
        return True

    cdef bint tell_cancel(self, AioJob *job) noexcept:
        cdef aq_sqe *sqe
        if not self._ready():
            return False
        sqe = self.mon.add_sqe(NULL)
        if sqe == NULL:
            return False
        self.mon.requests -= 1       # it has no CqeHandler
        sqe.user_data = 0            # nobody's: collect() drops its completion
        sqe.opcode = AQ_OP_ASYNC_CANCEL
        sqe.fd = -1
        sqe.addr = <uint64_t><uintptr_t>&job.cqe | 1
        if self.ctx.always_write:
            self.ctx.wake()
        return True

    cdef int submit(self) noexcept:
        cdef AioJob *job
        cdef int err
        self.prepared = 0
        while self.pending.head != NULL:
            job = self.pending.head
            if not self._put(job, False):
                break
            job_unlink(&self.pending, job)
        if self.private and self.thread != 0 and not self.broken:
            err = self.mon.flush()
            if err < 0 and err != -EINTR and err != -EAGAIN and err != -EBUSY:
                self._break(err)
            self._take_done()
        return 0

    cdef int collect(self) noexcept:
        cdef int err
        if not self.private or self.thread == 0 or self.broken:
            return 0
        self.mon.prepare()               # before looking, so that nothing is missed
        if self.mon.has_work():
            err = self.mon.wait(0)
            if err < 0 and err != -EINTR:
                self._break(err)
                return 0
            self._take_done()
        return 0

    cdef int _take_done(self) noexcept:
        cdef CqeHandler *cqe
        self.mon.collect()
        while True:
            cqe = done_pop(&self.st)
            if cqe == NULL:
                return 0
            done_push(&self.ctx.st, cqe)

    cdef void _break(self, int err) noexcept:
        """The kernel refuses from now on: what it does not have goes elsewhere."""
        cdef AioJob *job
        self.broken = err
        self.mon.give_back()             # with -EAGAIN: they are launched again
        self._take_done()
        self.lost = True
        self.ctx.wake()
        while self.pending.head != NULL:
            job = self.pending.head
            job_unlink(&self.pending, job)
            job.cqe.res = -EAGAIN
            done_push(&self.ctx.st, &job.cqe)

    cdef int settle(self, int limit_ms) noexcept:
        cdef int left
        if self.broken:
            return 0                     # nobody waits for what it had
        left = self.mon.settle(limit_ms)
        if self.private:
            self._take_done()
        return left

    cdef int stop(self, bint child) noexcept:
        if self.private:
            # The context forgets the node by itself: it is closing.
            self.mon.close(child)
        else:
            self.mon.requests = 0
        return 0
