"""DatagramTransport: UDP, Unix and any other datagram socket.  Receiving.

Knows nothing of name resolution, but that the socket module does it for an address that
is not numeric.  It owns its socket as StreamTransport does.

Datagrams are received in batches, by one system call into buffers that all transports of
the process share; they are copied out before the first callback runs.  The protocol's
context is entered once a batch.  Addresses of the last sender and the last receiver are
kept in both forms, the kernel's and Python's: an echo converts none.
"""

from asyncio import DatagramTransport as _DatagramTransport

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from cpython.object cimport PyTypeObject
from cpython.ref cimport Py_DECREF
from cpython.ref cimport Py_INCREF
from libc.string cimport memcmp
from libc.string cimport memcpy

from aioqemu._engine.types cimport AioCallback
from aioqemu._loop.address cimport address_name
from aioqemu._loop.core cimport LoopCore
from aioqemu._loop.datagram_batch cimport INET_BATCH
from aioqemu._loop.datagram_batch cimport INET_SIZE
from aioqemu._loop.datagram_batch cimport OTHER_BATCH
from aioqemu._loop.datagram_batch cimport OTHER_SIZE
from aioqemu._loop.datagram_batch cimport cut
from aioqemu._loop.datagram_batch cimport receive_area
from aioqemu._loop.datagram_out cimport DatagramOutput
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
from aioqemu._sys.libc cimport EAGAIN
from aioqemu._sys.libc cimport EINTR
from aioqemu._sys.libc cimport MSG_DONTWAIT
from aioqemu._sys.libc cimport errno
from aioqemu._sys.libc cimport iovec

cdef enum:
    # So many messages at once are a burst.
    BURST = 16


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
                            waiter=None, extra=None, exclusive=False):
    """Make a transport for a non-blocking datagram socket, which it owns.

    `connection_made` is called in the next pass; then `waiter`, if given, is resolved.
    With an address, which the socket is connected to, nothing else can be sent to.
    `exclusive`: nobody else can have the socket, as another process could.
    """
    cdef DatagramTransport t = DatagramTransport.__new__(DatagramTransport)
    cdef dict info = dict(extra) if extra else {}
    loop._ensure_fd_no_transport(sock)
    t.family = sock.family
    t.address = address
    t._adopt(loop, sock, sock.fileno(), None, protocol, waiter, info)
    t.has_peer = info["peername"] is not None
    t.exclusive = exclusive and (t.family == AF_INET or t.family == AF_INET6)
    return t


cdef class DatagramTransport(DatagramOutput, _DatagramTransport):
    """A datagram socket (`asyncio.DatagramTransport`).

    Made by the loop.  All methods belong to the loop's thread.
    """

    max_size = OTHER_SIZE

    def __cinit__(self):
        self.arrived = []

    cdef void _callbacks(self, AioCallback *io_read, AioCallback *io_write) noexcept:
        io_read[0] = _on_readable
        io_write[0] = _on_writable

    cdef int _set_protocol(self, object protocol) except -1:
        self.protocol = protocol
        self.received = getattr(protocol, "datagram_received", None)
        return 0

    # -- life -----------------------------------------------------------------------------

    cdef int _ended(self) except -1:
        self.received = None
        self.arrived.clear()
        return 0

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
            for i in range(n):
                msgs[i].msg_hdr.msg_control = controls[i].bytes
                msgs[i].msg_hdr.msg_controllen = sizeof(aq_control)
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

refuse_new(<PyTypeObject *>DatagramTransport)
