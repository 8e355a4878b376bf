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
from types import MethodType as _MethodType

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
from cpython.ref cimport Py_DECREF
from libc.stdint cimport uint32_t
from libc.string cimport memcpy

from aioqemu._engine.types cimport AioCallback
from aioqemu._loop.address cimport address_name
from aioqemu._loop.callbacks cimport SCRATCH_SIZE
from aioqemu._loop.clients cimport ServerClients
from aioqemu._loop.core cimport LoopCore
from aioqemu._loop.flow cimport FLUSH_SIZE
from aioqemu._loop.flow cimport MAX_IOV
from aioqemu._loop.flow cimport enter
from aioqemu._loop.flow cimport os_error
from aioqemu._loop.flow cimport queue_clear
from aioqemu._loop.flow cimport queue_consume
from aioqemu._loop.flow cimport queue_iov
from aioqemu._loop.flow cimport queue_list
from aioqemu._loop.flow cimport queue_push
from aioqemu._loop.handles cimport PyContext_Exit
from aioqemu._loop.reader cimport StreamReader
from aioqemu._loop.stock cimport feed_stock
from aioqemu._loop.stock cimport is_stock
from aioqemu._loop.transport cimport SocketTransport
from aioqemu._loop.wire cimport WireProtocol
from aioqemu._loop.writer cimport StreamReaderProtocol
from aioqemu._sys.classes cimport refuse_new
from aioqemu._sys.inet cimport AF_INET
from aioqemu._sys.inet cimport AF_INET6
from aioqemu._sys.inet cimport aq_address
from aioqemu._sys.inet cimport shutdown
from aioqemu._sys.libc cimport EAGAIN
from aioqemu._sys.libc cimport EBADF
from aioqemu._sys.libc cimport EINTR
from aioqemu._sys.libc cimport MSG_DONTWAIT
from aioqemu._sys.libc cimport MSG_NOSIGNAL
from aioqemu._sys.libc cimport POLLIN
from aioqemu._sys.libc cimport POLLOUT
from aioqemu._sys.libc cimport SHUT_WR
from aioqemu._sys.libc cimport errno
from aioqemu._sys.libc cimport iovec
from aioqemu._sys.libc cimport msghdr
from aioqemu._sys.libc cimport send
from aioqemu._sys.libc cimport sendmsg

from aioqemu._loop.private import (
    SendfileMode,
    constants,
    logger,
)

cdef extern from "Python.h":
    PyObject *_new_bytes "PyBytes_FromStringAndSize"(const char *, Py_ssize_t) except NULL
    int _PyBytes_Resize(PyObject **, Py_ssize_t) except -1

cdef enum:
    BULK_SIZE = 16384

cdef object _BufferedProtocol = asyncio.BufferedProtocol
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


cdef int _flush(void *opaque) except -1:
    cdef StreamTransport t = <StreamTransport>opaque
    if t.fd >= 0 and not t.blocked and not t.lost and t.queued:
        t._send_now()
    return 0


cdef StreamTransport accepted_stream(LoopCore loop, int fd, tuple kind, object protocol,
                                     const aq_address *peer, unsigned int size,
                                     object server, bint tcp, object ctx):
    cdef StreamTransport t = StreamTransport.__new__(StreamTransport)
    cdef dict info = None
    t.ctx = ctx
    if size <= sizeof(t.peer):
        memcpy(&t.peer, peer, size)
        t.peer_size = size
    else:
        info = {"peername": address_name(peer, size)}
    return _begin(t, loop, None, fd, kind, protocol, None, info, server, tcp)


cdef StreamTransport _begin(StreamTransport t, LoopCore loop, object sock, int fd,
                            tuple kind, object protocol, object waiter, dict info,
                            object server, bint tcp):
    t.streams = tcp
    if server is not None:
        if isinstance(server, ServerClients):
            (<ServerClients>server).attach(t)
        elif _server_takes_transport:
            server._attach(t)
        else:
            server._attach()
        t.server = server
    try:
        t._adopt(loop, sock, fd, kind, protocol, waiter, info)
    except BaseException:
        t._leave()
        raise
    return t


cdef bint is_tcp(object sock) except -1:
    return (sock.family in (AF_INET, AF_INET6) and sock.type == SOCK_STREAM
            and sock.proto in (0, IPPROTO_TCP))


def make_stream_transport(LoopCore loop not None, sock, protocol, waiter=None, *,
                          extra=None, server=None):
    """Make a transport for a connected, non-blocking stream socket, which it owns.

    `connection_made` is called in the next pass; then `waiter`, if given, is resolved.
    """
    cdef bint tcp
    loop._ensure_fd_no_transport(sock)
    tcp = is_tcp(sock)
    if tcp:
        sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    return _begin(StreamTransport.__new__(StreamTransport), loop, sock, sock.fileno(),
                  None, protocol, waiter, dict(extra) if extra else {}, server, tcp)


cdef bint _server_takes_transport = sys.version_info >= (3, 13)
# In 3.11 it joined the items and called write().
cdef str _lines_name = "writelines" if sys.version_info >= (3, 12) else "write"
cdef str _data_kinds = (
    "bytes, bytearray, or memoryview" if sys.version_info >= (3, 14) else "bytes-like")


cdef bint _is_method_of(object method, object protocol) except -1:
    """Whether what is called by the method is a function, and its `self` this object."""
    return type(method) is _MethodType and method.__self__ is protocol


cdef class StreamTransport(SocketTransport):
    """A connected stream socket (`asyncio.Transport`).

    Made by the loop.  All methods belong to the loop's thread.
    """

    _start_tls_compatible = True
    _sendfile_compatible = SendfileMode.TRY_NATIVE

    def __cinit__(self):
        self.flush_node.linked = False
        self.flush_node.next = NULL

    def __dealloc__(self):
        queue_clear(&self.queue)

    # -- what asyncio's own code and its users look at ------------------------------------

    @property
    def _server(self):
        return self.server

    @property
    def _eof(self):
        return bool(self.eof_sent)

    @property
    def _empty_waiter(self):
        return self.empty_waiter

    @property
    def _buffer(self):
        return queue_list(&self.queue)

    cdef int _set_protocol(self, object protocol) except -1:
        cdef bint functions
        cdef int feeding
        if isinstance(protocol, _BufferedProtocol):
            get_buffer = protocol.get_buffer
            received = protocol.buffer_updated
            functions = (_is_method_of(get_buffer, protocol)
                         and _is_method_of(received, protocol))
        else:
            get_buffer = None
            received = getattr(protocol, "data_received", None)
            functions = _is_method_of(received, protocol)
        if functions:
            received = received.__func__
            if get_buffer is not None:
                get_buffer = get_buffer.__func__
        # A subclass may have a data_received of its own.
        if isinstance(protocol, WireProtocol):
            feeding = FEED_WIRE
        elif type(protocol) is StreamReaderProtocol:
            feeding = FEED_NATIVE
        else:
            feeding = FEED_STOCK if is_stock(protocol) else FEED_CALLS
        # All at once: what is looked up above, and what goes with the old ones at the end
        # of this, is code of users, which may set a protocol as well.
        before = (self.protocol, self.received, self.get_buffer)
        self.protocol = protocol
        self.received = received
        self.get_buffer = get_buffer
        self.functions = functions
        self.feeding = feeding
        before = None
        return 0

    # -- life -----------------------------------------------------------------------------

    cdef void _callbacks(self, AioCallback *io_read, AioCallback *io_write) noexcept:
        io_read[0] = _on_readable
        io_write[0] = _on_writable

    cdef uint32_t _wanted(self) noexcept:
        cdef uint32_t events = 0
        if not (self.reading_paused or self.closing or self.eof_received):
            events = POLLIN
        if self.blocked:
            events |= POLLOUT
        return events

    cdef int _drop_output(self) except -1:
        if self.loop is not None:
            self.loop.flush_cancel(&self.flush_node)
        queue_clear(&self.queue)
        self.queued = 0
        self.blocked = False
        return 0

    cdef int _leave(self) except -1:
        server = self.server
        if server is None:
            return 0
        self.server = None
        if isinstance(server, ServerClients):
            (<ServerClients>server).detach(self)
        elif _server_takes_transport:
            server._detach(self)
        else:
            server._detach()
        return 0

    cdef int _ended(self) except -1:
        self.received = self.get_buffer = None
        self.feeding = FEED_CALLS
        self._leave()
        waiter = self.empty_waiter
        if waiter is not None and not waiter.done():
            waiter.set_exception(ConnectionError("Connection is closed by peer"))
        return 0

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
        """Close the connection now; what the kernel does not take at once is lost."""
        self.get_write_buffer_size()    # the stock loop would have sent it in write()
        self._force_close(None)

    # -- reading --------------------------------------------------------------------------

    cdef int _read(self) except -1:
        if self.lost or self.closing or self.reading_paused or self.fd < 0:
            return 0
        if self._stolen():
            return self._robbed()
        if self.feeding == FEED_WIRE:
            return self._read_wire()
        if self.get_buffer is None:
            return self._read_data()
        return self._read_buffered()

    cdef ssize_t _receive(self, void *buf, size_t size) noexcept:
        # A number of bytes, 0 at the end of file, or -errno.
        if self.node == NULL:
            return -EAGAIN
        return self.loop.context.mon.receive(self.node, buf, size)

    cdef int _read_data(self) except -1:
        cdef PyObject *block
        cdef char *buf
        cdef ssize_t n
        cdef bytes data = None
        if self.bulk and self.feeding != FEED_STOCK:
            # Much came last time: right into what the protocol gets, which costs a block
            # that is cut where the scratch buffer costs a copy.
            block = _new_bytes(NULL, SCRATCH_SIZE)
            n = self._receive(PyBytes_AS_STRING(<object>block), SCRATCH_SIZE)
            if n > 0 and n < SCRATCH_SIZE:
                _PyBytes_Resize(&block, n)      # if it fails, the block is gone
            data = <bytes>block
            Py_DECREF(data)
        else:
            buf = self.loop.scratch()
            n = self._receive(buf, SCRATCH_SIZE)
            if n > 0:
                if self.feeding == FEED_STOCK and self._feed_stock(buf, n):
                    return 0
                data = PyBytes_FromStringAndSize(buf, n)
        self.bulk = n >= BULK_SIZE
        if n > 0:
            if self.feeding == FEED_NATIVE and self._feed_native(data):
                return 0
            callback = self.received
            protocol = self.protocol
            ctx = enter(self.ctx)
            try:
                if self.functions:
                    callback(protocol, data)
                else:
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
        if n == -EAGAIN or n == -EINTR:
            return 0
        return self._fatal_errno(<int>-n, "Fatal read error on socket transport")

    cdef int _read_wire(self) except -1:
        cdef WireProtocol wire = <WireProtocol>self.protocol
        cdef char *buf = self.loop.scratch()
        cdef ssize_t n
        n = self._receive(buf, SCRATCH_SIZE)
        if n > 0:
            ctx = enter(self.ctx)
            try:
                wire.wire_data(buf, n)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as exc:
                self._fatal_error(
                    exc, "Fatal error: protocol.buffer_updated() call failed.")
            finally:
                PyContext_Exit(<PyObject *>ctx)
            return 0
        if n == 0:
            return self._on_eof()
        if n == -EAGAIN or n == -EINTR:
            return 0
        return self._fatal_errno(<int>-n, "Fatal read error on socket transport")

    cdef bint _feed_native(self, bytes data) except -1:
        cdef StreamReader reader
        # This runs no code of users, so no context is entered.
        try:
            reader = (<StreamReaderProtocol>self.protocol).direct_reader()
            if reader is None:
                return False
            reader.feed(data)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Fatal error: protocol.data_received() call failed.")
        return True

    cdef bint _feed_stock(self, const char *data, Py_ssize_t n) except -1:
        try:
            return feed_stock(self.protocol, data, n)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Fatal error: protocol.data_received() call failed.")
        return True

    cdef int _read_buffered(self) except -1:
        cdef Py_buffer view
        cdef ssize_t n
        # The protocol that gave the buffer is told of what is in it.
        cdef bint functions = self.functions
        protocol = self.protocol
        get_buffer = self.get_buffer
        buffer_updated = self.received
        ctx = enter(self.ctx)
        try:
            try:
                buf = get_buffer(protocol, -1) if functions else get_buffer(-1)
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
            if (self.protocol is not protocol or self.lost or self.closing
                    or self.reading_paused):
                # Another protocol has taken over, or wants no more: nothing is lost yet.
                PyBuffer_Release(&view)
                return 0
            n = self._receive(view.buf, view.len)
            PyBuffer_Release(&view)
            if n > 0:
                try:
                    if functions:
                        buffer_updated(protocol, n)
                    else:
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
        if n == -EAGAIN or n == -EINTR:
            return 0
        return self._fatal_errno(<int>-n, "Fatal read error on socket transport")

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
        queue_push(&self.queue, data)
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
        cdef size_t asked
        cdef ssize_t n
        cdef int err
        if self.loop.in_child():
            self._drop_output()     # the socket is the parent's as well
        elif self._stolen():
            return self._robbed()
        while self.queued:
            msg.msg_iovlen = queue_iov(&self.queue, iov, &asked)
            if msg.msg_iovlen == 1:
                n = send(self.fd, iov[0].iov_base, asked, MSG_NOSIGNAL | MSG_DONTWAIT)
            else:
                msg.msg_name = NULL
                msg.msg_namelen = 0
                msg.msg_iov = iov
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
                return self._fatal_errno(err, "Fatal write error on socket transport")
            queue_consume(&self.queue, n)
            self.queued -= n
            if <size_t>n < asked:
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

    cdef int _drained(self) except -1:
        """Everything is sent."""
        cdef int err
        self._maybe_resume()
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
            err = self._shutdown()
            if err:
                self._fatal_errno(err, "Fatal error: cannot shut down the writing half")
        return 0

    cdef int _shutdown(self) except -1:
        # 0 or an errno.
        if self._stolen():
            return EBADF
        return errno if shutdown(self.fd, SHUT_WR) != 0 else 0

    def write_eof(self):
        """Close the writing half once what was written is sent."""
        cdef int err
        if self.closing or self.eof_sent:
            return
        self.eof_sent = True
        if self.queued and not self.blocked:
            self.loop.flush_cancel(&self.flush_node)
            self._send_now()     # shuts down when it is through
        elif not self.queued:
            err = self._shutdown()
            if err:
                raise os_error(err)

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

    # -- sendfile ---------------------------------------------------------------------------

    def _make_empty_waiter(self):
        if self.empty_waiter is not None:
            raise RuntimeError("Empty waiter is already set")
        self._let_go()                    # sendfile is to watch the fd
        self.get_write_buffer_size()      # what is merged goes out first
        self.empty_waiter = self.loop.create_future()
        if not self.queued:
            self.empty_waiter.set_result(None)
        return self.empty_waiter

    def _reset_empty_waiter(self):
        self.empty_waiter = None


refuse_new(<PyTypeObject *>StreamTransport)
