"""StreamReaderProtocol and StreamWriter.  GIL held, the loop's thread."""

from aioqemu._loop.reader cimport StreamReader
from aioqemu._loop.shims cimport ProtocolBase

cdef enum DrainState:
    DRAIN_NEW
    DRAIN_YIELDED        # one pass went by, for connection_lost
    DRAIN_WAITING
    DRAIN_OVER

cdef class StreamReaderProtocol(ProtocolBase):
    cdef list drains                   # the futures that drain() waits for
    cdef object close_error            # what connection_lost was told
    cdef object closed                 # a future, once somebody waits for the end
    cdef public bint _paused
    cdef public bint _connection_lost
    cdef public bint _reject_connection
    cdef public bint _over_ssl
    cdef public object _loop
    cdef public object _stream_reader_wr
    cdef public object _strong_reader  # until the connection is made
    cdef public object _source_traceback
    cdef public object _client_connected_cb
    cdef public object _task
    cdef public object _transport
    cdef dict __dict__
    cdef object __weakref__

    # The reader if it is one whose feed() does all that data_received() would do;
    # else None.  For transports that know the exact type of the protocol.
    cdef StreamReader direct_reader(self)
    cdef object _reader(self)

cdef class StreamWriter:
    cdef public object _transport
    cdef public object _protocol
    cdef public object _reader
    cdef public object _loop
    cdef dict __dict__
    cdef object __weakref__

cdef class Draining:
    # What drain() returns: awaitable once, and a coroutine to asyncio.
    cdef StreamReaderProtocol protocol     # None when it is over
    cdef StreamWriter writer               # None: of _drain_helper()
    cdef object waiter
    cdef DrainState state

    # True if there is a waiter to wait for, or None; else it is over.
    cdef bint _advance(self) except -1
    cdef int _leave(self) except -1
