"""DatagramTransport: UDP, Unix and any other datagram socket.

Knows nothing of name resolution, but that the socket module does it for an address that
is not numeric.  It owns its socket as StreamTransport does.

Datagrams are received in batches, by one system call into buffers that all transports of
the process share; they are copied out before the first callback runs.  The protocol's
context is entered once a batch.  Addresses of the last sender and the last receiver are
kept in both forms, the kernel's and Python's: an echo converts none.
"""

import sys
from asyncio import DatagramTransport as _DatagramTransport
from collections import deque as _deque

from cpython.buffer cimport PyBUF_SIMPLE
from cpython.buffer cimport PyBuffer_Release
from cpython.buffer cimport PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_RawMalloc
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
    # The largest UDP datagram has less than 64 KiB; others, of Unix sockets say, may
    # have as many bytes as asyncio receives at most.
    INET_SIZE = 64 * 1024
    INET_BATCH = 32
    OTHER_SIZE = 256 * 1024
    OTHER_BATCH = 8
    AREA_SIZE = INET_SIZE * INET_BATCH

# What the kernel receives into; untouched pages of it cost nothing.  One for the process
# is enough: from the system call until all of it is copied, nothing releases the GIL.
cdef char *_area = NULL

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


def make_datagram_transport(LoopCore loop not None, sock, protocol, address=None,
                            waiter=None, extra=None):
    """Make a transport for a non-blocking datagram socket, which it owns.

    `connection_made` is called in the next pass; then `waiter`, if given, is resolved.
    With an address, which the socket is connected to, nothing else can be sent to.
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
    return t


cdef class DatagramTransport(SocketTransport, _DatagramTransport):
    """A datagram socket (`asyncio.DatagramTransport`).

    Made by the loop.  All methods belong to the loop's thread.
    """

    max_size = OTHER_SIZE

    def __cinit__(self):
        self.arrived = []
        self.queue = _deque()

    # -- what asyncio's own code and its users look at ------------------------------------

    @property
    def _address(self):
        return self.address

    @property
    def _buffer(self):
        return self.queue

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
        if self.queued or self.queue:
            events |= POLLOUT
        return events

    cdef int _drop_output(self) except -1:
        self.queue.clear()
        self.queued = 0
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
        if not self.queue:
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
        global _area
        cdef mmsghdr msgs[INET_BATCH]
        cdef iovec iovs[INET_BATCH]
        cdef aq_address names[INET_BATCH]
        cdef PyObject *copies[INET_BATCH]
        cdef mmsghdr *m
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
        if _area == NULL:
            _area = <char *>PyMem_RawMalloc(AREA_SIZE)
            if _area == NULL:
                raise MemoryError()
        for i in range(n):
            m = &msgs[i]
            iovs[i].iov_base = _area + i * size
            iovs[i].iov_len = size
            m.msg_hdr.msg_name = &names[i]
            m.msg_hdr.msg_namelen = sizeof(aq_address)
            m.msg_hdr.msg_iov = &iovs[i]
            m.msg_hdr.msg_iovlen = 1
            m.msg_hdr.msg_control = NULL
            m.msg_hdr.msg_controllen = 0
        n = recvmmsg(self.fd, msgs, n, MSG_DONTWAIT, NULL)
        if n < 0:
            err = errno
            if err != EAGAIN and err != EINTR:
                self._error(os_error(err))
            return 0
        # Making bytes runs no other code; making a tuple may, by way of the collector.
        for i in range(n):
            data = PyBytes_FromStringAndSize(_area + i * size, msgs[i].msg_len)
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
        if self.loop.in_child():
            # What waits is the parent's, and what does not fit nobody would send later.
            self._send(data, addr)
            return
        if not self.queue and self._send(data, addr) == 0:
            return
        if self.lost:
            return
        # What is kept must not change.
        data = bytes(data)
        n = len(data)
        self.queue.append((data, addr))
        self.queued += n + _header_size
        if len(self.queue) == 1:
            self._update()
        self._maybe_pause()

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
        while self.queue and not self.lost:
            data, addr = self.queue[0]
            if self._send(data, addr):
                break
            if self.queue:      # error_received may have aborted
                self.queue.popleft()
                self.queued -= len(data) + _header_size
        self._maybe_resume()
        if self.lost:
            return 0
        if not self.queue:
            self._update()
            if self.closing:
                self._schedule_lost(None)
        return 0


refuse_new(<PyTypeObject *>DatagramTransport)
