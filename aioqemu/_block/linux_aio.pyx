"""Linux AIO by raw system calls; completions are announced by an eventfd.

Knows jobs only.  Submissions are batched: what is queued goes out right before the
context waits.  Requests that have been submitted cannot be cancelled; no disk driver of
the kernel supports it.
"""

from libc.stdint cimport uint64_t
from libc.stdint cimport uintptr_t
from libc.string cimport memset

from aioqemu._block.job cimport JOB_QUEUED
from aioqemu._block.job cimport JOB_RUNNING
from aioqemu._block.job cimport OP_READ
from aioqemu._block.job cimport AioJob
from aioqemu._block.job cimport job_niov
from aioqemu._block.job cimport job_push
from aioqemu._block.job cimport job_unlink
from aioqemu._engine.context cimport AioContext
from aioqemu._engine.lists cimport done_push
from aioqemu._engine.types cimport AIO_OWNER_INTERNAL
from aioqemu._sys.file cimport aq_io_destroy
from aioqemu._sys.file cimport aq_io_event
from aioqemu._sys.file cimport aq_io_getevents
from aioqemu._sys.file cimport aq_io_setup
from aioqemu._sys.file cimport aq_io_submit
from aioqemu._sys.libc cimport EAGAIN
from aioqemu._sys.libc cimport EFD_CLOEXEC
from aioqemu._sys.libc cimport EFD_NONBLOCK
from aioqemu._sys.libc cimport EINTR
from aioqemu._sys.libc cimport POLLIN
from aioqemu._sys.libc cimport close
from aioqemu._sys.libc cimport errno
from aioqemu._sys.libc cimport eventfd
from aioqemu._sys.libc cimport read
from aioqemu._sys.libc cimport timespec

cdef enum:
    CMD_PREADV = 7
    CMD_PWRITEV = 8
    FLAG_RESFD = 1


def unavailable():
    """None if Linux AIO works here, else the OSError why not."""
    cdef unsigned long aio = 0
    cdef int err = aq_io_setup(1, &aio)
    if err < 0:
        return OSError(-err, "io_setup was refused")
    aq_io_destroy(aio)
    return None


cdef int _ready(void *opaque) except -1:
    (<LinuxAio>opaque).collect()
    return 0


cdef class LinuxAio:
    def __init__(self, AioContext ctx not None):
        cdef int err
        self.efd = -1
        self.ctx = ctx
        err = aq_io_setup(AIO_DEPTH, &self.aio)
        if err < 0:
            raise OSError(-err, "io_setup was refused")
        self.efd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        if self.efd < 0:
            err = errno
            aq_io_destroy(self.aio)
            raise OSError(err, "cannot create an eventfd")
        self.node = ctx.watch(self.efd, AIO_OWNER_INTERNAL, POLLIN, _ready, NULL, self)

    cdef void add(self, AioJob *job) noexcept:
        job.state = JOB_QUEUED
        job_push(&self.queue, job)
        self.n_queued += 1

    cdef bint cancel(self, AioJob *job) noexcept:
        if job.state != JOB_QUEUED:
            return False
        job_unlink(&self.queue, job)
        self.n_queued -= 1
        return True

    cdef int submit(self) noexcept:
        cdef AioJob *job
        cdef aq_iocb *cb
        cdef int n, _i, ret
        while self.queue.head != NULL and self.in_kernel < AIO_DEPTH:
            n = 0
            job = self.queue.head
            while job != NULL and n < AIO_DEPTH - self.in_kernel:
                cb = &self.cbs[n]
                memset(cb, 0, sizeof(cb[0]))
                cb.data = <uint64_t><uintptr_t>job
                cb.opcode = CMD_PREADV if job.op == OP_READ else CMD_PWRITEV
                cb.fd = job.fd
                cb.rw_flags = <int>job.flags
                cb.buf = <uint64_t><uintptr_t>job.iov
                cb.nbytes = job_niov(job)
                cb.offset = job.offset
                cb.flags = FLAG_RESFD
                cb.resfd = self.efd
                self.list[n] = cb
                n += 1
                job = job.next
            # The jobs leave the queue only when they are taken: the kernel tells how
            # many, always from the front.
            ret = aq_io_submit(self.aio, n, self.list)
            if ret == -EINTR:
                continue
            if ret < 0:
                if ret == -EAGAIN and self.in_kernel:
                    return 0        # again when something has completed
                job = self.queue.head
                job_unlink(&self.queue, job)
                self.n_queued -= 1
                job.state = JOB_RUNNING
                job.cqe.res = ret
                done_push(&self.ctx.st, &job.cqe)
                continue
            for _i in range(ret):
                job = self.queue.head
                job_unlink(&self.queue, job)
                self.n_queued -= 1
                job.state = JOB_RUNNING
            self.in_kernel += ret
        return 0

    cdef int collect(self) noexcept:
        cdef aq_io_event events[64]
        cdef timespec ts
        cdef uint64_t count
        cdef int n, i
        cdef AioJob *job
        if self.efd < 0:
            return 0
        read(self.efd, &count, 8)    # before looking, so that nothing is missed
        ts.tv_sec = 0
        ts.tv_nsec = 0
        while self.in_kernel:
            n = aq_io_getevents(self.aio, 0, 64, events, &ts)
            if n == -EINTR:
                continue
            if n <= 0:
                return 0
            self.in_kernel -= n
            for i in range(n):
                job = <AioJob *><uintptr_t>events[i].data
                job.cqe.res = <int>events[i].res
                done_push(&self.ctx.st, &job.cqe)
        return 0

    cdef int stop(self, bint child) noexcept:
        cdef aq_io_event event
        cdef AioJob *job
        cdef int n
        if self.efd < 0:
            return 0
        if not child:
            while self.in_kernel:
                with nogil:
                    n = aq_io_getevents(self.aio, 1, 1, &event, NULL)
                if n == 1:
                    self.in_kernel -= 1
                    job = <AioJob *><uintptr_t>event.data
                    job.cqe.res = <int>event.res
                    done_push(&self.ctx.st, &job.cqe)
                elif n != -EINTR:
                    break
            aq_io_destroy(self.aio)  # waits for what is left
        # The context forgets the node by itself: it is closing.
        close(self.efd)
        self.efd = -1
        return 0
