"""ReadPipeTransport and WritePipeTransport: pipe-like files as asyncio transports."""

from aioqemu._loop.callbacks cimport FlushNode
from aioqemu._loop.core cimport LoopCore
from aioqemu._loop.flow cimport OutQueue
from aioqemu._loop.shims cimport ReadTransportBase
from aioqemu._loop.shims cimport WriteTransportBase

cdef class ReadPipeTransport(ReadTransportBase):
    cdef LoopCore loop
    cdef object pipe               # None once closed
    cdef int fd                    # -1 once closed
    cdef object protocol           # None after connection_lost
    cdef object data_received      # bound
    cdef object ctx                # contextvars.Context of the protocol's callbacks
    cdef object handle             # what watches the fd, or None
    cdef dict __dict__
    cdef object __weakref__
    cdef bint started              # connection_made was called
    cdef bint paused
    cdef bint closing
    cdef bint lost                 # connection_lost is scheduled

    cdef int _update(self) except -1
    cdef int _unwatch(self) except -1

cdef class WritePipeTransport(WriteTransportBase):
    cdef LoopCore loop
    cdef object pipe               # None once closed
    cdef int fd                    # -1 once closed
    cdef object protocol           # None after connection_lost
    cdef object ctx                # contextvars.Context of the protocol's callbacks
    cdef object hangup_handle      # what watches for the reader to go, or None
    cdef object room_handle        # what watches for room, or None
    cdef dict __dict__
    cdef object __weakref__
    cdef OutQueue queue
    cdef Py_ssize_t high_water
    cdef Py_ssize_t low_water
    cdef FlushNode flush_node
    cdef bint watch_hangup         # the kind of file tells when its reader goes
    cdef bint started              # connection_made was called
    cdef bint writing_paused       # protocol.pause_writing() was called
    cdef bint blocked              # the pipe is full
    cdef bint closing
    cdef Py_ssize_t lost           # > 0: connection_lost is scheduled; counts writes since

    cdef int _update(self) except -1
    cdef int _unwatch(self) except -1
    cdef int _send_now(self) except -1
    cdef int _flush_pending(self) except -1
    cdef int _maybe_pause(self) except -1
    cdef int _maybe_resume(self) except -1
    cdef int _schedule_lost(self, object exc) except -1
