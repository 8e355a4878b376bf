"""DatagramTransport: a datagram socket as an asyncio transport."""

from aioqemu._engine.types cimport AioHandler
from aioqemu._loop.core cimport LoopCore
from aioqemu._loop.shims cimport DatagramTransportBase
from aioqemu._sys.inet cimport aq_address

cdef class DatagramTransport(DatagramTransportBase):
    cdef LoopCore loop
    cdef object sock               # None once closed
    cdef int fd                    # -1 once closed
    cdef int family
    cdef AioHandler *node          # NULL when not registered
    cdef object protocol           # None after connection_lost
    cdef object received           # protocol.datagram_received, bound
    cdef object ctx                # contextvars.Context of the protocol's callbacks
    cdef object address            # the one that is sent to, or None
    cdef dict __dict__
    cdef object __weakref__
    # addresses known in both forms
    cdef aq_address peer           # the last sender
    cdef unsigned int peer_size    # 0: none
    cdef object peer_name
    cdef aq_address target         # the last receiver
    cdef unsigned int target_size
    cdef object target_name
    # input that the kernel has handed over and the protocol not yet got
    cdef list arrived              # (data, address)
    # output
    cdef object queue              # deque of (data, address)
    cdef Py_ssize_t queued         # bytes in it, with what a datagram counts on top
    cdef Py_ssize_t high_water
    cdef Py_ssize_t low_water
    # state
    cdef bint has_peer             # the socket is connected
    cdef bint connected            # connection_made was called
    cdef bint reading_paused
    cdef bint writing_paused       # protocol.pause_writing() was called
    cdef bint closing
    cdef Py_ssize_t lost           # > 0: connection_lost is scheduled; counts sends since

    cdef int _update(self) except -1
    cdef void _unregister(self) noexcept
    cdef int _forget_fd(self) except -1
    cdef int _set_protocol(self, object protocol) except -1
    cdef int _read(self) except -1
    cdef int _read_any_family(self) except -1
    cdef object _sender(self, aq_address *a, unsigned int size)
    cdef int _deliver(self) except -1
    cdef int _call_received(self, object data, object addr) except -1
    cdef int _send(self, object data, object addr) except -1
    cdef bint _resolve(self, object addr) except -1
    cdef int _send_queued(self) except -1
    cdef int _error(self, object exc) except -1
    cdef int _maybe_pause(self) except -1
    cdef int _maybe_resume(self) except -1
    cdef int _schedule_lost(self, object exc) except -1
