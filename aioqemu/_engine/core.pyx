"""AioCore: the fds of a context, waking it, and the dispatch of one fd.

Contracts in core.pxd.  Knows no callbacks of users but the exception handler, no order of
a pass, nothing of asyncio or files.

Waking (QEMU's protocol).  A sleeper announces `notify_me`, then looks at `notified`, then
sleeps.  A waker sets `notified`, then looks at `notify_me`, and writes the eventfd only if
it is set.  Both orders are sequentially consistent, so at least one of the two sees the
other: no wake-up is lost, and none costs a system call while the loop is awake.

Beyond QEMU, who finds `notify_me` set takes it away, and then must write: others need not,
who come until the sleeper has the GIL again, which is thousands of calls if they hold it.
The shortcut "do not write if already notified" would be wrong: the one who set that flag
may have found the loop awake.
"""

import os
import sys

from cpython.mem cimport PyMem_RawCalloc
from cpython.mem cimport PyMem_RawFree
from cpython.mem cimport PyMem_RawRealloc
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport Py_DECREF
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t
from libc.stdint cimport uint32_t
from libc.string cimport memset

from aioqemu._engine.lists cimport node_reap
from aioqemu._engine.lists cimport ready_unlink
from aioqemu._engine.lists cimport zombie_link
from aioqemu._engine.notifier cimport notifier_clear
from aioqemu._engine.notifier cimport notifier_init
from aioqemu._engine.notifier cimport notifier_set
from aioqemu._engine.timers cimport TimerHeap
from aioqemu._engine.types cimport AIO_EDGE
from aioqemu._engine.types cimport AIO_OWNER_CONTEXT
from aioqemu._engine.types cimport AIO_OWNER_INTERNAL
from aioqemu._engine.types cimport AIO_OWNER_LOOP
from aioqemu._engine.types cimport AIO_OWNER_TRANSPORT
from aioqemu._engine.types cimport AioCallback
from aioqemu._engine.types cimport AioHandler
from aioqemu._sys.atomic cimport aq_exchange
from aioqemu._sys.atomic cimport aq_load
from aioqemu._sys.atomic cimport aq_store
from aioqemu._sys.libc cimport EBADF
from aioqemu._sys.libc cimport EPERM
from aioqemu._sys.libc cimport EPOLL_CLOEXEC
from aioqemu._sys.libc cimport EPOLL_CTL_ADD
from aioqemu._sys.libc cimport POLLERR
from aioqemu._sys.libc cimport POLLHUP
from aioqemu._sys.libc cimport POLLIN
from aioqemu._sys.libc cimport POLLNVAL
from aioqemu._sys.libc cimport POLLOUT
from aioqemu._sys.libc cimport POLLPRI
from aioqemu._sys.libc cimport POLLRDHUP
from aioqemu._sys.libc cimport S_ISDIR
from aioqemu._sys.libc cimport S_ISREG
from aioqemu._sys.libc cimport aq_nap
from aioqemu._sys.libc cimport aq_now_ns
from aioqemu._sys.libc cimport close
from aioqemu._sys.libc cimport epoll_create1
from aioqemu._sys.libc cimport epoll_ctl
from aioqemu._sys.libc cimport epoll_event
from aioqemu._sys.libc cimport errno
from aioqemu._sys.libc cimport fstat
from aioqemu._sys.libc cimport pthread_atfork
from aioqemu._sys.libc cimport stat_t

from aioqemu._engine import backends

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


cdef int _notifier_read(void *opaque) except -1:
    if not (<AioCore>opaque).notifier_node.events & AIO_EDGE:
        notifier_clear((<AioCore>opaque).notifier[0])
    return 0


class _Unraisable:
    """What `sys.unraisablehook` is given."""

    def __init__(self, exc, message, obj):
        self.exc_type = type(exc)
        self.exc_value = exc
        self.exc_traceback = exc.__traceback__
        self.err_msg = message
        self.object = obj


cdef class Service:
    cdef int submit(self) except -1:
        return 0

    cdef int collect(self) noexcept:
        return 0

    cdef int shut(self, bint child) except -1:
        return 0


cdef class AioCore:
    """The base of a context; made as an AioContext only."""

    def __cinit__(self, *args, **kwargs):
        memset(&self.st, 0, sizeof(self.st))
        memset(&self.counts, 0, sizeof(self.counts))
        self.notifier[0] = self.notifier[1] = -1
        self.notifier_node = self.current = NULL
        self.closed = True
        self.fork_generation = fork_generation

    def __dealloc__(self):
        PyMem_RawFree(self.st.table)

    cdef int open_core(self, object fdmon) except -1:
        cdef uint32_t events = POLLIN
        cdef int err
        self.timers = TimerHeap.__new__(TimerHeap)
        self.mon, self.reason = backends.choose(fdmon)
        self.mon.st = &self.st
        err = notifier_init(self.notifier, False)
        if err < 0:
            self.mon.close(False)
            raise OSError(-err, "cannot create an event notifier")
        self.closed = False
        if self.mon.edges and self.notifier[0] == self.notifier[1]:
            events |= AIO_EDGE      # an eventfd, not a pipe, which would fill up
        try:
            self.notifier_node = self.watch(
                self.notifier[0], AIO_OWNER_INTERNAL, events, _notifier_read, NULL, self)
        except BaseException:
            self.closed = True
            self.close_core()
            raise
        self.wake()     # as a registration does
        return 0

    cdef int close_core(self) except -1:
        cdef int fd
        cdef bint child = self.fork_generation != fork_generation
        cdef list held = []     # dropped last: that may run anything
        while not child and aq_load(&self.wakers):
            with nogil:
                aq_nap()    # for no longer than a write to the notifier takes
        self.timers.clear()
        if self.service is not None:
            self.service.shut(child)
            self.service = None
        # The monitor lets go of the fds; in a forked child it must not touch the parent's
        # epoll set or ring.
        if child:
            self.mon.close(True)
        for fd in range(self.st.table_size):
            if self.st.table[fd] != NULL:
                held.append(self._forget(self.st.table[fd], child))
        if not child:
            self.mon.close(False)
        if self.notifier[0] >= 0:
            close(self.notifier[0])
        if self.notifier[1] >= 0 and self.notifier[1] != self.notifier[0]:
            close(self.notifier[1])
        self.notifier[0] = self.notifier[1] = -1
        self.notifier_node = NULL
        return 0

    # -- life cycle -------------------------------------------------------------------

    cdef int check_usable(self) except -1:
        if self.closed:
            raise RuntimeError("the AioContext is closed")
        if self.fork_generation != fork_generation:
            raise RuntimeError("the AioContext belongs to the parent process")
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

    # -- exceptions -------------------------------------------------------------------

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

    # -- fds --------------------------------------------------------------------------

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
        while self.st.table[fd] != NULL:
            # Its fd was closed elsewhere and the number given out again, or a transport
            # takes over what add_reader watched.
            self._lose(self.st.table[fd])
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
        self.n_fds += 1
        if opaque is not self:              # the notifier's would be a cycle
            Py_INCREF(opaque)
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

    cdef object _forget(self, AioHandler *node, bint child):
        """Take a node out of everything; free it when the kernel lets go of it.

        Returns:
            What it referred to, for the caller to drop when everything is in order.
        """
        cdef object held = <object>node.opaque
        if held is not self:
            Py_DECREF(held)
        node.deleted = True
        node.revents = 0
        ready_unlink(&self.st, node)
        if not child:
            self.mon.remove(node)
        if node.owner >= AIO_OWNER_LOOP:
            self.n_foreign -= 1
        if node.masked:
            self.n_masked -= 1
        self.st.table[node.fd] = NULL
        self.n_fds -= 1
        if node.keeper != NULL:
            node.keeper[0] = NULL
        node.opaque = NULL
        zombie_link(&self.st, node)
        node_reap(&self.st, node)
        return held

    cdef int unwatch(self, AioHandler *node) noexcept:
        cdef int owner
        if self.closed or node.deleted:     # closed: the node is gone already
            return 0
        owner = node.owner
        _held = self._forget(node, self.fork_generation != fork_generation)
        self._changed(owner)
        return 0

    cdef int _lose(self, AioHandler *node) except -1:
        """The fd of a node has gone: remove it and tell its owner."""
        cdef AioCallback lost = node.io_lost
        held = <object>node.opaque
        self.unwatch(node)
        if lost != NULL:
            lost(<void *>held)
        return 0

    # -- waking -----------------------------------------------------------------------

    cdef void wake(self) noexcept nogil:
        if self.claim_wake():
            self.signal()

    cdef bint claim_wake(self) noexcept nogil:
        # Pairs with the announcement in wait(); see the head of this file.
        aq_store(&self.notified, 1)
        return self.always_write or (
            aq_load(&self.notify_me) and aq_exchange(&self.notify_me, 0))

    cdef void signal(self) noexcept nogil:
        self.counts.notify_writes += 1
        notifier_set(self.notifier[1])

    def notify(self):
        """Make the running, or else the next, wait return (`aio_notify`).  Any thread."""
        self.check_usable()
        self.counts.notifies += 1
        self.wake()

    # -- dispatch of one node ---------------------------------------------------------

    cdef int _dispatch_node(self, AioHandler *node) except -1:
        """Run the callbacks of a node that has left its queue; 1 if it is a user's."""
        cdef uint32_t revents = node.revents
        cdef uint32_t writable
        cdef int64_t began = 0
        cdef object owner = None
        cdef AioHandler *outer = self.current
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
        if self.slow_hook is not None and node.owner == AIO_OWNER_TRANSPORT:
            owner = <object>node.opaque
            began = aq_now_ns()
        self.current = node
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
            self.current = outer
            node.walking -= 1
            if node.deleted:
                node_reap(&self.st, node)
            elif node.armed == 0 and self.fork_generation == fork_generation:
                self.mon.update(node)
        if owner is not None and self.slow_hook is not None:
            self.slow_hook(owner, (aq_now_ns() - began) * 1e-9)
        return 1

    cdef int _lose_and_report(self, AioHandler *node) except -1:
        cdef int fd = node.fd
        cdef int owner = node.owner
        self._lose(node)
        if owner != AIO_OWNER_TRANSPORT:    # a transport tells its protocol
            self.report("A file descriptor was closed while it was watched",
                        OSError(EBADF, "file descriptor %d is closed" % fd), {"fd": fd})
        return 0
