"""What was received and not read yet; knows nobody who sends or reads."""

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from cpython.ref cimport Py_XDECREF
from libc.string cimport memchr
from libc.string cimport memcpy
from libc.string cimport memmove

cdef extern from "string.h":
    void *memmem(const void *hay, size_t n, const void *needle, size_t m)

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX
    int _PyBytes_Resize(PyObject **block, Py_ssize_t size) except -1

cdef enum:
    FIRST_BLOCK = 4096


cdef int unread_push(Unread *u, bytes data) except -1:
    cdef Py_ssize_t n = PyBytes_GET_SIZE(data)
    if u.block == NULL:
        Py_INCREF(data)
        u.block = <PyObject *>data
        u.start = 0
        u.end = n
        u.own = False
        return 0
    if not u.own or n > PyBytes_GET_SIZE(<object>u.block) - u.end:
        _make_room(u, n)
    memcpy(PyBytes_AS_STRING(<object>u.block) + u.end, PyBytes_AS_STRING(data), n)
    u.end += n
    return 0


cdef int _make_room(Unread *u, Py_ssize_t n) except -1:
    """Make the block our own, with n bytes free at its end; it doubles when it is full."""
    cdef Py_ssize_t size = u.end - u.start
    cdef PyObject *old = u.block
    cdef Py_ssize_t capacity = PyBytes_GET_SIZE(<object>old)
    cdef char *base = PyBytes_AS_STRING(<object>old)
    cdef bytes block
    if u.own and u.start >= size and n <= capacity - size:
        memmove(base, base + u.start, size)
        u.start = 0
        u.end = size
        return 0
    if n > PY_SSIZE_T_MAX // 4 or size > PY_SSIZE_T_MAX // 4:
        raise MemoryError()
    capacity = max(2 * (size + n), <Py_ssize_t>FIRST_BLOCK)
    if u.own and u.start == 0:
        u.block = NULL          # it is gone if this fails
        u.end = 0
        _PyBytes_Resize(&old, capacity)
        u.block = old
    else:
        block = PyBytes_FromStringAndSize(NULL, capacity)
        memcpy(PyBytes_AS_STRING(block), base + u.start, size)
        Py_INCREF(block)
        u.block = <PyObject *>block
        u.own = True
        Py_XDECREF(old)
    u.start = 0
    u.end = size
    return 0


cdef bytes unread_take(Unread *u, Py_ssize_t n):
    cdef PyObject *block = u.block
    cdef bytes taken
    if block == NULL:
        return b""
    if n == u.end and u.start == 0:
        if not u.own and n == PyBytes_GET_SIZE(<object>block):
            taken = <bytes>block
            unread_drop(u, n)
            return taken
        if u.own and n >= PyBytes_GET_SIZE(<object>block) // 2:
            u.block = NULL
            u.end = 0
            _PyBytes_Resize(&block, n)      # if it fails, the block is gone
            taken = <bytes>block
            Py_XDECREF(block)
            return taken
    taken = PyBytes_FromStringAndSize(PyBytes_AS_STRING(<object>block) + u.start, n)
    unread_drop(u, n)
    return taken


cdef bytes unread_copy(Unread *u):
    if u.block == NULL:
        return b""
    return PyBytes_FromStringAndSize(
        PyBytes_AS_STRING(<object>u.block) + u.start, u.end - u.start)


cdef int unread_drop(Unread *u, Py_ssize_t n) noexcept:
    cdef PyObject *block = u.block
    u.start += n
    if u.start == u.end:
        u.block = NULL
        u.start = u.end = 0
        Py_XDECREF(block)
    return 0


cdef Py_ssize_t unread_find(Unread *u, const char *what, Py_ssize_t n,
                            Py_ssize_t offset) noexcept:
    cdef const char *data
    cdef const char *found
    cdef Py_ssize_t size = u.end - u.start
    if size - offset < n:
        return -1
    data = PyBytes_AS_STRING(<object>u.block) + u.start
    if n == 1:
        found = <const char *>memchr(data + offset, what[0], size - offset)
    else:
        found = <const char *>memmem(data + offset, size - offset, what, n)
    return -1 if found == NULL else found - data
