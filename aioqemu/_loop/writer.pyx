"""StreamWriter and the protocol between a transport and a pair of streams, native.

Both work on any loop and with any transport; the writer also with any protocol that has
asyncio's flow control, of which it then uses the Python methods.  Nothing here reads.
"""

import asyncio
import warnings
from collections.abc import Coroutine as _Coroutine
from weakref import ref as _weakref

import cython

from cpython.object cimport PyObject
from cpython.object cimport PyTypeObject
from cpython.ref cimport Py_INCREF

from aioqemu._loop.reader cimport StreamReader
from aioqemu._loop.reader cimport raised
from aioqemu._loop.reader cimport thrown
from aioqemu._loop.transport cimport SocketTransport
from aioqemu._sys.classes cimport refuse_new
from aioqemu._sys.iterators cimport PYGEN_NEXT
from aioqemu._sys.iterators cimport PYGEN_RETURN
from aioqemu._sys.iterators cimport aq_set_next
from aioqemu._sys.iterators cimport iternextfunc
from aioqemu._sys.iterators cimport sendfunc

from aioqemu._loop import writer_calls
from aioqemu._loop.private import logger

cdef object _drain = writer_calls.drain
cdef object _wait_closed = writer_calls.wait_closed
cdef object _start_tls = writer_calls.start_tls
cdef object _warn = warnings.warn


cdef class StreamReaderProtocol(ProtocolBase):
    """Feeds a `StreamReader` from a transport (`asyncio.StreamReaderProtocol`).

    Args:
        stream_reader: of this module or of asyncio. It is not kept alive, but until the
            connection is made if there is a callback.
        client_connected_cb: called with reader and writer when the connection is made; if
            it gives a coroutine, that runs as a task.
        loop: the running one if None.
    """

    def __init__(self, stream_reader, client_connected_cb=None, loop=None):
        self._loop = asyncio.get_event_loop() if loop is None else loop
        if stream_reader is not None:
            self._stream_reader_wr = _weakref(stream_reader)
            self._source_traceback = stream_reader._source_traceback
        if client_connected_cb is not None:
            self._strong_reader = stream_reader
        self._client_connected_cb = client_connected_cb

    cdef object _reader(self):
        return None if self._stream_reader_wr is None else self._stream_reader_wr()

    cdef StreamReader direct_reader(self):
        reader = None if self._stream_reader_wr is None else self._stream_reader_wr()
        if type(reader) is StreamReader and (<StreamReader>reader).plain():
            return <StreamReader>reader
        return None

    @property
    def _stream_reader(self):
        return self._reader()

    # -- the connection -------------------------------------------------------------------

    def connection_made(self, transport):
        """Tell the reader its transport, and call the callback of a server."""
        if self._reject_connection:
            context = {"message": "a stream was collected before it was connected; "
                       "call close() on it"}
            if self._source_traceback:
                context["source_traceback"] = self._source_traceback
            self._loop.call_exception_handler(context)
            transport.abort()
            return
        self._transport = transport
        reader = self._reader()
        if reader is not None:
            reader.set_transport(transport)
        self._over_ssl = transport.get_extra_info("sslcontext") is not None
        if self._client_connected_cb is None:
            return
        writer = StreamWriter(transport, self, reader, self._loop)
        try:
            served = self._client_connected_cb(reader, writer)
        except Exception as exc:
            self._report(transport, exc)
            transport.close()
        else:
            if asyncio.iscoroutine(served):
                self._task = self._loop.create_task(served)
                self._task.add_done_callback(_Served(self, transport))
        self._strong_reader = None

    def _report(self, transport, exc):
        self._loop.call_exception_handler({
            "message": "Unhandled exception in client_connected_cb",
            "exception": exc,
            "transport": transport,
        })

    def _replace_transport(self, transport):
        self._transport = transport
        self._over_ssl = transport.get_extra_info("sslcontext") is not None
        reader = self._reader()
        if reader is not None:
            reader._replace_transport(transport)

    def connection_lost(self, exc):
        """Let the reader end, with the exception if there is one, and all who wait."""
        reader = self._reader()
        if reader is not None:
            if exc is None:
                reader.feed_eof()
            else:
                reader.set_exception(exc)
        if not self._connection_lost:
            self._connection_lost = True
            self.close_error = exc
        if self.closed is not None:
            self._settle()
        if self._paused:
            for waiter in self.drains or ():
                if not waiter.done():
                    if exc is None:
                        waiter.set_result(None)
                    else:
                        waiter.set_exception(exc)
        self._stream_reader_wr = self._task = self._transport = None

    def _settle(self):
        if self.closed.done():
            return
        if self.close_error is None:
            self.closed.set_result(None)
        else:
            self.closed.set_exception(self.close_error)
            self.closed.exception()     # reported by those who wait, or by nobody

    @property
    def _closed(self):
        # Most never ask for it.
        if self.closed is None:
            self.closed = self._loop.create_future()
            if self._connection_lost:
                self._settle()
        return self.closed

    def _get_close_waiter(self, stream):
        return self._closed

    # -- data -----------------------------------------------------------------------------

    def data_received(self, data):
        """Feed the reader."""
        reader = self._reader()
        if reader is not None:
            reader.feed_data(data)

    def eof_received(self):
        """Feed the end; the writing half stays open, which TLS does not have."""
        reader = self._reader()
        if reader is not None:
            reader.feed_eof()
        return not self._over_ssl

    def _take_read_ahead(self):
        """Take what was read before TLS began: the peer's first records."""
        reader = self._reader()
        return reader._take_buffer() if isinstance(reader, StreamReader) else b""

    # -- flow control -----------------------------------------------------------------------

    def pause_writing(self):
        """Let `drain` wait."""
        if self._paused:
            raise AssertionError("writing is paused already")
        self._paused = True
        if self._loop.get_debug():
            logger.debug("%r pauses writing", self)

    def resume_writing(self):
        """Let `drain` go on."""
        if not self._paused:
            raise AssertionError("writing is not paused")
        self._paused = False
        if self._loop.get_debug():
            logger.debug("%r resumes writing", self)
        for waiter in self.drains or ():
            if not waiter.done():
                waiter.set_result(None)

    def _drain_helper(self):
        return _draining(self, None)


cdef class _Served:
    """The end of the task that serves a client: what it raised is reported."""

    cdef StreamReaderProtocol protocol
    cdef object transport

    def __init__(self, StreamReaderProtocol protocol not None, transport):
        self.protocol = protocol
        self.transport = transport

    def __call__(self, task):
        if not task.cancelled():
            exc = task.exception()
            if exc is None:
                return
            self.protocol._report(self.transport, exc)
        self.transport.close()


cdef Draining _draining(StreamReaderProtocol protocol, StreamWriter writer):
    cdef Draining d = Draining.__new__(Draining)
    d.protocol = protocol
    d.writer = writer
    return d


cdef PyObject *_draining_next(PyObject *op) except? NULL:
    cdef Draining self = <Draining>op
    if not self._advance():
        return NULL
    Py_INCREF(self.waiter)
    return <PyObject *>self.waiter


cdef int _draining_send(PyObject *op, PyObject *_value, PyObject **out) except -1:
    # -1, with the exception set, is PYGEN_ERROR.
    cdef Draining self = <Draining>op
    cdef object found
    cdef bint waits
    out[0] = NULL
    waits = self._advance()
    found = self.waiter if waits else None
    Py_INCREF(found)
    out[0] = <PyObject *>found
    return PYGEN_NEXT if waits else PYGEN_RETURN


@cython.final
@cython.freelist(64)
cdef class Draining:
    """A drain() under way: awaitable once, and to asyncio a coroutine."""

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
        """Go on, as a coroutine does: a future to wait for, None, or StopIteration."""
        if self._advance():
            return self.waiter
        raise StopIteration

    def throw(self, type_, value=None, traceback=None):
        """End it with an exception."""
        if self.state == DRAIN_OVER:
            raise RuntimeError("cannot reuse already awaited coroutine")
        self._leave()
        raise thrown(type_, value, traceback)

    def close(self):
        """Give it up."""
        self._leave()

    @property
    def __name__(self):
        return "drain"

    @property
    def __qualname__(self):
        return "StreamWriter.drain"

    @property
    def cr_running(self):
        return False

    @property
    def cr_await(self):
        return self.waiter

    def __repr__(self):
        state = ("not awaited", "waiting", "waiting", "over")[self.state]
        return f"<{self.__qualname__}() {state}>"

    cdef int _leave(self) except -1:
        """It is over: nobody is to wake it."""
        cdef StreamReaderProtocol protocol = self.protocol
        waiter = self.waiter
        self.state = DRAIN_OVER
        self.protocol = self.writer = self.waiter = None
        if waiter is not None:
            protocol.drains.remove(waiter)
        return 0

    cdef bint _advance(self) except -1:
        cdef StreamReaderProtocol protocol = self.protocol
        cdef StreamWriter writer = self.writer
        cdef object transport, waiter
        if protocol is None:
            raise RuntimeError("cannot reuse already awaited coroutine")
        try:
            if self.state == DRAIN_WAITING:
                if not self.waiter.done():
                    raise RuntimeError("await wasn't used with future")
                self.waiter.result()
                self._leave()
                return False
            if self.state == DRAIN_NEW and writer is not None:
                reader = writer._reader
                if type(reader) is StreamReader:
                    exc = (<StreamReader>reader)._exception
                else:
                    exc = None if reader is None else reader.exception()
                if exc is not None:
                    raise raised(exc)
                transport = writer._transport
                if (<SocketTransport>transport).closing if isinstance(
                        transport, SocketTransport) else transport.is_closing():
                    # connection_lost comes in the next pass.  Who writes and drains in a
                    # loop would otherwise never let it come.
                    self.state = DRAIN_YIELDED
                    return True
            if protocol._connection_lost:
                raise ConnectionResetError("Connection lost")
            if not protocol._paused:
                self.state = DRAIN_OVER
                self.protocol = self.writer = None
                return False
            waiter = protocol._loop.create_future()
            waiter._asyncio_future_blocking = True
            if protocol.drains is None:
                protocol.drains = []
            protocol.drains.append(waiter)
        except BaseException:
            self._leave()
            raise
        self.waiter = waiter
        self.state = DRAIN_WAITING
        return True


cdef class StreamWriter:
    """Writes to a transport, and lets coroutines wait for it (`asyncio.StreamWriter`).

    Args:
        transport: to be written to.
        protocol: the transport's, which is told when to pause.
        reader: whose exception `drain` raises; or None.
        loop: the loop of all of them.
    """

    def __init__(self, transport, protocol, reader, loop):
        self._transport = transport
        self._protocol = protocol
        self._reader = reader
        self._loop = loop

    def __repr__(self):
        parts = [type(self).__name__, f"transport={self._transport!r}"]
        if self._reader is not None:
            parts.append(f"reader={self._reader!r}")
        return "<{}>".format(" ".join(parts))

    def __del__(self):
        if self._transport is None or self._transport.is_closing():
            return
        if self._loop.is_closed():
            _warn("loop is closed", ResourceWarning)
        else:
            self.close()
            _warn(f"unclosed {self!r}", ResourceWarning)

    @property
    def transport(self):
        """The transport."""
        return self._transport

    def write(self, data):
        """Send `data` (bytes-like) when the running callback returns."""
        self._transport.write(data)

    def writelines(self, data):
        """Send the items."""
        self._transport.writelines(data)

    def write_eof(self):
        """Close the writing half once what was written is sent."""
        return self._transport.write_eof()

    def can_write_eof(self):
        """Whether the transport has a writing half to close."""
        return self._transport.can_write_eof()

    def close(self):
        """Close the connection once what was written is sent."""
        return self._transport.close()

    def is_closing(self):
        """Whether the connection is closing or closed."""
        return self._transport.is_closing()

    def wait_closed(self):
        """Wait until the connection is closed.

        Returns:
            A coroutine. It raises what the connection was lost with, if anything.
        """
        return _wait_closed(self)

    def get_extra_info(self, name, default=None):
        """Information of the transport: "socket", "peername", "sslcontext", ..."""
        return self._transport.get_extra_info(name, default)

    def drain(self):
        """Wait while more is waiting to be sent than the transport likes.

        Returns:
            An awaitable; a coroutine to asyncio.

        Raises:
            ConnectionResetError: The connection is lost (when awaited).
            Exception: What the reader was told that the connection was lost with.
        """
        if type(self._protocol) is StreamReaderProtocol:
            return _draining(<StreamReaderProtocol>self._protocol, self)
        return _drain(self)

    def start_tls(self, sslcontext, *, server_hostname=None, ssl_handshake_timeout=None,
                  ssl_shutdown_timeout=None):
        """Put TLS on the connection; the streams go on above it.

        Args:
            sslcontext: the `ssl.SSLContext`.
            server_hostname: the name that the server's certificate must have.
            ssl_handshake_timeout: seconds, 60 if None.
            ssl_shutdown_timeout: seconds, 30 if None.

        Returns:
            A coroutine.

        Raises:
            OSError: The handshake failed (`ssl.SSLError`) or took too long.
        """
        return _start_tls(self, sslcontext, server_hostname, ssl_handshake_timeout,
                          ssl_shutdown_timeout)


refuse_new(<PyTypeObject *>Draining)
aq_set_next(<PyTypeObject *>Draining, <iternextfunc>_draining_next, <sendfunc>_draining_send)
_Coroutine.register(Draining)
