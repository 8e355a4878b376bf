"""Many datagrams by one call, both ways.

Knows neither transports nor protocols.  Datagrams of one size to one address, of which
the last may be shorter, are one message that the kernel cuts again (UDP_SEGMENT), as
late as the device allows.  It refuses if a datagram does not fit into a packet, or if
nobody computes checksums: these sizes are sent one by one from then on.  With UDP_GRO the
kernel hands over such messages too, and says the size in a control message.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.mem cimport PyMem_RawMalloc
from cpython.object cimport PyObject
from libc.string cimport memcmp
from libc.string cimport memset

from aioqemu._sys.inet cimport aq_can_segment
from aioqemu._sys.inet cimport aq_control
from aioqemu._sys.inet cimport aq_segment_size
from aioqemu._sys.inet cimport aq_set_segment
from aioqemu._sys.inet cimport mmsghdr
from aioqemu._sys.inet cimport sendmmsg
from aioqemu._sys.inet cimport sendto
from aioqemu._sys.inet cimport sockaddr
from aioqemu._sys.libc cimport EINTR
from aioqemu._sys.libc cimport EINVAL
from aioqemu._sys.libc cimport EIO
from aioqemu._sys.libc cimport EMSGSIZE
from aioqemu._sys.libc cimport MSG_DONTWAIT
from aioqemu._sys.libc cimport MSG_NOSIGNAL
from aioqemu._sys.libc cimport errno
from aioqemu._sys.libc cimport iovec

cdef enum:
    BATCH = 64             # datagrams of one call; no kernel takes fewer in a message
    # Bytes of a merged message.  With headers of either family it is below 64 KiB.
    MERGED_SIZE = 65000
    MAX_REFUSALS = 4

cdef extern from "Python.h":
    PyObject *PySequence_ITEM(object sequence, Py_ssize_t i) except NULL
    PyObject *PyTuple_GET_ITEM(PyObject *t, Py_ssize_t i)
    void Py_DECREF(PyObject *)
    PyObject *Py_None


cdef inline bint _same(PyObject *a, PyObject *b) noexcept:
    # Two addresses of the kernel's.
    cdef Py_ssize_t n
    if a == b:
        return True
    if a == Py_None or b == Py_None:
        return False
    n = PyBytes_GET_SIZE(<object>a)
    return n == PyBytes_GET_SIZE(<object>b) and memcmp(
        PyBytes_AS_STRING(<object>a), PyBytes_AS_STRING(<object>b), n) == 0


cdef int send_first(int fd, bint connected, object queue, Segmenting *segmenting) except? -1:
    cdef mmsghdr msgs[BATCH]
    cdef int lengths[BATCH]         # of the messages, in datagrams
    cdef iovec iovs[BATCH]
    cdef aq_control controls[BATCH]
    cdef PyObject *item
    cdef PyObject *data
    cdef PyObject *name
    cdef PyObject *last_name = NULL
    cdef mmsghdr *m = NULL
    cdef Py_ssize_t size, first_size = 0, last_size = 0, total = 0
    cdef Py_ssize_t waiting = len(queue)
    cdef int i = 0, k, n = 0, sent, err, result
    if waiting > BATCH:
        waiting = BATCH
    if segmenting.below < 0 and waiting > 1:
        segmenting.below = MERGED_SIZE if aq_can_segment(fd) else 0
    while i < waiting:
        # The queue keeps them: from here to the call nothing else runs.
        item = PySequence_ITEM(queue, i)
        data = PyTuple_GET_ITEM(item, 0)
        name = PyTuple_GET_ITEM(item, 2)
        Py_DECREF(item)
        if name == Py_None and not connected:
            break
        size = PyBytes_GET_SIZE(<object>data)
        iovs[i].iov_base = PyBytes_AS_STRING(<object>data)
        iovs[i].iov_len = size
        i += 1
        if (n and 0 < size <= last_size and last_size == first_size
                and first_size < segmenting.below and total + size <= MERGED_SIZE
                and _same(name, last_name)):
            m.msg_hdr.msg_iovlen += 1
            lengths[n - 1] += 1
            total += size
            last_size = size
            continue
        m = &msgs[n]
        memset(m, 0, sizeof(m[0]))
        if name != Py_None:
            m.msg_hdr.msg_name = PyBytes_AS_STRING(<object>name)
            m.msg_hdr.msg_namelen = PyBytes_GET_SIZE(<object>name)
        m.msg_hdr.msg_iov = &iovs[i - 1]
        m.msg_hdr.msg_iovlen = 1
        lengths[n] = 1
        last_name = name
        first_size = last_size = total = size
        n += 1
    for k in range(n):
        if lengths[k] > 1:
            aq_set_segment(&msgs[k].msg_hdr, &controls[k], msgs[k].msg_hdr.msg_iov.iov_len)
    if i == 1:
        # The kernel has less to look at.
        sent = 1 if sendto(
            fd, iovs[0].iov_base, iovs[0].iov_len, MSG_NOSIGNAL | MSG_DONTWAIT,
            <const sockaddr *>m.msg_hdr.msg_name, m.msg_hdr.msg_namelen) >= 0 else -1
    else:
        sent = sendmmsg(fd, msgs, n, MSG_NOSIGNAL | MSG_DONTWAIT)
    if sent > 0:
        result = 0
        for i in range(sent):
            result += lengths[i]
        return result
    err = errno
    if err == EINTR:
        return 0
    if lengths[0] > 1 and (err == EINVAL or err == EMSGSIZE or err == EIO):
        # Refused as one message.  Shorter ones may pass: a packet has room for them.
        segmenting.refusals += 1
        segmenting.below = iovs[0].iov_len
        if err == EIO or segmenting.refusals == MAX_REFUSALS:
            segmenting.below = 0
        return 0
    return -err


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
