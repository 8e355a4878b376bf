"""DatagramTransport: a datagram socket as an asyncio transport."""

from aioqemu._loop.datagram_out cimport DatagramOutput
from aioqemu._sys.inet cimport aq_address

cdef class DatagramTransport(DatagramOutput):
    cdef object received           # protocol.datagram_received, bound
    # input that the kernel has handed over and the protocol not yet got
    cdef list arrived              # (data, address)
    cdef bint exclusive            # nobody else has the socket: it may coalesce
    cdef bint coalescing           # it has been told to: messages may be several

    cdef int _read(self) except -1
    cdef int _coalesce(self) except -1
    cdef int _read_any_family(self) except -1
    cdef object _sender(self, aq_address *a, unsigned int size)
    cdef int _deliver(self) except -1
    cdef int _call_received(self, object data, object addr) except -1
