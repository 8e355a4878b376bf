"""ReadPipeTransport and WritePipeTransport: pipes, and sockets or terminals as pipes.

Know nothing of what is at the other end.  They own the file object, make it non-blocking
and close it exactly once.

Unlike a stream transport they watch their fd as add_reader and add_writer do, because one
transport may read a terminal or a socket that another writes.  What a callback writes is
kept and sent when it returns, by one system call; beyond FLUSH_SIZE it is sent at once.
"""

import os
import stat
import warnings
from contextvars import copy_context as _copy_context

from cpython.bytes cimport PyBytes_CheckExact
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.object cimport PyTypeObject
from cpython.ref cimport Py_INCREF

from aioqemu._loop.callbacks cimport SCRATCH_SIZE
from aioqemu._loop.core cimport LoopCore
from aioqemu._loop.flow cimport FLUSH_SIZE
from aioqemu._loop.flow cimport HIGH_WATER
from aioqemu._loop.flow cimport LOW_WATER
from aioqemu._loop.flow cimport MAX_IOV
from aioqemu._loop.flow cimport call_flow
from aioqemu._loop.flow cimport os_error
from aioqemu._loop.flow cimport queue_clear
from aioqemu._loop.flow cimport queue_consume
from aioqemu._loop.flow cimport queue_iov
from aioqemu._loop.flow cimport queue_push
from aioqemu._loop.flow cimport report
from aioqemu._loop.flow cimport water_marks
from aioqemu._loop.layouts cimport AqTransportObject
from aioqemu._sys.classes cimport refuse_new
from aioqemu._sys.libc cimport EAGAIN
from aioqemu._sys.libc cimport EINTR
from aioqemu._sys.libc cimport EIO
from aioqemu._sys.libc cimport errno
from aioqemu._sys.libc cimport iovec
from aioqemu._sys.libc cimport read
from aioqemu._sys.libc cimport writev

from aioqemu._loop.private import (
    _set_result_unless_cancelled,
    constants,
    logger,
)


cdef int _flush(void *opaque) except -1:
    return (<WritePipeTransport>opaque)._flush_pending()


cdef dict _extra(object extra, object pipe):
    cdef dict info = dict(extra) if extra else {}
    info["pipe"] = pipe
    return info


cdef str _describe(object transport, LoopCore loop, int fd, bint open_, bint closing,
                   str state):
    parts = [type(transport).__name__]
    if not open_:
        parts.append("closed")
    elif closing:
        parts.append("closing")
    if open_:
        parts.append(f"fd={fd}")
        parts.append("open" if loop.closed else state)
    return "<{}>".format(" ".join(parts))


def make_read_pipe_transport(LoopCore loop not None, pipe, protocol, waiter=None,
                             extra=None):
    """Make a transport that reads a pipe, a socket or a character device and owns it.

    `connection_made` is called in the next pass; then `waiter`, if given, is resolved.

    Raises:
        ValueError: it is another kind of file.
    """
    cdef ReadPipeTransport t = ReadPipeTransport.__new__(ReadPipeTransport)
    cdef dict info = _extra(extra, pipe)
    Py_INCREF(info)
    (<AqTransportObject *><PyObject *>t).extra = <PyObject *>info
    fd = pipe.fileno()
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode)):
        raise ValueError("Pipe transport is for pipes/sockets only.")
    os.set_blocking(fd, False)
    t.loop = loop
    t.fd = fd
    t.ctx = _copy_context()
    t.set_protocol(protocol)
    t.pipe = pipe
    loop.soon(t._start, <PyObject *>waiter, NULL, t.ctx.copy())
    return t


def make_write_pipe_transport(LoopCore loop not None, pipe, protocol, waiter=None,
                              extra=None):
    """Make a transport that writes a pipe, a socket or a character device and owns it.

    `connection_made` is called in the next pass; then `waiter`, if given, is resolved.

    Raises:
        ValueError: it is another kind of file.
    """
    cdef WritePipeTransport t = WritePipeTransport.__new__(WritePipeTransport)
    cdef dict info = _extra(extra, pipe)
    Py_INCREF(info)
    (<AqTransportObject *><PyObject *>t).extra = <PyObject *>info
    fd = pipe.fileno()
    mode = os.fstat(fd).st_mode
    t.watch_hangup = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
    if not (t.watch_hangup or stat.S_ISCHR(mode)):
        raise ValueError("Pipe transport is only for pipes, sockets and character devices")
    os.set_blocking(fd, False)
    t.loop = loop
    t.fd = fd
    t.ctx = _copy_context()
    t.protocol = protocol
    t.high_water = HIGH_WATER
    t.low_water = LOW_WATER
    t.pipe = pipe
    loop.soon(t._start, <PyObject *>waiter, NULL, t.ctx.copy())
    return t


cdef class ReadPipeTransport(ReadTransportBase):
    """The reading end of a pipe (`asyncio.ReadTransport`).

    Made by the loop.  All methods belong to the loop's thread.
    """

    max_size = SCRATCH_SIZE

    def __cinit__(self):
        self.fd = -1

    def __init__(self):
        raise TypeError("transports are made by the loop")

    def __repr__(self):
        return _describe(self, self.loop, self.fd, self.pipe is not None, self.closing,
                         "idle" if self.handle is None else "polling")

    def __del__(self):
        if self.pipe is not None:
            warnings.warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
            self.pipe.close()

    @property
    def _loop(self):
        return self.loop

    @property
    def _pipe(self):
        return self.pipe

    @_pipe.setter
    def _pipe(self, value):
        self.pipe = value

    @property
    def _fileno(self):
        return self.fd

    @property
    def _protocol(self):
        return self.protocol

    @property
    def _closing(self):
        return bool(self.closing)

    @property
    def _paused(self):
        return bool(self.paused)

    def get_protocol(self):
        """The protocol in use."""
        return self.protocol

    def set_protocol(self, protocol):
        """Use another protocol from now on."""
        self.protocol = protocol
        self.data_received = getattr(protocol, "data_received", None)

    def is_closing(self):
        """Whether the transport is closing or closed."""
        return bool(self.closing)

    def is_reading(self):
        """Whether data is being received."""
        return not self.paused and not self.closing

    def pause_reading(self):
        """Receive nothing until `resume_reading`."""
        if self.closing or self.paused:
            return
        self.paused = True
        self._update()
        if self.loop.debug:
            logger.debug("%r pauses reading", self)

    def resume_reading(self):
        """Receive again."""
        if self.closing or not self.paused:
            return
        self.paused = False
        self._update()
        if self.loop.debug:
            logger.debug("%r resumes reading", self)

    def close(self):
        """Close the pipe."""
        if not self.closing:
            self._close(None)

    def _start(self, waiter):
        try:
            self.protocol.connection_made(self)
        finally:
            # A protocol that raised is reported; the pipe goes on, as asyncio's.
            self.started = True
            try:
                self._update()
            except OSError as exc:
                self._fatal_error(exc, "Cannot watch the pipe")
            if waiter is not None:
                _set_result_unless_cancelled(waiter, None)

    cdef int _update(self) except -1:
        if not self.started or self.paused or self.closing:
            return self._unwatch()
        if self.handle is None:
            self.handle = self.ctx.run(self.loop._add_reader, self.fd, self._read_ready)
        return 0

    cdef int _unwatch(self) except -1:
        handle = self.handle
        self.handle = None
        # A cancelled one was replaced: the watch is somebody else's now.
        if handle is not None and not handle.cancelled():
            self.loop._remove_reader(self.fd)
        return 0

    def _read_ready(self):
        cdef char *buf = self.loop.scratch()
        cdef ssize_t n
        cdef int err
        if self.closing or self.paused or self.fd < 0:
            return
        n = read(self.fd, buf, SCRATCH_SIZE)
        if n > 0:
            callback = self.data_received
            callback(PyBytes_FromStringAndSize(buf, n))
        elif n == 0:
            if self.loop.debug:
                logger.info("%r was closed by peer", self)
            self.closing = True
            self._unwatch()
            self.loop.soon(self.protocol.eof_received, NULL, NULL, self.ctx.copy())
            self._schedule_lost(None)
        else:
            err = errno
            if err != EAGAIN and err != EINTR:
                self._fatal_error(os_error(err), "Fatal read error on pipe transport")

    def _fatal_error(self, exc, message="Fatal error on pipe transport"):
        # EIO: the other end of a terminal has gone.
        if not (isinstance(exc, OSError) and exc.errno == EIO):
            report(self.loop, self, self.protocol, exc, message)
        elif self.loop.debug:
            logger.debug("%r: %s", self, message, exc_info=True)
        self._close(exc)

    def _close(self, exc):
        self.closing = True
        self._unwatch()
        self._schedule_lost(exc)

    def _schedule_lost(self, exc):
        if not self.lost:
            self.lost = True
            self.loop.soon(
                self._call_connection_lost, <PyObject *>exc, NULL, self.ctx.copy())

    def _call_connection_lost(self, exc):
        try:
            self.protocol.connection_lost(exc)
        finally:
            pipe = self.pipe
            self.pipe = self.protocol = self.data_received = None
            self.fd = -1
            pipe.close()


cdef class WritePipeTransport(WriteTransportBase):
    """The writing end of a pipe (`asyncio.WriteTransport`).

    Made by the loop.  All methods belong to the loop's thread.
    """

    def __cinit__(self):
        self.fd = -1
        self.flush_node.linked = False
        self.flush_node.next = NULL

    def __init__(self):
        raise TypeError("transports are made by the loop")

    def __dealloc__(self):
        queue_clear(&self.queue)

    def __repr__(self):
        state = "polling" if self.blocked else "idle"
        return _describe(self, self.loop, self.fd, self.pipe is not None, self.closing,
                         f"{state} bufsize={self.queue.size}")

    def __del__(self):
        if self.pipe is not None:
            warnings.warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
            self.pipe.close()

    @property
    def _loop(self):
        return self.loop

    @property
    def _pipe(self):
        return self.pipe

    @_pipe.setter
    def _pipe(self, value):
        self.pipe = value

    @property
    def _fileno(self):
        return self.fd

    @property
    def _protocol(self):
        return self.protocol

    @property
    def _protocol_paused(self):
        return bool(self.writing_paused)

    @property
    def _closing(self):
        return bool(self.closing)

    @property
    def _conn_lost(self):
        return self.lost

    def get_protocol(self):
        """The protocol in use."""
        return self.protocol

    def set_protocol(self, protocol):
        """Use another protocol from now on."""
        self.protocol = protocol

    def is_closing(self):
        """Whether the transport is closing or closed."""
        return bool(self.closing)

    # -- life -----------------------------------------------------------------------------

    def _start(self, waiter):
        try:
            self.protocol.connection_made(self)
        finally:
            # A protocol that raised is reported; the pipe goes on, as asyncio's.
            self.started = True
            try:
                self._update()
            except OSError as exc:
                self._fatal_error(exc, "Cannot watch the pipe")
            if waiter is not None:
                _set_result_unless_cancelled(waiter, None)

    cdef int _update(self) except -1:
        if not self.started or self.lost:
            return self._unwatch()
        if self.watch_hangup and self.hangup_handle is None:
            self.hangup_handle = self.ctx.run(
                self.loop._add_reader, self.fd, self._reader_gone)
        if self.blocked:
            if self.room_handle is None:
                self.room_handle = self.ctx.run(
                    self.loop._add_writer, self.fd, self._write_ready)
        else:
            handle = self.room_handle
            self.room_handle = None
            if handle is not None and not handle.cancelled():
                self.loop._remove_writer(self.fd)
        return 0

    cdef int _unwatch(self) except -1:
        room = self.room_handle
        hangup = self.hangup_handle
        self.room_handle = self.hangup_handle = None
        # A cancelled one was replaced: the watch is somebody else's now.
        if room is not None and not room.cancelled():
            self.loop._remove_writer(self.fd)
        if hangup is not None and not hangup.cancelled():
            self.loop._remove_reader(self.fd)
        return 0

    def _reader_gone(self):
        if self.lost:
            return
        if self.loop.debug:
            logger.info("%r was closed by peer", self)
        self._close(BrokenPipeError() if self.queue.size else None)

    def _fatal_error(self, exc, message="Fatal error on pipe transport"):
        if not isinstance(exc, OSError):
            report(self.loop, self, self.protocol, exc, message)
        elif self.loop.debug:
            logger.debug("%r: %s", self, message, exc_info=True)
        self._close(exc)

    def _close(self, exc=None):
        self.closing = True
        self.blocked = False
        self.loop.flush_cancel(&self.flush_node)
        queue_clear(&self.queue)
        self._unwatch()
        if not self.lost:
            self._schedule_lost(exc)

    cdef int _schedule_lost(self, object exc) except -1:
        self.lost += 1
        self.loop.soon(
            self._call_connection_lost, <PyObject *>exc, NULL, self.ctx.copy())
        return 0

    def _call_connection_lost(self, exc):
        try:
            self.protocol.connection_lost(exc)
        finally:
            pipe = self.pipe
            self.pipe = self.protocol = None
            self.fd = -1
            pipe.close()

    def abort(self):
        """Close the pipe now; what was not sent is lost."""
        if not self.lost:
            self._close(None)

    def close(self):
        """Close the pipe once what was written is sent."""
        self.write_eof()

    def can_write_eof(self):
        """True: the end of a pipe is told by closing it."""
        return True

    def write_eof(self):
        """Close the pipe once what was written is sent."""
        if self.closing:
            return
        self.closing = True
        self._flush_pending()
        if self.queue.size == 0 and not self.lost:
            self._unwatch()
            self._schedule_lost(None)

    # -- writing --------------------------------------------------------------------------

    def write(self, data):
        """Send `data` (bytes-like) when the running callback returns."""
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(
                "data argument must be a bytes-like object, "
                f"not {type(data).__name__!r}")
        if not PyBytes_CheckExact(data):
            data = bytes(data)      # it may change before it is sent
        if PyBytes_GET_SIZE(data) == 0:
            return
        if self.lost or self.closing:
            if self.lost >= constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES:
                logger.warning(
                    "pipe closed by peer or os.write(pipe, data) raised exception.")
            self.lost += 1
            return
        queue_push(&self.queue, data)
        if self.blocked:
            self._maybe_pause()
        elif self.queue.size >= FLUSH_SIZE:
            self._flush_pending()
        else:
            self.loop.flush_later(&self.flush_node, _flush, self)

    def _write_ready(self):
        if self.blocked and not self.lost:
            self._send_now()

    cdef int _flush_pending(self) except -1:
        """Send what waits for the end of the callback."""
        self.loop.flush_cancel(&self.flush_node)
        if self.queue.size and not self.blocked and not self.lost:
            self._send_now()
        return 0

    cdef int _send_now(self) except -1:
        """Send what is queued, as far as the pipe takes it."""
        cdef iovec iov[MAX_IOV]
        cdef size_t asked = 0
        cdef ssize_t n
        cdef int count, err
        cdef bint full = False
        if self.loop.in_child():
            queue_clear(&self.queue)    # the pipe is the parent's as well
        while self.queue.size:
            count = queue_iov(&self.queue, iov, &asked)
            n = writev(self.fd, iov, count)
            if n < 0:
                err = errno
                if err == EINTR:
                    continue
                if err == EAGAIN:
                    full = True
                    break
                self._fatal_error(os_error(err), "Fatal write error on pipe transport")
                return 0
            queue_consume(&self.queue, n)
            if <size_t>n < asked:
                full = True
                break
        if full != self.blocked:
            self.blocked = full
            self._update()
        if full:
            self._maybe_pause()
        self._maybe_resume()
        if self.closing and self.queue.size == 0 and not self.lost:
            self._unwatch()
            self._schedule_lost(None)
        return 0

    # -- flow control -----------------------------------------------------------------------

    def get_write_buffer_size(self):
        """The number of bytes not yet handed to the kernel."""
        self._flush_pending()
        return self.queue.size

    def get_write_buffer_limits(self):
        """The low and high water marks in bytes."""
        return (self.low_water, self.high_water)

    def set_write_buffer_limits(self, high=None, low=None):
        """Set the marks at which the protocol is told to pause and resume writing."""
        self.low_water, self.high_water = water_marks(high, low)
        self._maybe_pause()

    cdef int _maybe_pause(self) except -1:
        if not self.writing_paused and self.queue.size > self.high_water:
            self.writing_paused = True
            call_flow(self.loop, self.ctx, self, self.protocol, True)
        return 0

    cdef int _maybe_resume(self) except -1:
        if self.writing_paused and self.queue.size <= self.low_water and not self.lost:
            self.writing_paused = False
            call_flow(self.loop, self.ctx, self, self.protocol, False)
        return 0


refuse_new(<PyTypeObject *>ReadPipeTransport)
refuse_new(<PyTypeObject *>WritePipeTransport)
