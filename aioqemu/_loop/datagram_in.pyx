"""Datagrams from the kernel: the memory they arrive in, and cutting coalesced ones.

Knows neither transports nor protocols.  With UDP_GRO the kernel may hand over datagrams
of one sender and one size, of which the last may be shorter, as one message, and says
the size in a control message.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawMalloc

from aioqemu._sys.inet cimport aq_segment_size
from aioqemu._sys.inet cimport mmsghdr

# What the kernel receives into; untouched pages of it cost nothing.  One for the process
# is enough: from the system call until all of it is copied, nothing releases the GIL.
cdef char *_area = NULL


cdef char *receive_area() except NULL:
    global _area
    if _area == NULL:
        _area = <char *>PyMem_RawMalloc(INET_SIZE * INET_BATCH)
        if _area == NULL:
            raise MemoryError()
    return _area


cdef bint cut(mmsghdr *msgs, int n, list pieces, int *counts) except -1:
    cdef int sizes[INET_BATCH]
    cdef bint any_coalesced = False
    cdef char *data
    cdef int i
    cdef Py_ssize_t left, size
    for i in range(n):
        sizes[i] = aq_segment_size(&msgs[i].msg_hdr)
        if sizes[i] > 0:
            any_coalesced = True
    if not any_coalesced:
        return False
    for i in range(n):
        data = <char *>msgs[i].msg_hdr.msg_iov.iov_base
        left = msgs[i].msg_len
        size = sizes[i] if sizes[i] > 0 else left
        counts[i] = 0
        # Neither bytes nor growing a list makes the collector run other code.
        while True:
            size = min(size, left)
            pieces.append(PyBytes_FromStringAndSize(data, size))
            counts[i] += 1
            data += size
            left -= size
            if left == 0:       # also of an empty one, which is not coalesced
                break
    return True
