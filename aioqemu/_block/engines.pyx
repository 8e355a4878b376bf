"""Engines: which engine serves a request, handing it over, taking it back.

Knows neither devices nor how requests are made (service.pyx); each engine has a module of
its own.
"""

import time

from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport Py_DECREF
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t
from libc.stdlib cimport malloc

from aioqemu._block.job cimport JOB_IDLE
from aioqemu._block.job cimport JOB_RUNNING
from aioqemu._block.job cimport OP_FAIL
from aioqemu._block.job cimport OP_READ
from aioqemu._block.job cimport OP_WRITE
from aioqemu._block.job cimport AioJob
from aioqemu._block.job cimport job_size
from aioqemu._block.linux_aio cimport LinuxAio
from aioqemu._block.request cimport AIO
from aioqemu._block.request cimport AUTO
from aioqemu._block.request cimport NULL_DEVICE
from aioqemu._block.request cimport THREADS
from aioqemu._block.request cimport URING
from aioqemu._block.request cimport BlockRequest
from aioqemu._block.request cimport Cut
from aioqemu._block.request cimport Launcher
from aioqemu._block.request cimport job_done
from aioqemu._block.ring cimport NO_RESULT
from aioqemu._block.ring cimport RingEngine
from aioqemu._block.ring cimport ring_can
from aioqemu._block.threads cimport ThreadPool
from aioqemu._engine.context cimport AioContext
from aioqemu._engine.lists cimport done_push
from aioqemu._sys.libc cimport ECANCELED
from aioqemu._sys.libc cimport EIO
from aioqemu._sys.libc cimport ENOMEM

from aioqemu._block.request import Engine

ENGINE_NAMES = ("auto", "io_uring", "threads", "linux_aio", "null")


cdef class Engines(Launcher):
    """The engines of one context, and the requests that they have."""

    def __cinit__(self, AioContext ctx not None):
        ctx.check_usable()
        if ctx.service is not None:
            raise RuntimeError("the AioContext has a block service already")
        self.ctx = ctx
        self.first = self.last = NULL
        self.max_threads = 64
        if ctx.mon.name == "io_uring":
            self.ring = RingEngine(ctx)

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

    def stats(self):
        """How many requests each engine has been given, and what else is counted."""
        return {
            "requests": {ENGINE_NAMES[i]: self.counts[i] for i in range(1, 5)},
            "read_now": self.n_now,
            "in_flight": self.in_flight,
            "threads": self.threads,
            "private_ring": self.ring is not None and self.ring.private,
        }

    # -- engines --------------------------------------------------------------------------

    def engine_of(self, int op, int engine):
        """Which engine serves an operation if `engine` was picked for its file."""
        if engine == NULL_DEVICE:
            return Engine.NULL_DEVICE
        if engine == URING and ring_can(op):
            return Engine.URING
        if engine == AIO and (op == OP_READ or op == OP_WRITE):
            return Engine.AIO
        return Engine.THREADS

    def use_ring(self):
        """Make a ring, unless the context has one.

        Raises:
            OSError: the kernel refuses, or has begun to.
        """
        if self.ring is None:
            self.ring = RingEngine(self.ctx)
        elif self.ring.broken:
            raise OSError(-self.ring.broken, "the io_uring has failed")

    def use_linux_aio(self):
        """Make the Linux AIO context.

        Raises:
            OSError: the kernel refuses.
        """
        if self.aio is None:
            self.aio = LinuxAio(self.ctx)

    cdef ThreadPool _threads(self):
        if self.pool is None:
            self.pool = ThreadPool(self.ctx, self.max_threads)
        return self.pool

    # -- the way of a request -------------------------------------------------------------

    cdef int check_thread(self) except -1:
        self.ctx.check_usable()
        if self.closing:
            raise RuntimeError("the AioContext is closing")
        if self.ctx.home != 0 and self.ctx.home != PyThread_get_thread_ident():
            raise RuntimeError("block requests are made in the context's own thread")
        return 0

    def check_home(self):
        """Raise RuntimeError in any thread but the context's own."""
        if not self.ctx.closed and self.ctx.home != 0 and (
                self.ctx.home != PyThread_get_thread_ident()):
            raise RuntimeError("a block device belongs to the thread of its context")

    cdef void link(self, BlockRequest req) noexcept:
        req.linked = True
        Py_INCREF(req)
        req.behind = NULL
        req.before = self.last
        if self.last == NULL:
            self.first = <PyObject *>req
        else:
            (<BlockRequest>self.last).behind = <PyObject *>req
        self.last = <PyObject *>req

    cdef void unlink(self, BlockRequest req) noexcept:
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

    cdef int advance(self, BlockRequest req, object ret) except -1:
        raise NotImplementedError

    cdef int launch(self, BlockRequest req) except -1:
        """Give it to its engine, now or, where a fault injector says so, later."""
        if req.asked:
            return self.end_soon(req, -ECANCELED)
        if req.steps is not None:
            return self.advance(req, None)
        if req.mem_align:
            # Not before its turn: what waits takes no memory.
            try:
                req.align_memory()
            except MemoryError:
                return self.end_soon(req, -ENOMEM)
        if req.hook is not None:
            try:
                verdict = req.hook(req)
                if isinstance(verdict, int):
                    if not -4096 < verdict < 0:
                        raise ValueError(f"a fault rule answered {verdict}")
                elif isinstance(verdict, tuple):
                    seconds, err = verdict
                    self._delay(req, seconds, err)
                    return 0
                elif verdict is not None:
                    self._delay(req, verdict, 0)
                    return 0
            except Exception as exc:
                self.ctx.report("Exception in a fault rule", exc, {"request": req})
                if req.timer is not None:
                    req.timer.delete()
                    req.timer = None
                verdict = -EIO
            if verdict is not None:
                return self.end_soon(req, verdict)
        return self._issue(req)

    def _delay(self, BlockRequest req, seconds, int err):
        """Submit it so much later, or have it fail with `err` then."""
        req.timer = self.ctx.timer_new(self._delayed, (req, err))
        req.timer.mod(time.monotonic_ns() + <int64_t>(seconds * 1e9))

    def _delayed(self, what):
        cdef BlockRequest req
        cdef int err
        req, err = what
        req.timer = None
        if err:
            self.end_soon(req, err)
        else:
            self._issue(req)

    def shorten(self, BlockRequest req not None, int64_t n):
        """Have the next submission transfer at most `n` bytes; for fault injection."""
        cdef int whole = 0                # buffers that fit
        cdef int64_t size = 0
        n = n if n < req.align else n - n % req.align    # or the kernel refuses it
        n = n if n > req.align else req.align
        if req.job.niov < 1 or n <= 0 or req.cut != NULL:
            return
        while whole < req.job.niov and size + <int64_t>req.job.iov[whole].iov_len <= n:
            size += <int64_t>req.job.iov[whole].iov_len
            whole += 1
        if whole == req.job.niov:
            return
        req.cut = <Cut *>malloc(sizeof(Cut))
        if req.cut == NULL:
            raise MemoryError()
        req.cut.iov = req.job.iov
        req.cut.niov = req.job.niov
        if size:
            req.job.niov = whole
            return
        req.job.iov += whole              # empty ones
        req.cut.part.iov_base = req.job.iov.iov_base
        req.cut.part.iov_len = <size_t>n
        req.job.iov = &req.cut.part
        req.job.niov = 1

    cdef int end_soon(self, BlockRequest req, int ret) noexcept:
        """End it in the next pass, without any engine."""
        req.job.cqe.cb = job_done
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
        job.cqe.cb = job_done
        job.cqe.opaque = <void *>req
        if job.op == OP_FAIL:
            return self.end_soon(req, job.cqe.res)
        if engine == NULL_DEVICE:
            self.counts[<int>NULL_DEVICE] += 1
            if job.op == OP_READ and req.zeroes:
                req.zero_memory()
            return self.end_soon(req, job_size(job))
        if engine == URING and self.ring is not None and ring_can(job.op):
            job.engine = URING
            if self.ring.add(job, req.align > 1 and not self.plugged):
                self.counts[<int>URING] += 1
                return 0
        if engine == AIO and self.aio is not None and (
                job.op == OP_READ or job.op == OP_WRITE):
            job.engine = AIO
            self.counts[<int>AIO] += 1
            self.aio.add(job)
            if self.aio.n_queued >= 8 and not self.plugged:
                self.aio.submit()
            if self.ctx.always_write:
                self.ctx.wake()
            return 0
        job.engine = THREADS
        self.counts[<int>THREADS] += 1
        try:
            self._threads().submit(job)
        except OSError as exc:
            return self.end_soon(req, -(exc.errno or EIO))
        except MemoryError:
            return self.end_soon(req, -ENOMEM)
        return 0

    # -- cancelling -----------------------------------------------------------------------

    cdef int cancel(self, BlockRequest req) except -1:
        cdef AioJob *job = &req.job
        if not req.linked:
            return 0
        if req.gate is not None and not req.entered:
            if req.gate.forget(req):
                self.end_soon(req, -ECANCELED)
            return 0                 # else it is over: its completion is being told
        if req.timer is not None:
            req.timer.delete()
            req.timer = None
            return self.end_soon(req, -ECANCELED)
        if req.child is not None:
            req.child._ask()
            return 0
        if job.state == JOB_IDLE:
            if job.op == OP_FAIL and req.steps is None:
                return self.end_soon(req, -ECANCELED)    # parked
            return 0
        if job.engine == THREADS:
            self.pool.cancel(job)
        elif job.engine == AIO:
            if self.aio.cancel(job):
                self.end_soon(req, -ECANCELED)
        elif job.engine == URING:
            if self.ring.take_back(job):
                self.end_soon(req, -ECANCELED)
            elif not self.ring.tell_cancel(job):
                req.kernel_has = True
                self.untold = True
                self.ctx.wake()
        return 0

    # -- the context's calls --------------------------------------------------------------

    cdef int _lose_ring(self) except -1:
        """A ring of its own failed: what the kernel has will never be heard of."""
        cdef BlockRequest req
        cdef PyObject *op = self.first
        cdef list lost = []
        self.ring.lost = False
        while op != NULL:
            req = <BlockRequest>op
            if req.job.engine == URING and req.job.state == JOB_RUNNING and (
                    req.job.cqe.res == NO_RESULT):
                lost.append(req)
            op = req.behind
        for req in lost:
            req.abandon(-EIO, "the io_uring failed while the kernel had the request")
        return 0

    cdef int submit(self) except -1:
        cdef BlockRequest req
        cdef PyObject *op
        if self.untold:
            self.untold = False
            op = self.first
            while op != NULL:
                req = <BlockRequest>op
                if req.kernel_has:
                    req.kernel_has = False
                    if req.job.state == JOB_RUNNING and not self.ring.tell_cancel(&req.job):
                        req.kernel_has = True
                        self.untold = True
                op = req.behind
        if self.ring is not None and (
                self.ring.pending.head != NULL or self.ring.private):
            self.ring.submit()
            if self.ring.lost:
                self._lose_ring()
        if self.aio is not None and self.aio.queue.head != NULL:
            self.aio.submit()
        return 0

    cdef int collect(self) noexcept:
        if self.pool is not None:
            self.pool.collect(&self.ctx.st)
        if self.ring is not None and self.ring.private:
            self.ring.collect()
        return 0

    def plug(self):
        """Keep what is prepared until as many calls of `unplug`, or the end of the pass."""
        self.plugged += 1

    def unplug(self):
        """Undo one `plug`; the last hands everything over."""
        self.plugged -= 1
        if not self.plugged:
            self.flush()

    def flush(self):
        """Hand everything that was prepared to the kernel now."""
        self.check_thread()
        if self.ctx.mon_thread == self.ctx.home:
            self.submit()
            self.ctx.mon.flush()
