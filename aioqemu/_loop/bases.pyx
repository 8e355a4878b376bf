"""Base types that let a native class be an asyncio.Handle, Transport or Protocol.

asyncio's own classes are Python classes.  A Cython class can extend one, and
`isinstance` holds, but the deallocator, traverse and clear functions that such a class
inherits look for "the first base that is not a Python class", find the Cython class
itself, and recurse without end.  So between the two stands a type of our own, made here,
whose three functions are written by hand; Cython's generated ones end in them.

Handles put their fields over the words of asyncio's slots, which stay unused: every slot
has a property of the same name in the subclass.  Where each field lies is in layouts.pxd.
"""

import asyncio

from cpython.object cimport PyObject
from cpython.object cimport PyTypeObject
from cpython.object cimport visitproc

from aioqemu._loop.layouts cimport AqFlowTransportObject
from aioqemu._loop.layouts cimport AqHandleObject
from aioqemu._loop.layouts cimport AqTimerObject
from aioqemu._loop.layouts cimport AqTransportObject

from aioqemu._loop.private import _FlowControlMixin

cdef extern from "Python.h":
    ctypedef struct PyType_Slot:
        int slot
        void *pfunc
    ctypedef struct PyType_Spec:
        const char *name
        int basicsize
        int itemsize
        unsigned int flags
        PyType_Slot *slots
    enum:
        Py_tp_dealloc
        Py_tp_traverse
        Py_tp_clear
        Py_tp_new
        Py_TPFLAGS_DEFAULT
        Py_TPFLAGS_BASETYPE
        Py_TPFLAGS_HAVE_GC
    object PyType_FromSpecWithBases(PyType_Spec *spec, object bases)
    void PyObject_GC_UnTrack(void *op)
    void PyObject_ClearWeakRefs(PyObject *op)

cdef extern from *:
    """
    static inline void aq_free(PyObject *op) { Py_TYPE(op)->tp_free(op); }
    /* Programs make protocols: the arguments are for __init__, not for object(). */
    static PyObject *aq_new(PyTypeObject *type, PyObject *args, PyObject *kwds)
    {
        (void)args; (void)kwds;
        return type->tp_alloc(type, 0);
    }
    static inline void aq_handle_drop(PyObject *op)
    {
        AqHandleObject *h = (AqHandleObject *)op;
        Py_CLEAR(h->callback);
        Py_CLEAR(h->context);
        Py_CLEAR(h->loop);
        Py_CLEAR(h->traceback);
        Py_CLEAR(h->text);
        Py_CLEAR(h->a0);
        Py_CLEAR(h->a1);
        Py_CLEAR(h->a2);
    }
    static int aq_handle_traverse(PyObject *op, visitproc visit, void *arg)
    {
        AqHandleObject *h = (AqHandleObject *)op;
        Py_VISIT(h->callback);
        Py_VISIT(h->context);
        Py_VISIT(h->loop);
        Py_VISIT(h->traceback);
        Py_VISIT(h->text);
        Py_VISIT(h->a0);
        Py_VISIT(h->a1);
        Py_VISIT(h->a2);
        return 0;
    }
    static int aq_transport_traverse(PyObject *op, visitproc visit, void *arg)
    {
        Py_VISIT(((AqTransportObject *)op)->extra);
        return 0;
    }
    static inline void aq_transport_drop(PyObject *op)
    { Py_CLEAR(((AqTransportObject *)op)->extra); }
    static int aq_flow_traverse(PyObject *op, visitproc visit, void *arg)
    {
        for (int i = 0; i < 4; i++)
            Py_VISIT(((AqFlowTransportObject *)op)->slots[i]);
        return aq_transport_traverse(op, visit, arg);
    }
    static inline void aq_flow_drop(PyObject *op)
    {
        for (int i = 0; i < 4; i++)
            Py_CLEAR(((AqFlowTransportObject *)op)->slots[i]);
        aq_transport_drop(op);
    }
    """
    void aq_free(PyObject *op)
    PyObject *aq_new(PyTypeObject *type, PyObject *args, PyObject *kwds)
    int aq_handle_traverse(PyObject *op, visitproc visit, void *arg)
    int aq_transport_traverse(PyObject *op, visitproc visit, void *arg)
    void aq_handle_drop(PyObject *op)
    void aq_transport_drop(PyObject *op)
    int aq_flow_traverse(PyObject *op, visitproc visit, void *arg)
    void aq_flow_drop(PyObject *op)


cdef int _handle_clear(PyObject *op) noexcept:
    aq_handle_drop(op)
    return 0


cdef void _handle_dealloc(PyObject *op) noexcept:
    PyObject_GC_UnTrack(op)
    PyObject_ClearWeakRefs(op)
    aq_handle_drop(op)
    aq_free(op)


cdef int _transport_clear(PyObject *op) noexcept:
    aq_transport_drop(op)
    return 0


cdef void _transport_dealloc(PyObject *op) noexcept:
    PyObject_GC_UnTrack(op)
    aq_transport_drop(op)
    aq_free(op)


cdef int _flow_clear(PyObject *op) noexcept:
    aq_flow_drop(op)
    return 0


cdef void _flow_dealloc(PyObject *op) noexcept:
    PyObject_GC_UnTrack(op)
    aq_flow_drop(op)
    aq_free(op)


cdef object _make(bytes name, tuple parents, Py_ssize_t size, void *dealloc,
                  void *traverse, void *clear, void *new=NULL):
    cdef PyType_Slot slots[5]
    cdef PyType_Spec spec
    base = parents[0]
    if base.__basicsize__ > size:
        raise ImportError(
            f"{base.__name__} of this Python has {base.__basicsize__} bytes, more than "
            f"the {size} that aioqemu knows of")
    slots[0].slot = Py_tp_dealloc
    slots[0].pfunc = dealloc
    slots[1].slot = Py_tp_traverse
    slots[1].pfunc = traverse
    slots[2].slot = Py_tp_clear
    slots[2].pfunc = clear
    slots[3].slot = Py_tp_new if new != NULL else 0
    slots[3].pfunc = new
    slots[4].slot = 0
    slots[4].pfunc = NULL
    spec.name = name
    spec.basicsize = <int>size
    spec.itemsize = 0
    spec.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC
    spec.slots = slots
    return PyType_FromSpecWithBases(&spec, parents)


cdef object _handle(bytes name, object base, Py_ssize_t slots, Py_ssize_t size):
    if base.__basicsize__ > slots:
        raise ImportError(f"{base.__name__} has more slots than aioqemu knows of")
    return _make(name, (base,), size, <void *>_handle_dealloc,
                 <void *>aq_handle_traverse, <void *>_handle_clear)


cdef object _transport(bytes name, tuple parents):
    if asyncio.BaseTransport.__basicsize__ != sizeof(AqTransportObject):
        raise ImportError("asyncio.BaseTransport has slots that aioqemu does not know of")
    return _make(name, parents, sizeof(AqTransportObject), <void *>_transport_dealloc,
                 <void *>aq_transport_traverse, <void *>_transport_clear)


cdef object _flow(bytes name):
    if _FlowControlMixin.__basicsize__ != sizeof(AqFlowTransportObject):
        raise ImportError("_FlowControlMixin has slots that aioqemu does not know of")
    return _make(name, (_FlowControlMixin,), sizeof(AqFlowTransportObject),
                 <void *>_flow_dealloc, <void *>aq_flow_traverse, <void *>_flow_clear)
cdef int _nothing_traverse(PyObject *op, visitproc visit, void *arg) noexcept:
    return 0


cdef int _nothing_clear(PyObject *op) noexcept:
    return 0


cdef void _nothing_dealloc(PyObject *op) noexcept:
    PyObject_GC_UnTrack(op)
    aq_free(op)


cdef object _protocol(bytes name, tuple parents):
    if parents[0].__basicsize__ != object.__basicsize__:
        raise ImportError(
            f"{parents[0].__name__} has slots that aioqemu does not know of")
    return _make(name, parents, object.__basicsize__, <void *>_nothing_dealloc,
                 <void *>_nothing_traverse, <void *>_nothing_clear, <void *>aq_new)


cdef extern from *:
    """
    /* Where the slots of each class end. */
    #define AQ_HANDLE_SLOTS ((Py_ssize_t)offsetof(AqHandleObject, loop))
    #define AQ_TIMER_SLOTS ((Py_ssize_t)offsetof(AqHandleObject, nargs))
    """
    Py_ssize_t AQ_HANDLE_SLOTS
    Py_ssize_t AQ_TIMER_SLOTS

# The names end in static storage: older Pythons keep the pointer.
cdef bytes _N1 = b"aioqemu._loop.bases.HandleBase"
cdef bytes _N2 = b"aioqemu._loop.bases.TimerHandleBase"
cdef bytes _N3 = b"aioqemu._loop.bases.TransportBase"
cdef bytes _N4 = b"aioqemu._loop.bases.DatagramTransportBase"
cdef bytes _N5 = b"aioqemu._loop.bases.ReadTransportBase"
cdef bytes _N6 = b"aioqemu._loop.bases.WriteTransportBase"
cdef bytes _N7 = b"aioqemu._loop.bases.FlowTransportBase"
cdef bytes _N8 = b"aioqemu._loop.bases.ProtocolBase"

HandleBase = _handle(_N1, asyncio.Handle, AQ_HANDLE_SLOTS, sizeof(AqHandleObject))
TimerHandleBase = _handle(
    _N2, asyncio.TimerHandle, AQ_TIMER_SLOTS, sizeof(AqTimerObject))
TransportBase = _transport(_N3, (asyncio.Transport,))
# asyncio's datagram transports are Transports as well, and programs check for it.
DatagramTransportBase = _transport(
    _N4, (asyncio.Transport, asyncio.DatagramTransport))
ReadTransportBase = _transport(_N5, (asyncio.ReadTransport,))
WriteTransportBase = _transport(_N6, (asyncio.WriteTransport,))
# TLS transports: asyncio's sendfile() and others ask for this mixin.
FlowTransportBase = _flow(_N7)
ProtocolBase = _protocol(_N8, (asyncio.Protocol,))
