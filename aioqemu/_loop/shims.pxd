"""The base types of handles, transports and protocols, for `cdef class X(HandleBase)`.

They are made by bases.pyx, which therefore cannot cimport this file: the layouts are in
layouts.pxd.
"""

from cpython.object cimport PyObject

from aioqemu._loop.layouts cimport AqFlowTransportObject
from aioqemu._loop.layouts cimport AqHandleObject
from aioqemu._loop.layouts cimport AqTimerObject
from aioqemu._loop.layouts cimport AqTransportObject

cdef extern from *:
    ctypedef class aioqemu._loop.bases.HandleBase [object AqHandleObject]:
        pass
    ctypedef class aioqemu._loop.bases.TimerHandleBase [object AqTimerObject]:
        pass
    ctypedef class aioqemu._loop.bases.TransportBase [object AqTransportObject]:
        pass
    ctypedef class aioqemu._loop.bases.DatagramTransportBase [object AqTransportObject]:
        pass
    ctypedef class aioqemu._loop.bases.ReadTransportBase [object AqTransportObject]:
        pass
    ctypedef class aioqemu._loop.bases.WriteTransportBase [object AqTransportObject]:
        pass
    ctypedef class aioqemu._loop.bases.FlowTransportBase [object AqFlowTransportObject]:
        pass
    ctypedef class aioqemu._loop.bases.ProtocolBase [object PyObject]:
        pass
