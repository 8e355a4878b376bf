"""The contracts of what users register with a context.

Home thread and GIL, but for the methods of BottomHalf, which any thread may call.
"""

from aioqemu._engine.types cimport AioHandler
from aioqemu._engine.types cimport AioTimer
from aioqemu._engine.waiting cimport AioWaiting

cdef struct BhNode:
    BhNode *prev             # in the list of scheduled ones, or in the running slice
    BhNode *next
    void *owner              # the BottomHalf; one reference while linked
    bint scheduled
    bint idle
    bint in_slice

cdef struct BhList:
    BhNode *head
    BhNode *tail

cdef class BottomHalf:
    cdef BhNode node
    cdef readonly AioHandlers ctx
    cdef object cb
    cdef object opaque
    cdef readonly bint deleted
    cdef int _drop(self) noexcept
    cdef int _schedule(self, bint idle) except -1

cdef class FdHandler:
    # What set_fd_handler registered for one fd.
    cdef AioHandlers ctx
    cdef AioHandler *node      # NULL once removed
    cdef int fd
    cdef object io_read
    cdef object io_write
    cdef object io_flush
    cdef object opaque

cdef class Timer:
    cdef AioTimer timer
    cdef readonly AioHandlers ctx
    cdef object cb
    cdef object opaque

cdef class AioHandlers(AioWaiting):
    cdef BhList bh_list            # scheduled
    cdef BhList bh_slice           # being run by the outermost pass
    cdef list flushers             # FdHandlers with an io_flush

    # Run one slice: 1 if a bottom half that was not idle ran.
    cdef int _run_bottom_halves(self) except -1
    # Unschedule them all.
    cdef int drop_bottom_halves(self) except -1
    # Ask every io_flush; watch the fds of those with requests outstanding.
    cdef bint _ask_busy(self) except -1
    cdef int _mask(self, AioHandler *node, bint masked) noexcept
    cdef void _unmask(self) noexcept
    cdef int _drop_flusher(self, AioHandler *node) except -1
