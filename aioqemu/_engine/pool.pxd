"""ReceivePool: the buffers that lasting receive requests of one ring choose from.

Home thread and GIL.  A buffer is either the kernel's or in the chain of one Held.
"""

from libc.stddef cimport size_t
from libc.stdint cimport uint16_t
from libc.stdint cimport uint32_t

from aioqemu._engine.types cimport Held
from aioqemu._sys.uring cimport aq_buf
from aioqemu._sys.uring cimport aq_ring

cdef enum:
    BUFFER_SIZE = 4096
    POOL_FIRST = 64          # buffers at first; doubled when they run out, up to
    POOL_MAX = 1024          # ... so many; a power of two

cdef class ReceivePool:
    cdef void *memory             # NULL while there is none
    cdef readonly int buffers     # how many there are
    cdef int n_held
    cdef int pid                  # whose memory it is
    cdef uint16_t[POOL_MAX] following   # in a chain, as in Held
    cdef uint16_t[POOL_MAX] length      # bytes in a held one; 0: the kernel's

    # Make the buffers known to a ring, which may be a new one.  0 or -errno.
    cdef int attach(self, aq_ring *ring) noexcept
    # Give the memory back.  The ring may not use it any more, or is another process's
    # (`child`): then it is not even mapped.
    cdef void close(self, bint child) noexcept
    # More buffers: whether there are.
    cdef bint grow(self) noexcept
    # The kernel has put n > 0 bytes into a buffer: append it.
    cdef void append(self, Held *held, uint16_t bid, uint32_t n) noexcept
    # The kernel may have the buffer again.
    cdef void release(self, uint16_t bid) noexcept
    # Move bytes out, the oldest first; how many.
    cdef size_t take(self, Held *held, char *out, size_t size) noexcept
    cdef void drop(self, Held *held) noexcept
    cdef aq_buf *_ring(self) noexcept
    cdef void _add(self, uint16_t bid) noexcept
