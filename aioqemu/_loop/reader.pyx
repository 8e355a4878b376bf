"""StreamReader: asyncio's, native.

Knows no transport beyond pause_reading() and resume_reading(), so it works on any loop.
A method that asyncio has as `async def` returns a Reading here, which does nothing until
it is awaited, takes what is there without a pass of the loop, and else waits for a
future of the loop, as asyncio's does.
"""

import asyncio
import sys
from collections.abc import Coroutine as _Coroutine

import cython

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.object cimport PyTypeObject
from cpython.ref cimport Py_INCREF
from cpython.ref cimport Py_XDECREF

from aioqemu._loop.unread cimport unread_copy
from aioqemu._loop.unread cimport unread_drop
from aioqemu._loop.unread cimport unread_find
from aioqemu._loop.unread cimport unread_push
from aioqemu._loop.unread cimport unread_size
from aioqemu._loop.unread cimport unread_take
from aioqemu._sys.classes cimport refuse_new
from aioqemu._sys.iterators cimport PYGEN_NEXT
from aioqemu._sys.iterators cimport PYGEN_RETURN
from aioqemu._sys.iterators cimport aq_set_next
from aioqemu._sys.iterators cimport aq_stop_iteration
from aioqemu._sys.iterators cimport iternextfunc
from aioqemu._sys.iterators cimport sendfunc

from aioqemu._loop.private import extract_stack

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX
    # With NULL, a number beyond what memory has becomes the largest.
    Py_ssize_t PyNumber_AsSsize_t(object n, PyObject *error) except? -1

cdef enum:
    LIMIT = 64 * 1024          # asyncio's default

DEFAULT_LIMIT = LIMIT

cdef object _IncompleteReadError = asyncio.IncompleteReadError
cdef object _LimitOverrunError = asyncio.LimitOverrunError
cdef object _InvalidStateError = asyncio.InvalidStateError
cdef dict _names = {
    READ_SOME: "read",
    READ_ALL: "read",
    READ_EXACTLY: "readexactly",
    READ_UNTIL: "readuntil",
    READ_LINE: "readline",
    READ_NEXT: "__anext__",
    READ_WAIT: "_wait_for_data",
}


cdef object raised(object exc):
    # Out of an awaitable it would be the end with a result.
    if isinstance(exc, StopIteration):
        error = RuntimeError("coroutine raised StopIteration")
        error.__cause__ = exc
        return error
    return exc


cdef object thrown(object type_, object value, object traceback):
    if not isinstance(value, BaseException):
        if not isinstance(type_, type):
            value = type_
        else:
            value = type_() if value is None else type_(value)
    if traceback is not None:
        value = value.with_traceback(traceback)
    return raised(value)


cdef Reading _reading(StreamReader reader, ReadKind kind, Py_ssize_t n, object what):
    cdef Reading r = Reading.__new__(Reading)
    r.reader = reader
    r.kind = kind
    r.n = n
    r.what = what
    return r


cdef class StreamReader:
    """What a peer has sent, to be read by coroutines (`asyncio.StreamReader`).

    Fed by a protocol, with `feed_data`, `feed_eof` and `set_exception`. When more than
    twice the limit is waiting to be read, the transport is paused.

    Args:
        limit: bytes that a line, or what `readuntil` gives, may have.
        loop: the loop whose tasks read; the running one if None.

    Raises:
        ValueError: The limit is not above 0.
    """

    def __cinit__(self, *args, **kwargs):
        self.unread.block = NULL
        self.unread.start = self.unread.end = 0
        self.limit = LIMIT

    def __init__(self, limit=DEFAULT_LIMIT, loop=None):
        if limit <= 0:
            raise ValueError("Limit cannot be <= 0")
        self._limit = limit
        self._loop = asyncio.get_event_loop() if loop is None else loop
        if self._loop.get_debug():
            self._source_traceback = extract_stack(sys._getframe())

    def __dealloc__(self):
        Py_XDECREF(self.unread.block)

    def __repr__(self):
        parts = [type(self).__name__]
        if self.unread.block != NULL:
            parts.append(f"{unread_size(&self.unread)} bytes")
        if self._eof:
            parts.append("eof")
        if self.limit != LIMIT:
            parts.append(f"limit={self.limit}")
        if self._waiter:
            parts.append(f"waiter={self._waiter!r}")
        if self._exception:
            parts.append(f"exception={self._exception!r}")
        if self._transport:
            parts.append(f"transport={self._transport!r}")
        if self._paused:
            parts.append("paused")
        return "<{}>".format(" ".join(parts))

    @property
    def _limit(self):
        return self.limit

    @_limit.setter
    def _limit(self, value):
        self.limit = PY_SSIZE_T_MAX if value >= PY_SSIZE_T_MAX else int(value)

    @property
    def _buffer(self):
        """A copy of what can be read; bytes, since changing it would change nothing."""
        return unread_copy(&self.unread)

    # -- feeding --------------------------------------------------------------------------

    def exception(self):
        """The exception that reads raise, or None."""
        return self._exception

    def set_exception(self, exc):
        """Let reads raise this from now on, the one that waits included."""
        self._exception = exc
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            self.reading = None
            if not waiter.cancelled():
                waiter.set_exception(exc)

    def set_transport(self, transport):
        """Name the transport that is paused and resumed; once."""
        if self._transport is not None:
            raise AssertionError("Transport already set")
        self._transport = transport

    def _replace_transport(self, transport):
        if self._transport is None:
            raise AssertionError("Transport not set")
        self._transport = transport

    def feed_eof(self):
        """Nothing more comes: reads end with what is there."""
        self._eof = True
        self._wake()

    def at_eof(self):
        """Whether everything was read and nothing more comes."""
        return bool(self._eof and self.unread.block == NULL)

    def feed_data(self, data):
        """Add what came, of any bytes-like type."""
        self.feed(data if type(data) is bytes else bytes(memoryview(data)))

    def _take_buffer(self):
        """Take everything that can be read, at once."""
        return unread_take(&self.unread, unread_size(&self.unread))

    cdef int feed(self, bytes data) except -1:
        cdef Py_ssize_t n = PyBytes_GET_SIZE(data)
        if self._eof:
            raise AssertionError("feed_data after feed_eof")
        if n == 0:
            return 0
        unread_push(&self.unread, data)
        if self._waiter is not None:
            self._wake()
        n = unread_size(&self.unread)
        if n > self.limit and n - self.limit > self.limit and not self._paused:
            self._pause()
        return 0

    cdef int _pause(self) except -1:
        if self._transport is None:
            return 0
        try:
            self._transport.pause_reading()
        except NotImplementedError:
            # It cannot be paused: everything is kept, and it is not asked again.
            self._transport = None
        else:
            self._paused = True
        return 0

    cdef int _resume(self) except -1:
        self._paused = False
        self._transport.resume_reading()
        return 0

    cdef int _maybe_resume(self) except -1:
        if self._paused and unread_size(&self.unread) <= self.limit:
            self._resume()
        return 0

    def _maybe_resume_transport(self):
        self._maybe_resume()

    cdef int _wake(self) except -1:
        cdef Reading reading = self.reading
        waiter = self._waiter
        if waiter is None:
            return 0
        self._waiter = self.reading = None
        try:
            waiter.set_result(None)
        except _InvalidStateError:
            if not waiter.cancelled():
                raise
            return 0        # its task will hear of that
        if reading is not None and reading.waiter is waiter:
            reading.woken = True
        return 0

    def _wakeup_waiter(self):
        self._wake()

    # -- reading --------------------------------------------------------------------------

    def read(self, n=-1):
        """Read what is there, at most `n` bytes; wait while there is nothing.

        Args:
            n: -1 to read until the end of the stream.

        Returns:
            An awaitable of bytes, empty at the end of the stream.

        Raises:
            RuntimeError: Another read waits already (when awaited, like all of these).
        """
        cdef Py_ssize_t size = PyNumber_AsSsize_t(n, NULL)
        return _reading(self, READ_SOME if size >= 0 else READ_ALL, size, None)

    def readexactly(self, n):
        """Read exactly `n` bytes.

        Returns:
            An awaitable of bytes.

        Raises:
            ValueError: `n` is below 0.
            asyncio.IncompleteReadError: The stream ended before; its `partial` has what
                came.
        """
        return _reading(self, READ_EXACTLY, PyNumber_AsSsize_t(n, NULL), None)

    def readline(self):
        """Read up to and with the next b"\\n"; at the end of the stream, the rest.

        Returns:
            An awaitable of bytes, empty at the end of the stream.

        Raises:
            ValueError: The line is longer than the limit. It is dropped, or, while its
                end has not come, everything that has.
        """
        return _reading(self, READ_LINE, 1, None)

    def readuntil(self, separator=b"\n"):
        """Read up to and with the separator.

        Args:
            separator: Bytes, or a tuple of several: the one that ends first counts.

        Returns:
            An awaitable of bytes.

        Raises:
            asyncio.IncompleteReadError: The stream ended before.
            asyncio.LimitOverrunError: It is beyond the limit; everything stays to be
                read in another way.
            ValueError: A separator is empty, or there is none.
        """
        return _reading(self, READ_UNTIL, 0, separator)

    def _wait_for_data(self, func_name):
        return _reading(self, READ_WAIT, 0, func_name)

    def __aiter__(self):
        """The lines that come."""
        return self

    def __anext__(self):
        return _reading(self, READ_NEXT, 1, None)


cdef PyObject *_reading_next(PyObject *op) except? NULL:
    cdef Reading self = <Reading>op
    cdef object result
    if self._advance():
        Py_INCREF(self.waiter)
        return <PyObject *>self.waiter
    result = self.result
    self.result = None
    if result is not None:
        aq_stop_iteration(result)
    return NULL


cdef int _reading_send(PyObject *op, PyObject *_value, PyObject **out) except -1:
    # -1, with the exception set, is PYGEN_ERROR.
    cdef Reading self = <Reading>op
    cdef object found
    cdef bint waits
    out[0] = NULL
    waits = self._advance()
    found = self.waiter if waits else self.result
    if not waits:
        self.result = None
    Py_INCREF(found)
    out[0] = <PyObject *>found
    return PYGEN_NEXT if waits else PYGEN_RETURN


@cython.final
@cython.freelist(64)
cdef class Reading:
    """A read under way: awaitable once, and to asyncio a coroutine."""

    def __await__(self):
        if self.waiter is not None:
            raise RuntimeError("coroutine is being awaited already")
        return self

    def __iter__(self):
        return self

    def __next__(self):
        # What `await` calls are the functions above; this is for who asks for it by name.
        return self.send(None)

    def send(self, value):
        """Go on, as a coroutine does: a future to wait for, or StopIteration."""
        if self._advance():
            return self.waiter
        raise StopIteration(self.result)

    def throw(self, type_, value=None, traceback=None):
        """End it with an exception."""
        if self.state == READ_OVER:
            raise RuntimeError("cannot reuse already awaited coroutine")
        self._leave()
        raise thrown(type_, value, traceback)

    def close(self):
        """Give it up."""
        self._leave()

    @property
    def __name__(self):
        return _names[self.kind]

    @property
    def __qualname__(self):
        return f"StreamReader.{_names[self.kind]}"

    @property
    def cr_running(self):
        return False

    @property
    def cr_await(self):
        return self.waiter

    def __repr__(self):
        state = ("not awaited", "waiting", "over")[self.state]
        return f"<{self.__qualname__}() {state}>"

    cdef int _leave(self) except -1:
        """It is over: nobody is to wake it."""
        cdef StreamReader reader = self.reader
        self.state = READ_OVER
        if reader is not None and reader.reading is self:
            reader.reading = None
            if reader._waiter is self.waiter:
                reader._waiter = None
        self.waiter = self.reader = self.what = self.parts = None
        return 0

    cdef bint _advance(self) except -1:
        try:
            if self.reader is None:
                raise RuntimeError("cannot reuse already awaited coroutine")
            if self.state == READ_NEW:
                self.result = self._begin()
            else:
                if self.woken:
                    self.woken = False
                elif not self.waiter.done():
                    raise RuntimeError("await wasn't used with future")
                else:
                    self.waiter.result()
                if self.reader.reading is self:
                    self.reader._waiter = self.reader.reading = None
                self.waiter = None
                if self.kind == READ_WAIT:
                    self._leave()
                    return False
                self.result = self._try()
            if self.result is None:
                self._wait()
                return True
        except BaseException:
            self._leave()
            raise
        self.state = READ_OVER
        self.reader = None
        return False

    cdef int _wait(self) except -1:
        cdef StreamReader reader = self.reader
        cdef object waiter
        if reader._waiter is not None:
            name = self.what if self.kind == READ_WAIT else _names[self.kind]
            raise RuntimeError(f"{name}() called while another coroutine is already "
                               "waiting for incoming data")
        if reader._eof:
            raise AssertionError("_wait_for_data after EOF")
        if reader._paused:
            # What it waits for would never come.
            reader._resume()
        waiter = reader._loop.create_future()
        waiter._asyncio_future_blocking = True
        reader._waiter = waiter
        reader.reading = self
        self.waiter = waiter
        self.state = READ_WAITING
        return 0

    cdef object _begin(self):
        """Check the arguments, then try; None if it has to wait."""
        cdef StreamReader reader = self.reader
        if self.kind == READ_WAIT:
            return None
        if self.kind == READ_UNTIL:
            what = self.what
            what = sorted(what, key=len) if isinstance(what, tuple) else [what]
            if not what:
                raise ValueError("Separator should contain at least one element")
            parts = []
            for part in what:       # from short to long
                part = part if type(part) is bytes else bytes(memoryview(part))
                self.n = PyBytes_GET_SIZE(part)
                if self.n == 0:
                    raise ValueError("Separator should be at least one-byte string")
                parts.append(part)
            self.what = parts
        elif self.kind == READ_EXACTLY and self.n < 0:
            raise ValueError("readexactly size can not be less than zero")
        if reader._exception is not None:
            raise raised(reader._exception)
        if self.n == 0:
            return b""
        return self._try()

    cdef object _try(self):
        """What can be had without waiting, or None; at the end of the stream never."""
        cdef StreamReader reader = self.reader
        cdef Py_ssize_t size = unread_size(&reader.unread)
        cdef bytes taken
        if self.kind == READ_SOME:
            if size == 0:
                return b"" if reader._eof else None
            taken = unread_take(&reader.unread, min(size, self.n))
        elif self.kind == READ_EXACTLY:
            if size < self.n:
                if not reader._eof:
                    return None
                raise _IncompleteReadError(unread_take(&reader.unread, size), self.n)
            taken = unread_take(&reader.unread, self.n)
        elif self.kind == READ_ALL:
            if self.parts is None:
                self.parts = []
            elif reader._exception is not None:
                raise raised(reader._exception)
            if size:
                self.parts.append(unread_take(&reader.unread, size))
                if reader._paused:
                    reader._resume()
            if not reader._eof:
                return None
            return self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)
        else:
            return self._until()
        reader._maybe_resume()
        return taken

    cdef object _until(self):
        cdef StreamReader reader = self.reader
        cdef Py_ssize_t size = unread_size(&reader.unread)
        cdef Py_ssize_t found, start, end
        cdef bytes part, taken
        if self.offset > size:
            self.offset = 0     # somebody else has read meanwhile
        start = end = -1
        if self.kind == READ_UNTIL:
            for part in self.what:
                found = unread_find(&reader.unread, PyBytes_AS_STRING(part),
                                    PyBytes_GET_SIZE(part), self.offset)
                if found >= 0 and (end < 0 or found + PyBytes_GET_SIZE(part) < end):
                    start = found
                    end = found + PyBytes_GET_SIZE(part)
        else:
            start = unread_find(&reader.unread, b"\n", 1, self.offset)
            end = start + 1
        if start > reader.limit:
            return self._overrun(start, end)
        if start >= 0:
            taken = unread_take(&reader.unread, end)
            reader._maybe_resume()
            return taken
        # The beginning of the longest separator may be the end of what is there.
        self.offset = max(0, size + 1 - self.n)
        if self.offset > reader.limit:
            return self._overrun(self.offset, -1)
        if not reader._eof:
            return None
        taken = unread_take(&reader.unread, size)
        if self.kind == READ_UNTIL:
            raise _IncompleteReadError(taken, None)
        if not taken and self.kind == READ_NEXT:
            raise StopAsyncIteration
        return taken

    cdef object _overrun(self, Py_ssize_t consumed, Py_ssize_t end):
        cdef StreamReader reader = self.reader
        if end < 0:
            text = "Separator is not found, and the limit is exceeded"
        else:
            text = "Separator is found, but beyond the limit"
        if self.kind == READ_UNTIL:
            raise _LimitOverrunError(text, consumed)
        unread_drop(&reader.unread, unread_size(&reader.unread) if end < 0 else end)
        reader._maybe_resume()
        raise ValueError(text)


refuse_new(<PyTypeObject *>Reading)
aq_set_next(<PyTypeObject *>Reading, <iternextfunc>_reading_next, <sendfunc>_reading_send)
_Coroutine.register(Reading)
