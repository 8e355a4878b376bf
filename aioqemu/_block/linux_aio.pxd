"""LinuxAio: the old asynchronous I/O of the kernel, for files opened with O_DIRECT.

Home thread and GIL.
"""

from libc.stdint cimport int64_t

from aioqemu._block.job cimport AioJob
from aioqemu._block.job cimport JobQueue
from aioqemu._engine.context cimport AioContext
from aioqemu._engine.types cimport AioHandler
from aioqemu._engine.types cimport AioState
from aioqemu._sys.file cimport aq_iocb

cdef enum:
    AIO_DEPTH = 256

cdef class LinuxAio:
    cdef AioContext ctx
    cdef unsigned long aio
    cdef int efd
    cdef AioHandler *node
    cdef JobQueue queue              # not with the kernel yet
    cdef int n_queued
    cdef int in_kernel
    cdef aq_iocb cbs[AIO_DEPTH]      # the kernel copies them at submission
    cdef aq_iocb *list[AIO_DEPTH]
    cdef void add(self, AioJob *job) noexcept      # a read, a write
    cdef bint cancel(self, AioJob *job) noexcept   # if the kernel has it not
    cdef int submit(self) noexcept
    cdef int collect(self) noexcept
    # Wait for everything that the kernel has, and give all back.
    cdef int stop(self, bint child) noexcept
