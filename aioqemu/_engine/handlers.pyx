"""What users register with a context: fd handlers, bottom halves, timers.

Contracts in handlers.pxd.  Runs their callbacks and reports what they raise; knows neither
how the kernel is asked (core) nor in which order a pass runs (context).
"""

from cpython.number cimport PyNumber_Index
from cpython.object cimport PyTypeObject
from cpython.ref cimport Py_DECREF
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t
from libc.stdint cimport uint32_t
from libc.string cimport memset

from aioqemu._engine.core cimport fork_generation
from aioqemu._engine.lists cimport ready_unlink
from aioqemu._engine.notifier cimport EventNotifier
from aioqemu._engine.types cimport AIO_OWNER_CONTEXT
from aioqemu._engine.types cimport AioHandler
from aioqemu._engine.types cimport TIMER_IDLE
from aioqemu._engine.waiting cimport AioWaiting
from aioqemu._sys.classes cimport refuse_new
from aioqemu._sys.libc cimport POLLIN
from aioqemu._sys.libc cimport POLLOUT


cdef int _number_of(object fd) except? -1:
    if isinstance(fd, int):
        return fd
    try:
        fileno = fd.fileno
    except AttributeError:
        raise TypeError(f"a file descriptor is expected, got {fd!r}") from None
    return fileno()


cdef inline void _bh_link(BhList *lst, BhNode *node) noexcept:
    node.next = NULL
    node.prev = lst.tail
    if lst.tail == NULL:
        lst.head = node
    else:
        lst.tail.next = node
    lst.tail = node


cdef inline void _bh_unlink(BhList *lst, BhNode *node) noexcept:
    if node.prev == NULL:
        lst.head = node.next
    else:
        node.prev.next = node.next
    if node.next == NULL:
        lst.tail = node.prev
    else:
        node.next.prev = node.prev


cdef class BottomHalf:
    """A callback to run as soon as its context polls again (QEMU's `QEMUBH`).

    Made by `AioContext.bh_new`.  `schedule`, `schedule_idle`, `cancel` and `delete` may
    be called from any thread.
    """

    def __init__(self):
        raise TypeError("use AioContext.bh_new() to make a BottomHalf")

    def __repr__(self):
        state = ("deleted" if self.deleted else "idle" if self.node.idle
                 else "scheduled" if self.node.scheduled else "not scheduled")
        return f"<BottomHalf {self.cb!r} {state}>"

    @property
    def scheduled(self):
        """Whether the callback is waiting to run."""
        return bool(self.node.scheduled)

    cdef int _drop(self) noexcept:
        """Unlink; the caller holds a reference of its own."""
        if not self.node.scheduled:
            return 0
        if self.node.in_slice:
            _bh_unlink(&self.ctx.bh_slice, &self.node)
        else:
            _bh_unlink(&self.ctx.bh_list, &self.node)
        if self.node.idle:
            self.ctx.bh_idle -= 1
        else:
            self.ctx.bh_urgent -= 1
        self.node.scheduled = False
        self.node.idle = False
        Py_DECREF(self)
        return 0

    cdef int _schedule(self, bint idle) except -1:
        if self.deleted:
            raise RuntimeError("the bottom half has been deleted")
        self.ctx.check_usable()
        if self.node.scheduled:
            if self.node.idle and not idle:
                self.node.idle = False
                self.ctx.bh_idle -= 1
                self.ctx.bh_urgent += 1
                self.ctx.wake()
            return 0
        Py_INCREF(self)
        self.node.scheduled = True
        self.node.idle = idle
        self.node.in_slice = False
        _bh_link(&self.ctx.bh_list, &self.node)
        if idle:
            self.ctx.bh_idle += 1
            self.ctx.sooner()       # a sleep may last 10 ms at most from now on
        else:
            self.ctx.bh_urgent += 1
            self.ctx.wake()
        return 0

    def schedule(self):
        """Run the callback in the next pass, once (`qemu_bh_schedule`).

        Does nothing if it is scheduled already; one that is scheduled idle becomes urgent.

        Raises:
            RuntimeError: the bottom half was deleted, or its context closed.
        """
        self._schedule(False)

    def schedule_idle(self):
        """Run the callback in some pass within 10 ms (`qemu_bh_schedule_idle`).

        It counts neither as progress nor as a reason not to sleep.

        Raises:
            RuntimeError: the bottom half was deleted, or its context closed.
        """
        self._schedule(True)

    def cancel(self):
        """Do not run the callback after all (`qemu_bh_cancel`)."""
        self._drop()

    def delete(self):
        """Cancel and forget the callback (`qemu_bh_delete`); twice does nothing."""
        self._drop()
        self.deleted = True
        self.cb = None
        self.opaque = None


cdef class FdHandler:
    def __init__(self):
        raise TypeError("use AioContext.set_fd_handler()")


cdef int _fd_read(void *opaque) except -1:
    cdef FdHandler h = <FdHandler>opaque
    cb = h.io_read
    try:
        cb(h.opaque)
    except BaseException as exc:
        h.ctx.report("Exception in an fd handler", exc, {"handler": cb, "fd": h.fd})
    return 0


cdef int _fd_write(void *opaque) except -1:
    cdef FdHandler h = <FdHandler>opaque
    cb = h.io_write
    try:
        cb(h.opaque)
    except BaseException as exc:
        h.ctx.report("Exception in an fd handler", exc, {"handler": cb, "fd": h.fd})
    return 0


cdef int _fd_lost(void *opaque) except -1:
    cdef FdHandler h = <FdHandler>opaque
    if h.io_flush is not None and h in h.ctx.flushers:
        h.ctx.flushers.remove(h)
    return 0


cdef int _timer_due(void *opaque) except -1:
    cdef Timer t = <Timer>opaque
    cb = t.cb
    try:
        cb(t.opaque)
    except BaseException as exc:
        t.ctx.report("Exception in a timer", exc, {"timer": t})
    return 0


cdef class Timer:
    """A timer of a context (QEMU's `QEMUTimer` on the monotonic clock).

    Made by `AioContext.timer_new`.  Times are nanoseconds of `time.monotonic_ns`.
    """

    def __init__(self):
        raise TypeError("use AioContext.timer_new() to make a Timer")

    def mod(self, deadline_ns):
        """Fire at `deadline_ns`, whatever was set before (`timer_mod`)."""
        cdef int64_t deadline = PyNumber_Index(deadline_ns)
        self.ctx.check_usable()
        self.ctx.timers.arm(&self.timer, deadline)
        self.ctx.sooner()

    def mod_anticipate(self, deadline_ns):
        """Fire at `deadline_ns` if that is earlier than what is set."""
        cdef int64_t deadline = PyNumber_Index(deadline_ns)
        if not self.pending or deadline < self.ctx.timers.deadline_of(&self.timer):
            self.mod(deadline_ns)

    def delete(self):
        """Do not fire (`timer_del`); the timer may be set again."""
        self.ctx.timers.disarm(&self.timer)

    @property
    def pending(self):
        """Whether the timer is set (`timer_pending`)."""
        return self.timer.index != TIMER_IDLE

    @property
    def expire_time_ns(self):
        """When it fires, or -1 (`timer_expire_time_ns`)."""
        return self.ctx.timers.deadline_of(&self.timer)


cdef class AioHandlers(AioWaiting):
    """The middle of a context; made as an AioContext only."""

    cdef int drop_bottom_halves(self) except -1:
        cdef BottomHalf bh
        while self.bh_slice.head != NULL:
            bh = <BottomHalf>self.bh_slice.head.owner
            bh._drop()
        while self.bh_list.head != NULL:
            bh = <BottomHalf>self.bh_list.head.owner
            bh._drop()
        return 0

    # -- fds --------------------------------------------------------------------------

    def set_fd_handler(self, fd, io_read, io_write, io_flush=None, opaque=None):
        """Watch an fd (`aio_set_fd_handler`).

        Args:
            fd: a file descriptor or an object with `fileno()`; not owned, not closed.
            io_read: called with `opaque` when the fd is readable, hung up or in error.
            io_write: called with `opaque` when it is writable or in error.
            io_flush: called with `opaque`; true while requests are outstanding.  It
                decides whether `poll` watches the fd and may block.
            opaque: passed to the callbacks.

        With both `io_read` and `io_write` None the handler is removed.

        Raises:
            OSError: the fd is closed (EBADF) or cannot be watched (EPERM).
            RuntimeError: a transport or `add_reader` has the fd.
        """
        cdef int number = _number_of(fd)
        cdef AioHandler *node
        cdef FdHandler h
        cdef uint32_t events = 0
        self.check_usable()
        for cb in (io_read, io_write, io_flush):
            if cb is not None and not callable(cb):
                raise TypeError(f"a callable object or None is expected, got {cb!r}")
        node = self.lookup(number)
        if node != NULL and node.owner != AIO_OWNER_CONTEXT:
            raise RuntimeError(f"file descriptor {number} is used by the event loop")
        if io_read is None and io_write is None:
            if node != NULL:
                self._drop_flusher(node)
                self.unwatch(node)
            self.wake()
            return
        if io_read is not None:
            events |= POLLIN
        if io_write is not None:
            events |= POLLOUT
        h = FdHandler.__new__(FdHandler)
        h.ctx = self
        h.io_read = io_read
        h.io_write = io_write
        h.io_flush = io_flush
        h.opaque = opaque
        if node != NULL:
            # Always a new node: callbacks never change under a dispatch, and the old
            # readiness does not reach the new ones.
            self._drop_flusher(node)
            self.unwatch(node)
        node = self.watch(number, AIO_OWNER_CONTEXT, events, _fd_read, _fd_write, h)
        h.node = node
        node.keeper = &h.node
        h.fd = number
        node.io_lost = _fd_lost
        if io_flush is not None:
            self.flushers.append(h)

    cdef int _drop_flusher(self, AioHandler *node) except -1:
        cdef FdHandler h = <FdHandler>node.opaque
        if h.io_flush is not None:
            self.flushers.remove(h)
        return 0

    def set_event_notifier(self, notifier, io_read, io_flush=None):
        """Watch an event notifier (`aio_set_event_notifier`).

        The callbacks get the notifier; `io_read` must `test_and_clear` it.
        """
        if not isinstance(notifier, EventNotifier):
            raise TypeError(f"an EventNotifier is expected, got {notifier!r}")
        self.set_fd_handler(notifier.fileno(), io_read, None, io_flush, notifier)

    cdef bint _ask_busy(self) except -1:
        """Ask every io_flush; watch the fds of those with requests outstanding."""
        cdef bint busy = self.in_flight > 0
        cdef bint outstanding
        cdef FdHandler h
        for h in list(self.flushers):
            if self.closed:
                return False
            outstanding = False
            try:
                outstanding = bool(h.io_flush(h.opaque))
            except BaseException as exc:
                self.report("Exception in io_flush", exc, {"handler": h.io_flush})
            if h.node != NULL:
                self._mask(h.node, not outstanding)
                busy = busy or outstanding
        return busy

    cdef int _mask(self, AioHandler *node, bint masked) noexcept:
        if node.masked == masked:
            return 0
        node.masked = masked
        self.n_masked += 1 if masked else -1
        if masked:
            ready_unlink(&self.st, node)
            node.revents = 0
        if self.mon.one_shot and self.fork_generation == fork_generation:
            self.mon.update(node)
        return 0

    cdef void _unmask(self) noexcept:
        cdef FdHandler h
        for h in self.flushers:
            if h.node != NULL:
                self._mask(h.node, False)

    # -- bottom halves, timers --------------------------------------------------------

    def bh_new(self, cb, opaque=None):
        """Make a bottom half (`aio_bh_new`): `cb(opaque)`, not scheduled.  Any thread."""
        cdef BottomHalf bh
        self.check_usable()
        if not callable(cb):
            raise TypeError(f"a callable object is expected, got {cb!r}")
        bh = BottomHalf.__new__(BottomHalf)
        memset(&bh.node, 0, sizeof(bh.node))
        bh.node.owner = <void *>bh
        bh.ctx = self
        bh.cb = cb
        bh.opaque = opaque
        bh.deleted = False
        return bh

    def timer_new(self, cb, opaque=None):
        """Make a timer (`aio_timer_new`): `cb(opaque)`, not set."""
        cdef Timer t
        self.check_usable()
        if not callable(cb):
            raise TypeError(f"a callable object is expected, got {cb!r}")
        t = Timer.__new__(Timer)
        memset(&t.timer, 0, sizeof(t.timer))
        t.timer.index = TIMER_IDLE
        t.timer.cb = _timer_due
        t.timer.opaque = <void *>t
        t.ctx = self
        t.cb = cb
        t.opaque = opaque
        return t

    cdef int _run_bottom_halves(self) except -1:
        """One slice: 1 if one that was not idle ran."""
        cdef BhNode *node
        cdef BottomHalf bh
        cdef bint idle
        cdef int progress = 0
        if self.bh_list.head != NULL:
            node = self.bh_list.head
            while node != NULL:
                node.in_slice = True
                node = node.next
            # Behind what an outer pass has left: a nested one runs that first.
            self.bh_list.head.prev = self.bh_slice.tail
            if self.bh_slice.tail == NULL:
                self.bh_slice.head = self.bh_list.head
            else:
                self.bh_slice.tail.next = self.bh_list.head
            self.bh_slice.tail = self.bh_list.tail
            self.bh_list.head = self.bh_list.tail = NULL
        while self.bh_slice.head != NULL:
            bh = <BottomHalf>self.bh_slice.head.owner
            idle = bh.node.idle
            bh._drop()      # before the call, so that it may schedule itself again
            if not idle:
                progress = 1
            self.counts.bottom_halves += 1
            cb = bh.cb
            try:
                cb(bh.opaque)
            except BaseException as exc:
                self.report("Exception in a bottom half", exc, {"bottom_half": bh})
        return progress


refuse_new(<PyTypeObject *>BottomHalf)
refuse_new(<PyTypeObject *>FdHandler)
refuse_new(<PyTypeObject *>Timer)
