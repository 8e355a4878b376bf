"""LoopFds: the fds that the loop watches for others.  Home thread, GIL held."""

from cpython.object cimport PyObject

from aioqemu._engine.types cimport AioHandler
from aioqemu._loop.callbacks cimport LoopCallbacks

# What happens when the fd of a watch is readable, instead of calling its handle.
ctypedef int (*WatchOnce)(FdWatch watch) except -1

cdef class FdWatch:
    # What add_reader and add_writer registered for one fd.
    cdef LoopFds loop
    cdef AioHandler *node
    cdef object reader       # Handle, or what belongs to `once`; None: nobody reads
    cdef object writer       # Handle or None
    cdef object fileobj      # what the fd was told by, if not by its number
    cdef WatchOnce once      # of sock_recv and its like, as is all that follows; or NULL
    cdef object sock         # weak reference of the socket that waited here; or None
    cdef bint idle           # kept for the next wait, for nobody meanwhile
    cdef bint short          # ... and was empty after the last receive
    cdef bint in_turn        # ... and each receive has had to wait
    cdef Py_ssize_t tries    # receives since the last wait
    cdef bint doubted        # in LoopSockWaits.doubtful
    cdef Py_ssize_t waits    # so many began without a change of what is watched
    cdef Py_ssize_t doubted_at

cdef class LoopFds(LoopCallbacks):
    # By fd, the transport that has it, or NULL.  No references: a transport takes itself out
    # when it closes the fd, which it does at the latest when it is finalized.
    cdef PyObject **transports
    cdef Py_ssize_t n_places

    # Raise RuntimeError if a transport has the fd, a number or an object with fileno().
    cdef int refuse_transport(self, object fileobj) except -1
    cdef int own_fd(self, int fd, object transport) except -1
    cdef void disown_fd(self, int fd, object transport) noexcept
    # In a forked child: go on with a context of the child's own.
    cdef int _renew(self) except -1
    cdef FdWatch _watch_of(self, object fileobj)
    cdef object _set_handle(self, object fileobj, bint writer, object callback, tuple args)
    # Watch for one side of an fd; `once` is of the reading side.  Raises what add_reader
    # does, but for transports.
    cdef FdWatch _set_watch(self, object fileobj, bint writer, object handle, WatchOnce once)
    # Stop watching what was kept for a next wait.
    cdef int _drop_idle(self, AioHandler *node) except -1
    cdef bint _drop_watch(self, object fileobj, bint writer) except -1
