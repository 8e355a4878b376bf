"""LoopFds: the fds that the loop watches for others.  Home thread, GIL held."""

from aioqemu._engine.types cimport AioHandler
from aioqemu._engine.types cimport AioTimer
from aioqemu._loop.callbacks cimport LoopCallbacks

cdef class FdWatch:
    # What add_reader and add_writer registered for one fd.
    cdef LoopFds loop
    cdef AioHandler *node
    cdef object reader       # Handle or None
    cdef object writer
    cdef object fileobj      # what the fd was told by, if not by its number
    # Of sock_recv and its like: see LoopFds._watch_sock.
    cdef object sock         # weak reference of the socket that waited here; or None
    cdef bint idle           # still watched, for nobody
    cdef bint short          # ... and was empty after the last receive
    cdef bint in_turn        # ... and each receive has had to wait
    cdef Py_ssize_t tries    # receives since the last wait
    cdef bint doubted        # in `doubtful`
    cdef Py_ssize_t waits    # so many began without a change of what is watched
    cdef Py_ssize_t doubted_at

cdef class LoopFds(LoopCallbacks):
    cdef dict transports           # fd -> weak reference of the transport that has it
    cdef bint leaves_armed         # sock_* leave their fd watched after a wait
    cdef list doubtful             # FdWatches that wait on trust
    cdef AioTimer doubt_timer

    # In a forked child: go on with a context of the child's own.
    cdef int _renew(self) except -1
    cdef FdWatch _watch_of(self, object fileobj)
    cdef object _set_watch(self, object fileobj, bint writer, object callback, tuple args,
                           bint socket)
    cdef int _drop_idle(self, AioHandler *node) except -1
    cdef int _doubt(self, FdWatch watch) except -1
    cdef bint _drop_watch(self, object fileobj, bint writer) except -1
