"""BlockService: hands the block requests of one context to its engines.

Home thread of the context and GIL.
"""

from libc.stdint cimport int64_t

from aioqemu._block.engines cimport Engines
from aioqemu._block.request cimport BlockPool
from aioqemu._block.request cimport BlockRequest
from aioqemu._block.request cimport Gate

cpdef enum Op:
    READ = 0
    WRITE = 1
    FSYNC = 2
    FDATASYNC = 3
    FALLOCATE = 4
    FTRUNCATE = 5
    STATX = 6
    OPENAT = 7
    CLOSE = 8
    COPY = 9
    BLKDISCARD = 10
    BLKZEROOUT = 11
    NOTHING = 12
    MAP = 13

cdef class BlockService(Engines):
    cdef readonly BlockPool requests
    cdef Py_ssize_t budget           # bytes that may still be read on the spot
    cdef public Py_ssize_t read_now_bytes
    cdef BlockRequest new(self, object bs, object cb, object opaque, int op, int fd)
    # Have one more hook asked, after the rules that are there.
    cdef int hook_too(self, BlockRequest req, object hook) except -1
    # A read or write.  The memory is taken already, or is to be; see rw().
    cdef int set_off(self, BlockRequest req, int64_t offset, int64_t mem_align,
                     bint now) except -1
    cdef int start(self, BlockRequest req) except -1
    cdef int fail_soon(self, BlockRequest req, int err, str what) except -1
    cdef bint _read_now(self, BlockRequest req) except -1
    cdef int _give_up(self) except -1
