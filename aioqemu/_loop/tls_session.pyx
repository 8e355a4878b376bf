"""TlsSession: OpenSSL between two memory buffers.

Knows records, and nothing of transports, protocols or time.  It goes by Python's own
ssl objects, through bound methods that it keeps: the user's contexts are theirs.

An SSLWantReadError costs more than the reading of a small record.  So the headers of
the records are followed here, which are not encrypted: how many are complete is known,
and OpenSSL is asked for no more.  The count may only be too high (records that are not
data are read with the next that is); then one question too many is asked.
"""

import ssl

import _ssl
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.bytes cimport PyBytes_CheckExact
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.exc cimport PyErr_Clear
from cpython.exc cimport PyErr_ExceptionMatches
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF
from libc.string cimport memcpy

from aioqemu._loop.flow cimport queue_clear
from aioqemu._loop.flow cimport queue_consume
from aioqemu._loop.flow cimport queue_push
from aioqemu._loop.handles cimport PyObject_Vectorcall
from aioqemu._loop.wire cimport WireProtocol

cdef extern from "Python.h":
    PyObject *PyBytes_New "PyBytes_FromStringAndSize" (char *, Py_ssize_t) except NULL
    int _PyBytes_Resize(PyObject **, Py_ssize_t) except -1
    char *PyBytes_Memory "PyBytes_AS_STRING" (PyObject *)

cdef extern from *:
    """
    static inline PyObject *aq_steal(PyObject *op) { return op; }
    """
    object aq_steal(PyObject *)      # takes the caller's reference

cdef enum:
    FEED_SIZE = 8192           # so much, to the end of a record, is fed at once
    LARGEST_BODY = 16384 + 2048

cdef object _SSLObject = ssl.SSLObject
cdef object _NativeSSL = _ssl._SSLSocket
cdef object _MemoryBIO = ssl.MemoryBIO
# What a session reads and writes until more comes.
cdef tuple _again = (ssl.SSLWantReadError, ssl.SSLSyscallError)


cdef class _Window:
    # Memory as a buffer, without an object for each use.  It is handed to _ssl's own
    # functions only, which are done with it when they return; one is enough, since
    # nothing else runs between its setting and the moment its buffer is taken.
    cdef char *data
    cdef Py_ssize_t size

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.size, False, flags)


cdef _Window _window = _Window()


cdef object _show(const char *data, Py_ssize_t size):
    _window.data = <char *>data
    _window.size = size
    return _window


cdef class TlsSession(WireProtocol):
    """What TLS is apart from its transport and its protocol; not made as such."""

    def __dealloc__(self):
        queue_clear(&self.held)
        queue_clear(&self.backlog)

    cdef int open_session(self, object sslcontext, bint server_side,
                          object server_hostname) except -1:
        self.sslcontext = sslcontext
        self.incoming = _MemoryBIO()
        self.outgoing = _MemoryBIO()
        self.sslobj = sslcontext.wrap_bio(
            self.incoming, self.outgoing, server_side=bool(server_side),
            server_hostname=server_hostname)
        self.feed_call = self.incoming.write
        self.drain_call = self.outgoing.read
        inner = getattr(self.sslobj, "_sslobj", None)
        # Whose read and write do with memory what they should, and keep none of it.
        self.direct = type(self.sslobj) is _SSLObject and type(inner) is _NativeSSL
        source = inner if self.direct else self.sslobj
        self.read_call = source.read
        self.write_call = source.write
        return 0

    # -- ciphertext in --------------------------------------------------------------------

    cdef Py_ssize_t _scan(self, const char *data, Py_ssize_t n) noexcept:
        """How many of the n bytes to feed next; they are counted as fed."""
        cdef const unsigned char *p = <const unsigned char *>data
        cdef Py_ssize_t pos = 0
        cdef Py_ssize_t step
        while pos < n and not self.untracked:
            if self.header_have < 5:
                self.header[self.header_have] = p[pos]
                self.header_have += 1
                pos += 1
                if self.header_have < 5:
                    continue
                self.body_size = self.header[3] << 8 | self.header[4]
                self.body_left = self.body_size
                if (not 20 <= self.header[0] <= 24 or self.header[1] != 3
                        or self.body_size > LARGEST_BODY):
                    self.untracked = True      # OpenSSL will say what it thinks of it
                    break
            step = min(self.body_left, n - pos)
            pos += step
            self.body_left -= step
            if self.body_left == 0:
                self.header_have = 0
                self.records += 1
                self.readable += self.body_size
                if self.in_bio + pos >= FEED_SIZE:
                    return pos
        if self.untracked:
            pos = min(n, <Py_ssize_t>TLS_RECORD) if pos < TLS_RECORD else pos
            self.records = 1
            self.readable += self.in_bio + pos
        return pos

    cdef int _feed(self, const char *data, Py_ssize_t n) except -1:
        self.feed_call(_show(data, n))
        self.in_bio += n
        return 0

    cdef int _all_read(self) noexcept:
        self.records = self.readable = 0
        self.in_bio = self.header_have
        if self.header_have == 5:
            self.in_bio += self.body_size - self.body_left
        if self.untracked:
            self.in_bio = 0
        return 0

    cdef int hold(self, const char *data, Py_ssize_t n) except -1:
        return queue_push(&self.held, PyBytes_FromStringAndSize(data, n))

    cdef int take(self, const char *data, Py_ssize_t n) except -1:
        cdef Py_ssize_t fed = 0
        if self.held.count == 0 and self.records == 0:
            fed = self._scan(data, n)
            self._feed(data, fed)
        return self.hold(data + fed, n - fed) if fed < n else 0

    cdef int refill(self) except -1:
        cdef object first = <object>self.held.ring[self.held.first]
        cdef char *data = PyBytes_AS_STRING(first) + self.held.head_sent
        cdef Py_ssize_t n = PyBytes_GET_SIZE(first) - self.held.head_sent
        n = self._scan(data, n)
        queue_consume(&self.held, n)
        return self._feed(data, n)       # `first` keeps it

    cdef Py_ssize_t unread(self) except -1:
        return <Py_ssize_t>self.incoming.pending + self.held.size

    cdef int recount(self) except -1:
        cdef Py_ssize_t pending = self.incoming.pending
        cdef Py_ssize_t seen = self.records
        self._all_read()
        if pending != self.in_bio or self.untracked and pending:
            self.records = seen or 1
            self.in_bio = self.readable = pending
        return 0

    # -- plaintext out --------------------------------------------------------------------

    cdef Py_ssize_t _refused(self) except -1:
        """After a call that raised: TLS_WANT, or on with the exception."""
        if not PyErr_ExceptionMatches(_again):
            return -1
        PyErr_Clear()
        self.talked = True
        return TLS_WANT

    cdef Py_ssize_t read_into(self, char *to, Py_ssize_t size) except -1:
        cdef PyObject *args[3]
        cdef PyObject *result
        cdef Py_ssize_t got
        cdef object length = size      # typed: it would be a Py_ssize_t, and no object
        args[0] = NULL
        args[1] = <PyObject *>length
        args[2] = <PyObject *>_window
        if self.direct:
            _show(to, size)
            result = PyObject_Vectorcall(<PyObject *>self.read_call, args + 1, 2, NULL)
        else:
            result = PyObject_Vectorcall(<PyObject *>self.read_call, args + 1, 1, NULL)
        if result == NULL:
            self._refused()
            self._all_read()
            return TLS_WANT
        answer = aq_steal(result)
        if self.direct:
            got = answer
        else:
            data = bytes(memoryview(answer))
            got = PyBytes_GET_SIZE(data)
            if got > size:
                raise ValueError("read() of the SSL object gave more than asked for")
            memcpy(to, PyBytes_AS_STRING(data), got)
        if got == 0:
            self.peer_closed = True
        elif got == size or self.untracked:
            return got          # there may be more in the record
        self.records -= 1
        if self.records <= 0 or got == 0:
            self._all_read()
        return got

    cdef object _read_one(self):
        """Read the only record there is: bytes, or None."""
        cdef Py_ssize_t size = self.readable + 1
        cdef PyObject *args[2]
        cdef PyObject *result
        cdef object length = size
        args[0] = NULL
        args[1] = <PyObject *>length
        result = PyObject_Vectorcall(<PyObject *>self.read_call, args + 1, 1, NULL)
        if result == NULL:
            self._refused()
            self._all_read()
            return None
        data = aq_steal(result)
        if not PyBytes_CheckExact(data):
            data = bytes(memoryview(data))
        if not data:
            self.peer_closed = True
            data = None
        elif len(data) >= size:
            return data         # there may be more in the record
        self._all_read()
        return data

    cdef object decrypt(self, const char *data, Py_ssize_t n):
        cdef Py_ssize_t fed = 0
        cdef Py_ssize_t done = 0
        cdef Py_ssize_t size, step
        cdef PyObject *out = NULL
        try:
            if n:
                fed = self._scan(data, n)
                self._feed(data, fed)
            if fed == n:
                if self.records == 0:
                    return None
                if self.records == 1 and not self.untracked:
                    first = self._read_one()
                    if self.records == 0 or first is None:
                        return first
                    rest = self.decrypt(NULL, 0)
                    return first if rest is None else first + rest
            # One more than can come: a read that fills it is not the last.
            size = self.readable + n - fed + 1
            out = PyBytes_New(NULL, size)
            while True:
                while self.records > 0:
                    step = self.read_into(PyBytes_Memory(out) + done, size - done)
                    if step <= 0:
                        break
                    done += step
                    if done == size:
                        size += TLS_RECORD
                        _PyBytes_Resize(&out, size)
                if fed == n or self.peer_closed:
                    break
                step = self._scan(data + fed, n - fed)
                self._feed(data + fed, step)
                fed += step
        except Exception as exc:
            self._all_read()
            self.failure = exc
        except BaseException:
            Py_XDECREF(out)
            raise
        if out == NULL:
            return None
        if done == 0:
            Py_XDECREF(out)
            return None
        _PyBytes_Resize(&out, done)
        return aq_steal(out)

    # -- plaintext in, ciphertext out -------------------------------------------------------

    cdef object _piece(self, const char *data, Py_ssize_t size):
        return _show(data, size) if self.direct else PyBytes_FromStringAndSize(data, size)

    cdef int write_record(self, char *scratch) except -1:
        cdef PyObject *args[2]
        cdef PyObject *result
        cdef PyObject *part
        cdef Py_ssize_t i, skip, rest, written
        cdef Py_ssize_t size = 0
        cdef object first = <object>self.backlog.ring[self.backlog.first]
        skip = self.backlog.head_sent
        rest = PyBytes_GET_SIZE(first) - skip
        what = first
        if rest >= TLS_RECORD or self.backlog.count == 1:
            size = min(rest, <Py_ssize_t>TLS_RECORD)
            if size != PyBytes_GET_SIZE(first):
                what = self._piece(PyBytes_AS_STRING(first) + skip, size)
        else:
            # Small ones together: a record costs more than a copy of its contents.
            for i in range(self.backlog.count):
                part = self.backlog.ring[
                    (self.backlog.first + i) & (self.backlog.capacity - 1)]
                rest = min(PyBytes_GET_SIZE(<object>part) - skip, TLS_RECORD - size)
                memcpy(scratch + size, PyBytes_Memory(part) + skip, rest)
                size += rest
                skip = 0
                if size == TLS_RECORD:
                    break
            what = self._piece(scratch, size)
        args[0] = NULL
        args[1] = <PyObject *>what
        result = PyObject_Vectorcall(<PyObject *>self.write_call, args + 1, 1, NULL)
        if result == NULL:
            return <int>self._refused()
        written = aq_steal(result)
        if not 0 < written <= size:
            raise ValueError(f"write() of the SSL object says {written} of {size}")
        if self.backlog.count:      # else a signal handler has ended it meanwhile
            queue_consume(&self.backlog, written)
        return 0

    cdef object drain(self):
        self.talked = False
        return self.drain_call()
