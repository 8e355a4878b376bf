"""DatagramOutput: the sending half of DatagramTransport, and how it closes.

The first datagram of a callback is sent at once, the next ones when it returns, together.
Only what the socket did not take counts as buffered.  Errors belong to one datagram each,
which is lost; the protocol is told, and what it does then is done in order.
"""

import sys
from collections import deque as _deque

from cpython.buffer cimport PyBUF_SIMPLE
from cpython.buffer cimport PyBuffer_Release
from cpython.buffer cimport PyObject_GetBuffer
from cpython.bytes cimport PyBytes_CheckExact
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.object cimport PyObject
from libc.stdint cimport uint32_t

from aioqemu._loop.address cimport address_parse
from aioqemu._loop.datagram_batch cimport send_first
from aioqemu._loop.flow cimport FLUSH_SIZE
from aioqemu._loop.flow cimport enter
from aioqemu._loop.flow cimport os_error
from aioqemu._loop.flow cimport report
from aioqemu._loop.handles cimport PyContext_Exit
from aioqemu._loop.transport cimport SocketTransport
from aioqemu._sys.inet cimport aq_address
from aioqemu._sys.inet cimport sendto
from aioqemu._sys.inet cimport sockaddr
from aioqemu._sys.libc cimport EAGAIN
from aioqemu._sys.libc cimport EINTR
from aioqemu._sys.libc cimport MSG_DONTWAIT
from aioqemu._sys.libc cimport MSG_NOSIGNAL
from aioqemu._sys.libc cimport POLLIN
from aioqemu._sys.libc cimport POLLOUT
from aioqemu._sys.libc cimport errno

from aioqemu._loop.private import (
    constants,
    logger,
)

cdef enum:
    # So many datagrams are not kept for the end of the callback.
    MAX_KEPT = 64

# What changed in 3.13: empty datagrams are sent, and headers count as buffered.  So what
# counts as buffered is 0 just when nothing waits.
cdef bint _sends_empty = sys.version_info >= (3, 13)
cdef Py_ssize_t _header_size = 8 if _sends_empty else 0


cdef int _flush(void *owner) except -1:
    cdef DatagramOutput t = <DatagramOutput>owner
    if t.queued == 0:
        return 0        # the first was all that the callback had to send
    return t._send_queued()


cdef class DatagramOutput(SocketTransport):
    """The sending half of a datagram socket's transport; not made as such."""

    def __cinit__(self):
        if type(self) is DatagramOutput:
            raise TypeError("transports are made by the loop")
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

    def close(self):
        """Close the endpoint once what is queued is sent."""
        if self.closing:
            return
        self.closing = True
        self._update()
        if self.queue and not self.blocked:
            self._send_queued()
        if not self.queue and not self.lost:
            self._schedule_lost(None)

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
        elif self.flush_node.linked or self.queued:
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
