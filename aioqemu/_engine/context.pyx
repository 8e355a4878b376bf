"""AioContext: one event loop engine, as in QEMU.  Contracts in context.pxd.

Knows nothing of asyncio or files.  Invariant: everything that is due is on a list of the
context, never in a local variable, and is taken off before its callback runs; so a nested
poll sees the rest of the outer pass, and an exception that leaves a pass loses nothing.

Waking (QEMU's protocol).  A sleeper announces `notify_me`, then looks at `notified`, then
sleeps.  A waker sets `notified`, then looks at `notify_me`, and writes the eventfd only if
it is set.  Both orders are sequentially consistent, so at least one of the two sees the
other: no wake-up is lost, and none costs a system call while the loop is awake.  The
shortcut "do not write if already notified" would be wrong: the one who set the flag may
not have written yet.
"""

import os
import sys

from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_RawCalloc
from cpython.mem cimport PyMem_RawFree
from cpython.mem cimport PyMem_RawRealloc
from cpython.number cimport PyNumber_Index
from cpython.object cimport PyObject
from cpython.object cimport PyTypeObject
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport Py_DECREF
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t
from libc.stdint cimport uint32_t
from libc.string cimport memset

from aioqemu._engine.lists cimport done_pop
from aioqemu._engine.lists cimport node_reap
from aioqemu._engine.lists cimport ready_push
from aioqemu._engine.lists cimport ready_unlink
from aioqemu._engine.lists cimport zombie_link
from aioqemu._engine.notifier cimport EventNotifier
from aioqemu._engine.notifier cimport notifier_clear
from aioqemu._engine.notifier cimport notifier_init
from aioqemu._engine.notifier cimport notifier_set
from aioqemu._engine.timers cimport TimerHeap
from aioqemu._engine.types cimport AIO_OWNER_CONTEXT
from aioqemu._engine.types cimport AIO_OWNER_INTERNAL
from aioqemu._engine.types cimport AIO_OWNER_LOOP
from aioqemu._engine.types cimport AIO_OWNER_TRANSPORT
from aioqemu._engine.types cimport TIMER_IDLE
from aioqemu._engine.types cimport AioCallback
from aioqemu._engine.types cimport AioHandler
from aioqemu._engine.types cimport AioTimer
from aioqemu._engine.types cimport CqeHandler
from aioqemu._sys.atomic cimport aq_exchange
from aioqemu._sys.atomic cimport aq_load
from aioqemu._sys.atomic cimport aq_pause
from aioqemu._sys.atomic cimport aq_store
from aioqemu._sys.libc cimport EBADF
from aioqemu._sys.libc cimport EEXIST
from aioqemu._sys.libc cimport EINTR
from aioqemu._sys.libc cimport EPOLL_CLOEXEC
from aioqemu._sys.classes cimport refuse_new
from aioqemu._sys.libc cimport EPOLL_CTL_ADD
from aioqemu._sys.libc cimport EPERM
from aioqemu._sys.libc cimport POLLERR
from aioqemu._sys.libc cimport POLLHUP
from aioqemu._sys.libc cimport POLLIN
from aioqemu._sys.libc cimport POLLNVAL
from aioqemu._sys.libc cimport POLLOUT
from aioqemu._sys.libc cimport POLLPRI
from aioqemu._sys.libc cimport POLLRDHUP
from aioqemu._sys.libc cimport S_ISDIR
from aioqemu._sys.libc cimport S_ISREG
from aioqemu._sys.libc cimport aq_now_ns
from aioqemu._sys.libc cimport close
from aioqemu._sys.libc cimport epoll_create1
from aioqemu._sys.libc cimport epoll_ctl
from aioqemu._sys.libc cimport epoll_event
from aioqemu._sys.libc cimport errno
from aioqemu._sys.libc cimport fstat
from aioqemu._sys.libc cimport pollfd
from aioqemu._sys.libc cimport ppoll
from aioqemu._sys.libc cimport pthread_atfork
from aioqemu._sys.libc cimport stat_t
from aioqemu._sys.libc cimport timespec

from aioqemu._engine import backends
from aioqemu._engine import unclosed

cdef object _warn_unclosed = unclosed.warn_unclosed

cdef enum:
    IDLE_NS = 10000000          # how long idle bottom halves may wait
    POLL_START_NS = 4000        # first adaptive polling interval

cdef int64_t MAX_TIMEOUT_NS = 0x7fffffff * <int64_t>1000000

fork_generation = 0


cdef void _after_fork() noexcept nogil:
    global fork_generation
    fork_generation += 1


pthread_atfork(NULL, NULL, _after_fork)


cdef object _os_error(int err):
    return OSError(err, os.strerror(err))


cdef int _watchable(int fd) except -1:
    """Raise what epoll would say of an fd, for backends that accept anything."""
    cdef stat_t st
    cdef epoll_event ev
    cdef int epfd, err
    if fstat(fd, &st) != 0:
        err = errno
        raise _os_error(err)
    if S_ISREG(st.st_mode) or S_ISDIR(st.st_mode):
        raise _os_error(EPERM)
    if (st.st_mode & 0o170000) in (0o140000, 0o010000):   # a socket, a pipe
        return 0
    epfd = epoll_create1(EPOLL_CLOEXEC)
    if epfd < 0:
        return 0    # cannot tell; the backend will
    ev.events = 0
    ev.data.u64 = 0
    err = errno if epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev) != 0 else 0
    close(epfd)
    if err:
        raise _os_error(err)
    return 0


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
            # A sleeper must learn that it may sleep 10 ms at most from now on.
            if aq_load(&self.ctx.notify_me) or self.ctx.always_write:
                self.ctx.wake()
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


cdef int _notifier_read(void *opaque) except -1:
    notifier_clear((<AioContext>opaque).notifier[0])
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
        if aq_load(&self.ctx.notify_me) or self.ctx.always_write:
            self.ctx.wake()

    def mod_anticipate(self, deadline_ns):
        """Fire at `deadline_ns` if that is earlier than what is set."""
        cdef int64_t deadline = PyNumber_Index(deadline_ns)
        if self.timer.index == TIMER_IDLE or deadline < self.timer.deadline_ns:
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
        return -1 if self.timer.index == TIMER_IDLE else self.timer.deadline_ns


cdef class Service:
    cdef int submit(self) except -1:
        return 0

    cdef int collect(self) noexcept:
        return 0

    cdef int shut(self, bint child) except -1:
        return 0


cdef class AioContext:
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

    Raises:
        BackendUnavailable: the backend asked for by name cannot run here.
        ValueError: an argument is out of range.
        OSError: no file descriptors could be had.
    """

    def __cinit__(self, *args, **kwargs):
        memset(&self.st, 0, sizeof(self.st))
        memset(&self.counts, 0, sizeof(self.counts))
        self.notifier[0] = self.notifier[1] = -1
        self.notifier_node = NULL
        self.bh_list.head = self.bh_list.tail = NULL
        self.bh_slice.head = self.bh_slice.tail = NULL
        self.closed = True
        self.refs = 0
        self.fork_generation = fork_generation

    def __init__(self, fdmon=None, semantics="seed", poll_max_ns=0, poll_grow=0,
                 poll_shrink=0):
        cdef int err
        if not self.closed or self.refs:
            raise RuntimeError("the context is in use")
        if semantics not in ("seed", "modern"):
            raise ValueError(f"semantics must be 'seed' or 'modern', not {semantics!r}")
        if poll_max_ns < 0 or poll_grow < 0 or poll_shrink < 0:
            raise ValueError("polling parameters must not be negative")
        self.modern = semantics == "modern"
        self.poll_max_ns = poll_max_ns
        self.poll_grow = poll_grow
        self.poll_shrink = poll_shrink
        self.timers = TimerHeap.__new__(TimerHeap)
        self.owners = {}
        self.flushers = []
        self.mon, self.reason = backends.choose(fdmon)
        self.mon.st = &self.st
        err = notifier_init(self.notifier, False)
        if err < 0:
            self.mon.close(False)
            raise OSError(-err, "cannot create an event notifier")
        self.refs = 1
        self.closed = False
        self.notifier_node = self.watch(
            self.notifier[0], AIO_OWNER_INTERNAL, POLLIN, _notifier_read, NULL, None)
        # The node's pointer to the context is not a reference: it would be a cycle.
        self.notifier_node.opaque = <void *>self
        self.wake()     # as a registration does

    def __del__(self):
        if self.refs and not self.closed:
            if sys is None or sys.is_finalizing():
                self._close()       # what a subclass adds may have lost its globals
                return
            try:
                _warn_unclosed(f"unclosed {self!r}", self)
            finally:
                self.close()        # the warning may be an error

    def __dealloc__(self):
        PyMem_RawFree(self.st.table)

    def __repr__(self):
        name = type(self).__name__
        if self.closed:
            return f"<{name} closed>"
        return f"<{name} fdmon={self.mon.name!r} fds={len(self.owners) - 1}>"

    # -- life cycle ---------------------------------------------------------------------

    cdef int check_usable(self) except -1:
        if self.closed:
            raise RuntimeError("the AioContext is closed")
        if self.fork_generation != fork_generation:
            raise RuntimeError("the AioContext belongs to the parent process")
        return 0

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
        self.refs -= 1
        if self.refs == 0:
            self.close()

    @property
    def refcount(self):
        """The number of references."""
        return self.refs

    def close(self):
        """Give everything back; twice does nothing.  What is scheduled does not run."""
        self._close()

    cdef int _close(self) except -1:
        cdef int fd
        cdef bint child = self.fork_generation != fork_generation
        cdef BottomHalf bh
        if self.closed:
            return 0
        self.closed = True
        self.refs = 0
        # 1. no callback runs any more
        while self.bh_slice.head != NULL:
            bh = <BottomHalf>self.bh_slice.head.owner
            bh._drop()
        while self.bh_list.head != NULL:
            bh = <BottomHalf>self.bh_list.head.owner
            bh._drop()
        self.timers.clear()
        if self.service is not None:
            self.service.shut(child)
            self.service = None
        # 2. the monitor lets go of the fds; in a forked child it must not touch the
        #    parent's epoll set or ring
        if child:
            self.mon.close(True)
        for fd in range(self.st.table_size):
            if self.st.table[fd] != NULL:
                self._forget(self.st.table[fd], child)
        if not child:
            self.mon.close(False)
        # 3. our own fds
        if self.notifier[0] >= 0:
            close(self.notifier[0])
        if self.notifier[1] >= 0 and self.notifier[1] != self.notifier[0]:
            close(self.notifier[1])
        self.notifier[0] = self.notifier[1] = -1
        self.notifier_node = NULL
        self.owners = {}
        self.flushers = []
        self.poll_guard = None
        return 0

    cdef int enter_thread(self) except -1:
        self.check_usable()
        self.home = PyThread_get_thread_ident()
        return 0

    cdef int _check_home(self) except -1:
        self.check_usable()
        if self.home == 0:
            self.home = PyThread_get_thread_ident()
        elif self.home != PyThread_get_thread_ident():
            raise RuntimeError("an AioContext may be polled by its home thread only")
        return 0

    # -- exceptions ---------------------------------------------------------------------

    cdef int report(self, str message, object exc, dict extra) except -1:
        if isinstance(exc, (KeyboardInterrupt, SystemExit)):
            raise exc
        context = {"message": message, "exception": exc, "context": self}
        context.update(extra)
        handler = self.exception_handler
        if handler is None:
            self._unraisable(message, exc)
            return 0
        try:
            handler(context)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as second:
            self._unraisable("Exception in the exception handler of a context", second)
        return 0

    cdef int _unraisable(self, str message, object exc) except -1:
        sys.unraisablehook(_Unraisable(exc, message, self))
        return 0

    def set_exception_handler(self, handler):
        """Have `handler(context: dict)` called for exceptions of callbacks.

        The dict has "message", "exception", "context" and what is known besides.  None
        brings back the default, `sys.unraisablehook`.
        """
        if handler is not None and not callable(handler):
            raise TypeError(f"a callable object or None is expected, got {handler!r}")
        self.exception_handler = handler

    # -- fds ----------------------------------------------------------------------------

    cdef int _grow_table(self, int fd) except -1:
        cdef int size = self.st.table_size * 2 if self.st.table_size else 64
        cdef void *grown
        while size <= fd:
            size *= 2
        grown = PyMem_RawRealloc(self.st.table, size * sizeof(AioHandler *))
        if grown == NULL:
            raise MemoryError()
        self.st.table = <AioHandler **>grown
        memset(&self.st.table[self.st.table_size], 0,
               (size - self.st.table_size) * sizeof(AioHandler *))
        self.st.table_size = size
        return 0

    cdef AioHandler *watch(self, int fd, int owner, uint32_t events, AioCallback io_read,
                           AioCallback io_write, object opaque) except NULL:
        cdef AioHandler *node
        cdef AioHandler *old
        cdef stat_t st
        cdef int err
        self.check_usable()
        if fd < 0:
            raise ValueError(f"Invalid file descriptor: {fd}")
        if fd >= self.st.table_size:
            # Open fds only: a wild number must not decide how much memory is taken.
            if fstat(fd, &st) != 0:
                err = errno
                raise _os_error(err)
            self._grow_table(fd)
        if (owner == AIO_OWNER_LOOP or owner == AIO_OWNER_CONTEXT) and (
                self.mon.name != "epoll"):
            _watchable(fd)
        old = self.st.table[fd]
        if old != NULL:
            # Its fd was closed elsewhere and the number given out again, or a transport
            # takes over what add_reader watched.
            self._lose(old)
        node = <AioHandler *>PyMem_RawCalloc(1, sizeof(AioHandler))
        if node == NULL:
            raise MemoryError()
        self.st.generation += 1
        node.fd = fd
        node.generation = self.st.generation
        node.owner = owner
        node.events = events
        node.index = -1
        node.io_read = io_read
        node.io_write = io_write
        node.opaque = <void *>opaque
        err = self.mon.add(node)
        if err < 0:
            PyMem_RawFree(node)
            raise _os_error(-err)
        self.st.table[fd] = node
        self.owners[fd] = opaque
        if owner >= AIO_OWNER_LOOP:
            self.n_foreign += 1
        self._changed(owner)
        return node

    cdef void _changed(self, int owner) noexcept:
        # QEMU's registrations always notify; the loop's need to only if it sleeps.
        if owner == AIO_OWNER_CONTEXT or aq_load(&self.notify_me) or self.always_write:
            self.wake()

    cdef int modify(self, AioHandler *node, uint32_t events) except -1:
        cdef int err
        if self.closed or node.events == events:
            return 0
        if self.fork_generation != fork_generation:
            return 0            # the monitor is the parent's; its ring is not even mapped
        node.events = events
        err = self.mon.update(node)
        self._changed(node.owner)
        if err < 0:
            raise _os_error(-err)
        return 0

    cdef void _forget(self, AioHandler *node, bint child) noexcept:
        """Take a node out of everything; free it when the kernel lets go of it."""
        node.deleted = True
        node.revents = 0
        ready_unlink(&self.st, node)
        if not child:
            self.mon.remove(node)
        if node.owner >= AIO_OWNER_LOOP:
            self.n_foreign -= 1
        if node.masked:
            self.n_masked -= 1
        if node.fd < self.st.table_size and self.st.table[node.fd] == node:
            self.st.table[node.fd] = NULL
        if node.owner == AIO_OWNER_CONTEXT and node.opaque != NULL:
            (<FdHandler>node.opaque).node = NULL
        node.opaque = NULL
        zombie_link(&self.st, node)
        node_reap(&self.st, node)

    cdef int unwatch(self, AioHandler *node) noexcept:
        cdef int fd, owner
        cdef bint current
        if self.closed or node.deleted:     # closed: the node is gone already
            return 0
        fd = node.fd
        owner = node.owner
        current = self.st.table[fd] == node
        self._forget(node, self.fork_generation != fork_generation)
        if current:
            _held = self.owners.pop(fd, None)   # dropped last: it may run anything
        self._changed(owner)
        return 0

    cdef int _lose(self, AioHandler *node) except -1:
        """The fd of a node has gone: remove it and tell its owner."""
        cdef AioCallback lost = node.io_lost
        held = self.owners.get(node.fd)
        self.unwatch(node)
        if lost != NULL:
            lost(<void *>held)
        return 0

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
        h.fd = number
        node.io_lost = _fd_lost
        if io_flush is not None:
            self.flushers.append(h)

    cdef int _drop_flusher(self, AioHandler *node) except -1:
        cdef FdHandler h = <FdHandler>node.opaque
        h.node = NULL
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

    # -- bottom halves, timers ----------------------------------------------------------

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

    def bh_poll(self):
        """Run the scheduled bottom halves (`aio_bh_poll`).

        Returns:
            Whether one that was not idle ran.
        """
        self._check_home()
        return bool(self._run_bottom_halves())

    # -- waking -------------------------------------------------------------------------

    cdef void wake(self) noexcept nogil:
        # Pairs with the announcement in wait(); see the head of this file.
        aq_store(&self.notified, 1)
        if aq_load(&self.notify_me) or self.always_write:
            self.counts.notify_writes += 1
            notifier_set(self.notifier[1])

    def notify(self):
        """Make the running, or else the next, wait return (`aio_notify`).  Any thread."""
        self.check_usable()
        self.counts.notifies += 1
        self.wake()

    # -- waiting ------------------------------------------------------------------------

    cdef int64_t compute_timeout(self) noexcept:
        # What only the loop's own pass dispatches keeps no poll() from sleeping.
        if self.st.ready_loop.head != NULL or self.st.ready_transport.head != NULL:
            return 0
        return self._own_timeout()

    cdef int64_t _own_timeout(self) noexcept:
        cdef int64_t timeout = -1
        cdef int64_t left, now
        if self.bh_urgent or self.st.done_head != NULL or (
                self.st.ready_context.head != NULL):
            return 0
        if self.bh_idle:
            timeout = IDLE_NS
        if self.timers.due_head != NULL:
            return 0
        if self.timers.length:
            left = self.timers.entries[0].deadline_ns
            now = aq_now_ns()
            if left <= now:
                return 0
            left -= now         # not before: a deadline may be far below zero
            if left > MAX_TIMEOUT_NS:
                left = MAX_TIMEOUT_NS
            if timeout < 0 or left < timeout:
                timeout = left
        return timeout

    cdef bint has_ready(self) noexcept:
        return (self.st.ready_context.head != NULL or self.st.ready_loop.head != NULL
                or self.st.ready_transport.head != NULL)

    cdef bint has_work(self) noexcept:
        return (self.bh_urgent != 0 or self.st.done_head != NULL or self.has_ready()
                or aq_load(&self.notified) != 0
                or (self.mon.one_shot and self.mon.has_work()))

    cdef int _start_monitor(self) except -1:
        if self.mon_thread != self.home:
            self.mon.start()
            self.mon_thread = self.home
        return 0

    cdef int wait(self, int64_t timeout_ns) except -1:
        cdef int err
        cdef int64_t began = 0
        cdef bint adaptive
        self.check_usable()     # a callback of the loop may have closed it, or forked
        self._start_monitor()
        if self.service is not None:
            self.service.submit()
            if self.st.done_head != NULL:
                timeout_ns = 0
        err = self.mon.prepare()
        if err == 0:
            if timeout_ns != 0:
                # Announce, then look: pairs with wake().
                aq_store(&self.notify_me, 1)
                if aq_load(&self.notified):
                    timeout_ns = 0
                    aq_store(&self.notify_me, 0)
            self.counts.waits += 1
            if timeout_ns == 0:
                err = self.mon.wait(0)
            else:
                try:
                    PyErr_CheckSignals()   # what came while no bytecode ran
                except BaseException:
                    aq_store(&self.notify_me, 0)
                    raise
                if aq_load(&self.notified):
                    timeout_ns = 0         # a signal handler had something to say
                adaptive = self.poll_max_ns != 0 and self.mon.one_shot
                if adaptive:
                    began = aq_now_ns()
                self.counts.gil_releases += 1
                self.mon.waiting = True
                with nogil:
                    if adaptive and self._spin(timeout_ns):
                        timeout_ns = 0
                    err = self.mon.wait(timeout_ns)
                self.mon.waiting = False
                aq_store(&self.notify_me, 0)
                if adaptive:
                    self._adjust_polling(aq_now_ns() - began)
        self.mon.collect()
        if err < 0:
            if err == -EEXIST:
                # A thread of the same ident, but another one: the ring is not its.
                self.mon.start()
            elif err != -EINTR:
                raise OSError(-err, f"the {self.mon.name} backend has failed")
            PyErr_CheckSignals()
        return 0

    cdef bint _spin(self, int64_t timeout_ns) noexcept nogil:
        """Adaptive polling, on memory words only; True if there is something."""
        cdef int64_t start, end
        cdef int _i
        if self.poll_ns == 0:
            return False
        start = aq_now_ns()
        end = start + (self.poll_ns if timeout_ns < 0 or self.poll_ns < timeout_ns
                       else timeout_ns)
        # What was prepared must be with the kernel, or nothing can come of it.
        self.mon.wait(0)
        while True:
            for _i in range(32):
                if aq_load(&self.notified) or self.mon.has_work():
                    self.counts.polled_ns += aq_now_ns() - start
                    return True
                aq_pause()
            if aq_now_ns() >= end:
                self.counts.polled_ns += end - start
                return False

    cdef void _adjust_polling(self, int64_t blocked_ns) noexcept:
        # QEMU's rule: long sleeps make polling pointless, short ones just beyond the
        # present interval make it worth extending.
        if blocked_ns <= self.poll_ns:
            return
        if blocked_ns > self.poll_max_ns:
            self.poll_ns = self.poll_ns // self.poll_shrink if self.poll_shrink else 0
        elif self.poll_ns < self.poll_max_ns:
            if self.poll_ns == 0:
                self.poll_ns = POLL_START_NS
            else:
                self.poll_ns *= self.poll_grow if self.poll_grow else 2
            if self.poll_ns > self.poll_max_ns:
                self.poll_ns = self.poll_max_ns

    # -- dispatch -----------------------------------------------------------------------

    cdef int _dispatch_node(self, AioHandler *node) except -1:
        """Run the callbacks of a node that has left its queue; 1 if it is a user's."""
        cdef uint32_t revents = node.revents
        cdef uint32_t writable
        node.revents = 0
        if revents & POLLNVAL:
            self._lose_and_report(node)
            return 1
        if node.owner == AIO_OWNER_INTERNAL:
            node.io_read(node.opaque)
            if self.fork_generation == fork_generation:
                self.mon.update(node)
            return 0
        self.counts.fd_events += 1
        node.walking += 1
        try:
            if node.events & POLLIN and revents & (POLLIN | POLLPRI | POLLHUP | POLLRDHUP
                                                   | POLLERR):
                node.io_read(node.opaque)
            # A hang-up goes to the writer too where no reader takes it, or it would be
            # reported for ever; asyncio expects it in any case.
            writable = POLLOUT | POLLERR
            if node.owner != AIO_OWNER_CONTEXT or not node.events & POLLIN:
                writable |= POLLHUP
            if not node.deleted and node.events & POLLOUT and revents & writable:
                node.io_write(node.opaque)
        finally:
            node.walking -= 1
            if node.deleted:
                node_reap(&self.st, node)
            elif node.armed == 0 and self.fork_generation == fork_generation:
                self.mon.update(node)
        return 1

    cdef int _lose_and_report(self, AioHandler *node) except -1:
        cdef int fd = node.fd
        cdef int owner = node.owner
        self._lose(node)
        if owner != AIO_OWNER_TRANSPORT:    # a transport tells its protocol
            self.report("A file descriptor was closed while it was watched",
                        OSError(EBADF, "file descriptor %d is closed" % fd), {"fd": fd})
        return 0

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
        if self.timers.length or self.timers.due_head != NULL:
            n = self.timers.run(self.now_ns)
            self.counts.timers += n
        return n

    cdef Py_ssize_t dispatch_transports(self) except -1:
        cdef AioHandler *node
        cdef Py_ssize_t n = 0
        while self.st.ready_transport.head != NULL:
            node = self.st.ready_transport.head
            ready_unlink(&self.st, node)
            n += self._dispatch_node(node)
        return n

    cdef Py_ssize_t dispatch_all(self, bint transports) except -1:
        cdef AioHandler *node
        cdef Py_ssize_t n = 0
        aq_store(&self.notified, 0)      # before looking for work, so that none is missed
        self.now_ns = aq_now_ns()
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

    # -- poll(): QEMU's front door --------------------------------------------------------

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
        self._start_monitor()
        if self.service is not None:
            self.service.submit()
            if self.st.done_head != NULL:
                timeout_ns = 0
        fds = <pollfd *>PyMem_RawCalloc(len(self.owners) + 1, sizeof(pollfd))
        if fds == NULL:
            raise MemoryError()
        try:
            for fd in self.owners:
                node = self.st.table[fd]
                if node.owner <= AIO_OWNER_CONTEXT and not node.masked:
                    fds[n].fd = fd
                    fds[n].events = <short>node.events
                    n += 1
            if timeout_ns != 0:
                aq_store(&self.notify_me, 1)    # pairs with wake()
                if aq_load(&self.notified):
                    timeout_ns = 0
            if timeout_ns != 0:
                PyErr_CheckSignals()
            ts.tv_sec = timeout_ns // 1000000000
            ts.tv_nsec = timeout_ns % 1000000000
            self.counts.waits += 1
            if timeout_ns == 0:
                err = -errno if ppoll(fds, n, &ts, NULL) < 0 else 0
            else:
                self.counts.gil_releases += 1
                with nogil:
                    err = ppoll(fds, n, NULL if timeout_ns < 0 else &ts, NULL)
                    if err < 0:
                        err = -errno
            if err >= 0:
                for i in range(n):
                    node = self.lookup(fds[i].fd)
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
            timeout = 0 if progress or not blocking else self._own_timeout()
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
            self._wait_context(self._own_timeout() if blocking else 0)
            told = aq_exchange(&self.notified, 0) != 0
            self.now_ns = aq_now_ns()
            progress = self._dispatch_done() > 0
            progress = self._run_bottom_halves() > 0 or progress
            progress = self._dispatch_context() > 0 or progress
            progress = self._run_timers() > 0 or progress
            if progress or told or not blocking or self.closed:
                return progress

    cdef bint _poll(self, bint blocking) except -1:
        self._check_home()
        if self.poll_guard is not None:
            self.poll_guard()
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

    # -- driven from outside ----------------------------------------------------------------

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
        """How long an outer loop may sleep, in ns; -1: until `fileno` is readable."""
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
        self.counts.passes += 1
        if self.n_masked:
            self._unmask()
        self.wait(0)
        n = self.dispatch_all(True)
        if not self.closed and self.fork_generation == fork_generation:
            self.mon.flush()
            if self.service is not None and self.always_write and aq_load(&self.notified):
                # A completion was announced meanwhile: after it had been looked for, and
                # before the notifier was drained.
                notifier_set(self.notifier[1])
        return n > 0

    # -- information --------------------------------------------------------------------

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
            "fds": len(self.owners),
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
            "polled_ns": self.counts.polled_ns,
        }


cdef int _fd_lost(void *opaque) except -1:
    cdef FdHandler h = <FdHandler>opaque
    h.node = NULL
    if h.io_flush is not None and h in h.ctx.flushers:
        h.ctx.flushers.remove(h)
    return 0


class _Unraisable:
    """What `sys.unraisablehook` is given."""

    def __init__(self, exc, message, obj):
        self.exc_type = type(exc)
        self.exc_value = exc
        self.exc_traceback = exc.__traceback__
        self.err_msg = message
        self.object = obj


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
    cdef BhNode *node
    cdef AioTimer *timer
    cdef Py_ssize_t i
    cdef int err = aq_context_traverse(op, visit, arg)
    if err or ctx.closed:
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
    timer = ctx.timers.due_head
    while timer != NULL:
        err = visit(<PyObject *>timer.opaque, arg)
        if err:
            return err
        timer = timer.next
    return 0


aq_traverse_set(<PyTypeObject *>AioContext, _traverse)
refuse_new(<PyTypeObject *>BottomHalf)
refuse_new(<PyTypeObject *>FdHandler)
refuse_new(<PyTypeObject *>Timer)
