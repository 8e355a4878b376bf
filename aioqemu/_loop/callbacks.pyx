"""LoopCallbacks: the queue of callbacks, asyncio's timers, output at the end of a callback.

Knows neither fds nor when a pass is made.  Invariant: the ready queue is strictly FIFO, a
handle is in it once, and what is taken off it is off before its callback runs.
"""

import asyncio
import sys

from cpython.mem cimport PyMem_RawFree
from cpython.mem cimport PyMem_RawMalloc
from cpython.object cimport PyObject
from cpython.object cimport PyTypeObject
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport Py_DECREF
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_GET_SIZE
from cython cimport embedsignature
from libc.math cimport ceil
from libc.math cimport isnan
from libc.stdint cimport int64_t
from libc.string cimport memcpy
from posix.time cimport nanosleep
from posix.time cimport timespec

from aioqemu._engine.core cimport fork_generation
from aioqemu._engine.timers cimport TimerEntry
from aioqemu._engine.timers cimport TimerHeap
from aioqemu._loop.handles cimport HANDLE_CANCELLED
from aioqemu._loop.handles cimport HANDLE_LENT
from aioqemu._loop.handles cimport HANDLE_SHARED
from aioqemu._loop.handles cimport HANDLE_TIMER
from aioqemu._loop.handles cimport Handle
from aioqemu._loop.handles cimport TimerHandle
from aioqemu._loop.handles cimport handle_call
from aioqemu._loop.handles cimport handle_leave
from aioqemu._loop.handles cimport new_handle
from aioqemu._loop.handles cimport new_timer_handle
from aioqemu._loop.handles cimport take_handle
from aioqemu._loop.layouts cimport AqHandleObject
from aioqemu._loop.layouts cimport AqTimerObject
from aioqemu._sys.atomic cimport aq_load
from aioqemu._sys.atomic cimport aq_prefetch
from aioqemu._sys.classes cimport FastMethod
from aioqemu._sys.classes cimport fast_method
from aioqemu._sys.libc cimport aq_now_ns

from aioqemu._loop.private import (
    _get_running_loop,
    extract_stack,
    format_callback_source,
    iscoroutinefunction,
    logger,
)

cdef extern from "Python.h":
    PyObject *PyTuple_GET_ITEM(object, Py_ssize_t)
    int PyUnicode_CompareWithASCIIString(object, const char *)   # never fails

cdef extern from *:
    """
    /* Fetch what freeing this object will touch: those that the collector has before and
     * after it, and the head of the allocator's pool.  Hints, which may lead anywhere. */
    static inline void aq_prefetch_around(PyObject *op)
    {
        uintptr_t *links = (uintptr_t *)op - 2;

        __builtin_prefetch((void *)(links[0] & ~(uintptr_t)7), 1);
        __builtin_prefetch((void *)(links[1] & ~(uintptr_t)7), 1);
        __builtin_prefetch((void *)((uintptr_t)op & ~(uintptr_t)16383), 1);
    }
    """
    void aq_prefetch_around(PyObject *op) noexcept

cdef enum:
    LONG_QUEUE = 64      # shorter ones are in the cache
    LARGE_QUEUE = 16384  # memory for more is given back
    AHEAD = 12           # which of a long queue's timers is fetched,
    NEAR = 6             # ... of which one its neighbours and its context,
    NEXT = 3             # ... of which one the context's; all below LONG_QUEUE
    FLOOD_MASK = 2047    # so many more posted by other threads let the loop have the GIL
    FLOOD_PAUSE_NS = 20000    # longer than it takes to wake a thread that waits for it
    CO_VARKEYWORDS = 8   # of code objects

cdef object _unset = object()
cdef object _Future = asyncio.Future
cdef object _Task = asyncio.Task
cdef object _running_loop = _get_running_loop
cdef int64_t NEVER_NS = 0x7fffffffffffffff
# Whether a handle's methods may be called from other threads, as far as asyncio promises.
cdef bint _handles_shared = sys.version_info >= (3, 14)


cdef bytes _task_options():
    """What the stock `create_task` of this Python takes by name; it changed within 3.13."""
    code = asyncio.BaseEventLoop.create_task.__code__
    named = b"*, name=None, context=None" if code.co_kwonlyargcount else b""
    rest = b"**kwargs" if code.co_flags & CO_VARKEYWORDS else b""
    return b", ".join([part for part in (named, rest) if part])


cdef int _raise_current() except -1:
    return -1       # the exception is set already


cdef int _timers_due(void *owner, TimerEntry *due, Py_ssize_t n) except -1:
    # asyncio's timers are only queued: callbacks run in the order of the queue.
    cdef LoopCallbacks loop = <LoopCallbacks>owner
    cdef Py_ssize_t i
    cdef Py_ssize_t end = loop.ready_first + loop._n_ready
    if loop._n_ready + n > loop.ready_mask + 1:
        loop._grow_ready(n)
        end = loop._n_ready
    for i in range(n):
        # Where its handle begins.
        loop.ready[(end + i) & loop.ready_mask] = <PyObject *>(
            <char *>due[i].timer - sizeof(AqHandleObject))
    loop._n_ready += n
    return 0


cdef int64_t _deadline_ns(double when) noexcept:
    """The first ns at which `time()` is not before `when`."""
    cdef int64_t ns
    if isnan(when):
        return 0
    when = when * 1e9
    if when >= 9.2e18:
        return NEVER_NS
    if when <= -9.2e18:
        return -NEVER_NS
    ns = <int64_t>ceil(when)
    return ns


cdef FastMethod _any_call_soon = NULL      # the methods as Cython made them
cdef FastMethod _any_call_soon_threadsafe = NULL
cdef FastMethod _any_create_task = NULL
cdef str _context_name = "context"         # interned, as in Python code
# Tasks and futures in C have a string of their own, the same for ever, not interned.
cdef str _context_alias = _context_name


cdef bint _only_context(PyObject *names) noexcept:
    """Whether there is one argument by name, and it is the context."""
    global _context_alias
    cdef PyObject *name
    if PyTuple_GET_SIZE(<object>names) != 1:
        return False
    name = PyTuple_GET_ITEM(<object>names, 0)
    if name == <PyObject *>_context_alias or name == <PyObject *>_context_name:
        return True
    if PyUnicode_CompareWithASCIIString(<object>name, b"context") != 0:
        return False
    _context_alias = <str>name
    return True


cdef PyObject *_usual_handle(PyObject *loop, PyObject *const *args, Py_ssize_t n,
                             PyObject *names) except? NULL:
    # The new handle of a call with up to three arguments and maybe a context, which is
    # what tasks and futures do for every step.  NULL without an exception: not such a call.
    cdef PyObject *context = <PyObject *>None
    if names != NULL:
        if not _only_context(names):
            return NULL
        context = args[n]
    if (n < 1 or n > 4 or (<LoopCallbacks>loop).closed
            or (<LoopCallbacks>loop).debug):
        return NULL
    return take_handle(loop, args[0], args + 1, n - 1, context)


cdef PyObject *_call_soon(PyObject *loop, PyObject *const *args, Py_ssize_t n,
                          PyObject *names) except NULL:
    cdef PyObject *handle = _usual_handle(loop, args, n, names)
    if handle == NULL:
        return _any_call_soon(loop, args, n, names)
    (<LoopCallbacks>loop).append(handle)
    return handle


cdef PyObject *_call_soon_threadsafe(PyObject *loop, PyObject *const *args, Py_ssize_t n,
                                     PyObject *names) except NULL:
    cdef PyObject *handle = _usual_handle(loop, args, n, names)
    if handle == NULL:
        return _any_call_soon_threadsafe(loop, args, n, names)
    (<LoopCallbacks>loop).append_foreign(handle)
    return handle


cdef PyObject *_create_task(PyObject *loop, PyObject *const *args, Py_ssize_t n,
                            PyObject *names) except NULL:
    cdef LoopCallbacks self = <LoopCallbacks>loop
    if (n != 1 or names != NULL or self.closed or self.debug
            or self._task_factory is not None or _running_loop() is not self):
        return _any_create_task(loop, args, n, names)
    # The running loop is the default, and arguments by name cost a dictionary.
    task = _Task(<object>args[0])
    Py_INCREF(task)
    return <PyObject *>task


cdef class LoopCallbacks:
    """The part of a loop that queues callbacks, arms timers and keeps output."""

    def __cinit__(self, *args, **kwargs):
        self.ready = NULL
        self.ready_mask = -1
        self.ready_first = self._n_ready = 0
        self.flush_head = self.flush_tail = NULL
        self.scratch_buffer = NULL
        self.closed = True          # until the loop has a context
        self.slow_callback_duration = 0.1

    def __dealloc__(self):
        PyMem_RawFree(self.scratch_buffer)
        self._drop_ready()

    cdef int _drop_ready(self) noexcept:
        cdef PyObject *op
        while self._n_ready:
            op = self.ready[self.ready_first]
            self.ready_first = (self.ready_first + 1) & self.ready_mask
            self._n_ready -= 1
            handle_leave(op)
        PyMem_RawFree(self.ready)
        self.ready = NULL
        self.ready_mask = -1
        self.ready_first = 0
        return 0

    cdef int _grow_ready(self, Py_ssize_t n) except -1:
        cdef Py_ssize_t size = self.ready_mask + 1 if self.ready_mask >= 0 else 64
        cdef Py_ssize_t first_part
        cdef PyObject **ready
        while size < self._n_ready + n:
            size *= 2
        ready = <PyObject **>PyMem_RawMalloc(size * sizeof(PyObject *))
        if ready == NULL:
            raise MemoryError()
        first_part = min(self._n_ready, self.ready_mask + 1 - self.ready_first)
        if self._n_ready:
            memcpy(ready, self.ready + self.ready_first, first_part * sizeof(PyObject *))
            memcpy(ready + first_part, self.ready,
                   (self._n_ready - first_part) * sizeof(PyObject *))
        PyMem_RawFree(self.ready)
        self.ready = ready
        self.ready_mask = size - 1
        self.ready_first = 0
        return 0

    cdef PyObject *ready_at(self, Py_ssize_t n) noexcept:
        return self.ready[(self.ready_first + n) & self.ready_mask]

    # -- state --------------------------------------------------------------------------

    cdef int _check_closed_(self) except -1:
        if self.closed:
            raise RuntimeError("Event loop is closed")
        return 0

    def _check_closed(self):
        self._check_closed_()

    def _check_thread(self):
        if self.thread != 0 and self.thread != PyThread_get_thread_ident():
            raise RuntimeError(
                "Non-thread-safe operation invoked on an event loop other "
                "than the current one")

    cdef int _check_debug(self, object callback, str method) except -1:
        self._check_thread()
        self._check_callback(callback, method)
        return 0

    def _check_callback(self, callback, method):
        if asyncio.iscoroutine(callback) or iscoroutinefunction(callback):
            raise TypeError(f"coroutines cannot be used with {method}()")
        if not callable(callback):
            raise TypeError(
                f"a callable object was expected by {method}(), got {callback!r}")

    @property
    def _thread_id(self):
        return self.thread if self.thread != 0 else None

    @property
    def _debug(self):
        return bool(self.debug)

    @property
    def _closed(self):
        return bool(self.closed)

    @property
    def _stopping(self):
        return bool(self.stopping)

    @property
    def _clock_resolution(self):
        return 1e-09

    def get_debug(self):
        """Whether the loop is in debug mode."""
        return bool(self.debug)

    def set_debug(self, enabled):
        """Switch debug mode: slow callbacks, foreign threads and wrong callbacks show."""
        self.debug = bool(enabled)
        if self.context is not None:
            self.context.slow_hook = self._report_slow if self.debug else None

    def is_running(self):
        """Whether the loop is running."""
        return self.thread != 0

    def is_closed(self):
        """Whether the loop was closed."""
        return bool(self.closed)

    def stop(self):
        """Stop the loop after the running pass."""
        self.stopping = True

    def time(self):
        """The loop's clock: CLOCK_MONOTONIC, in seconds."""
        return aq_now_ns() * 1e-9

    def create_future(self):
        """Make a future of this loop."""
        # The running loop is the default, and arguments by name cost a dictionary.
        return _Future() if _running_loop() is self else _Future(loop=self)

    @embedsignature(False)
    def create_task(self, coro, **kwargs):
        """Wrap `coro` in a task of this loop (or of the task factory)."""
        return self._make_task(coro, **kwargs)

    # -- callbacks ----------------------------------------------------------------------

    cdef int append(self, PyObject *handle) except -1:
        if self._n_ready > self.ready_mask:
            self._grow_ready(1)
        Py_INCREF(<object>handle)
        self.ready[(self.ready_first + self._n_ready) & self.ready_mask] = handle
        self._n_ready += 1
        return 0

    cdef int soon(self, object callback, PyObject *a, PyObject *b, object context) except -1:
        cdef Handle handle
        self._check_closed_()
        handle = new_handle(self, callback, a, b, NULL, None, context)
        self.append(<PyObject *>handle)
        return 0

    # Up to three arguments come in without a tuple.  That is nobody's business, so the
    # signature stands in the docstrings as CPython's own functions have it there.
    @embedsignature(False)
    def call_soon(self, callback, _a=_unset, _b=_unset, _c=_unset, *args, context=None):
        """call_soon($self, callback, *args, context=None)\n--\n
        Call `callback(*args)` in the next pass, in order (`loop.call_soon`).
        """
        cdef Handle handle
        self._check_closed_()
        if self.debug:
            self._check_debug(callback, "call_soon")
        if args:
            args = (_a, _b, _c, *args)
            handle = new_handle(self, callback, NULL, NULL, NULL, args, context)
        else:
            handle = new_handle(
                self, callback,
                NULL if _a is _unset else <PyObject *>_a,
                NULL if _b is _unset else <PyObject *>_b,
                NULL if _c is _unset else <PyObject *>_c,
                None, context)
        if self.debug:
            handle._source_traceback = extract_stack(sys._getframe())
        self.append(<PyObject *>handle)
        return handle

    @embedsignature(False)
    def call_soon_threadsafe(self, callback, _a=_unset, _b=_unset, _c=_unset, *args,
                             context=None):
        """call_soon_threadsafe($self, callback, *args, context=None)\n--\n
        `call_soon` from any thread or signal handler.

        Costs a system call only if the loop sleeps.
        """
        cdef Handle handle
        self._check_closed_()
        if self.debug:
            self._check_callback(callback, "call_soon_threadsafe")
        if args:
            args = (_a, _b, _c, *args)
            handle = new_handle(self, callback, NULL, NULL, NULL, args, context)
        else:
            handle = new_handle(
                self, callback,
                NULL if _a is _unset else <PyObject *>_a,
                NULL if _b is _unset else <PyObject *>_b,
                NULL if _c is _unset else <PyObject *>_c,
                None, context)
        if self.debug:
            handle._source_traceback = extract_stack(sys._getframe())
        self.append_foreign(<PyObject *>handle)
        return handle

    cdef int append_foreign(self, PyObject *handle) except -1:
        if _handles_shared:
            (<AqHandleObject *>handle).flags |= HANDLE_SHARED
        # The GIL makes the append atomic, and the loop looks at its queue with the GIL
        # held before it announces that it may sleep; only after that must it be woken.
        self.append(handle)
        if aq_load(&self.context.notify_me) or self.context.always_write:
            self.context.wake()
        elif not self._n_ready & FLOOD_MASK:
            self._step_aside()
        return 0

    cdef int _step_aside(self) except -1:
        # So many wait because the interpreter lets a thread run for milliseconds before
        # another gets the GIL. While they are few their memory is in the cache, and the
        # collector has not gone through them; a thread that posts on and on is the faster
        # for it. It only lets the GIL go, which may happen to it at any time.
        cdef timespec moment
        if (self._n_ready and self.in_pass
                and self.thread != PyThread_get_thread_ident()):
            moment.tv_sec = 0
            moment.tv_nsec = FLOOD_PAUSE_NS
            with nogil:
                nanosleep(&moment, NULL)
        return 0

    cdef int take_timers(self) noexcept:
        self.context.timers.queue = _timers_due
        self.context.timers.queue_owner = <void *>self
        return 0

    cdef object _call_at(self, double when, object callback, tuple args, object context):
        cdef TimerHandle handle = new_timer_handle(self, callback, args, context, when)
        cdef AqTimerObject *t = <AqTimerObject *><PyObject *>handle
        cdef TimerHeap heap = self.context.timers
        cdef int64_t deadline = _deadline_ns(when)
        while deadline * 1e-9 < when and deadline < NEVER_NS:
            deadline += 1       # rounding must not make it early by `time()`
        Py_INCREF(heap)
        t.handle.heap = <PyObject *>heap
        heap.arm(&t.timer, deadline)
        if self.debug:
            handle._source_traceback = extract_stack(sys._getframe())
        return handle

    def call_later(self, delay, callback, *args, context=None):
        """Call `callback(*args)` after `delay` seconds, never early."""
        if delay is None:
            raise TypeError("delay must not be None")
        self._check_closed_()
        if self.debug:
            self._check_debug(callback, "call_at")     # as the stock loop says it
        return self._call_at(aq_now_ns() * 1e-9 + delay, callback, args, context)

    def call_at(self, when, callback, *args, context=None):
        """Call `callback(*args)` at `when`, in seconds of `time()`, never early."""
        if when is None:
            raise TypeError("when cannot be None")
        self._check_closed_()
        if self.debug:
            self._check_debug(callback, "call_at")
        return self._call_at(when, callback, args, context)

    cdef int handle_failed(self, object handle) except -1:
        cdef AqHandleObject *h = <AqHandleObject *><PyObject *>handle
        try:
            _raise_current()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            if (isinstance(exc.__context__, (SystemExit, KeyboardInterrupt))
                    and asyncio._get_running_loop() is not self):
                # A task that forked wants to leave the child, where Python 3.14 has no
                # running loop any more and made an error of that.
                raise exc.__context__
            callback = handle._callback
            source = format_callback_source(callback, handle._args or ())
            context = {
                "message": f"Exception in callback {source}",
                "exception": exc,
                "handle": handle,
            }
            if h.traceback != NULL:
                context["source_traceback"] = <object>h.traceback
            self.call_exception_handler(context)
        return 0

    cdef int _run_debug(self, PyObject *op) except -1:
        cdef int64_t began, took
        handle = <object>op
        self._current_handle = handle
        try:
            began = aq_now_ns()
            if handle_call(<AqHandleObject *>op) < 0:
                self.handle_failed(handle)
            took = aq_now_ns() - began
            if took * 1e-9 >= self.slow_callback_duration:
                owner = getattr(handle._callback, "__self__", None)
                self._report_slow(
                    owner if isinstance(owner, asyncio.Task) else handle, took * 1e-9)
        finally:
            self._current_handle = None
        return 0

    def _report_slow(self, what, took):
        """In debug mode: what was executed, a handle, task or transport, and how long."""
        if took >= self.slow_callback_duration:
            logger.warning("Executing %r took %.3f seconds", what, took)

    cdef void _look_ahead(self) noexcept:
        """One of many timers that fire together has left the queue.

        They are spread over memory: fetch one that comes later, and what nearer ones will
        touch when they are freed, as soon as what tells where that is was fetched.
        """
        cdef PyObject **ready = self.ready
        cdef Py_ssize_t first = self.ready_first
        cdef Py_ssize_t mask = self.ready_mask
        cdef PyObject *op = ready[(first + AHEAD) & mask]
        aq_prefetch(<char *>op - 32)
        aq_prefetch(<char *>op + 32)
        aq_prefetch(<char *>op + 96)
        op = ready[(first + NEAR) & mask]
        aq_prefetch_around(op)
        if not (<AqHandleObject *>op).flags & HANDLE_LENT:      # else all have the same
            op = (<AqHandleObject *>op).context
            aq_prefetch(<char *>op - 16)
            aq_prefetch(<char *>op + 47)
        op = ready[(first + NEXT) & mask]
        if not (<AqHandleObject *>op).flags & HANDLE_LENT:
            op = (<AqHandleObject *>op).context
            if op != NULL:      # the collector has not cleared it
                aq_prefetch_around(op)

    cdef int _run_ready(self) except -1:
        cdef Py_ssize_t n = self._n_ready
        cdef PyObject *op
        cdef AqHandleObject *h
        while n > 0 and self._n_ready:
            n -= 1
            op = self.ready[self.ready_first]
            h = <AqHandleObject *>op
            self.ready_first = (self.ready_first + 1) & self.ready_mask
            self._n_ready -= 1
            if self._n_ready > LONG_QUEUE and h.flags & HANDLE_TIMER:
                self._look_ahead()
            elif n:
                aq_prefetch(<char *>self.ready[self.ready_first])
                aq_prefetch(<char *>self.ready[self.ready_first] + 64)
            if h.flags & HANDLE_CANCELLED:
                handle_leave(op)
                continue
            self.callbacks += 1
            try:
                if self.debug:
                    self._run_debug(op)
                elif handle_call(h) < 0:
                    self.handle_failed(<object>op)
            finally:
                handle_leave(op)
                if self.flush_head != NULL:
                    self.flush_all()
        if self.ready_mask >= LARGE_QUEUE and self._n_ready == 0:
            self._drop_ready()
        return 0

    # -- output -------------------------------------------------------------------------

    cdef int flush_later(self, FlushNode *node, FlushCallback flush, object owner) except -1:
        if not self.in_pass:
            return flush(<void *>owner)
        if node.linked:
            return 0
        Py_INCREF(owner)
        node.linked = True
        node.next = NULL
        node.flush = flush
        node.owner = <void *>owner
        if self.flush_tail == NULL:
            self.flush_head = node
        else:
            self.flush_tail.next = node
        self.flush_tail = node
        return 0

    cdef int flush_cancel(self, FlushNode *node) noexcept:
        cdef FlushNode *before = NULL
        cdef FlushNode *n = self.flush_head
        if not node.linked:
            return 0
        while n != node:
            before = n
            n = n.next
        if before == NULL:
            self.flush_head = node.next
        else:
            before.next = node.next
        if self.flush_tail == node:
            self.flush_tail = before
        node.linked = False
        Py_DECREF(<object>node.owner)
        return 0

    cdef bint in_child(self) noexcept:
        return self.context.fork_generation != fork_generation

    cdef int flush_all(self) except -1:
        # In a child `flush` forgets it: the parent sends what was written before the fork.
        cdef FlushNode *node
        while self.flush_head != NULL:
            node = self.flush_head
            self.flush_head = node.next
            if self.flush_head == NULL:
                self.flush_tail = NULL
            node.linked = False
            owner = <object>node.owner
            Py_DECREF(owner)        # `owner` keeps it for the call
            node.flush(<void *>owner)
        return 0

    cdef char *scratch(self) except NULL:
        if self.scratch_buffer == NULL:
            self.scratch_buffer = <char *>PyMem_RawMalloc(SCRATCH_SIZE)
            if self.scratch_buffer == NULL:
                raise MemoryError()
        return self.scratch_buffer


cdef bytes _task_doc = (
    b"create_task($self, coro, " + _task_options() + b")\n--\n\n"
    + LoopCallbacks.create_task.__doc__.encode())
_any_call_soon = fast_method(<PyTypeObject *>LoopCallbacks, "call_soon", _call_soon, NULL)
_any_call_soon_threadsafe = fast_method(
    <PyTypeObject *>LoopCallbacks, "call_soon_threadsafe", _call_soon_threadsafe, NULL)
_any_create_task = fast_method(
    <PyTypeObject *>LoopCallbacks, "create_task", _create_task, _task_doc)
