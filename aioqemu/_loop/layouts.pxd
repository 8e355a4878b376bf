"""The layout of handles and transports, as bases.pyx makes their types."""

from cpython.object cimport PyObject
from libc.stdint cimport uint32_t

from aioqemu._engine.types cimport AioTimer

cdef extern from *:
    """
    #ifndef AQ_SHIMS
    #define AQ_SHIMS
    #include <stdint.h>
    /* The first nine words lie over the seven of asyncio.Handle's slots and the two of
     * TimerHandle's (in Python 3.11 with the weak references between them).  So only
     * objects or NULL may stand there: asyncio's own descriptors can read them. */
    typedef struct {
        PyObject_HEAD
        PyObject *callback;   /* NULL once cancelled */
        PyObject *context;
        PyObject *a0;         /* or the tuple of the arguments, if nargs > 3 */
        PyObject *a1;
        PyObject *a2;
        PyObject *traceback;  /* where it was made, in debug mode; else NULL */
        PyObject *text;       /* repr of before it was cancelled, in debug mode */
    #if PY_VERSION_HEX < 0x030C0000
        PyObject *weak;       /* the interpreter's, which looks for it here */
    #endif
        PyObject *loop;
        PyObject *heap;       /* the TimerHeap that a timer is, or was, armed in; or NULL */
        uint32_t nargs;
        uint32_t flags;
    } AqHandleObject;
    typedef struct {
        AqHandleObject handle;
        AioTimer timer;
        double when;          /* seconds of loop.time() */
    } AqTimerObject;
    typedef struct {
        PyObject_HEAD
        PyObject *extra;      /* the slot _extra: a dict */
    } AqTransportObject;
    typedef struct {
        AqTransportObject transport;
        PyObject *slots[4];   /* of asyncio's _FlowControlMixin, which stay unused */
    } AqFlowTransportObject;
    #endif
    """
    ctypedef struct AqHandleObject:
        PyObject *callback
        PyObject *context
        PyObject *a0
        PyObject *a1
        PyObject *a2
        PyObject *traceback
        PyObject *text
        PyObject *loop
        PyObject *heap
        uint32_t nargs
        uint32_t flags
    ctypedef struct AqTimerObject:
        AqHandleObject handle
        AioTimer timer
        double when
    ctypedef struct AqTransportObject:
        PyObject *extra
    ctypedef struct AqFlowTransportObject:
        AqTransportObject transport
        PyObject *slots[4]
