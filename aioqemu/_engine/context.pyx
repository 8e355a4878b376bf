"""AioContext: one event loop engine, as in QEMU.  Contracts in context.pxd.

The order of a pass, poll() and what an outer loop calls; the fds are core's, the callbacks
handlers'.  Knows nothing of asyncio or files.  Invariant: everything that is due is on a
list of the context, never in a local variable, and is taken off before its callback runs;
so a nested poll sees the rest of the outer pass, and an exception that leaves a pass loses
nothing.
"""

import sys

from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_RawCalloc
from cpython.mem cimport PyMem_RawFree
from cpython.object cimport PyObject
from cpython.object cimport PyTypeObject
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport int64_t

from aioqemu._engine.core cimport fork_generation
from aioqemu._engine.handlers cimport AioHandlers
from aioqemu._engine.handlers cimport BhNode
from aioqemu._engine.lists cimport done_pop
from aioqemu._engine.lists cimport ready_push
from aioqemu._engine.lists cimport ready_unlink
from aioqemu._engine.notifier cimport notifier_clear
from aioqemu._engine.notifier cimport notifier_set
from aioqemu._engine.types cimport AIO_OWNER_CONTEXT
from aioqemu._engine.types cimport AioHandler
from aioqemu._engine.types cimport AioTimer
from aioqemu._engine.types cimport CqeHandler
from aioqemu._sys.atomic cimport aq_exchange
from aioqemu._sys.atomic cimport aq_load
from aioqemu._sys.atomic cimport aq_store
from aioqemu._sys.libc cimport EINTR
from aioqemu._sys.libc cimport aq_now_ns
from aioqemu._sys.libc cimport errno
from aioqemu._sys.libc cimport pollfd
from aioqemu._sys.libc cimport ppoll
from aioqemu._sys.libc cimport timespec

from aioqemu._engine import unclosed

cdef object _warn_unclosed = unclosed.warn_unclosed


cdef class AioContext(AioHandlers):
    """An event loop engine: fd handlers, event notifiers, bottom halves, timers.

    Stands for QEMU's `AioContext`.  One thread polls it, the first that does; `notify`
    and the methods of bottom halves and notifiers may be called from any thread.

    Args:
        fdmon: "poll", "epoll", "io_uring", or None/"auto" for the best one that works
            (the environment variable AIOQEMU_FDMON then decides if it is set).
        semantics: "seed" for the contract of 2012 (`io_flush` decides whether `poll` may
            block), "modern" for that of QEMU 10 (fds are always watched).
        poll_max_ns: longest adaptive polling before a wait, in ns; 0 switches it off.
        poll_grow: factor by which polling grows, 0 for 2.
        poll_shrink: divisor by which it shrinks, 0 for back to nothing.
        hold_gil_ns: longest look for events with the GIL kept, before a wait and while
            another thread computes, in ns; so long, too, waits that find something at
            once may keep it. 0 switches both off.

    Raises:
        BackendUnavailable: the backend asked for by name cannot run here.
        ValueError: an argument is out of range.
        OSError: no file descriptors could be had.
    """

    # -- life cycle -------------------------------------------------------------------

    def __init__(self, fdmon=None, semantics="seed", poll_max_ns=0, poll_grow=0,
                 poll_shrink=0, hold_gil_ns=100_000):
        if not self.closed or self.refs:
            raise RuntimeError("the context is in use")
        if semantics not in ("seed", "modern"):
            raise ValueError(f"semantics must be 'seed' or 'modern', not {semantics!r}")
        if poll_max_ns < 0 or poll_grow < 0 or poll_shrink < 0 or hold_gil_ns < 0:
            raise ValueError("polling parameters must not be negative")
        self.modern = semantics == "modern"
        self.poll_max_ns = poll_max_ns
        self.poll_grow = poll_grow
        self.poll_shrink = poll_shrink
        self.hold_gil_ns = hold_gil_ns
        self.flushers = []
        self.open_core(fdmon)
        self.refs = 1

    def __del__(self):
        if self.refs and not self.closed:
            if sys is None or sys.is_finalizing():
                self._close()       # what a subclass adds may have lost its globals
                return
            try:
                _warn_unclosed(f"unclosed {self!r}", self)
            finally:
                self.close()        # the warning may be an error

    def __repr__(self):
        name = type(self).__name__
        if self.closed:
            return f"<{name} closed>"
        return f"<{name} fdmon={self.mon.name!r} fds={self.n_fds - 1}>"

    cdef int _check_made(self) except -1:
        if self.mon is None:
            raise RuntimeError("AioContext.__init__() was not called")
        return 0

    def ref(self):
        """Take a reference (`aio_context_ref`); returns the context."""
        self.check_usable()
        self.refs += 1
        return self

    def unref(self):
        """Drop a reference (`aio_context_unref`); the last one closes the context."""
        if self.refs <= 0:
            raise RuntimeError("the AioContext has no reference left")
        if self.refs == 1:
            self.close()        # may refuse: then the reference is kept
        else:
            self.refs -= 1

    @property
    def refcount(self):
        """The number of references."""
        return self.refs

    def close(self):
        """Give everything back; twice does nothing.  What is scheduled does not run.

        Raises:
            RuntimeError: another thread is inside `poll`, or its loop is running.
        """
        self._close()

    cdef int _close(self) except -1:
        if self.closed:
            return 0
        cdef bint child = self.fork_generation != fork_generation
        if self.mon.waiting and not child and self.home != PyThread_get_thread_ident():
            raise RuntimeError("another thread polls the AioContext")
        if self.running and not child:
            raise RuntimeError("the AioContext's loop is running")
        self.closed = True
        self.refs = 0
        self.drop_bottom_halves()       # no callback runs any more
        self.close_core()
        self.flushers = []
        self.poll_guard = None
        self.slow_hook = None
        return 0

    # -- a pass -----------------------------------------------------------------------

    cdef Py_ssize_t _dispatch_done(self) except -1:
        cdef CqeHandler *cqe
        cdef CqeHandler *last
        cdef bint stop
        cdef Py_ssize_t n = 0
        if self.service is not None:
            self.service.collect()
        # What a callback makes complete is for the next pass, or a chain of requests that
        # complete at once would starve everything else.
        last = self.st.done_tail
        while True:
            cqe = done_pop(&self.st)
            if cqe == NULL:
                return n
            n += 1
            stop = cqe == last
            cqe.cb(cqe.opaque)       # its memory may be gone afterwards
            if stop:
                return n

    cdef Py_ssize_t _dispatch_context(self) except -1:
        """Ready nodes of the context itself; the number of users' ones."""
        cdef AioHandler *node
        cdef Py_ssize_t n = 0
        while self.st.ready_context.head != NULL:
            node = self.st.ready_context.head
            ready_unlink(&self.st, node)
            n += self._dispatch_node(node)
        return n

    cdef Py_ssize_t _run_timers(self) except -1:
        cdef Py_ssize_t n = 0
        if self.timers.length or self.timers.due_left:
            n = self.timers.run(self.now_ns)
            self.counts.timers += n
        return n

    cdef Py_ssize_t dispatch_transports(self) except -1:
        cdef AioHandler *node
        cdef AioHandler *last = self.st.ready_transport.tail
        cdef Py_ssize_t n = 0
        while self.st.ready_transport.head != NULL:
            node = self.st.ready_transport.head
            ready_unlink(&self.st, node)
            n += self._dispatch_node(node)
            if node == last:
                break           # what was queued meanwhile has its turn in the next pass
        return n

    cdef Py_ssize_t dispatch_all(self, bint transports, int64_t now_ns) except -1:
        cdef AioHandler *node
        cdef Py_ssize_t n = 0
        aq_store(&self.notified, 0)      # before looking for work, so that none is missed
        self.now_ns = now_ns
        if self.n_masked:
            self._unmask()
        if self.st.done_head != NULL or self.service is not None:
            n += self._dispatch_done()
        if self.bh_list.head != NULL or self.bh_slice.head != NULL:
            n += self._run_bottom_halves()
        while self.st.ready_loop.head != NULL:
            node = self.st.ready_loop.head
            ready_unlink(&self.st, node)
            n += self._dispatch_node(node)
        if transports and self.st.ready_transport.head != NULL:
            n += self.dispatch_transports()
        if self.st.ready_context.head != NULL:
            n += self._dispatch_context()
        n += self._run_timers()
        return n

    def bh_poll(self):
        """Run the scheduled bottom halves (`aio_bh_poll`).

        Returns:
            Whether one that was not idle ran.
        """
        self._check_home()
        return bool(self._run_bottom_halves())

    # -- poll(): QEMU's front door ----------------------------------------------------

    cdef int _wait_context(self, int64_t timeout_ns) except -1:
        """Wait for the context's own fds, leaving those of the loop alone.

        A level-triggered backend would report the loop's ready fds again and again, and
        nobody would serve them here; so unless there are none, the few fds of the context
        itself are polled directly.
        """
        cdef AioHandler *node
        cdef pollfd *fds
        cdef timespec ts
        cdef int fd, err
        cdef int n = 0
        cdef int i
        if self.mon.one_shot or (self.n_foreign == 0 and self.n_masked == 0):
            return self.wait(timeout_ns)
        self.check_usable()
        if self._start_monitor():
            timeout_ns = 0
        if self.service is not None:
            self.service.submit()
            if self.st.done_head != NULL:
                timeout_ns = 0
        fds = <pollfd *>PyMem_RawCalloc(self.n_fds, sizeof(pollfd))
        if fds == NULL:
            raise MemoryError()
        try:
            for fd in range(self.st.table_size):
                node = self.st.table[fd]
                if node != NULL and node.owner <= AIO_OWNER_CONTEXT and not node.masked:
                    fds[n].fd = fd
                    fds[n].events = <short>node.events
                    n += 1
            if timeout_ns != 0:
                aq_store(&self.notify_me, 1)    # pairs with wake()
                if aq_load(&self.notified):
                    timeout_ns = 0
            ts.tv_sec = timeout_ns // 1000000000
            ts.tv_nsec = timeout_ns % 1000000000
            self.counts.waits += 1
            if timeout_ns == 0:
                err = -errno if ppoll(fds, n, &ts, NULL) < 0 else 0
            else:
                self.counts.gil_releases += 1
                self.mon.waiting = True
                with nogil:
                    err = ppoll(fds, n, NULL if timeout_ns < 0 else &ts, NULL)
                    if err < 0:
                        err = -errno
                self.mon.waiting = False
            if err >= 0:
                for i in range(n):
                    node = self.lookup(fds[i].fd)
                    if node == self.notifier_node and fds[i].revents:
                        # Who is told of each write has not read it, and need not.
                        notifier_clear(self.notifier[0])
                    if fds[i].revents and node != NULL and (
                            node.owner <= AIO_OWNER_CONTEXT):
                        ready_push(&self.st, node, <unsigned short>fds[i].revents)
            elif err != -EINTR:
                raise OSError(-err, "poll() has failed")
        finally:
            aq_store(&self.notify_me, 0)
            PyMem_RawFree(fds)
        if err == -EINTR:
            PyErr_CheckSignals()
        return 0

    cdef bint _poll_seed(self, bint blocking) except -1:
        cdef bint progress
        cdef int64_t timeout
        while True:
            self.counts.passes += 1
            self.now_ns = aq_now_ns()
            progress = self._dispatch_done() > 0
            progress = self._run_bottom_halves() > 0 or progress
            progress = self._dispatch_context() > 0 or progress
            progress = self._run_timers() > 0 or progress
            if self.closed:
                return progress          # a callback dropped the last reference
            if not self._ask_busy() or self.closed:
                # Nothing outstanding: never block, never look at an fd.  A notification
                # stays where it is.
                return progress
            if aq_exchange(&self.notified, 0):
                progress = True          # draining the notifier counts
            timeout = 0
            if blocking and not progress:
                PyErr_CheckSignals()
                if self.closed:
                    return False
                timeout = self._own_timeout()
            self._wait_context(timeout)
            if aq_exchange(&self.notified, 0):
                progress = True
            self.now_ns = aq_now_ns()
            progress = self._dispatch_done() > 0 or progress
            progress = self._dispatch_context() > 0 or progress
            progress = self._run_timers() > 0 or progress
            if progress or not blocking or self.closed:
                return progress

    cdef bint _poll_modern(self, bint blocking) except -1:
        cdef bint progress, told
        while True:
            self.counts.passes += 1
            if self.n_masked:
                self._unmask()
            if blocking:
                PyErr_CheckSignals()
                if self.closed:
                    return False
            self._wait_context(self._own_timeout() if blocking else 0)
            told = aq_exchange(&self.notified, 0) != 0
            self.now_ns = aq_now_ns()
            progress = self._dispatch_done() > 0
            progress = self._run_bottom_halves() > 0 or progress
            progress = self._dispatch_context() > 0 or progress
            progress = self._run_timers() > 0 or progress
            if progress or told or not blocking or self.closed:
                return progress

    cdef int _watch_current(self) noexcept:
        # A one-shot monitor watches a node again after its callback, but this is a poll()
        # within it.
        cdef AioHandler *node = self.current
        if node != NULL and node.armed == 0 and not node.deleted and not node.queued and (
                self.fork_generation == fork_generation):
            self.mon.update(node)
        return 0

    cdef bint _poll(self, bint blocking) except -1:
        self._check_home()
        if self.poll_guard is not None:
            self.poll_guard()
        self._watch_current()
        if self.modern:
            return self._poll_modern(blocking)
        return self._poll_seed(blocking)

    def poll(self, blocking=False):
        """Make one pass over the context's own work (`aio_poll`).

        Bottom halves run first.  Then, if some `io_flush` says that requests are
        outstanding, fds are looked at and their handlers run; with `blocking`, and if
        nothing has been done yet, the call waits until something is.  With nothing
        outstanding it never blocks.  May be called from callbacks; the callbacks and
        tasks of a loop stay queued meanwhile.

        Args:
            blocking: whether to wait.

        Returns:
            Whether progress was made.

        Raises:
            RuntimeError: called by another than the home thread, or from inside a task
                of the context's own loop (use `await ctx.flushed()` there).
        """
        return self._poll(bool(blocking))

    def flush(self):
        """Poll until nothing is outstanding and nothing happens (`aio_flush`)."""
        while self._poll(True):
            pass

    def pending(self):
        """Whether an fd was reported ready and its handler has not run (`aio_pending`)."""
        self.check_usable()
        return self.st.ready_context.head != NULL

    @property
    def busy(self):
        """Whether requests are in flight or some `io_flush` says so."""
        self.check_usable()
        return bool(self._ask_busy())

    # -- driven from outside ----------------------------------------------------------

    def fileno(self):
        """An fd that is readable while there is work, for another loop to watch.

        From the first call on notifications are never elided.  Call `dispatch` when the
        fd is readable or `timeout_ns` has passed.
        """
        cdef int fd
        self._check_home()
        self._start_monitor()
        fd = self.mon.outer_fd()
        if fd < 0:
            raise OSError(-fd, "no file descriptor to export")
        if not self.always_write:
            self.always_write = True
            if self.bh_urgent or aq_load(&self.notified):
                notifier_set(self.notifier[1])
            self.mon.flush()
        return fd

    def timeout_ns(self):
        """How long an outer loop may sleep, in ns; -1: until `fileno` is readable.

        To be asked after each `dispatch`: what that sets does not make `fileno` readable
        for the mere sake of a new timeout.
        """
        self.check_usable()
        return self.compute_timeout()

    def dispatch(self):
        """Look at all fds without waiting, and run what is due; for an outer loop.

        Returns:
            Whether progress was made.
        """
        cdef Py_ssize_t n
        self._check_home()
        if self.poll_guard is not None:
            self.poll_guard()
        self._watch_current()
        self.counts.passes += 1
        if self.n_masked:
            self._unmask()
        self.wait(0)
        self.driven += 1
        try:
            n = self.dispatch_all(True, aq_now_ns())
        finally:
            self.driven -= 1
        if not self.closed and self.fork_generation == fork_generation:
            self.mon.flush()
            if self.service is not None and self.always_write and aq_load(&self.notified):
                # A completion was announced meanwhile: after it had been looked for, and
                # before the notifier was drained.
                notifier_set(self.notifier[1])
        return n > 0

    # -- information ------------------------------------------------------------------

    @property
    def fdmon(self):
        """The name of the backend: "poll", "epoll" or "io_uring"."""
        self._check_made()
        return self.mon.name

    def stats(self):
        """Counters since creation, and what the backend is; cheap, always on."""
        self._check_made()
        return {
            "fdmon": self.mon.name,
            "fdmon_reason": self.reason,
            "fdmon_info": self.mon.info(),
            "fds": self.n_fds,
            "passes": self.counts.passes,
            "waits": self.counts.waits,
            "gil_releases": self.counts.gil_releases,
            "bottom_halves": self.counts.bottom_halves,
            "fd_events": self.counts.fd_events,
            "timers": self.counts.timers,
            "timers_pending": self.timers.length,
            "submits": self.mon.submits,
            "notifies": self.counts.notifies,
            "notify_writes": self.counts.notify_writes,
            "gil_holds": self.counts.gil_holds,
            "polled_ns": self.counts.polled_ns,
        }


# What is on the lists has references that Cython's generated traverse cannot know, and a
# loop or context that was dropped without close() sits in a cycle with its callbacks.  The
# collector must see them; clearing is the finalizer's work (`__del__` closes).

cdef extern from *:
    """
    static traverseproc aq_context_traverse;
    static inline void aq_traverse_set(PyTypeObject *t, traverseproc f)
    { aq_context_traverse = t->tp_traverse; t->tp_traverse = f; }
    """
    # Not Cython's own declarations: those call -1 an exception, the collector does not.
    ctypedef int (*visitproc)(PyObject *, void *) noexcept
    ctypedef int (*traverseproc)(PyObject *, visitproc, void *) noexcept
    int aq_context_traverse(PyObject *op, visitproc visit, void *arg) noexcept
    void aq_traverse_set(PyTypeObject *t, traverseproc f)


cdef int _traverse(PyObject *op, visitproc visit, void *arg) noexcept:
    cdef AioContext ctx = <AioContext>op
    cdef AioHandler *handler
    cdef BhNode *node
    cdef AioTimer *timer
    cdef Py_ssize_t i
    cdef int err = aq_context_traverse(op, visit, arg)
    if err or ctx.closed:
        return err
    for i in range(ctx.st.table_size):
        handler = ctx.st.table[i]
        if handler != NULL and handler.opaque != <void *>ctx:
            err = visit(<PyObject *>handler.opaque, arg)
            if err:
                return err
    node = ctx.bh_slice.head
    while node != NULL:
        err = visit(<PyObject *>node.owner, arg)
        if err:
            return err
        node = node.next
    node = ctx.bh_list.head
    while node != NULL:
        err = visit(<PyObject *>node.owner, arg)
        if err:
            return err
        node = node.next
    for i in range(ctx.timers.length):
        err = visit(<PyObject *>ctx.timers.entries[i].timer.opaque, arg)
        if err:
            return err
    for i in range(ctx.timers.due_at, ctx.timers.n_due):
        timer = ctx.timers.due[i].timer
        if timer != NULL:
            err = visit(<PyObject *>timer.opaque, arg)
            if err:
                return err
    return 0


aq_traverse_set(<PyTypeObject *>AioContext, _traverse)
