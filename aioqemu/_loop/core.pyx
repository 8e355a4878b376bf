"""LoopCore: the life of the loop's context and the pass of the loop.

Knows neither sockets nor protocols; what it owes asyncio beyond callbacks is in the
mixins around it (plain Python).

One pass: wait (or not, if callbacks are ready), then the engine's work (completions,
bottom halves, ready fds, due timers, which queue their handles), then the callbacks that
are in the queue at that moment.  Output that a callback wrote is sent when it returns.
"""

import asyncio

from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject
from cpython.object cimport PyTypeObject
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport int64_t

from aioqemu._engine.context cimport AioContext
from aioqemu._engine.timers cimport TimerHeap
from aioqemu._engine.types cimport AioHandler
from aioqemu._loop.callbacks cimport FlushNode
from aioqemu._loop.contexts cimport context_forget
from aioqemu._loop.contexts cimport context_runs
from aioqemu._loop.contexts cimport context_stale
from aioqemu._loop.sock_waits cimport LoopSockWaits
from aioqemu._sys.libc cimport aq_now_ns

cdef enum:
    LOOK_PASSES = 64          # fds are looked at after so many passes without a wait
    LOOK_NS = 50000           # or so long after the last look, whichever is first
    TURN_NS = 5000000         # how long others may have to ask for the GIL


# What a class has that does not override it.
cdef object _call_soon = LoopSockWaits.call_soon


cdef int _soon(object loop, object callback, object arg, object context) except -1:
    cdef LoopCore self = <LoopCore>loop
    if self.debug:
        self.call_soon(callback, arg, context=context)
        return 0
    return self.soon(callback, <PyObject *>arg, NULL, context)


cdef class LoopCore(LoopSockWaits):
    def _init_core(self, AioContext context not None):
        """Take a context; the loop owns it from now on."""
        self.context = context
        self.take_timers()
        context.exception_handler = self._context_exception
        context.poll_guard = self._poll_guard
        self.set_debug(self.debug)
        self.trusts = context.mon.name == "epoll"
        self.closed = False

    def _close_core(self):
        """Forget what is queued and close the context."""
        self.closed = True
        self._drop_ready()
        while self.flush_head != NULL:
            self.flush_cancel(self.flush_head)
        if self.context is not None:
            self.context.close()
            # Bound methods of ours: cycles that would keep the loop alive.
            self.context.exception_handler = None
            self.context.poll_guard = None

    cdef int _renew(self) except -1:
        """In a forked child: go on with a context of the child's own.

        The loop keeps its callbacks and timers, as the stock loop does in a child.  What
        was watched is not watched here, and what was written before the fork is the
        parent's to send.
        """
        cdef AioContext old = self.context
        cdef AioContext new = self._new_context()
        cdef AioHandler *node
        cdef FlushNode *output
        cdef TimerHeap heap
        cdef int fd
        while self.flush_head != NULL:
            output = self.flush_head
            owner = <object>output.owner
            self.flush_cancel(output)
            output.flush(<void *>owner)     # in a child: forgets it
        for fd in range(old.st.table_size):
            node = old.st.table[fd]
            if node != NULL and node.io_lost != NULL:
                node.io_lost(node.opaque)
        heap = new.timers
        new.timers = old.timers
        old.timers = heap
        old.exception_handler = None
        old.poll_guard = None
        old.close()
        self._init_core(new)
        if self.thread != 0:
            new.enter_thread()
            self._bind_runner()
        return 0

    def _context_exception(self, context):
        self.call_exception_handler(context)

    def _poll_guard(self):
        if self.thread != 0 and asyncio.current_task(self) is not None:
            raise RuntimeError(
                "AioContext.poll() cannot be called from inside a task of its loop; "
                "use 'await ctx.flushed()'")
        if self.flush_head != NULL:
            # The callback may wait there for the answer to what it has just written.
            self.flush_all()

    def stats(self):
        """Counters of the loop and its context since creation, as a dict."""
        result = self.context.stats()
        result["passes"] = self.passes
        result["context_polls"] = self.context.counts.passes
        result["callbacks"] = self.callbacks
        result["ready"] = self._n_ready
        return result

    @property
    def fdmon(self):
        """The name of the backend: "poll", "epoll" or "io_uring"."""
        return self.context.fdmon

    # -- the pass -----------------------------------------------------------------------

    cdef int _pass(self) except -1:
        cdef AioContext ctx = self.context
        cdef int64_t timeout = 0
        cdef int64_t now = 0
        cdef bint look = True
        cdef bint queued
        if self._n_ready == 0 and not self.stopping:
            if context_stale():
                context_forget()
            PyErr_CheckSignals()    # it will wait, and no bytecode has run, maybe
        if self.in_child():
            self._renew()
            ctx = self.context
        self.passes += 1
        queued = self._n_ready != 0
        if not queued and not self.stopping:
            timeout = ctx.compute_timeout()
        if timeout == 0 and not self.stopping:
            # There is work: do not look at the fds each time, but do not starve them.
            # The clock is read once a pass: it costs as much as a callback does.
            self.blind_passes += 1
            now = aq_now_ns()
            look = (self.blind_passes >= LOOK_PASSES
                    or now - self.last_look_ns >= LOOK_NS
                    or ctx.mon.one_shot and ctx.mon.has_work())
            if look and now - self.last_turn_ns >= TURN_NS:
                self._give_turn(now)
                if self.in_child():
                    return 0
        if look:
            if ctx.n_masked:
                ctx._unmask()       # what has no request is to be waited for
            ctx.wait(timeout)
            now = aq_now_ns()
            self.blind_passes = 0
            self.last_look_ns = now
        ctx.dispatch_all(not queued, now)
        if self.flush_head != NULL:
            self.flush_all()
        # Last: what fds, bottom halves and timers have just queued runs in this pass, one
        # wait a message and not two.
        if self._n_ready:
            self._run_ready()
        # But a callback that was queued before the wait comes before the protocols: a task
        # that is to wait for data must get to its first step before the data is delivered.
        # There is no wait to be saved here: something is queued, or nothing came of it.
        if queued:
            ctx.dispatch_transports()
            if self.flush_head != NULL:
                self.flush_all()
        return 0

    cdef int _give_turn(self, int64_t now) except -1:
        # Callbacks in Python do both in time, those in C that queue each other never.
        self.last_turn_ns = now
        with nogil:
            pass
        return PyErr_CheckSignals()

    def _enter_run(self):
        """Bind the loop to this thread."""
        self._check_closed_()
        if self.in_child():
            self._renew()
        self.context.enter_thread()
        self._bind_runner()
        self.thread = PyThread_get_thread_ident()
        context_runs(1)

    cdef int _bind_runner(self) except -1:
        self.context.running = True
        if type(self).call_soon is _call_soon and "call_soon" not in vars(self):
            self.context.soon = _soon
            self.context.runner = self
        return 0

    def _leave_run(self):
        if self.context is None:
            return          # never made
        if self.thread:
            context_runs(-1)
        self.thread = 0
        self.context.running = False
        self.context.runner = None
        self.stopping = False

    def _run(self):
        """Make passes until `stop` was called."""
        self._check_closed_()
        self.in_pass = True
        self.last_look_ns = 0       # the first pass looks
        try:
            while True:
                self._pass()
                if self.stopping:
                    break
        finally:
            self.in_pass = False
            if self.flush_head != NULL:
                self.flush_all()
            if not self.in_child():
                self.context.mon.flush()    # what was closed is closed when we return


# As for the context: the collector must see what is queued (context.pyx tells why).

cdef extern from *:
    """
    static traverseproc aq_core_traverse;
    static inline void aq_core_traverse_set(PyTypeObject *t, traverseproc f)
    { aq_core_traverse = t->tp_traverse; t->tp_traverse = f; }
    static inline int aq_traverse(PyObject *op, visitproc visit, void *arg)
    { return Py_TYPE(op)->tp_traverse(op, visit, arg); }
    """
    # Not Cython's own declarations: those call -1 an exception, the collector does not.
    ctypedef int (*visitproc)(PyObject *, void *) noexcept
    ctypedef int (*traverseproc)(PyObject *, visitproc, void *) noexcept
    int aq_core_traverse(PyObject *op, visitproc visit, void *arg) noexcept
    int aq_traverse(PyObject *op, visitproc visit, void *arg) noexcept
    bint PyObject_GC_IsTracked(PyObject *) noexcept
    Py_ssize_t Py_REFCNT(PyObject *) noexcept
    void aq_core_traverse_set(PyTypeObject *t, traverseproc f)


cdef int _traverse(PyObject *op, visitproc visit, void *arg) noexcept:
    cdef LoopCore loop = <LoopCore>op
    cdef PyObject *handle
    cdef FlushNode *node
    cdef Py_ssize_t i
    cdef int err = aq_core_traverse(op, visit, arg)
    for i in range(loop._n_ready):
        if err:
            return err
        handle = loop.ready_at(i)
        if PyObject_GC_IsTracked(handle):
            err = visit(handle, arg)
        elif Py_REFCNT(handle) == 1:
            # A part of the loop, so to speak.  One that others have, too, keeps what it
            # refers to, and the loop, until it has left the queue.
            err = aq_traverse(handle, visit, arg)
    node = loop.flush_head
    while err == 0 and node != NULL:
        err = visit(<PyObject *>node.owner, arg)
        node = node.next
    return err


aq_core_traverse_set(<PyTypeObject *>LoopCore, _traverse)
