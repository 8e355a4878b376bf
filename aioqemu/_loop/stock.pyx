"""asyncio's own StreamReader, fed by a transport directly.

Programs that use `asyncio.start_server` get asyncio's classes whatever loop they run on.
Three Python frames lie between a transport and the buffer of such a reader; this does
what they do, for exactly these classes, and leaves whatever is unusual to them.
"""

import asyncio

from libc.string cimport memcpy

cdef extern from "Python.h":
    bint PyByteArray_CheckExact(object o)
    Py_ssize_t PyByteArray_GET_SIZE(object o)
    char *PyByteArray_AS_STRING(object o)
    int PyByteArray_Resize(object o, Py_ssize_t size) except -1

cdef object _Protocol = asyncio.StreamReaderProtocol
cdef object _Reader = asyncio.StreamReader
cdef object _InvalidStateError = asyncio.InvalidStateError
cdef object _data_received = _Protocol.data_received
cdef object _feed_data = _Reader.feed_data
cdef object _wakeup = _Reader._wakeup_waiter


cdef bint is_stock(object protocol) except -1:
    return (type(protocol) is _Protocol
            and _Protocol.data_received is _data_received
            and _Reader.feed_data is _feed_data
            and _Reader._wakeup_waiter is _wakeup)


cdef bint feed_stock(object protocol, const char *data, Py_ssize_t n) except -1:
    cdef Py_ssize_t size
    reader = protocol._stream_reader_wr
    if reader is not None:
        reader = reader()
    if type(reader) is not _Reader or reader._eof:
        return False
    buffer = reader._buffer
    if not PyByteArray_CheckExact(buffer):
        return False
    size = PyByteArray_GET_SIZE(buffer)
    PyByteArray_Resize(buffer, size + n)
    memcpy(PyByteArray_AS_STRING(buffer) + size, data, n)
    waiter = reader._waiter
    if waiter is not None:
        reader._waiter = None
        try:
            waiter.set_result(None)
        except _InvalidStateError:
            if not waiter.cancelled():
                raise
    if PyByteArray_GET_SIZE(buffer) > 2 * reader._limit and not reader._paused:
        transport = reader._transport
        if transport is not None:
            try:
                transport.pause_reading()
            except NotImplementedError:
                reader._transport = None
            else:
                reader._paused = True
    return True
