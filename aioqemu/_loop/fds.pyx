"""LoopFds: add_reader and add_writer.

Knows no sockets.  Invariant: a callback is called for the file that had the number when
it was added, never for a later one.
"""

import sys

from cpython.mem cimport PyMem_RawFree
from cpython.mem cimport PyMem_RawRealloc
from cpython.object cimport PyObject
from cpython.object cimport PyTypeObject
from libc.limits cimport INT_MAX
from libc.stdint cimport uint32_t
from libc.string cimport memset

from aioqemu._engine.types cimport AIO_OWNER_CONTEXT
from aioqemu._engine.types cimport AIO_OWNER_LOOP
from aioqemu._engine.types cimport AIO_OWNER_TRANSPORT
from aioqemu._engine.types cimport AioHandler
from aioqemu._loop.callbacks cimport LoopCallbacks
from aioqemu._loop.handles cimport HANDLE_CANCELLED
from aioqemu._loop.handles cimport Handle
from aioqemu._loop.handles cimport handle_call
from aioqemu._loop.handles cimport handle_track
from aioqemu._loop.handles cimport new_handle
from aioqemu._loop.layouts cimport AqHandleObject
from aioqemu._sys.classes cimport refuse_new
from aioqemu._sys.libc cimport POLLIN
from aioqemu._sys.libc cimport POLLOUT

from aioqemu._loop.private import (
    extract_stack,
)


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
    cdef LoopFds loop = watch.loop
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
    if watch.once != NULL:
        return watch.once(watch)
    handle = watch.reader
    if handle is not None:
        _watch_call(watch, handle)
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
    watch.once = NULL
    watch.idle = False
    reader = watch.reader
    writer = watch.writer
    watch.reader = watch.writer = None
    if reader is not None:
        reader.cancel()
    if writer is not None:
        writer.cancel()
    return 0


cdef class LoopFds(LoopCallbacks):
    """The part of a loop that watches fds for callbacks and for sock_*."""

    def __dealloc__(self):
        PyMem_RawFree(self.transports)

    cdef int _renew(self) except -1:
        return self.context.check_usable()      # LoopCore knows better

    def _ensure_fd_no_transport(self, fileobj):
        """Raise RuntimeError if a transport has the fd."""
        self.refuse_transport(fileobj)

    cdef int refuse_transport(self, object fileobj) except -1:
        number = _number(fileobj)
        if number < 0 or number >= self.n_places:
            return 0
        if self.transports[<Py_ssize_t>number] == NULL:
            return 0
        transport = <object>self.transports[<Py_ssize_t>number]
        if not transport.is_closing():
            raise RuntimeError(
                f"File descriptor {fileobj!r} is used by transport {transport!r}")
        return 0

    cdef int own_fd(self, int fd, object transport) except -1:
        cdef Py_ssize_t size = max(self.n_places, 64)
        cdef void *grown
        if fd >= self.n_places:
            while size <= fd:
                size *= 2
            grown = PyMem_RawRealloc(self.transports, size * sizeof(PyObject *))
            if grown == NULL:
                raise MemoryError()
            self.transports = <PyObject **>grown
            memset(&self.transports[self.n_places], 0,
                   (size - self.n_places) * sizeof(PyObject *))
            self.n_places = size
        self.transports[fd] = <PyObject *>transport
        return 0

    cdef void disown_fd(self, int fd, object transport) noexcept:
        if fd < self.n_places and self.transports[fd] == <PyObject *>transport:
            self.transports[fd] = NULL

    cdef FdWatch _watch_of(self, object fileobj):
        """The watch of what is perhaps no open file any more; or None."""
        cdef AioHandler *node
        cdef FdWatch watch
        number = _number(fileobj)
        if number < 0:
            # A file object that was closed is still known by what it was.
            for place in range(self.context.st.table_size):
                node = self.context.lookup(place)
                if node != NULL and node.owner == AIO_OWNER_LOOP:
                    watch = <FdWatch>node.opaque
                    if watch.fileobj is fileobj and fileobj is not None:
                        return watch
            raise ValueError(f"Invalid file descriptor: {number}")
        if number > INT_MAX:
            return None
        node = self.context.lookup(number)
        if node != NULL and node.owner == AIO_OWNER_LOOP:
            return <FdWatch>node.opaque
        return None

    cdef object _set_handle(self, object fileobj, bint writer, object callback, tuple args):
        if self.in_child():
            self._renew()
        handle = new_handle(self, callback, NULL, NULL, NULL, args if args else None, None)
        handle_track(<PyObject *>handle)
        if self.debug:
            (<Handle>handle)._source_traceback = extract_stack(sys._getframe())
        self._set_watch(fileobj, writer, handle, NULL)
        return handle

    cdef FdWatch _set_watch(self, object fileobj, bint writer, object handle,
                            WatchOnce once):
        cdef FdWatch watch
        cdef AioHandler *node
        cdef int fd = _fd_number(fileobj)
        cdef uint32_t mask = POLLOUT if writer else POLLIN
        if self.in_child():
            self._renew()
        node = self.context.lookup(fd)
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
                watch.once = once
            if old is not None:
                old.cancel()
            return watch
        watch = FdWatch.__new__(FdWatch)
        watch.loop = self
        if not isinstance(fileobj, int):
            watch.fileobj = fileobj
        if writer:
            watch.writer = handle
        else:
            watch.reader = handle
            watch.once = once
        # What is known to be a socket needs not be looked at: it can be watched.
        node = self.context.watch(
            fd, AIO_OWNER_LOOP if once == NULL else AIO_OWNER_TRANSPORT, mask, _watch_read,
            _watch_write, watch)
        node.owner = AIO_OWNER_LOOP
        node.io_lost = _watch_lost
        watch.node = node
        return watch

    cdef int _drop_idle(self, AioHandler *node) except -1:
        cdef FdWatch watch = <FdWatch>node.opaque
        watch.idle = False
        watch.once = NULL
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
            watch.once = NULL
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
        return self._set_handle(fd, False, callback, args)

    def _add_writer(self, fd, callback, *args):
        self._check_closed_()
        return self._set_handle(fd, True, callback, args)

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
        self._set_handle(fd, False, callback, args)

    def add_writer(self, fd, callback, *args):
        """Call `callback(*args)` whenever the fd is writable; as `add_reader`."""
        self._check_closed_()
        if self.debug:
            self._check_thread()
        self._ensure_fd_no_transport(fd)
        self._set_handle(fd, True, callback, args)

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


refuse_new(<PyTypeObject *>FdWatch)
