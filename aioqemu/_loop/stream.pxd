"""StreamTransport: a connected stream socket as an asyncio transport."""

from libc.stdint cimport uint8_t

from aioqemu._loop.callbacks cimport FlushNode
from aioqemu._loop.core cimport LoopCore
from aioqemu._loop.flow cimport OutQueue
from aioqemu._loop.transport cimport SocketTransport
from aioqemu._sys.inet cimport aq_address

# Make one for a connection that was accepted, given as an fd, non-blocking, and its kind;
# it owns that unless this raises.  `tcp`: what is_tcp says of it; `ctx`: the context of
# its callbacks.
cdef StreamTransport accepted_stream(LoopCore loop, int fd, tuple kind, object protocol,
                                     const aq_address *peer, unsigned int size,
                                     object server, bint tcp, object ctx)
cdef bint is_tcp(object sock) except -1

cdef enum Feeding:
    FEED_CALLS                     # protocol.data_received, or get_buffer
    FEED_NATIVE                    # exactly our StreamReaderProtocol: its reader
    FEED_STOCK                     # exactly asyncio's: its reader
    FEED_WIRE                      # a WireProtocol

cdef class StreamTransport(SocketTransport):
    cdef object received           # data_received, or of a buffered protocol buffer_updated
    cdef object get_buffer         # of that; else None
    cdef object server
    cdef object empty_waiter       # sendfile waits for the buffer to empty
    # output
    cdef OutQueue queue
    cdef FlushNode flush_node
    # state
    # They are functions, to be called with the protocol: a bound method is 64 bytes more.
    cdef uint8_t functions
    cdef uint8_t feeding           # Feeding; decided when the protocol is set
    cdef uint8_t bulk              # the last receive brought BULK_SIZE or more
    cdef uint8_t blocked           # the socket is full: POLLOUT is wanted
    cdef uint8_t eof_received      # and the protocol keeps the writing half
    cdef uint8_t eof_sent          # write_eof() was called

    cdef int _leave(self) except -1
    cdef int _read(self) except -1
    cdef ssize_t _receive(self, void *buf, size_t size) noexcept
    cdef int _read_data(self) except -1
    cdef int _read_buffered(self) except -1
    cdef int _read_wire(self) except -1
    # Whether the data went to the protocol's reader, past the protocol.
    cdef bint _feed_native(self, bytes data) except -1
    cdef bint _feed_stock(self, const char *data, Py_ssize_t n) except -1
    cdef int _on_eof(self) except -1
    cdef int _write(self, object data) except -1
    cdef int _send_now(self) except -1
    cdef int _drained(self) except -1
    cdef int _shutdown(self) except -1
    cdef int _check_writable(self, str what) except -1
