"""BusySet: fds of a ring that most likely are ready already, for one poll(2) in all.

A node belongs to the set from `add` until the next `look`, or `remove`; it is not freed
meanwhile.  Home thread, GIL held.
"""

from libc.stdint cimport uint32_t

from aioqemu._engine.types cimport AioHandler
from aioqemu._engine.types cimport AioState
from aioqemu._sys.libc cimport pollfd

cdef enum:
    BUSY_MAX = 64
    INSTANT_LEAST = 4

cdef class BusySet:
    cdef pollfd[BUSY_MAX] fds
    cdef AioHandler *nodes[BUSY_MAX]
    cdef int length

    # Whether the node is to be in the set rather than to be polled by a request: its last
    # requests have completed as soon as they were made.
    cdef inline bint wants(self, AioHandler *node) noexcept:
        return node.instant >= node.instant_least and self.length < BUSY_MAX
    # Put it in; there is room (`wants`).
    cdef void add(self, AioHandler *node, uint32_t events) noexcept
    # Change what is asked for of a node in the set (`node.busy`).
    cdef void change(self, AioHandler *node, uint32_t events) noexcept
    cdef void remove(self, AioHandler *node) noexcept
    # Queue what is ready, and empty the set.  The number of nodes that were ready; those
    # that were not are nodes[0] to nodes[missed - 1], for the caller to watch otherwise.
    cdef int look(self, AioState *st, int *missed) noexcept
