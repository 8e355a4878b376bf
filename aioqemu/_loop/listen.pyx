"""The accept loop of one listening socket.

A connection is accepted, wrapped and given to its transport within one reader callback;
no task is made for it.  What keeps one connection from being served is reported, and
the listener lives on; what keeps the listener from accepting makes it pause.
Must never know how sockets come to listen, nor how a transport reads and writes.
"""

import errno as _errno
import socket as _socket
from contextvars import copy_context as _copy_context

from cpython.object cimport PyObject
from libc.string cimport memset

from aioqemu._loop.address cimport address_name
from aioqemu._loop.core cimport LoopCore
from aioqemu._loop.flow cimport enter
from aioqemu._loop.flow cimport os_error
from aioqemu._loop.handles cimport PyContext_Exit
from aioqemu._loop.stream cimport is_tcp
from aioqemu._loop.stream cimport accepted_stream
from aioqemu._loop.transport cimport aq_socket_fd
from aioqemu._sys.inet cimport AF_INET
from aioqemu._sys.inet cimport AF_INET6
from aioqemu._sys.inet cimport AF_UNIX
from aioqemu._sys.inet cimport SOCK_CLOEXEC
from aioqemu._sys.inet cimport SOCK_NONBLOCK
from aioqemu._sys.inet cimport accept4
from aioqemu._sys.inet cimport aq_address
from aioqemu._sys.inet cimport sockaddr
from aioqemu._sys.libc cimport EAGAIN
from aioqemu._sys.libc cimport EBADF
from aioqemu._sys.libc cimport EINTR
from aioqemu._sys.libc cimport close
from aioqemu._sys.libc cimport errno

from aioqemu._loop.private import TransportSocket, constants, logger

cdef enum:
    # Connections taken in one pass: enough to empty a burst, few enough that the
    # connections which are already served do not wait for it.
    ACCEPT_BATCH = 256
    # Where each time one connection waited, more are looked for one time in so many: what
    # finds nothing is a system call, too.
    LOOK_FOR_MORE = 8

cdef object OUT_OF_RESOURCES = frozenset(
    (_errno.EMFILE, _errno.ENFILE, _errno.ENOBUFS, _errno.ENOMEM))
# accept(2): errors of the connection that was lost before it was taken, not of the
# listening socket; the next one may be fine.
cdef object LOST_BEFORE_ACCEPT = frozenset((
    _errno.ECONNABORTED,
    _errno.EPROTO,
    _errno.ENOPROTOOPT,
    _errno.ENETDOWN,
    _errno.ENETUNREACH,
    _errno.EHOSTDOWN,
    _errno.EHOSTUNREACH,
    _errno.ENONET,
))
cdef object _Socket = _socket.socket
cdef int IPPROTO_TCP = _socket.IPPROTO_TCP
cdef int TCP_NODELAY = _socket.TCP_NODELAY


cdef tuple _prepare(object sock):
    """Set what accepted sockets inherit; of what kind they are.

    None if only the socket itself can accept: it may have an accept() of its own, or be
    of a family whose addresses only the socket module knows.
    """
    if type(sock) is not _Socket:
        return None
    kind = (int(sock.family), int(sock.type), int(sock.proto))
    if kind[0] not in (AF_INET, AF_INET6, AF_UNIX):
        return None
    if is_tcp(sock):
        sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    return kind


cdef class Listener:
    """One listening socket that is being accepted on, until `stop()`."""

    cdef LoopCore loop
    cdef object factory
    cdef object sock
    cdef int fd
    cdef object tls
    cdef object tls_timeouts
    cdef object server
    cdef Py_ssize_t batch
    cdef unsigned int lone         # times in a row that one waited, or was taken as the one
    cdef tuple kind                # of natively accepted connections, or None
    cdef bint tcp
    cdef object retry              # a TimerHandle while accepting rests, or None
    cdef object handle             # of the reader callback, or None

    def __init__(self, LoopCore loop not None, factory, sock, tls, server, backlog,
                 tls_timeouts):
        self.loop = loop
        self.factory = factory
        self.sock = sock
        self.tls = tls
        self.tls_timeouts = tls_timeouts
        self.server = server
        # One more than the backlog, so that a full one is emptied in one pass.
        self.batch = min(max(backlog, 1) + 1, ACCEPT_BATCH)
        self.kind = _prepare(sock)
        self.tcp = self.kind is not None and is_tcp(sock)
        fd = sock.fileno()
        self.handle = loop._add_reader(fd, self._accept)    # says what is no fd
        self.fd = fd

    def stop(self):
        """Accept no more."""
        self._unwatch()
        if self.retry is not None:
            self.retry.cancel()
            self.retry = None

    def _unwatch(self):
        handle = self.handle
        self.handle = None
        # A cancelled handle: whoever has the fd now, it is not us any more.
        if handle is not None and not handle.cancelled():
            self.loop._remove_reader(self.fd)

    def _pause(self, message, exc):
        """Report why accepting failed and rest: the fd stays readable meanwhile."""
        self.loop.call_exception_handler({
            "message": message,
            "exception": exc,
            "socket": TransportSocket(self.sock),
        })
        if self.handle is None:
            return      # the handler closed the server
        self._unwatch()
        self.retry = self.loop.call_later(constants.ACCEPT_RETRY_DELAY, self._resume)

    def _resume(self):
        self.retry = None
        fd = self.sock.fileno()
        if fd != self.fd:
            return      # closed behind our back; it was reported when accept failed
        self.handle = self.loop._add_reader(fd, self._accept)

    def _accept(self):
        """Take the connections that wait, a bounded number of them."""
        cdef Py_ssize_t taken
        cdef bint more
        cdef Py_ssize_t batch = self.batch
        if self.lone % LOOK_FOR_MORE:
            batch = 1               # the fd stays readable if there are more
            self.lone += 1
        for taken in range(batch):
            try:
                if self.kind is not None:
                    more = self._take()
                else:
                    more = self._take_from_socket()
            except OSError as exc:
                if exc.errno in LOST_BEFORE_ACCEPT:
                    continue
                if exc.errno in OUT_OF_RESOURCES:
                    self._pause("socket.accept() out of system resource", exc)
                else:
                    self._pause("socket.accept() failed", exc)
                return
            if not more:
                # No more wait.  Where there was one alone, so there will be, mostly.
                self.lone = self.lone + 1 if taken == 1 else 0
                return
            if self.handle is None:
                return      # the protocol factory closed the server

    cdef bint _take(self) except -1:
        """Accept a connection and serve it; False if there is none.

        Only accept(2) itself raises OSError from here: the rest is reported.
        """
        cdef aq_address name
        cdef unsigned int size
        cdef int conn
        if aq_socket_fd(self.sock) != self.fd:
            raise os_error(EBADF)
        while True:
            size = sizeof(name)
            memset(&name, 0, sizeof(name.un))
            conn = accept4(self.fd, <sockaddr *>&name, &size,
                           SOCK_NONBLOCK | SOCK_CLOEXEC)
            if conn >= 0:
                break
            if errno == EAGAIN:
                return False
            if errno != EINTR:
                raise os_error(errno)
        if self.loop.debug or self.tls is not None:
            try:
                address = address_name(&name, size)
            except BaseException:
                close(conn)
                raise
            # Closed there if that fails.
            _copy_context().run(self._serve, self._as_socket(conn), address)
            return True
        protocol = None
        ctx = enter(_copy_context())    # what the factory sets is this connection's alone
        try:
            protocol = self.factory()
            self.loop._ensure_fd_no_transport(conn)
            accepted_stream(self.loop, conn, self.kind, protocol, &name, size, self.server,
                            self.tcp, ctx)
        except (SystemExit, KeyboardInterrupt):
            close(conn)
            raise
        except BaseException as exc:
            close(conn)
            self._report(exc, protocol, None)
        finally:
            PyContext_Exit(<PyObject *>ctx)
        return True

    cdef bint _take_from_socket(self) except -1:
        """The same by way of the socket object's own accept()."""
        if self.sock.fileno() != self.fd:
            raise os_error(EBADF)
        try:
            conn, address = self.sock.accept()
        except (BlockingIOError, InterruptedError):
            return False
        try:
            conn.setblocking(False)
        except BaseException:
            conn.close()
            raise
        _copy_context().run(self._serve, conn, address)
        return True

    cdef object _as_socket(self, int conn):
        family, type_, proto = self.kind
        try:
            # It does not block already; said so, the object believes it.
            return _Socket(family, type_ | SOCK_NONBLOCK, proto, fileno=conn)
        except BaseException:
            close(conn)
            raise

    def _serve(self, conn, address):
        """Give a connection its protocol and transport."""
        cdef LoopCore loop = self.loop
        protocol = None
        if loop.debug:
            logger.debug("%r got a new connection from %r: %r", self.server, address, conn)
        try:
            protocol = self.factory()
            extra = {"peername": address}
            if self.tls is None:
                loop._make_socket_transport(
                    conn, protocol, extra=extra, server=self.server)
                return
            waiter = loop.create_future()
            handshake, shutdown = self.tls_timeouts
            transport = loop._make_ssl_transport(
                conn, protocol, self.tls, waiter, server_side=True, extra=extra,
                server=self.server, ssl_handshake_timeout=handshake,
                ssl_shutdown_timeout=shutdown)
        except (SystemExit, KeyboardInterrupt):
            conn.close()
            raise
        except BaseException as exc:
            conn.close()
            # The program's own error, so also without debug mode.
            self._report(exc, protocol, None)
        else:
            waiter.add_done_callback(
                lambda waiter: self._handshake_over(waiter, protocol, transport))

    def _handshake_over(self, waiter, protocol, transport):
        """Close a connection that did not get through its TLS handshake."""
        exc = None if waiter.cancelled() else waiter.exception()
        if exc is None:
            return
        transport.close()
        # Peers that fail a handshake are daily life: only worth a word in debug mode.
        if self.loop.debug:
            self._report(exc, protocol, transport)

    def _report(self, exc, protocol, transport):
        context = {
            "message": "Error on transport creation for incoming connection",
            "exception": exc,
        }
        if protocol is not None:
            context["protocol"] = protocol
        if transport is not None:
            context["transport"] = transport
        self.loop.call_exception_handler(context)
