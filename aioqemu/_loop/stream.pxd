"""StreamTransport: a connected stream socket as an asyncio transport."""

from libc.stdint cimport int64_t

from aioqemu._engine.types cimport AioHandler
from aioqemu._loop.core cimport FlushNode
from aioqemu._loop.core cimport LoopCore
from aioqemu._loop.shims cimport TransportBase

cdef class StreamTransport(TransportBase):
    cdef LoopCore loop
    cdef object sock               # None once closed
    cdef int fd                    # -1 once closed
    cdef AioHandler *node          # NULL when not registered
    cdef object protocol           # None after connection_lost
    cdef object data_received      # bound; None for a buffered protocol
    cdef object get_buffer
    cdef object buffer_updated
    cdef object ctx                # contextvars.Context of the protocol's callbacks
    cdef object server
    cdef object empty_waiter       # sendfile waits for the buffer to empty
    cdef dict __dict__
    cdef object __weakref__
    # output
    cdef list queue                # bytes not yet sent, in order
    cdef Py_ssize_t queue_start    # first live entry of `queue`
    cdef Py_ssize_t head_sent      # bytes of that entry that are sent already
    cdef Py_ssize_t queued         # bytes not yet sent
    cdef Py_ssize_t high_water
    cdef Py_ssize_t low_water
    cdef FlushNode flush_node
    # state
    cdef bint connected            # connection_made was called
    cdef bint started              # reading was switched on for the first time
    cdef bint reading_paused
    cdef bint writing_paused       # protocol.pause_writing() was called
    cdef bint blocked              # the socket is full: POLLOUT is wanted
    cdef bint eof_received         # and the protocol keeps the writing half
    cdef bint eof_sent             # write_eof() was called
    cdef bint closing
    cdef Py_ssize_t lost           # > 0: connection_lost is scheduled; counts writes since

    cdef int _update(self) except -1
    cdef void _unregister(self) noexcept
    cdef int _set_protocol(self, object protocol) except -1
    cdef int _forget_fd(self) except -1
    cdef int _drop_socket(self) except -1
    cdef int _read(self) except -1
    cdef int _read_data(self) except -1
    cdef int _read_buffered(self) except -1
    cdef int _on_eof(self) except -1
    cdef int _write(self, object data) except -1
    cdef int _send_now(self) except -1
    cdef int _consume(self, Py_ssize_t n) except -1
    cdef int _drained(self) except -1
    cdef int _maybe_pause(self) except -1
    cdef int _maybe_resume(self) except -1
    cdef int _check_writable(self, str what) except -1
    cdef int _schedule_lost(self, object exc) except -1
    cdef int _fatal_errno(self, int err, str message) except -1

cdef StreamTransport new_stream_transport(
    LoopCore loop, object sock, object protocol, object waiter, object extra,
    object server)
