"""SocketTransport: life, flow control and information of a socket's transport.

Knows neither how data is read nor how it is sent: that is what StreamTransport and
DatagramTransport add.  The protocol is called straight from the loop's pass, in the
context that the transport was made in.
"""

import socket as _socket
from contextvars import copy_context as _copy_context

from cpython.object cimport Py_TPFLAGS_HEAPTYPE
from cpython.type cimport PyType_HasFeature
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport uint32_t
from libc.string cimport memset

from aioqemu._engine.types cimport AIO_OWNER_TRANSPORT
from aioqemu._engine.types cimport AioCallback
from aioqemu._engine.types cimport AioHandler
from aioqemu._loop.address cimport address_name
from aioqemu._loop.core cimport LoopCore
from aioqemu._loop.flow cimport HIGH_WATER
from aioqemu._loop.flow cimport LOW_WATER
from aioqemu._loop.flow cimport call_flow
from aioqemu._loop.flow cimport os_error
from aioqemu._loop.flow cimport report
from aioqemu._loop.flow cimport water_marks
from aioqemu._loop.layouts cimport AqTransportObject
from aioqemu._sys.inet cimport aq_address
from aioqemu._sys.inet cimport getsockname
from aioqemu._sys.inet cimport sockaddr
from aioqemu._sys.libc cimport EBADF
from aioqemu._sys.libc cimport POLLIN
from aioqemu._sys.libc cimport POLLOUT
from aioqemu._sys.libc cimport close

from aioqemu._engine import unclosed
from aioqemu._loop.private import (
    TransportSocket,
    _set_result_unless_cancelled,
    logger,
)

cdef extern from *:
    """
    /* Cython makes the dict with the object; CPython makes it when it is needed. */
    static inline void aq_drop_dict(PyObject *op)
    {
        PyObject **dict = (PyObject **)((char *)op + Py_TYPE(op)->tp_dictoffset);

        Py_CLEAR(*dict);
    }
    """
    void aq_drop_dict(object op)

cdef object _warn_unclosed = unclosed.warn_unclosed
cdef object _NativeSocket = _socket.socket.__base__
cdef int SOCK_NONBLOCK = _socket.SOCK_NONBLOCK
# What get_extra_info finds out when it is asked for.
cdef frozenset _FOUND_OUT = frozenset(("peername", "socket", "sockname"))


cdef int _on_lost(void *opaque) except -1:
    # The engine has removed the node.
    cdef SocketTransport t = <SocketTransport>opaque
    t.node = NULL
    if t.loop.in_child():
        t._drop_output()        # the parent's to send
        return 0
    return t._robbed()


cdef class SocketTransport(TransportBase):
    """What the transports of sockets have in common; not made as such."""

    def __cinit__(self):
        self.fd = -1
        self.node = NULL
        if type(self) is SocketTransport or PyType_HasFeature(
                type(self), Py_TPFLAGS_HEAPTYPE):
            raise TypeError("transports are made by the loop")
        aq_drop_dict(self)      # 64 bytes of every connection, and seldom used

    def __init__(self):
        raise TypeError("transports are made by the loop")

    def __dealloc__(self):
        self.leave_server()

    cdef void leave_server(self) noexcept:
        if self.client_place == NULL:
            return
        self.client_place[0] = self.next_client
        if self.next_client != NULL:
            (<SocketTransport>self.next_client).client_place = self.client_place
        self.client_place = NULL
        self.next_client = NULL

    cdef int _adopt(self, LoopCore loop, object sock, int fd, tuple kind, object protocol,
                    object waiter, dict info) except -1:
        cdef AqTransportObject *base = <AqTransportObject *><PyObject *>self
        self.loop = loop
        if self.ctx is None:
            self.ctx = _copy_context()
        self.high_water = HIGH_WATER
        self.low_water = LOW_WATER
        if info is not None:
            Py_INCREF(info)
            base.extra = <PyObject *>info
            if "peername" not in info:
                try:
                    info["peername"] = sock.getpeername()
                except OSError:
                    info["peername"] = None
        self.protocol = protocol
        loop.soon(self._start, <PyObject *>waiter, NULL, self.ctx.copy())
        loop.own_fd(fd, self)
        # Ours only now: until here an error leaves it to the caller to close it.
        self.sock = sock
        self.kind = kind
        self.fd = fd
        self.watchful = isinstance(sock, _NativeSocket) and aq_socket_fd(sock) == fd
        return 0

    def __repr__(self):
        cdef uint32_t events = 0
        parts = [type(self).__name__]
        if self.fd < 0:
            parts.append("closed")
        elif self.closing:
            parts.append("closing")
        if self.fd >= 0:
            parts.append(f"fd={self.fd}")
            if self.loop is not None and not self.loop.context.closed:
                if self.node != NULL:
                    events = self.node.events
                parts.append("read=polling" if events & POLLIN else "read=idle")
                state = "polling" if events & POLLOUT else "idle"
                parts.append(f"write=<{state}, bufsize={self.queued}>")
        return "<{}>".format(" ".join(parts))

    def __del__(self):
        if self.fd >= 0 and self.loop is not None:
            try:
                if _warn_unclosed is not None:   # else the interpreter goes down
                    _warn_unclosed(f"unclosed transport {self!r}", self)
            finally:
                self._unregister()
                self._close_socket(False)
                self._ended()

    # -- what asyncio's own code and its users look at ------------------------------------

    @property
    def _loop(self):
        return self.loop

    @property
    def _sock(self):
        return self._object()

    @property
    def _sock_fd(self):
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
    def _paused(self):
        return bool(self.reading_paused)

    @property
    def _conn_lost(self):
        return self.lost

    cdef object _object(self):
        if self.sock is None and self.fd >= 0 and self.kind is not None:
            family, type_, proto = self.kind
            # It does not block already; said so, the object believes it.
            self.sock = _socket.socket(
                family, type_ | SOCK_NONBLOCK, proto, fileno=self.fd)
            self.watchful = aq_socket_fd(self.sock) == self.fd
        return self.sock

    def _closed_object(self):
        """What "socket" is after the end: of the same kind, and closed."""
        sock = _socket.socket(*self.kind)
        sock.close()
        value = self._info()["socket"] = TransportSocket(sock)
        return value

    cdef dict _info(self):
        cdef AqTransportObject *base = <AqTransportObject *><PyObject *>self
        cdef dict info
        if base.extra == NULL:
            info = {"peername": address_name(<aq_address *>&self.peer, self.peer_size)}
            Py_INCREF(info)
            base.extra = <PyObject *>info
        return <dict>base.extra

    def get_extra_info(self, name, default=None):
        """Information about the connection: "socket", "sockname", "peername", ..."""
        cdef dict info
        if (<AqTransportObject *><PyObject *>self).extra == NULL and (
                name not in _FOUND_OUT):
            return default      # as streams ask for what belongs to TLS
        info = self._info()
        value = info.get(name, info)
        if value is not info:
            return value
        if self.fd < 0:
            return self._closed_object() if name == "socket" and self.kind else default
        if name == "socket":
            value = info["socket"] = TransportSocket(self._object())
            return value
        if name == "sockname":
            self._learn_sockname()
            return info["sockname"]
        return default

    def _learn_sockname(self):
        cdef dict info = self._info()
        cdef aq_address name
        cdef unsigned int size = sizeof(name)
        if "sockname" in info:
            return
        value = None
        if self.sock is not None:
            try:
                value = self.sock.getsockname()
            except OSError:
                value = None
        elif getsockname(self.fd, <sockaddr *>&name, &size) == 0:
            value = address_name(&name, size)
        info["sockname"] = value

    def get_protocol(self):
        """The protocol in use."""
        return self.protocol

    def set_protocol(self, protocol):
        """Use another protocol from now on."""
        self._set_protocol(protocol)

    def is_closing(self):
        """Whether the transport is closing or closed."""
        return bool(self.closing)

    def is_reading(self):
        """Whether data is being received."""
        return not self.closing and not self.reading_paused

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

    # -- life -----------------------------------------------------------------------------

    def _start(self, waiter):
        try:
            self.protocol.connection_made(self)
        finally:
            # A protocol that raised is reported; the connection goes on, as asyncio's.
            self.connected = True
            self._look_up()
            try:
                self._update()
            except OSError as exc:
                self._fatal_error(exc, "Cannot watch the socket")
            if waiter is not None:
                _set_result_unless_cancelled(waiter, None)

    cdef int _look_up(self) except -1:
        # Only now: connection_made may have given the protocol methods of its own.
        try:
            if self.protocol is not None:
                self._set_protocol(self.protocol)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Fatal error: protocol.data_received() call failed.")
        return 0

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
        cdef AioCallback io_read = NULL
        cdef AioCallback io_write = NULL
        if self.connected and self.fd >= 0 and not self.lost:
            events = self._wanted()
        if events == 0 and (self.lost or self.node == NULL or not (
                self.node.receiving or self.node.held.first or self.node.held.end)):
            self._unregister()
        elif self.node == NULL:
            self._callbacks(&io_read, &io_write)
            self.node = self.loop.context.watch(
                self.fd, AIO_OWNER_TRANSPORT, events, io_read, io_write, self)
            self.node.io_lost = _on_lost
            self.node.keeper = &self.node       # the context may be closed first
            self.node.streams = self.streams
            if events & POLLIN and (self.kept.first or self.kept.end):
                self.node.held = self.kept
                memset(&self.kept, 0, sizeof(self.kept))
                self.loop.context.mon.update(self.node)
        else:
            self.loop.context.modify(self.node, events)
        return 0

    cdef int _let_go(self) except -1:
        cdef int err
        if self.node != NULL and not self.kept.first and not self.kept.end:
            err = self.loop.context.mon.recall(self.node, &self.kept)
            if err < 0:
                raise os_error(-err)
            self._update()
        return 0

    cdef int _forget_fd(self) except -1:
        if self.kept.first or self.kept.end:
            self.loop.context.mon.drop_held(&self.kept)
        if self.fd >= 0:
            self.loop.disown_fd(self.fd, self)
            self.fd = -1
        return 0

    cdef int _close_socket(self, bint learn) except -1:
        cdef int fd = self.fd
        if fd < 0:
            return 0
        if learn:
            self._learn_sockname()
        self._forget_fd()
        # On io_uring a request may still hold the file, which close() would then not
        # close; what takes it back goes to the kernel first.
        self.loop.context.mon.flush()
        self.watchful = False
        sock = self.sock
        self.sock = None
        if sock is not None:
            sock.close()
        else:
            close(fd)
        return 0

    cdef int _robbed(self) except -1:
        # The number may be somebody else's by now: nobody here closes it.
        self._unregister()
        self._forget_fd()
        self.watchful = False
        if self.sock is not None:
            self.sock.detach()
        self._force_close(
            OSError(EBADF, "the file descriptor was closed under the transport"))
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
        self._drop_output()
        self.closing = True
        self._unregister()
        self._schedule_lost(exc)

    def abort(self):
        """Close the connection now; what was not sent is lost."""
        self._force_close(None)

    cdef int _schedule_lost(self, object exc) except -1:
        self.lost += 1
        self.loop.soon(
            self._call_connection_lost, <PyObject *>exc, NULL, self.ctx.copy())
        return 0

    def _call_connection_lost(self, exc):
        try:
            if self.connected:
                self.protocol.connection_lost(exc)
        finally:
            self._unregister()
            self._close_socket(True)
            self.sock = None
            self.protocol = None
            self._ended()

    # -- flow control -----------------------------------------------------------------------

    def get_write_buffer_size(self):
        """The number of bytes not yet handed to the kernel."""
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
        call_flow(self.loop, self.ctx, self, self.protocol, True)
        return 0

    cdef int _maybe_resume(self) except -1:
        if not self.writing_paused or self.queued > self.low_water or self.lost:
            return 0
        self.writing_paused = False
        call_flow(self.loop, self.ctx, self, self.protocol, False)
        return 0

    # -- the subclass's -----------------------------------------------------------------

    cdef void _callbacks(self, AioCallback *io_read, AioCallback *io_write) noexcept:
        pass

    cdef uint32_t _wanted(self) noexcept:
        return 0

    cdef int _set_protocol(self, object protocol) except -1:
        self.protocol = protocol
        return 0

    cdef int _drop_output(self) except -1:
        self.queued = 0
        return 0

    cdef int _ended(self) except -1:
        return 0
