"""LoopSockWaits: what sock_recv and its like wait by.  Home thread, GIL held."""

from aioqemu._engine.types cimport AioTimer
from aioqemu._loop.fds cimport FdWatch
from aioqemu._loop.fds cimport LoopFds

cdef enum TakeState:
    TAKE_NEW
    TAKE_WAITING
    TAKE_OVER

cdef class Taking:
    # Waits until a socket is readable, then calls `take(*args)`; awaitable once.
    cdef LoopSockWaits loop        # None when it is over
    cdef object sock
    cdef object take
    cdef tuple args
    cdef object waiter             # the future that it waits for
    cdef object result
    cdef Py_ssize_t most           # less bytes were all there was; 0: that says nothing
    cdef int fd
    cdef TakeState state
    cdef bint woken                # the waiter has its result

    # True if there is a waiter to wait for, else it is over and `result` is there.
    cdef bint _advance(self) except -1
    cdef int _wait(self) except -1
    cdef int _leave(self, bint again, bint short) except -1

cdef class LoopSockWaits(LoopFds):
    cdef bint trusts               # what is kept stays registered with the kernel (epoll)
    cdef list doubtful             # FdWatches that wait on trust
    cdef AioTimer doubt_timer

    cdef int _watch_sock(self, Taking taking) except -1
    cdef int _unwatch_sock(self, Taking taking, bint again, bint short) except -1
    cdef int _doubt(self, FdWatch watch) except -1
