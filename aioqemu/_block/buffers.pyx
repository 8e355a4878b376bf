"""What Python code has to ask of buffers and open files: addresses, statx."""

from cpython.buffer cimport PyBUF_SIMPLE
from cpython.buffer cimport PyBUF_WRITABLE
from cpython.buffer cimport PyBuffer_Release
from cpython.buffer cimport PyObject_GetBuffer
from libc.stdint cimport uintptr_t

from aioqemu._sys.file cimport aq_statx


def statx_now(int fd, int flags, unsigned int mask, out not None):
    """Fill `out`, 256 bytes at least, with the statx of an open file; 0 or -errno."""
    cdef Py_buffer view
    PyObject_GetBuffer(out, &view, PyBUF_WRITABLE)
    try:
        if view.len < 256:
            raise ValueError("statx needs 256 bytes")
        return aq_statx(fd, b"", flags, mask, view.buf)
    finally:
        PyBuffer_Release(&view)


def address_of(memory not None):
    """Where the memory of a buffer begins."""
    cdef Py_buffer view
    PyObject_GetBuffer(memory, &view, PyBUF_SIMPLE)
    address = <uintptr_t>view.buf
    PyBuffer_Release(&view)
    return address
