"""LoopCore: the pass of the loop, and the callbacks, timers and fds that it serves.

Knows neither sockets nor protocols; what it owes asyncio beyond callbacks is in the
mixins around it (plain Python).  Invariant: the ready queue is strictly FIFO, a handle
is in it once, and what is taken off it is off before its callback runs.

One pass: wait (or not, if callbacks are ready), then the engine's work (completions,
bottom halves, ready fds, due timers, which queue their handles), then the callbacks that
are in the queue at that moment.  Output that a callback wrote is sent when it returns.
"""

import asyncio
import sys
from weakref import ref as _weakref

from cython cimport embedsignature
from cpython.mem cimport PyMem_RawFree
from cpython.mem cimport PyMem_RawMalloc
from cpython.object cimport PyObject
from cpython.object cimport PyTypeObject
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport Py_DECREF
from cpython.ref cimport Py_INCREF
from cpython.ref cimport Py_XDECREF
from libc.limits cimport INT_MAX
from libc.math cimport ceil
from libc.math cimport isnan
from libc.stdint cimport int64_t
from libc.stdint cimport uint32_t

from aioqemu._engine.context cimport AioContext
from aioqemu._engine.core cimport fork_generation
from aioqemu._engine.timers cimport TimerHeap
from aioqemu._engine.types cimport AIO_OWNER_CONTEXT
from aioqemu._engine.types cimport AIO_OWNER_LOOP
from aioqemu._engine.types cimport AIO_OWNER_TRANSPORT
from aioqemu._engine.types cimport TIMER_IDLE
from aioqemu._engine.types cimport AioHandler
from aioqemu._loop.handles cimport HANDLE_CANCELLED
from aioqemu._loop.handles cimport HANDLE_QUEUED
from aioqemu._loop.handles cimport HANDLE_SHARED
from aioqemu._loop.handles cimport Handle
from aioqemu._loop.handles cimport TimerHandle
from aioqemu._loop.handles cimport handle_call
from aioqemu._loop.handles cimport new_handle
from aioqemu._loop.handles cimport new_timer_handle
from aioqemu._loop.layouts cimport AqHandleObject
from aioqemu._loop.layouts cimport AqTimerObject
from aioqemu._sys.atomic cimport aq_load
from aioqemu._sys.atomic cimport aq_prefetch
from aioqemu._sys.classes cimport refuse_new
from aioqemu._sys.libc cimport POLLIN
from aioqemu._sys.libc cimport POLLOUT
from aioqemu._sys.libc cimport aq_now_ns

from aioqemu._loop.private import (
    extract_stack,
    format_callback_source,
    iscoroutinefunction,
    logger,
)

cdef enum:
    LOOK_PASSES = 64          # fds are looked at after so many passes without a wait
    LOOK_NS = 50000           # or so long after the last look, whichever is first
    DOUBT_NS = 50000000       # a wait on trust is looked after so much later

cdef object _unset = object()
cdef object _Future = asyncio.Future
cdef int64_t NEVER_NS = 0x7fffffffffffffff
# Whether a handle's methods may be called from other threads, as far as asyncio promises.
cdef bint _handles_shared = sys.version_info >= (3, 14)


cdef int _raise_current() except -1:
    return -1       # the exception is set already


cdef int _timer_due(void *opaque) except -1:
    # An asyncio timer only queues its handle: callbacks run in the order of the queue.
    cdef AqHandleObject *h = <AqHandleObject *>opaque
    cdef LoopCore loop = <LoopCore>h.loop
    loop.append(<PyObject *>opaque)
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


cdef object _number(object fileobj):
    """The number of an int or of an object with fileno(), whatever it is."""
    if isinstance(fileobj, int):
        return fileobj
    try:
        return int(fileobj.fileno())
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"Invalid file object: {fileobj!r}") from None


cdef int _fd_number(object fileobj) except -1:
    """The same where it is to be watched, as selectors has it."""
    number = _number(fileobj)
    if number < 0:
        raise ValueError(f"Invalid file descriptor: {number}")
    if number > INT_MAX:
        raise OverflowError("Python int too large to convert to C int")
    return number


cdef class FdWatch:
    def __init__(self):
        raise TypeError("use add_reader()")


cdef int _watch_call(FdWatch watch, object handle) except -1:
    cdef LoopCore loop = watch.loop
    cdef AqHandleObject *h = <AqHandleObject *><PyObject *>handle
    if h.flags & HANDLE_CANCELLED:
        return 0
    loop.callbacks += 1
    if loop.debug:
        loop._run_debug(<PyObject *>handle)
    elif handle_call(h) < 0:
        loop.handle_failed(handle)
    if loop.flush_head != NULL:
        loop.flush_all()
    return 0


cdef int _watch_read(void *opaque) except -1:
    cdef FdWatch watch = <FdWatch>opaque
    handle = watch.reader
    if handle is not None:
        _watch_call(watch, handle)
    elif watch.idle:
        watch.loop._drop_idle(watch.node)   # nobody waits for what has come
    return 0


cdef int _watch_write(void *opaque) except -1:
    cdef FdWatch watch = <FdWatch>opaque
    handle = watch.writer
    if handle is not None:
        _watch_call(watch, handle)
    return 0


cdef int _watch_lost(void *opaque) except -1:
    cdef FdWatch watch = <FdWatch>opaque
    watch.node = NULL
    watch.idle = False
    reader = watch.reader
    writer = watch.writer
    watch.reader = watch.writer = None
    if reader is not None:
        reader.cancel()
    if writer is not None:
        writer.cancel()
    return 0


cdef int _verify(void *opaque) except -1:
    """Tell the kernel once more what those watch who have waited on trust for long."""
    cdef LoopCore loop = <LoopCore>opaque
    cdef list doubtful = loop.doubtful
    cdef FdWatch watch
    loop.doubtful = []
    for watch in doubtful:
        watch.doubted = False
        if watch.node == NULL or watch.idle or watch.reader is None or loop.in_child():
            continue
        if watch.waits != watch.doubted_at:
            loop._doubt(watch)          # another wait by now
        else:
            watch.node.armed = 0
            loop.context.mon.update(watch.node)
    return 0


cdef class LoopCore:
    def __cinit__(self, *args, **kwargs):
        self.ready_head = self.ready_tail = NULL
        self.flush_head = self.flush_tail = NULL
        self.scratch_buffer = NULL
        self.closed = True          # until _init_core
        self.slow_callback_duration = 0.1
        self.transports = {}
        self.doubtful = []
        self.doubt_timer.index = TIMER_IDLE
        self.doubt_timer.cb = _verify
        self.doubt_timer.opaque = <void *>self

    def __dealloc__(self):
        PyMem_RawFree(self.scratch_buffer)
        self._drop_ready()

    cdef int _drop_ready(self) noexcept:
        cdef PyObject *op
        while self.ready_head != NULL:
            op = self.ready_head
            self.ready_head = (<AqHandleObject *>op).next
            (<AqHandleObject *>op).next = NULL
            (<AqHandleObject *>op).flags &= ~<uint32_t>HANDLE_QUEUED
            Py_XDECREF(op)
        self.ready_tail = NULL
        self._n_ready = 0
        return 0

    def _init_core(self, AioContext context not None):
        """Take a context; the loop owns it from now on."""
        self.context = context
        context.exception_handler = self._context_exception
        context.poll_guard = self._poll_guard
        # Elsewhere it would save nothing, and a request on a ring holds its file open.
        self.leaves_armed = context.mon.name == "epoll"
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
        return _Future(loop=self)

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

    # -- callbacks ----------------------------------------------------------------------

    cdef int append(self, PyObject *handle) except -1:
        cdef AqHandleObject *h = <AqHandleObject *>handle
        if h.flags & HANDLE_QUEUED:
            return 0
        h.flags |= HANDLE_QUEUED
        Py_INCREF(<object>handle)
        h.next = NULL
        if self.ready_tail == NULL:
            self.ready_head = handle
        else:
            (<AqHandleObject *>self.ready_tail).next = handle
        self.ready_tail = handle
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
        if _handles_shared:
            (<AqHandleObject *><PyObject *>handle).flags |= HANDLE_SHARED
        # The GIL makes the append atomic, and the loop looks at its queue with the GIL
        # held before it announces that it may sleep; only after that must it be woken.
        self.append(<PyObject *>handle)
        if aq_load(&self.context.notify_me) or self.context.always_write:
            self.context.wake()
        return handle

    cdef object _call_at(self, double when, object callback, tuple args, object context):
        cdef TimerHandle handle = new_timer_handle(self, callback, args, context, when)
        cdef AqTimerObject *t = <AqTimerObject *><PyObject *>handle
        cdef TimerHeap heap = self.context.timers
        cdef int64_t deadline = _deadline_ns(when)
        while deadline * 1e-9 < when and deadline < NEVER_NS:
            deadline += 1       # rounding must not make it early by `time()`
        Py_INCREF(heap)
        t.heap = <PyObject *>heap
        t.timer.cb = _timer_due
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
                callback = handle._callback
                owner = getattr(callback, "__self__", None)
                what = repr(owner) if isinstance(owner, asyncio.Task) else str(handle)
                logger.warning("Executing %s took %.3f seconds", what, took * 1e-9)
        finally:
            self._current_handle = None
        return 0

    cdef int _run_ready(self) except -1:
        cdef Py_ssize_t n = self._n_ready
        cdef PyObject *op
        cdef AqHandleObject *h
        while n > 0 and self.ready_head != NULL:
            n -= 1
            op = self.ready_head
            h = <AqHandleObject *>op
            self.ready_head = h.next
            if self.ready_head == NULL:
                self.ready_tail = NULL
            else:
                aq_prefetch(<char *>h.next)
                aq_prefetch(<char *>h.next + 64)
                aq_prefetch(<char *>h.next + 128)
            h.next = NULL
            h.flags &= ~<uint32_t>HANDLE_QUEUED
            self._n_ready -= 1
            if h.flags & HANDLE_CANCELLED:
                Py_DECREF(<object>op)
                continue
            self.callbacks += 1
            try:
                if self.debug:
                    self._run_debug(op)
                elif handle_call(h) < 0:
                    self.handle_failed(<object>op)
            finally:
                Py_DECREF(<object>op)
                if self.flush_head != NULL:
                    self.flush_all()
        return 0

    # -- the pass -----------------------------------------------------------------------

    cdef int _pass(self) except -1:
        cdef AioContext ctx = self.context
        cdef int64_t timeout = 0
        cdef bint look = True
        cdef bint queued = self._n_ready != 0
        if self.in_child():
            self._renew()
            ctx = self.context
        self.passes += 1
        if self._n_ready == 0 and not self.stopping:
            timeout = ctx.compute_timeout()
        if timeout == 0 and not self.stopping:
            # There is work: do not look at the fds each time, but do not starve them.
            self.blind_passes += 1
            look = (self.blind_passes >= LOOK_PASSES
                    or aq_now_ns() - self.last_look_ns >= LOOK_NS
                    or ctx.mon.one_shot and ctx.mon.has_work())
        if look:
            ctx.wait(timeout)
        ctx.dispatch_all(not queued)
        if look:
            self.blind_passes = 0
            self.last_look_ns = ctx.now_ns
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

    def _enter_run(self):
        """Bind the loop to this thread."""
        self._check_closed_()
        if self.in_child():
            self._renew()
        self.context.enter_thread()
        self.thread = PyThread_get_thread_ident()

    def _leave_run(self):
        self.thread = 0
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
        cdef FlushNode *node
        if self.in_child():
            # The parent sends what was written before the fork.
            while self.flush_head != NULL:
                self.flush_cancel(self.flush_head)
            return 0
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

    # -- fds ----------------------------------------------------------------------------

    def _ensure_fd_no_transport(self, fileobj):
        """Raise RuntimeError if a transport has the fd."""
        known = self.transports.get(_number(fileobj))
        transport = known() if known is not None else None
        if transport is not None and not transport.is_closing():
            raise RuntimeError(
                f"File descriptor {fileobj!r} is used by transport {transport!r}")

    cdef FdWatch _watch_of(self, object fileobj):
        """The watch of what is perhaps no open file any more; or None."""
        cdef AioHandler *node
        cdef FdWatch watch
        number = _number(fileobj)
        if number < 0:
            # A file object that was closed is still known by what it was.
            for opaque in list(self.context.owners.values()):
                if isinstance(opaque, FdWatch):
                    watch = <FdWatch>opaque
                    if watch.fileobj is fileobj and fileobj is not None:
                        return watch
            raise ValueError(f"Invalid file descriptor: {number}")
        if number > INT_MAX:
            return None
        node = self.context.lookup(number)
        if node != NULL and node.owner == AIO_OWNER_LOOP:
            return <FdWatch>node.opaque
        return None

    cdef object _set_watch(self, object fileobj, bint writer, object callback, tuple args,
                           bint socket):
        cdef FdWatch watch
        cdef AioHandler *node
        cdef int fd = _fd_number(fileobj)
        cdef uint32_t mask = POLLOUT if writer else POLLIN
        if self.in_child():
            self._renew()
        node = self.context.lookup(fd)
        handle = new_handle(self, callback, NULL, NULL, NULL, args if args else None, None)
        if self.debug:
            (<Handle>handle)._source_traceback = extract_stack(sys._getframe())
        if node != NULL and node.owner == AIO_OWNER_CONTEXT:
            raise RuntimeError(
                f"File descriptor {fd} is used by an fd handler of the AioContext")
        if node != NULL and node.owner == AIO_OWNER_LOOP:
            watch = <FdWatch>node.opaque
            old = watch.writer if writer else watch.reader
            if old is not None or self.context.mon.one_shot:
                # The fd may have been closed and its number given out again since: what
                # is watched must be the file that has the number now.
                mask |= node.events
                watch.node = NULL
                self.context.unwatch(node)
                watch.node = self.context.watch(
                    fd, AIO_OWNER_LOOP, mask, _watch_read, _watch_write, watch)
                watch.node.io_lost = _watch_lost
            else:
                self.context.modify(node, node.events | mask)
            if writer:
                watch.writer = handle
            else:
                watch.reader = handle
            if old is not None:
                old.cancel()
            return handle
        watch = FdWatch.__new__(FdWatch)
        watch.loop = self
        if not isinstance(fileobj, int):
            watch.fileobj = fileobj
        if writer:
            watch.writer = handle
        else:
            watch.reader = handle
        # What is known to be a socket needs not be looked at: it can be watched.
        node = self.context.watch(
            fd, AIO_OWNER_TRANSPORT if socket else AIO_OWNER_LOOP, mask, _watch_read,
            _watch_write, watch)
        node.owner = AIO_OWNER_LOOP
        node.io_lost = _watch_lost
        watch.node = node
        return handle

    # A task that receives in a loop waits for the same socket again and again.  Where
    # registering an fd costs a system call it stays registered after the wait, idle: an
    # idle node belongs to nobody, and to the first who wants the fd.  It ends when data
    # comes that nobody waits for, when its number is watched anew, or for the wait of
    # another socket object.  A socket whose file was exchanged below it (dup2) would wait
    # for ever, so what waits on trust is told to the kernel again after DOUBT_NS.

    def _watch_sock(self, sock, int fd, callback, *args):
        """`_add_reader` for one wait of a socket's owner; end it by `_unwatch_sock`."""
        cdef AioHandler *node
        cdef FdWatch watch
        self._check_closed_()
        node = self.context.lookup(fd)
        if node != NULL and node.owner == AIO_OWNER_TRANSPORT and not self.in_child():
            opaque = <object>node.opaque
            if type(opaque) is FdWatch and (<FdWatch>opaque).idle:
                watch = <FdWatch>opaque
                if watch.sock() is sock and not node.queued:
                    handle = new_handle(self, callback, NULL, NULL, NULL, args, None)
                    if self.debug:
                        handle._source_traceback = extract_stack(sys._getframe())
                    node.owner = AIO_OWNER_LOOP
                    watch.idle = False
                    watch.reader = handle
                    watch.waits += 1
                    if not watch.doubted:
                        self._doubt(watch)
                    return handle
        return self._set_watch(fd, False, callback, args, True)

    def _unwatch_sock(self, sock, int fd, handle, bint again):
        """End a wait of `_watch_sock`; `again` if the next may well be for the same."""
        cdef AioHandler *node = self.context.lookup(fd)
        cdef FdWatch watch
        if self.closed or node == NULL or node.owner != AIO_OWNER_LOOP:
            return
        watch = <FdWatch>node.opaque
        if watch.reader is not handle:
            return      # somebody else's by now, perhaps under its next owner
        if (again and self.leaves_armed and watch.writer is None and not node.queued
                and not self.in_child() and sock.fileno() == fd):
            if watch.sock is None or watch.sock() is not sock:
                try:
                    watch.sock = _weakref(sock)
                except TypeError:
                    watch.sock = None
            if watch.sock is not None:
                watch.reader = None
                watch.idle = True
                node.owner = AIO_OWNER_TRANSPORT
                return
        self._drop_watch(fd, False)

    cdef int _drop_idle(self, AioHandler *node) except -1:
        cdef FdWatch watch = <FdWatch>node.opaque
        watch.idle = False
        watch.node = NULL
        return self.context.unwatch(node)

    def _forget_idle(self, fileobj):
        """Have an fd free for whoever is not the loop's; what is idle goes."""
        cdef AioHandler *node
        try:
            node = self.context.lookup(_fd_number(fileobj))
        except (ValueError, OverflowError):
            return      # whoever wants it will say so
        if node != NULL and node.owner == AIO_OWNER_TRANSPORT:
            opaque = <object>node.opaque
            if type(opaque) is FdWatch and (<FdWatch>opaque).idle:
                self._drop_idle(node)

    cdef int _doubt(self, FdWatch watch) except -1:
        watch.doubted = True
        watch.doubted_at = watch.waits
        self.doubtful.append(watch)
        if self.doubt_timer.index == TIMER_IDLE:
            self.context.timers.arm(&self.doubt_timer, aq_now_ns() + DOUBT_NS)
        return 0

    cdef bint _drop_watch(self, object fileobj, bint writer) except -1:
        cdef FdWatch watch = self._watch_of(fileobj)
        cdef AioHandler *node
        if watch is None:
            return False
        node = watch.node
        if writer:
            handle = watch.writer
            watch.writer = None
        else:
            handle = watch.reader
            watch.reader = None
        if handle is None:
            return False
        if watch.reader is None and watch.writer is None:
            watch.node = NULL
            self.context.unwatch(node)
        else:
            try:
                self.context.modify(
                    node, POLLIN if watch.reader is not None else POLLOUT)
            except OSError:
                # The fd has gone; so has what the other side waited for.
                watch.node = NULL
                self.context.unwatch(node)
        handle.cancel()
        return True

    def _add_reader(self, fd, callback, *args):
        self._check_closed_()
        return self._set_watch(fd, False, callback, args, False)

    def _add_writer(self, fd, callback, *args):
        self._check_closed_()
        return self._set_watch(fd, True, callback, args, False)

    def _remove_reader(self, fd):
        if self.closed:
            return False
        return self._drop_watch(fd, False)

    def _remove_writer(self, fd):
        if self.closed:
            return False
        return self._drop_watch(fd, True)

    def add_reader(self, fd, callback, *args):
        """Call `callback(*args)` whenever the fd is readable.

        Args:
            fd: a file descriptor or an object with `fileno()`.
            callback: replaces an earlier one.

        Raises:
            RuntimeError: a transport has the fd.
            ValueError: not a file descriptor.
            OSError: it is closed (EBADF) or cannot be watched (EPERM).
        """
        self._check_closed_()
        if self.debug:
            self._check_thread()
        self._ensure_fd_no_transport(fd)
        self._set_watch(fd, False, callback, args, False)

    def add_writer(self, fd, callback, *args):
        """Call `callback(*args)` whenever the fd is writable; as `add_reader`."""
        self._check_closed_()
        if self.debug:
            self._check_thread()
        self._ensure_fd_no_transport(fd)
        self._set_watch(fd, True, callback, args, False)

    def remove_reader(self, fd):
        """Stop watching the fd for reading; whether it was."""
        self._ensure_fd_no_transport(fd)
        if self.closed:
            return False
        return self._drop_watch(fd, False)

    def remove_writer(self, fd):
        """Stop watching the fd for writing; whether it was."""
        self._ensure_fd_no_transport(fd)
        if self.closed:
            return False
        return self._drop_watch(fd, True)


# As for the context: the collector must see what is queued (context.pyx tells why).

cdef extern from *:
    """
    static traverseproc aq_core_traverse;
    static inline void aq_core_traverse_set(PyTypeObject *t, traverseproc f)
    { aq_core_traverse = t->tp_traverse; t->tp_traverse = f; }
    """
    # Not Cython's own declarations: those call -1 an exception, the collector does not.
    ctypedef int (*visitproc)(PyObject *, void *) noexcept
    ctypedef int (*traverseproc)(PyObject *, visitproc, void *) noexcept
    int aq_core_traverse(PyObject *op, visitproc visit, void *arg) noexcept
    void aq_core_traverse_set(PyTypeObject *t, traverseproc f)


cdef int _traverse(PyObject *op, visitproc visit, void *arg) noexcept:
    cdef LoopCore loop = <LoopCore>op
    cdef PyObject *handle
    cdef FlushNode *node
    cdef int err = aq_core_traverse(op, visit, arg)
    handle = loop.ready_head
    while err == 0 and handle != NULL:
        err = visit(handle, arg)
        handle = (<AqHandleObject *>handle).next
    node = loop.flush_head
    while err == 0 and node != NULL:
        err = visit(<PyObject *>node.owner, arg)
        node = node.next
    return err


aq_core_traverse_set(<PyTypeObject *>LoopCore, _traverse)
refuse_new(<PyTypeObject *>FdWatch)
