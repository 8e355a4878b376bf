"""What the native transports do alike: flow control, errors, the queue of output.

Home thread, GIL held.  Nothing here knows which transport it serves.
"""

from cpython.object cimport PyObject
from libc.stdint cimport uint32_t

from aioqemu._loop.core cimport LoopCore
from aioqemu._sys.libc cimport iovec

cdef enum:
    FLUSH_SIZE = 64 * 1024     # so much output is not kept for the end of the callback
    MAX_IOV = 64               # buffers sent by one call
    HIGH_WATER = 64 * 1024
    LOW_WATER = 16 * 1024

cdef struct OutQueue:
    # Bytes not yet sent, in order: a ring of `bytes` objects, a reference each.  They
    # can be in no cycle, so the collector need not know.
    PyObject **ring
    uint32_t capacity        # 0, or a power of two
    uint32_t first
    uint32_t count
    Py_ssize_t head_sent     # bytes of the first that are sent already
    Py_ssize_t size          # bytes not yet sent

cdef int queue_grow(OutQueue *q) except -1
cdef int queue_push(OutQueue *q, object data) except -1
# Fill iov (of MAX_IOV) with what is first; the number of entries, `asked` the bytes.
cdef int queue_iov(OutQueue *q, iovec *iov, size_t *asked) noexcept
# n bytes are sent.
cdef int queue_consume(OutQueue *q, Py_ssize_t n) noexcept
# Drop everything, the memory too.
cdef int queue_clear(OutQueue *q) noexcept
# What is in it.
cdef list queue_list(OutQueue *q)

# (low, high) from the arguments of set_write_buffer_limits.
cdef tuple water_marks(object high, object low)
# Call pause_writing or resume_writing, in a context if not None; what it raises is
# reported.
cdef int call_flow(LoopCore loop, object context, object transport, object protocol,
                   bint pause) except -1
# Report an exception: the loop's exception handler, with transport and protocol.
cdef int report(LoopCore loop, object transport, object protocol, object exc,
                str message) except -1
# The OSError for an errno.
cdef object os_error(int err)
# Enter a context; one that is entered already (a nested run of the loop) is copied.
# What is returned is to be exited.
cdef object enter(object context)
