"""ReceivePool: memory for data that the kernel receives before anybody asks for it.

Knows neither fds nor requests.  The kernel takes buffers in turn, so few are better than
many: they stay in the processor's cache.  More are added when a burst needs them, and
pages that were never used cost nothing.
"""

from cython cimport final
from libc.stddef cimport size_t
from libc.stdint cimport uint16_t
from libc.stdint cimport uint32_t
from libc.string cimport memcpy
from libc.string cimport memset

from aioqemu._engine.types cimport Held
from aioqemu._sys.libc cimport ENOMEM
from aioqemu._sys.libc cimport getpid
from aioqemu._sys.uring cimport aq_buf
from aioqemu._sys.uring cimport aq_buffer_add
from aioqemu._sys.uring cimport aq_buffers_register
from aioqemu._sys.uring cimport aq_private_map
from aioqemu._sys.uring cimport aq_private_unmap
from aioqemu._sys.uring cimport aq_ring

# The ring's own entries, then the buffers, both at the beginning of a page.
cdef size_t RING_BYTES = POOL_MAX * sizeof(aq_buf)
cdef size_t MAP_BYTES = RING_BYTES + POOL_MAX * BUFFER_SIZE


@final
cdef class ReceivePool:
    """Made by the monitor of a ring."""

    def __cinit__(self):
        self.memory = NULL
        self.buffers = 0
        self.n_held = 0
        memset(self.length, 0, sizeof(self.length))

    def __dealloc__(self):
        self.close(self.pid != getpid())

    cdef aq_buf *_ring(self) noexcept:
        return <aq_buf *>self.memory

    cdef void _add(self, uint16_t bid) noexcept:
        aq_buffer_add(self._ring(), POOL_MAX - 1, bid,
                      <char *>self.memory + RING_BYTES + <size_t>bid * BUFFER_SIZE,
                      BUFFER_SIZE)

    cdef int attach(self, aq_ring *ring) noexcept:
        cdef int bid, err
        if self.memory == NULL:
            self.memory = aq_private_map(MAP_BYTES)
            if self.memory == NULL:
                return -ENOMEM
            self.buffers = POOL_FIRST
            self.pid = getpid()
        err = aq_buffers_register(ring, self._ring(), POOL_MAX)
        if err < 0:
            return err
        for bid in range(self.buffers):
            if self.length[bid] == 0:
                self._add(<uint16_t>bid)
        return 0

    cdef void close(self, bint child) noexcept:
        if self.memory != NULL and not child:
            aq_private_unmap(self.memory, MAP_BYTES)
        self.memory = NULL
        self.buffers = 0

    cdef bint grow(self) noexcept:
        cdef int bid
        cdef int more = self.buffers * 2
        if more > POOL_MAX:
            return False
        for bid in range(self.buffers, more):
            self._add(<uint16_t>bid)
        self.buffers = more
        return True

    cdef void append(self, Held *held, uint16_t bid, uint32_t n) noexcept:
        self.length[bid] = <uint16_t>n
        self.following[bid] = 0
        self.n_held += 1
        if held.first == 0:
            held.first = <uint16_t>(bid + 1)
            held.taken = 0
        else:
            self.following[held.last - 1] = <uint16_t>(bid + 1)
        held.last = <uint16_t>(bid + 1)

    cdef void release(self, uint16_t bid) noexcept:
        if self.memory != NULL:
            self._add(bid)

    cdef size_t take(self, Held *held, char *out, size_t size) noexcept:
        cdef size_t got = 0
        cdef size_t n
        cdef uint16_t bid
        while held.first != 0 and got < size and self.memory != NULL:
            bid = <uint16_t>(held.first - 1)
            n = self.length[bid] - held.taken
            if n > size - got:
                n = size - got
            memcpy(out + got, <char *>self.memory + RING_BYTES
                   + <size_t>bid * BUFFER_SIZE + held.taken, n)
            got += n
            held.taken += <uint32_t>n
            if held.taken == self.length[bid]:
                held.first = self.following[bid]
                held.taken = 0
                self.length[bid] = 0
                self.n_held -= 1
                self._add(bid)
        return got

    cdef void drop(self, Held *held) noexcept:
        cdef uint16_t bid
        while held.first != 0:
            bid = <uint16_t>(held.first - 1)
            held.first = self.following[bid]
            self.length[bid] = 0
            self.n_held -= 1
            self.release(bid)
        held.taken = 0
        held.end = 0
