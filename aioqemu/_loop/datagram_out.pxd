"""DatagramOutput: the sending half of a datagram socket's transport."""

from aioqemu._loop.callbacks cimport FlushNode
from aioqemu._loop.datagram_batch cimport Segmenting
from aioqemu._loop.transport cimport SocketTransport
from aioqemu._sys.inet cimport aq_address

cdef class DatagramOutput(SocketTransport):
    cdef int family
    cdef object address            # the one that is sent to, or None
    # addresses known in both forms
    cdef aq_address peer           # the last sender
    cdef unsigned int peer_size    # 0: none
    cdef object peer_name
    cdef aq_address target         # the last receiver
    cdef unsigned int target_size
    cdef object target_name
    # output: `queued` counts what a datagram counts on top of its bytes, too
    cdef object queue              # deque of (data, address, the kernel's or None)
    cdef FlushNode flush_node      # linked: this callback has sent one, the next wait
    cdef bint blocked              # the socket is full; what waits does so for POLLOUT
    cdef bint sending              # what waits is being sent, further down the stack
    cdef Segmenting segmenting
    cdef bint has_peer             # the socket is connected
    cdef object raw_name           # the last address of which the kernel's was made
    cdef bytes raw                 # ... which this is

    cdef int _keep(self, object data, object addr) except -1
    cdef object _raw_address(self, object addr)
    cdef int _put(self, object data, object addr, object raw) except -1
    cdef int _send(self, object data, object addr) except -1
    cdef bint _resolve(self, object addr) except -1
    cdef int _send_queued(self) except -1
    cdef int _send_all(self) except -1
    cdef int _sent(self) except -1
    cdef object _take(self)
    cdef int _error(self, object exc) except -1
