"""StreamTransport: TCP, Unix and any other connected stream socket.

Knows nothing of servers, name resolution or TLS.  It calls the protocol straight from
the loop's pass, in the context that the transport was made in, and owns its socket: the
fd is registered from connection_made to connection_lost and closed exactly once.

What a callback writes is kept and sent when the callback returns, by one system call;
beyond FLUSH_SIZE it is sent at once, so that a writer that never yields sees the socket
fill up and is paused.  Only `bytes` are kept by reference: anything else may change after
write() has returned, so what could not be sent on the spot is copied.
"""

import asyncio
import socket as _socket
import sys
from contextvars import copy_context as _copy_context
from weakref import ref as _weakref

from cpython.buffer cimport PyBUF_SIMPLE
from cpython.buffer cimport PyBUF_WRITABLE
from cpython.buffer cimport PyBuffer_Release
from cpython.buffer cimport PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.bytes cimport PyBytes_CheckExact
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.object cimport PyTypeObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport uint32_t

from aioqemu._engine.types cimport AIO_OWNER_TRANSPORT
from aioqemu._engine.types cimport AioHandler
from aioqemu._loop.core cimport SCRATCH_SIZE
from aioqemu._loop.core cimport LoopCore
from aioqemu._loop.flow cimport FLUSH_SIZE
from aioqemu._loop.flow cimport HIGH_WATER
from aioqemu._loop.flow cimport LOW_WATER
from aioqemu._loop.flow cimport MAX_IOV
from aioqemu._loop.flow cimport call_flow
from aioqemu._loop.flow cimport enter
from aioqemu._loop.flow cimport os_error
from aioqemu._loop.flow cimport report
from aioqemu._loop.flow cimport water_marks
from aioqemu._loop.handles cimport PyContext_Exit
from aioqemu._loop.layouts cimport AqTransportObject
from aioqemu._sys.classes cimport refuse_new
from aioqemu._sys.libc cimport EAGAIN
from aioqemu._sys.libc cimport EBADF
from aioqemu._sys.libc cimport EINTR
from aioqemu._sys.libc cimport MSG_DONTWAIT
from aioqemu._sys.libc cimport MSG_NOSIGNAL
from aioqemu._sys.libc cimport POLLIN
from aioqemu._sys.libc cimport POLLOUT
from aioqemu._sys.libc cimport errno
from aioqemu._sys.libc cimport iovec
from aioqemu._sys.libc cimport msghdr
from aioqemu._sys.libc cimport recv
from aioqemu._sys.libc cimport send
from aioqemu._sys.libc cimport sendmsg

from aioqemu._engine import unclosed
from aioqemu._loop.private import (
    SendfileMode,
    TransportSocket,
    _set_result_unless_cancelled,
    constants,
    logger,
)

cdef object _warn_unclosed = unclosed.warn_unclosed
cdef object _BufferedProtocol = asyncio.BufferedProtocol
cdef int AF_INET = _socket.AF_INET
cdef int AF_INET6 = _socket.AF_INET6
cdef int SOCK_STREAM = _socket.SOCK_STREAM
cdef int IPPROTO_TCP = _socket.IPPROTO_TCP
cdef int TCP_NODELAY = _socket.TCP_NODELAY


cdef int _on_readable(void *opaque) except -1:
    cdef StreamTransport t = <StreamTransport>opaque
    t._read()
    if t.loop is not None and t.loop.flush_head != NULL:
        t.loop.flush_all()
    return 0


cdef int _on_writable(void *opaque) except -1:
    cdef StreamTransport t = <StreamTransport>opaque
    if t.fd < 0 or t.lost:
        return 0
    t._send_now()
    return 0


cdef int _on_lost(void *opaque) except -1:
    # The engine has removed the node: the fd was closed behind our back, and its number
    # may be somebody else's by now.  The socket object must not close it either.
    cdef StreamTransport t = <StreamTransport>opaque
    t.node = NULL
    if t.loop.in_child():
        t._clear_queue()        # the parent's to send
        t.blocked = False
        return 0
    t._forget_fd()
    if t.sock is not None:
        t.sock.detach()
    t._force_close(OSError(EBADF, "the file descriptor was closed under the transport"))
    return 0


cdef int _flush(void *opaque) except -1:
    cdef StreamTransport t = <StreamTransport>opaque
    if t.fd >= 0 and not t.blocked and not t.lost and t.queued:
        t._send_now()
    return 0


cdef StreamTransport new_stream_transport(
        LoopCore loop, object sock, object protocol, object waiter, object extra,
        object server):
    cdef StreamTransport t
    cdef dict info = dict(extra) if extra else {}
    cdef AqTransportObject *base
    loop._ensure_fd_no_transport(sock)     # before the socket is ours to close
    t = StreamTransport.__new__(StreamTransport)
    base = <AqTransportObject *><PyObject *>t
    t.loop = loop
    t.sock = sock
    t.fd = sock.fileno()
    t.server = server
    t.ctx = _copy_context()
    t.queue = []
    t.high_water = HIGH_WATER
    t.low_water = LOW_WATER
    Py_INCREF(info)
    base.extra = <PyObject *>info
    if "peername" not in info:
        try:
            info["peername"] = sock.getpeername()
        except OSError:
            info["peername"] = None
    t._set_protocol(protocol)
    if (sock.family == AF_INET or sock.family == AF_INET6) and sock.type == SOCK_STREAM \
            and sock.proto in (0, IPPROTO_TCP):
        sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    if server is not None:
        _attach(server, t)
    loop.transports[t.fd] = _weakref(t)
    loop.soon(t._start, <PyObject *>waiter, NULL, t.ctx.copy())
    return t


def make_stream_transport(LoopCore loop not None, sock, protocol, waiter=None, *,
                          extra=None, server=None):
    """Make a transport for a connected, non-blocking stream socket, which it owns.

    `connection_made` is called in the next pass; then `waiter`, if given, is resolved.
    """
    return new_stream_transport(loop, sock, protocol, waiter, extra, server)


cdef bint _server_takes_transport = sys.version_info >= (3, 13)
# In 3.11 it joined the items and called write().
cdef str _lines_name = "writelines" if sys.version_info >= (3, 12) else "write"
cdef str _data_kinds = (
    "bytes, bytearray, or memoryview" if sys.version_info >= (3, 14) else "bytes-like")


cdef int _attach(object server, object transport) except -1:
    if _server_takes_transport:
        server._attach(transport)
    else:
        server._attach()
    return 0


cdef class StreamTransport(TransportBase):
    """A connected stream socket (`asyncio.Transport`).

    Made by the loop.  All methods belong to the loop's thread.
    """

    _start_tls_compatible = True
    _sendfile_compatible = SendfileMode.TRY_NATIVE

    def __cinit__(self):
        self.fd = -1
        self.node = NULL
        self.flush_node.linked = False
        self.flush_node.next = NULL

    def __init__(self):
        raise TypeError("transports are made by the loop")

    def __repr__(self):
        parts = [type(self).__name__]
        if self.fd < 0:
            parts.append("closed")
        elif self.closing:
            parts.append("closing")
        if self.fd >= 0:
            parts.append(f"fd={self.fd}")
            if self.loop is not None and not self.loop.context.closed:
                polling = (self.node != NULL and self.node.events & POLLIN)
                parts.append("read=polling" if polling else "read=idle")
                state = "polling" if self.blocked else "idle"
                parts.append(f"write=<{state}, bufsize={self.queued}>")
        return "<{}>".format(" ".join(parts))

    def __del__(self):
        if self.sock is not None:
            try:
                if _warn_unclosed is not None:   # else the interpreter goes down
                    _warn_unclosed(f"unclosed transport {self!r}", self)
            finally:
                self._drop_socket()

    cdef int _drop_socket(self) except -1:
        self._unregister()
        self._forget_fd()
        self.loop.context.mon.flush()
        self.sock.close()
        self.sock = None
        if self.server is not None:
            if _server_takes_transport:
                self.server._detach(self)
            else:
                self.server._detach()
            self.server = None
        return 0

    # -- what asyncio's own code and its users look at ------------------------------------

    @property
    def _loop(self):
        return self.loop

    @property
    def _sock(self):
        return self.sock

    @property
    def _sock_fd(self):
        return self.fd

    @property
    def _server(self):
        return self.server

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
    def _paused(self):
        return bool(self.reading_paused)

    @property
    def _conn_lost(self):
        return self.lost

    @property
    def _eof(self):
        return bool(self.eof_sent)

    @property
    def _empty_waiter(self):
        return self.empty_waiter

    @property
    def _buffer(self):
        return self.queue[self.queue_start:]

    def get_extra_info(self, name, default=None):
        """Information about the connection: "socket", "sockname", "peername", ..."""
        cdef dict info = <dict>(<AqTransportObject *><PyObject *>self).extra
        value = info.get(name, info)
        if value is not info:
            return value
        # Asked for seldom, so found out when it is asked for.
        if name == "socket":
            if self.sock is None:
                return default
            value = info["socket"] = TransportSocket(self.sock)
            return value
        if name == "sockname":
            if self.sock is None:
                return default
            try:
                value = self.sock.getsockname()
            except OSError:
                value = None
            info["sockname"] = value
            return value
        return default

    def get_protocol(self):
        """The protocol in use."""
        return self.protocol

    def set_protocol(self, protocol):
        """Use another protocol from now on."""
        self._set_protocol(protocol)

    cdef int _set_protocol(self, object protocol) except -1:
        self.protocol = protocol
        if isinstance(protocol, _BufferedProtocol):
            self.data_received = None
            self.get_buffer = protocol.get_buffer
            self.buffer_updated = protocol.buffer_updated
        else:
            self.data_received = getattr(protocol, "data_received", None)
            self.get_buffer = self.buffer_updated = None
        return 0

    def is_closing(self):
        """Whether the transport is closing or closed."""
        return bool(self.closing)

    def is_reading(self):
        """Whether data is being received."""
        return not self.closing and not self.reading_paused

    # -- life -----------------------------------------------------------------------------

    def _start(self, waiter):
        try:
            self.protocol.connection_made(self)
        finally:
            # A protocol that raised is reported; the connection goes on, as asyncio's.
            self.connected = True
            self.started = True
            try:
                self._update()
            except OSError as exc:
                self._fatal_error(exc, "Cannot watch the socket")
            if waiter is not None:
                _set_result_unless_cancelled(waiter, None)

    cdef void _unregister(self) noexcept:
        cdef AioHandler *node = self.node
        self.node = NULL
        if node != NULL:
            self.loop.context.unwatch(node)

    cdef int _update(self) except -1:
        """Watch what is wanted now; nothing at all if nothing is.

        An fd that is watched for nothing would still report a hang-up, for ever; and
        while nothing is wanted, sendfile may watch it.
        """
        cdef uint32_t events = 0
        if self.started and self.fd >= 0 and not self.lost:
            if not (self.reading_paused or self.closing or self.eof_received):
                events |= POLLIN
            if self.blocked:
                events |= POLLOUT
        if events == 0:
            self._unregister()
        elif self.node == NULL:
            self.node = self.loop.context.watch(
                self.fd, AIO_OWNER_TRANSPORT, events, _on_readable, _on_writable, self)
            self.node.io_lost = _on_lost
        else:
            self.loop.context.modify(self.node, events)
        return 0

    cdef int _forget_fd(self) except -1:
        if self.fd >= 0:
            known = self.loop.transports.get(self.fd)
            if known is not None and known() in (self, None):
                del self.loop.transports[self.fd]
            self.fd = -1
        return 0

    def _fatal_error(self, exc, message="Fatal error on transport"):
        if isinstance(exc, OSError):
            if self.loop is not None and self.loop.debug:
                logger.debug("%r: %s", self, message, exc_info=True)
        elif self.loop is not None:
            report(self.loop, self, self.protocol, exc, message)
        self._force_close(exc)

    cdef int _fatal_errno(self, int err, str message) except -1:
        self._fatal_error(os_error(err), message)
        return 0

    def _force_close(self, exc):
        if self.lost:
            return
        if self.loop is not None:
            self.loop.flush_cancel(&self.flush_node)
        self._clear_queue()
        self.blocked = False
        self.closing = True
        self._unregister()
        self._schedule_lost(exc)

    def _clear_queue(self):
        self.queue = []
        self.queue_start = 0
        self.head_sent = 0
        self.queued = 0

    cdef int _schedule_lost(self, object exc) except -1:
        self.lost += 1
        self.loop.soon(
            self._call_connection_lost, <PyObject *>exc, NULL, self.ctx.copy())
        return 0

    def _call_connection_lost(self, exc):
        protocol = self.protocol
        try:
            if self.connected:
                protocol.connection_lost(exc)
        finally:
            self._unregister()
            sock = self.sock
            if sock is not None:
                info = <dict>(<AqTransportObject *><PyObject *>self).extra
                if "sockname" not in info:
                    try:
                        info["sockname"] = sock.getsockname()
                    except OSError:
                        info["sockname"] = None
                self._forget_fd()
                self.sock = None
                # On io_uring a request may still hold the file, which close() would then
                # not close; what takes it back goes to the kernel first.
                self.loop.context.mon.flush()
                sock.close()
            self.protocol = None
            self.data_received = self.get_buffer = self.buffer_updated = None
            server = self.server
            if server is not None:
                self.server = None
                if _server_takes_transport:
                    server._detach(self)
                else:
                    server._detach()
            waiter = self.empty_waiter
            if waiter is not None and not waiter.done():
                waiter.set_exception(
                    ConnectionError("Connection is closed by peer"))

    def close(self):
        """Close the connection once what was written is sent."""
        if self.closing:
            return
        self.closing = True
        if self.queued and not self.blocked and not self.lost:
            self.loop.flush_cancel(&self.flush_node)
            self._send_now()
            if self.lost:
                return
        if self.queued:
            self._update()        # reading is over; writing goes on
        else:
            self.blocked = False
            self._unregister()
            self._schedule_lost(None)

    def abort(self):
        """Close the connection now; what was not sent is lost."""
        self._force_close(None)

    # -- reading --------------------------------------------------------------------------

    def pause_reading(self):
        """Receive nothing until `resume_reading`."""
        if self.closing or self.reading_paused:
            return
        self.reading_paused = True
        self._update()

    def resume_reading(self):
        """Receive again."""
        if self.closing or not self.reading_paused:
            return
        self.reading_paused = False
        self._update()

    cdef int _read(self) except -1:
        if self.lost or self.closing or self.reading_paused or self.fd < 0:
            return 0
        if self.get_buffer is None:
            return self._read_data()
        return self._read_buffered()

    cdef int _read_data(self) except -1:
        cdef char *buf = self.loop.scratch()
        cdef ssize_t n
        cdef int err
        n = recv(self.fd, buf, SCRATCH_SIZE, MSG_DONTWAIT)
        if n > 0:
            data = PyBytes_FromStringAndSize(buf, n)
            callback = self.data_received
            ctx = enter(self.ctx)
            try:
                callback(data)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as exc:
                self._fatal_error(
                    exc, "Fatal error: protocol.data_received() call failed.")
            finally:
                PyContext_Exit(<PyObject *>ctx)
            return 0
        if n == 0:
            return self._on_eof()
        err = errno
        if err == EAGAIN or err == EINTR:
            return 0
        return self._fatal_errno(err, "Fatal read error on socket transport")

    cdef int _read_buffered(self) except -1:
        cdef Py_buffer view
        cdef ssize_t n
        cdef int err
        # The protocol that gave the buffer is told of what is in it.
        get_buffer = self.get_buffer
        buffer_updated = self.buffer_updated
        ctx = enter(self.ctx)
        try:
            try:
                buf = get_buffer(-1)
                PyObject_GetBuffer(buf, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
                if view.len == 0:
                    PyBuffer_Release(&view)
                    raise RuntimeError("get_buffer() returned an empty buffer")
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as exc:
                self._fatal_error(
                    exc, "Fatal error: protocol.get_buffer() call failed.")
                return 0
            if self.get_buffer is not get_buffer or self.lost or self.closing:
                # Another protocol has taken over, or wants no more: nothing is lost yet.
                PyBuffer_Release(&view)
                return 0
            n = recv(self.fd, view.buf, view.len, MSG_DONTWAIT)
            err = errno
            PyBuffer_Release(&view)
            if n > 0:
                try:
                    buffer_updated(n)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as exc:
                    self._fatal_error(
                        exc, "Fatal error: protocol.buffer_updated() call failed.")
                return 0
        finally:
            PyContext_Exit(<PyObject *>ctx)
        if n == 0:
            return self._on_eof()
        if err == EAGAIN or err == EINTR:
            return 0
        return self._fatal_errno(err, "Fatal read error on socket transport")

    cdef int _on_eof(self) except -1:
        ctx = enter(self.ctx)
        try:
            if self.loop.debug:
                logger.debug("%r received EOF", self)
            keep_open = self.protocol.eof_received()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Fatal error: protocol.eof_received() call failed.")
            return 0
        finally:
            PyContext_Exit(<PyObject *>ctx)
        if keep_open:
            # The writing half stays; EOF would be reported for ever.
            self.eof_received = True
            self._update()
        else:
            self.close()
        return 0

    # -- writing --------------------------------------------------------------------------

    cdef int _check_writable(self, str what) except -1:
        if self.eof_sent:
            raise RuntimeError(f"Cannot call {what}() after write_eof()")
        if self.empty_waiter is not None:
            raise RuntimeError(f"unable to {what}; sendfile is in progress")
        return 0

    def write(self, data):
        """Send `data` (bytes-like) when the running callback returns."""
        if not PyBytes_CheckExact(data) and not isinstance(
                data, (bytes, bytearray, memoryview)):
            raise TypeError(
                f"data argument must be a {_data_kinds} object, "
                f"not {type(data).__name__!r}")
        self._check_writable("write")
        self._write(data)

    def writelines(self, list_of_data):
        """Send the items, of any bytes-like type, by one call where possible.

        If one of them cannot be sent nothing is.
        """
        self._check_writable(_lines_name)
        parts = []
        for data in list_of_data:
            parts.append(data if PyBytes_CheckExact(data) else bytes(memoryview(data)))
        for data in parts:
            self._write(data)

    cdef int _write(self, object data) except -1:
        cdef Py_ssize_t n
        if not PyBytes_CheckExact(data):
            data = bytes(data)
        n = PyBytes_GET_SIZE(data)
        if n == 0:
            return 0
        if self.lost:
            if self.lost >= constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES:
                logger.warning("socket.send() raised exception.")
            self.lost += 1
            return 0
        self.queue.append(data)
        self.queued += n
        if self.blocked:
            return self._maybe_pause()
        if self.queued >= FLUSH_SIZE:
            self.loop.flush_cancel(&self.flush_node)
            return self._send_now()
        return self.loop.flush_later(&self.flush_node, _flush, self)

    cdef int _send_now(self) except -1:
        """Send what is queued, as far as the socket takes it."""
        cdef iovec iov[MAX_IOV]
        cdef msghdr msg
        cdef Py_ssize_t i, count
        cdef Py_ssize_t asked
        cdef ssize_t n
        cdef int err
        cdef char *p
        if self.loop.in_child():
            self._clear_queue()     # the socket is the parent's as well
        while self.queued:
            count = len(self.queue) - self.queue_start
            if count == 1:
                data = self.queue[self.queue_start]
                asked = PyBytes_GET_SIZE(data) - self.head_sent
                p = PyBytes_AS_STRING(data) + self.head_sent
                n = send(self.fd, p, asked, MSG_NOSIGNAL | MSG_DONTWAIT)
            else:
                if count > MAX_IOV:
                    count = MAX_IOV
                asked = 0
                for i in range(count):
                    data = self.queue[self.queue_start + i]
                    iov[i].iov_base = PyBytes_AS_STRING(data)
                    iov[i].iov_len = PyBytes_GET_SIZE(data)
                    if i == 0:
                        iov[0].iov_base = PyBytes_AS_STRING(data) + self.head_sent
                        iov[0].iov_len -= self.head_sent
                    asked += iov[i].iov_len
                msg.msg_name = NULL
                msg.msg_namelen = 0
                msg.msg_iov = iov
                msg.msg_iovlen = count
                msg.msg_control = NULL
                msg.msg_controllen = 0
                msg.msg_flags = 0
                n = sendmsg(self.fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT)
            if n < 0:
                err = errno
                if err == EINTR:
                    continue
                if err == EAGAIN:
                    break
                self._clear_queue()
                return self._fatal_errno(err, "Fatal write error on socket transport")
            self._consume(n)
            if n < asked:
                break       # the socket is full
        if self.queued:
            if not self.blocked:
                self.blocked = True
                self._update()
            self._maybe_pause()
            self._maybe_resume()
            return 0
        if self.blocked:
            self.blocked = False
            self._update()
        return self._drained()

    cdef int _consume(self, Py_ssize_t n) except -1:
        cdef Py_ssize_t size
        self.queued -= n
        if self.queued == 0:
            self.queue.clear()
            self.queue_start = 0
            self.head_sent = 0
            return 0
        while n:
            size = PyBytes_GET_SIZE(self.queue[self.queue_start]) - self.head_sent
            if n < size:
                self.head_sent += n
                break
            n -= size
            self.head_sent = 0
            self.queue[self.queue_start] = None
            self.queue_start += 1
        if self.queue_start > 64:
            del self.queue[:self.queue_start]
            self.queue_start = 0
        return 0

    cdef int _drained(self) except -1:
        """Everything is sent."""
        self._maybe_resume()
        if self.queued:
            return 0        # the protocol has written more, which goes first
        if self.queued:
            # The protocol had more to say (TLS its farewell), which goes out before a close.
            if self.closing:
                self.loop.flush_cancel(&self.flush_node)
                return self._send_now()
            return 0
        if self.empty_waiter is not None and not self.empty_waiter.done():
            self.empty_waiter.set_result(None)
        if self.closing:
            if not self.lost:
                self._unregister()
                self._schedule_lost(None)
        elif self.eof_sent:
            self._shutdown()
        return 0

    def _shutdown(self):
        try:
            self.sock.shutdown(_socket.SHUT_WR)
        except OSError as exc:
            self._fatal_error(exc, "Fatal error: cannot shut down the writing half")

    def write_eof(self):
        """Close the writing half once what was written is sent."""
        if self.closing or self.eof_sent:
            return
        self.eof_sent = True
        if self.queued and not self.blocked:
            self.loop.flush_cancel(&self.flush_node)
            self._send_now()     # shuts down when it is through
        elif not self.queued:
            self.sock.shutdown(_socket.SHUT_WR)

    def can_write_eof(self):
        """True: stream sockets can be half closed."""
        return True

    # -- flow control -----------------------------------------------------------------------

    def get_write_buffer_size(self):
        """The number of bytes not yet handed to the kernel."""
        if self.queued and not self.blocked and not self.lost and self.fd >= 0:
            self.loop.flush_cancel(&self.flush_node)
            self._send_now()
        return self.queued

    def get_write_buffer_limits(self):
        """The low and high water marks in bytes."""
        return (self.low_water, self.high_water)

    def set_write_buffer_limits(self, high=None, low=None):
        """Set the marks at which the protocol is told to pause and resume writing."""
        self.low_water, self.high_water = water_marks(high, low)
        self._maybe_pause()

    cdef int _maybe_pause(self) except -1:
        if self.writing_paused or self.queued <= self.high_water:
            return 0
        self.writing_paused = True
        call_flow(self.loop, self, self.protocol, True)
        return 0

    cdef int _maybe_resume(self) except -1:
        if not self.writing_paused or self.queued > self.low_water or self.lost:
            return 0
        self.writing_paused = False
        call_flow(self.loop, self, self.protocol, False)
        return 0

    # -- sendfile ---------------------------------------------------------------------------

    def _make_empty_waiter(self):
        if self.empty_waiter is not None:
            raise RuntimeError("Empty waiter is already set")
        self.get_write_buffer_size()      # what is merged goes out first
        self.empty_waiter = self.loop.create_future()
        if not self.queued:
            self.empty_waiter.set_result(None)
        return self.empty_waiter

    def _reset_empty_waiter(self):
        self.empty_waiter = None


refuse_new(<PyTypeObject *>StreamTransport)
