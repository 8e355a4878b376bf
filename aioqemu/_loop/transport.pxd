"""SocketTransport: what the transports of sockets have in common.

Home thread, GIL held.  A transport owns its socket: the fd is registered from
connection_made to connection_lost and closed exactly once.
"""

from cpython.object cimport PyObject
from libc.stdint cimport uint32_t
from libc.stdint cimport uint8_t

from aioqemu._engine.types cimport AioCallback
from aioqemu._engine.types cimport AioHandler
from aioqemu._engine.types cimport Held
from aioqemu._loop.core cimport LoopCore
from aioqemu._loop.shims cimport TransportBase
from aioqemu._sys.inet cimport sockaddr_in6

cdef extern from *:
    """
    #ifndef AQ_SOCKET_FD
    #define AQ_SOCKET_FD
    /* How an object of _socket.socket begins; checked where it is made use of. */
    typedef struct { PyObject_HEAD int fd; } AqSocketObject;
    static inline int aq_socket_fd(PyObject *sock)
    { return ((AqSocketObject *)sock)->fd; }
    #endif
    """
    int aq_socket_fd(object sock)

cdef class SocketTransport(TransportBase):
    cdef LoopCore loop
    cdef object sock               # None once closed, or as long as nobody asks for it
    cdef tuple kind                # family, type and protocol of such a socket; or None
    cdef sockaddr_in6 peer         # its address until somebody asks: a dict of objects
    cdef unsigned int peer_size    # ... is twelve times as large; 0: it is in the dict
    cdef int fd                    # -1 once closed
    cdef AioHandler *node          # NULL when not registered
    cdef object protocol           # None after connection_lost
    cdef object ctx                # contextvars.Context of the protocol's callbacks
    cdef PyObject *next_client     # in the list of its server's connections
    cdef PyObject **client_place   # ... and what points here; NULL if it is in none
    cdef dict __dict__
    cdef object __weakref__
    cdef Py_ssize_t queued         # bytes not yet sent
    cdef Py_ssize_t high_water
    cdef Py_ssize_t low_water
    # state
    cdef uint8_t watchful          # `sock` can be asked for its fd
    cdef uint8_t connected         # connection_made was called
    cdef uint8_t streams           # its data may be received by a lasting request
    cdef uint8_t reading_paused
    cdef uint8_t writing_paused    # protocol.pause_writing() was called
    cdef uint8_t closing
    cdef Held kept                 # what a lasting request received before it was let go
    cdef Py_ssize_t lost           # > 0: connection_lost is scheduled; counts writes since

    # Begin: take the socket, given as an object or as an fd and its kind.  Without `info`
    # the peer's address is in `peer`.
    cdef int _look_up(self) except -1
    cdef int _adopt(self, LoopCore loop, object sock, int fd, tuple kind, object protocol,
                    object waiter, dict info) except -1
    # What the engine calls, by subclass.
    cdef void _callbacks(self, AioCallback *io_read, AioCallback *io_write) noexcept
    # What get_extra_info knows by now.
    cdef dict _info(self)
    # Whether the socket object was closed behind our back: its number may be another
    # file's by now, and be reported as ready.
    cdef inline bint _stolen(self) noexcept:
        return self.watchful and aq_socket_fd(self.sock) != self.fd
    # End because of that, or because the engine found out.
    cdef int _robbed(self) except -1
    cdef object _object(self)
    cdef int _update(self) except -1
    cdef void _unregister(self) noexcept
    # Watch the fd no more, though the transport goes on: somebody else is to watch it.
    cdef int _let_go(self) except -1
    cdef int _forget_fd(self) except -1
    cdef int _close_socket(self, bint learn) except -1
    cdef int _schedule_lost(self, object exc) except -1
    cdef int _fatal_errno(self, int err, str message) except -1
    cdef int _maybe_pause(self) except -1
    cdef int _maybe_resume(self) except -1

    # Leave the list of its server's connections, if it is in one.
    cdef void leave_server(self) noexcept

    # What a subclass adds: the events to watch for, whose protocol, forgetting what is
    # not sent, and its own last steps.
    cdef uint32_t _wanted(self) noexcept
    cdef int _set_protocol(self, object protocol) except -1
    cdef int _drop_output(self) except -1
    cdef int _ended(self) except -1
