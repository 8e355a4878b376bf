"""RingEngine: the operations of an io_uring, the context's own or a private one.

Home thread of the context and GIL.
"""

from aioqemu._block.job cimport AioJob
from aioqemu._block.job cimport JobQueue
from aioqemu._engine.context cimport AioContext
from aioqemu._engine.fdmon cimport FdMon
from aioqemu._engine.types cimport AioHandler
from aioqemu._engine.types cimport AioState

cdef enum:
    NO_RESULT = -0x7fffffff       # in the cqe of a job that the kernel has

# Whether the ring of this kernel has an operation (JobOp).
cdef bint ring_can(int op) noexcept

cdef class RingEngine:
    cdef AioContext ctx
    cdef FdMon mon                # the context's, or a private one
    cdef readonly bint private
    cdef int broken               # the -errno with which a private ring stopped working
    cdef bint lost                # ... just now, and what it had is still to be ended
    cdef AioState st              # a private ring's: no fds, only completions
    cdef unsigned long thread     # the one that a private ring belongs to, or 0
    cdef AioHandler *node         # ... and what announces its completions
    cdef JobQueue pending         # for the ring, which had no room or does not exist yet
    cdef int prepared             # eager jobs since the last submission
    # Take a job, unless the ring does not work any more (False).  `eager`: the disk is idle
    # until it gets it, so a few go out before the pass ends.
    cdef bint add(self, AioJob *job, bint eager) noexcept
    # Take it back if the kernel has it not.
    cdef bint take_back(self, AioJob *job) noexcept
    # Tell the kernel that it should end; False: there was no room, try again.
    cdef bint tell_cancel(self, AioJob *job) noexcept
    # Pass on what waits for room; of a private ring, everything, to the kernel.
    cdef int submit(self) noexcept
    cdef int collect(self) noexcept
    # Wait, at most so long, until the kernel has no request; then 0.
    cdef int settle(self, int limit_ms) noexcept
    cdef int stop(self, bint child) noexcept
    cdef bint _ready(self) noexcept
    cdef bint _put(self, AioJob *job, bint eager) noexcept
    cdef int _take_done(self) noexcept
    cdef void _break(self, int err) noexcept
