"""LoopCore: the whole native part of a loop.  Home thread, GIL held."""

from libc.stdint cimport int64_t
from libc.stdint cimport uint64_t

from aioqemu._loop.sock_waits cimport LoopSockWaits

cdef class LoopCore(LoopSockWaits):
    cdef uint64_t passes
    cdef int blind_passes          # passes since the last look at the fds
    cdef int64_t last_look_ns
    cdef int64_t last_turn_ns

    cdef int _bind_runner(self) except -1
    cdef int _pass(self) except -1
    cdef int _give_turn(self, int64_t now) except -1
