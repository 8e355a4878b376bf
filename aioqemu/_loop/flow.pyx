"""What the native transports do alike: flow control, errors, the queue of output.

Knows no sockets and no protocols beyond pause_writing and resume_writing.
"""

from os import strerror as _strerror

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.exc cimport PyErr_Clear
from cpython.mem cimport PyMem_RawFree
from cpython.mem cimport PyMem_RawMalloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from cpython.ref cimport Py_INCREF

from aioqemu._loop.core cimport LoopCore
from aioqemu._loop.handles cimport PyContext_Exit
from aioqemu._loop.handles cimport PyContext_Enter
from aioqemu._sys.libc cimport iovec


cdef int queue_grow(OutQueue *q) except -1:
    cdef uint32_t capacity = q.capacity * 2 if q.capacity else 8
    cdef uint32_t i
    cdef PyObject **ring = <PyObject **>PyMem_RawMalloc(capacity * sizeof(PyObject *))
    if ring == NULL:
        raise MemoryError()
    for i in range(q.count):
        ring[i] = q.ring[(q.first + i) & (q.capacity - 1)]
    PyMem_RawFree(q.ring)
    q.ring = ring
    q.capacity = capacity
    q.first = 0
    return 0


cdef int queue_push(OutQueue *q, object data) except -1:
    if q.count == q.capacity:
        queue_grow(q)
    Py_INCREF(data)
    q.ring[(q.first + q.count) & (q.capacity - 1)] = <PyObject *>data
    q.count += 1
    q.size += PyBytes_GET_SIZE(data)
    return 0


cdef int queue_iov(OutQueue *q, iovec *iov, size_t *asked) noexcept:
    cdef uint32_t n = min(q.count, <uint32_t>MAX_IOV)
    cdef uint32_t i
    cdef object data
    asked[0] = 0
    for i in range(n):
        data = <object>q.ring[(q.first + i) & (q.capacity - 1)]
        iov[i].iov_base = PyBytes_AS_STRING(data)
        iov[i].iov_len = PyBytes_GET_SIZE(data)
        if i == 0:
            iov[0].iov_base = PyBytes_AS_STRING(data) + q.head_sent
            iov[0].iov_len -= q.head_sent
        asked[0] += iov[i].iov_len
    return n


cdef int queue_consume(OutQueue *q, Py_ssize_t n) noexcept:
    cdef Py_ssize_t rest
    cdef object data
    q.size -= n
    while q.count:
        data = <object>q.ring[q.first]
        rest = PyBytes_GET_SIZE(data) - q.head_sent
        if n < rest:
            q.head_sent += n
            break
        n -= rest
        q.head_sent = 0
        q.first = (q.first + 1) & (q.capacity - 1)
        q.count -= 1
        Py_DECREF(data)
    return 0


cdef int queue_clear(OutQueue *q) noexcept:
    while q.count:
        q.count -= 1
        Py_DECREF(<object>q.ring[(q.first + q.count) & (q.capacity - 1)])
    PyMem_RawFree(q.ring)
    q.ring = NULL
    q.capacity = q.first = 0
    q.head_sent = q.size = 0
    return 0


cdef list queue_list(OutQueue *q):
    cdef list held = []
    cdef Py_ssize_t i
    for i in range(q.count):
        held.append(<object>q.ring[(q.first + i) & (q.capacity - 1)])
    return held


cdef tuple water_marks(object high, object low):
    if high is None:
        high = HIGH_WATER if low is None else 4 * low
    if low is None:
        low = high // 4
    if not high >= low >= 0:
        raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
    return (low, high)


cdef int report(LoopCore loop, object transport, object protocol, object exc,
                str message) except -1:
    loop.call_exception_handler({
        "message": message,
        "exception": exc,
        "transport": transport,
        "protocol": protocol,
    })
    return 0


cdef int call_flow(LoopCore loop, object context, object transport, object protocol,
                   bint pause) except -1:
    cdef object ctx = None if context is None else enter(context)
    try:
        if pause:
            protocol.pause_writing()
        else:
            protocol.resume_writing()
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as exc:
        report(loop, transport, protocol, exc,
               "protocol.pause_writing() failed" if pause
               else "protocol.resume_writing() failed")
    finally:
        if ctx is not None:
            PyContext_Exit(<PyObject *>ctx)
    return 0


cdef object os_error(int err):
    return OSError(err, _strerror(err))


cdef object enter(object context):
    if PyContext_Enter(<PyObject *>context) < 0:
        PyErr_Clear()
        context = context.copy()
        PyContext_Enter(<PyObject *>context)
    return context
