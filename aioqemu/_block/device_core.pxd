"""DeviceCore: the state of a device, and its plain reads and writes.

Home thread of the context and GIL.
"""

from libc.stdint cimport int64_t

from aioqemu._block.request cimport BlockRequest
from aioqemu._block.request cimport Gate
from aioqemu._block.service cimport BlockService

cdef class DeviceCore:
    cdef readonly BlockService _service
    cdef readonly Gate _gate
    cdef readonly object path
    cdef public int64_t length
    cdef readonly int64_t request_alignment
    cdef readonly int64_t memory_alignment
    cdef readonly bint read_only
    cdef readonly bint direct
    cdef readonly bint strict_alignment
    cdef readonly bint _is_block
    # Writes have to know of each other only where some must be made of reads, too.
    cdef readonly bint _tracks
    cdef readonly int _engine
    cdef public int _fd
    cdef public bint _closed
    cdef public bint _reads_zeroes   # the null device: what is read is filled with them
    cdef public object _hook         # asked before each submission, or None
    # A request with its memory; `n` counts for bytes alone.
    cdef BlockRequest prepare(self, int op, object buffers, int64_t n, int flags, int kind,
                              object cb, object opaque, object after, bint gated)
    # One whose range is to be checked by the size of its memory.
    cdef BlockRequest check_and_start(self, BlockRequest req, object offset, bint now)
    # Range-checked, and not to be split: hand it to the service.
    cdef BlockRequest transfer(self, int op, object buffers, int64_t n, int64_t offset,
                               int flags, int kind, object cb, object opaque,
                               object after, bint gated, bint now)
    cdef BlockRequest read(self, object buffers, object n, object offset, int flags,
                           int kind, object cb, object opaque)
    cdef object write(self, object buffers, object offset, bint fua, int kind, object cb,
                      object opaque)
    # Whether a read may be answered from the page cache on the spot.
    cdef bint _reads_now(self) noexcept
    cdef BlockService _served(self)
    cdef object problem(self, object verb, object offset, object n, bint writes)
