"""DatagramTransport: UDP, Unix and any other datagram socket.

Knows nothing of name resolution, but that the socket module does it for an address that
is not numeric.  It owns its socket as StreamTransport does.

Datagrams are received in batches, by one system call into buffers that all transports of
the process share; they are copied out before the first callback runs.  The protocol's
context is entered once a batch.  Addresses of the last sender and the last receiver are
kept in both forms, the kernel's and Python's: an echo converts none.

The first datagram of a callback is sent at once, the next ones when it returns, together.
"""

import sys
from asyncio import DatagramTransport as _DatagramTransport
from collections import deque as _deque

from cpython.buffer cimport PyBUF_SIMPLE
from cpython.buffer cimport PyBuffer_Release
from cpython.buffer cimport PyObject_GetBuffer
from cpython.bytes cimport PyBytes_CheckExact
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.object cimport PyTypeObject
from cpython.ref cimport Py_DECREF
from cpython.ref cimport Py_INCREF
from libc.stdint cimport uint32_t
from libc.string cimport memcmp
from libc.string cimport memcpy

from aioqemu._loop.address cimport address_name
from aioqemu._loop.address cimport address_parse
from aioqemu._loop.core cimport LoopCore
from aioqemu._loop.datagram_in cimport INET_BATCH
from aioqemu._loop.datagram_in cimport INET_SIZE
from aioqemu._loop.datagram_in cimport OTHER_BATCH
from aioqemu._loop.datagram_in cimport OTHER_SIZE
from aioqemu._loop.datagram_in cimport cut
from aioqemu._loop.datagram_in cimport receive_area
from aioqemu._loop.datagram_out cimport send_first
from aioqemu._loop.flow cimport FLUSH_SIZE
from aioqemu._loop.flow cimport enter
from aioqemu._loop.flow cimport os_error
from aioqemu._loop.flow cimport report
from aioqemu._loop.handles cimport PyContext_Exit
from aioqemu._loop.transport cimport SocketTransport
from aioqemu._sys.classes cimport refuse_new
from aioqemu._sys.inet cimport AF_INET
from aioqemu._sys.inet cimport AF_INET6
from aioqemu._sys.inet cimport AF_UNIX
from aioqemu._sys.inet cimport aq_address
from aioqemu._sys.inet cimport aq_control
from aioqemu._sys.inet cimport aq_set_coalescing
from aioqemu._sys.inet cimport mmsghdr
from aioqemu._sys.inet cimport recvmmsg
from aioqemu._sys.inet cimport sendto
from aioqemu._sys.inet cimport sockaddr
from aioqemu._sys.libc cimport EAGAIN
from aioqemu._sys.libc cimport EINTR
from aioqemu._sys.libc cimport MSG_DONTWAIT
from aioqemu._sys.libc cimport MSG_NOSIGNAL
from aioqemu._sys.libc cimport POLLIN
from aioqemu._sys.libc cimport POLLOUT
from aioqemu._sys.libc cimport errno
from aioqemu._sys.libc cimport iovec

from aioqemu._loop.private import (
    constants,
    logger,
)

cdef enum:
    # So many messages at once are a burst.
    BURST = 16
    # So many datagrams are not kept for the end of the callback.
    MAX_KEPT = 64

# What changed in 3.13: empty datagrams are sent, and headers count as buffered.
cdef bint _sends_empty = sys.version_info >= (3, 13)
cdef Py_ssize_t _header_size = 8 if _sends_empty else 0


cdef int _on_readable(void *opaque) except -1:
    cdef DatagramTransport t = <DatagramTransport>opaque
    t._read()
    if t.loop.flush_head != NULL:
        t.loop.flush_all()
    return 0


cdef int _on_writable(void *opaque) except -1:
    cdef DatagramTransport t = <DatagramTransport>opaque
    if t.fd >= 0 and not t.lost:
        t._send_queued()
    if t.loop.flush_head != NULL:
        t.loop.flush_all()
    return 0


cdef int _flush(void *owner) except -1:
    return (<DatagramTransport>owner)._send_queued()


def make_datagram_transport(LoopCore loop not None, sock, protocol, address=None,
                            waiter=None, extra=None, exclusive=False):
    """Make a transport for a non-blocking datagram socket, which it owns.

    `connection_made` is called in the next pass; then `waiter`, if given, is resolved.
    With an address, which the socket is connected to, nothing else can be sent to.
    `exclusive`: nobody else can have the socket, as another process could.
    """
    cdef DatagramTransport t = DatagramTransport.__new__(DatagramTransport)
    cdef dict info = dict(extra) if extra else {}
    loop._ensure_fd_no_transport(sock)
    t.io_read = _on_readable
    t.io_write = _on_writable
    t.family = sock.family
    t.address = address
    t._adopt(loop, sock, sock.fileno(), None, protocol, waiter, info)
    t.has_peer = info["peername"] is not None
    t.exclusive = exclusive and (t.family == AF_INET or t.family == AF_INET6)
    return t


cdef class DatagramTransport(SocketTransport, _DatagramTransport):
    """A datagram socket (`asyncio.DatagramTransport`).

    Made by the loop.  All methods belong to the loop's thread.
    """

    max_size = OTHER_SIZE

    def __cinit__(self):
        self.arrived = []
        self.queue = _deque()
        self.segmenting.below = -1

    # -- what asyncio's own code and its users look at ------------------------------------

    @property
    def _address(self):
        return self.address

    @property
    def _buffer(self):
        return _deque((data, addr) for data, addr, _ in self.queue)

    @property
    def _buffer_size(self):
        return self.queued

    @property
    def _header_size(self):
        return _header_size

    cdef int _set_protocol(self, object protocol) except -1:
        self.protocol = protocol
        self.received = getattr(protocol, "datagram_received", None)
        return 0

    # -- life -----------------------------------------------------------------------------

    cdef uint32_t _wanted(self) noexcept:
        cdef uint32_t events = 0
        if not (self.reading_paused or self.closing):
            events = POLLIN
        if self.blocked:
            events |= POLLOUT
        return events

    cdef int _drop_output(self) except -1:
        self.loop.flush_cancel(&self.flush_node)
        self.queue.clear()
        self.queued = 0
        self.blocked = False
        return 0

    cdef int _ended(self) except -1:
        self.received = None
        self.arrived.clear()
        return 0

    def close(self):
        """Close the endpoint once what is queued is sent."""
        if self.closing:
            return
        self.closing = True
        self._update()
        if self.queue and not self.blocked:
            self._send_queued()
        elif not self.queue:
            self._schedule_lost(None)

    # -- receiving ------------------------------------------------------------------------

    def resume_reading(self):
        """Receive again."""
        SocketTransport.resume_reading(self)
        if self.arrived and not self.reading_paused and not self.closing:
            self.loop.soon(self._resume, NULL, NULL, self.ctx.copy())

    def _resume(self):
        self._deliver()

    cdef int _read(self) except -1:
        cdef mmsghdr msgs[INET_BATCH]
        cdef iovec iovs[INET_BATCH]
        cdef aq_address names[INET_BATCH]
        cdef PyObject *copies[INET_BATCH]
        cdef aq_control controls[INET_BATCH]
        cdef int counts[INET_BATCH]
        cdef mmsghdr *m
        cdef char *area
        cdef list pieces = [] if self.coalescing else None
        cdef Py_ssize_t done = 0
        cdef int i, n, size, err
        if self.lost or self.closing or self.reading_paused or self.fd < 0:
            return 0
        if self._stolen():
            return self._robbed()
        if self.family == AF_INET or self.family == AF_INET6:
            n = INET_BATCH
            size = INET_SIZE
        elif self.family == AF_UNIX:
            n = OTHER_BATCH
            size = OTHER_SIZE
        else:
            return self._read_any_family()
        area = receive_area()
        for i in range(n):
            m = &msgs[i]
            iovs[i].iov_base = area + i * size
            iovs[i].iov_len = size
            m.msg_hdr.msg_name = &names[i]
            m.msg_hdr.msg_namelen = sizeof(aq_address)
            m.msg_hdr.msg_iov = &iovs[i]
            m.msg_hdr.msg_iovlen = 1
            m.msg_hdr.msg_control = NULL
            m.msg_hdr.msg_controllen = 0
            if self.coalescing:
                m.msg_hdr.msg_control = controls[i].bytes
                m.msg_hdr.msg_controllen = sizeof(aq_control)
        n = recvmmsg(self.fd, msgs, n, MSG_DONTWAIT, NULL)
        if n < 0:
            err = errno
            if err != EAGAIN and err != EINTR:
                self._error(os_error(err))
            return 0
        if n >= BURST and self.exclusive:
            self._coalesce()
        if pieces is not None and cut(msgs, n, pieces, counts):
            for i in range(n):
                addr = self._sender(&names[i], msgs[i].msg_hdr.msg_namelen)
                while counts[i]:
                    counts[i] -= 1
                    self.arrived.append((pieces[done], addr))
                    done += 1
            return self._deliver()
        # Making bytes runs no other code; making a tuple may, by way of the collector.
        for i in range(n):
            data = PyBytes_FromStringAndSize(area + i * size, msgs[i].msg_len)
            Py_INCREF(data)
            copies[i] = <PyObject *>data
        if n == 1 and not self.arrived:
            data = <object>copies[0]
            Py_DECREF(data)
            addr = self._sender(&names[0], msgs[0].msg_hdr.msg_namelen)
            ctx = enter(self.ctx)
            try:
                self._call_received(data, addr)
            finally:
                PyContext_Exit(<PyObject *>ctx)
            return 0
        for i in range(n):
            data = <object>copies[i]
            Py_DECREF(data)
            self.arrived.append(
                (data, self._sender(&names[i], msgs[i].msg_hdr.msg_namelen)))
        return self._deliver()

    cdef int _coalesce(self) except -1:
        # Told so, a socket hands over messages that only those understand who look at
        # control messages.  So sockets that came with `sock` are left alone: another
        # process may have them as well.
        self.exclusive = False
        self.coalescing = aq_set_coalescing(self.fd, 1) == 0
        return 0

    cdef object _object(self):
        # Whoever asks for the socket may receive from it.  Later it is too late: told not
        # to coalesce, it would keep to itself the size of what it has coalesced already.
        self.exclusive = False
        return SocketTransport._object(self)

    cdef int _read_any_family(self) except -1:
        # Of families that only the socket module knows the addresses of.
        try:
            item = self.sock.recvfrom(OTHER_SIZE)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as exc:
            return self._error(exc)
        self.arrived.append(item)
        return self._deliver()

    cdef object _sender(self, aq_address *a, unsigned int size):
        """The address as Python has it; the last one is remembered."""
        if size == self.peer_size and size and memcmp(a, &self.peer, size) == 0:
            return self.peer_name
        name = address_name(a, size)
        if size == 0:
            return name
        memcpy(&self.peer, a, size)
        self.peer_size = size
        self.peer_name = name
        return name

    cdef int _deliver(self) except -1:
        """Pass on what has arrived, until the protocol wants no more.

        A callback that runs the loop comes here again: what is passed on then is off the
        list already, and the order stays.
        """
        ctx = enter(self.ctx)
        try:
            while self.arrived and not (self.reading_paused or self.closing):
                data, addr = self.arrived.pop(0)
                self._call_received(data, addr)
        except BaseException:
            # It leaves the loop; the rest is for when the loop runs again.
            if self.arrived and not self.reading_paused:
                self.loop.soon(self._resume, NULL, NULL, self.ctx.copy())
            raise
        finally:
            PyContext_Exit(<PyObject *>ctx)
        if self.closing:
            self.arrived.clear()
        return 0

    cdef int _call_received(self, object data, object addr) except -1:
        callback = self.received
        if callback is None:
            return 0
        try:
            callback(data, addr)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            report(self.loop, self, self.protocol, exc,
                   "protocol.datagram_received() failed")
        return 0

    cdef int _error(self, object exc) except -1:
        protocol = self.protocol
        if protocol is None:
            return 0
        ctx = enter(self.ctx)
        try:
            protocol.error_received(exc)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as failure:
            report(self.loop, self, protocol, failure,
                   "protocol.error_received() failed")
        finally:
            PyContext_Exit(<PyObject *>ctx)
        return 0

    # -- sending --------------------------------------------------------------------------

    def sendto(self, data, addr=None):
        """Send `data` (bytes-like) as one datagram.

        Args:
            addr: the receiver, if the socket is not connected.

        Raises:
            TypeError: `data` is not bytes-like.
            ValueError: `addr` is not the one that the endpoint is connected to.
        """
        cdef Py_ssize_t n
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(
                "data argument must be a bytes-like object, "
                f"not {type(data).__name__!r}")
        if not _sends_empty and not data:
            return
        if self.address is not None:
            if addr is not None and addr != self.address:
                raise ValueError(f"Invalid address: must be None or {self.address}")
            addr = self.address
        if self.lost and (self.address is not None or self.fd < 0):
            if self.lost >= constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES:
                logger.warning("socket.send() raised exception.")
            self.lost += 1
            return
        if self.lost or self.loop.in_child():
            # What waits is the parent's, and what does not fit nobody would send later.
            self._send(data, addr)
        elif self.flush_node.linked or self.queue:
            self._keep(data, addr)
        elif self._send(data, addr):
            if not self.lost:
                self.blocked = True
                self._update()
                self._put(data, addr, self._raw_address(addr))
        elif self.loop.in_pass and not self.lost:
            self.loop.flush_later(&self.flush_node, _flush, self)

    cdef int _keep(self, object data, object addr) except -1:
        """Send a datagram when the callback returns, or once the socket takes more."""
        raw = self._raw_address(addr)
        if raw is None and not self.has_peer and not self.blocked:
            # The socket module's to send, now as ever; but not before the others.
            self._send_queued()
            if not self.queue and not (self._send(data, addr) and not self.lost):
                return 0
            if self.lost:
                return 0
            self.blocked = True
            self._update()
        self._put(data, addr, raw)
        if self.blocked:
            return 0
        if not self.sending and self.queued < FLUSH_SIZE and len(self.queue) < MAX_KEPT:
            return self.loop.flush_later(&self.flush_node, _flush, self)
        # Too much to keep; or we are in error_received, which may try for ever.
        self._send_queued()
        if self.loop.in_pass and not self.lost and not self.sending:
            self.loop.flush_later(&self.flush_node, _flush, self)
        return 0

    cdef int _put(self, object data, object addr, object raw) except -1:
        # What is kept must not change.
        if not PyBytes_CheckExact(data):
            data = bytes(data)
        self.queue.append((data, addr, raw))
        self.queued += PyBytes_GET_SIZE(data) + _header_size
        return self._maybe_pause()

    cdef object _take(self):
        """The first of the queue, off it."""
        item = self.queue.popleft()
        self.queued -= PyBytes_GET_SIZE((<tuple>item)[0]) + _header_size
        return item

    cdef object _raw_address(self, object addr):
        """The address as the kernel has it; None: the peer's, or only known to Python."""
        if self.has_peer or addr is None:
            return None
        if addr is not self.raw_name:
            if not self._resolve(addr):
                return None
            if addr is self.peer_name:
                self.raw = PyBytes_FromStringAndSize(<char *>&self.peer, self.peer_size)
            else:
                self.raw = PyBytes_FromStringAndSize(
                    <char *>&self.target, self.target_size)
            self.raw_name = addr
        return self.raw

    cdef int _send(self, object data, object addr) except -1:
        """Send one; 1 if the socket is full."""
        cdef Py_buffer view
        cdef aq_address *to = NULL
        cdef unsigned int size = 0
        cdef ssize_t n = -1
        cdef int err = EINTR
        if not self.has_peer:
            if addr is None or not self._resolve(addr):
                return self._send_by_socket(data, addr)
            if addr is self.peer_name:
                to = &self.peer
                size = self.peer_size
            else:
                to = &self.target
                size = self.target_size
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        while n < 0 and err == EINTR:
            n = sendto(self.fd, view.buf, view.len, MSG_NOSIGNAL | MSG_DONTWAIT,
                       <const sockaddr *>to, size)
            err = errno
        PyBuffer_Release(&view)
        if n >= 0:
            return 0
        if err == EAGAIN:
            return 1
        self._error(os_error(err))
        return 0

    def _send_by_socket(self, data, addr):
        # Names, other families, and everything that is to raise.
        try:
            self.sock.sendto(data, addr)
        except (BlockingIOError, InterruptedError):
            return 1
        except OSError as exc:
            self._error(exc)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Fatal write error on datagram transport")
        return 0

    cdef bint _resolve(self, object addr) except -1:
        """Whether the address is the last sender, or now in `target`."""
        cdef aq_address a
        cdef unsigned int size
        if addr is self.peer_name:
            return self.peer_size != 0
        if addr is self.target_name:
            return True
        size = address_parse(addr, self.family, &a)
        if size == 0:
            return False
        self.target_size = size
        self.target = a
        self.target_name = addr
        return True

    cdef int _send_queued(self) except -1:
        """Send what waits, as far as the socket takes it."""
        cdef bint inner = self.sending
        cdef bint watched = self.blocked
        self.loop.flush_cancel(&self.flush_node)
        if self.lost:
            return 0
        if self.loop.in_child():
            return self._drop_output()      # the socket is the parent's as well
        if self._stolen():
            return self._robbed()
        self.sending = True
        self.blocked = False
        try:
            self._send_all()
        finally:
            # After an exception that leaves the loop the rest is for when it runs again.
            self.sending = inner
            if not self.lost:
                watched = watched or self.blocked
                self.blocked = len(self.queue) != 0
                if watched or self.blocked:
                    self._update()
        return self._sent()

    cdef int _send_all(self) except -1:
        # error_received may send, close and abort; nothing of the queue is held here.
        cdef int n
        while self.queue and not self.lost:
            if not self.has_peer and (<tuple>self.queue[0])[2] is None:
                data, addr, raw = self._take()
                if self._send_by_socket(data, addr) and not self.lost:
                    self.queue.appendleft((data, addr, raw))
                    self.queued += PyBytes_GET_SIZE(data) + _header_size
                    break
                continue
            n = send_first(self.fd, self.has_peer, self.queue, &self.segmenting)
            while n > 0:
                self._take()
                n -= 1
            if n == -EAGAIN:
                break
            if n < 0:
                self._take()
                self._error(os_error(-n))
        return 0

    cdef int _sent(self) except -1:
        if self.lost:
            return 0
        if self.blocked:
            self._maybe_pause()
        self._maybe_resume()
        if self.closing and not self.queue and not self.lost:
            self._schedule_lost(None)
        return 0

    cdef int _maybe_pause(self) except -1:
        # What waits for the end of the callback only is no reason to pause.
        if not self.blocked:
            return 0
        return SocketTransport._maybe_pause(self)

    def get_write_buffer_size(self):
        """The number of bytes not yet handed to the kernel, with the headers."""
        if self.queue and not self.blocked:
            self._send_queued()
        return self.queued


refuse_new(<PyTypeObject *>DatagramTransport)
