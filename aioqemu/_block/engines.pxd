"""Engines: hands the requests of one context to its engines.

Home thread of the context and GIL.
"""

from libc.stdint cimport uint64_t

from aioqemu._block.linux_aio cimport LinuxAio
from aioqemu._block.request cimport BlockRequest
from aioqemu._block.request cimport Launcher
from aioqemu._block.ring cimport RingEngine
from aioqemu._block.threads cimport ThreadPool

cdef class Engines(Launcher):
    cdef RingEngine ring
    cdef ThreadPool pool
    cdef LinuxAio aio
    cdef bint untold                 # a cancelled request is still to be told of
    cdef int plugged                 # batches that are open
    cdef public int max_threads
    cdef uint64_t[5] counts          # requests given to each Engine
    cdef uint64_t n_now              # reads answered on the spot
    cdef int check_thread(self) except -1
    # End it in the next pass, without any engine.
    cdef int end_soon(self, BlockRequest req, int ret) noexcept
    # The next step of a request made of others; `ret` is the result of the last.
    cdef int advance(self, BlockRequest req, object ret) except -1
    cdef int _issue(self, BlockRequest req) except -1
    cdef int _lose_ring(self) except -1
    cdef ThreadPool _threads(self)
