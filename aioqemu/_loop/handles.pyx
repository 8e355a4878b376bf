"""Handle and TimerHandle.  Contract in handles.pxd, layout in layouts.pxd.

Knows no loop: a handle keeps its loop only to hand it out and to ask for debug mode.
Both classes have a free list of their own (Cython's are not for subtypes), so they
deallocate by hand.
"""

import threading

from cpython.object cimport PyObject
from cpython.object cimport PyTypeObject
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport Py_DECREF
from cpython.ref cimport Py_INCREF
from cpython.ref cimport Py_XDECREF
from cpython.ref cimport Py_XINCREF
from libc.stdint cimport uint32_t

from aioqemu._engine.timers cimport TimerHeap
from aioqemu._engine.types cimport TIMER_IDLE
from aioqemu._loop.contexts cimport context_copy
from aioqemu._loop.contexts cimport context_put
from aioqemu._loop.contexts cimport context_take
from aioqemu._loop.contexts cimport pristine
from aioqemu._loop.layouts cimport AqHandleObject
from aioqemu._loop.layouts cimport AqTimerObject

cdef extern from "Python.h":
    bint PyContext_CheckExact(object)
    void PyErr_Clear()
    void PyErr_Fetch(PyObject **, PyObject **, PyObject **)
    void PyErr_Restore(PyObject *, PyObject *, PyObject *)
    PyObject *PyObject_Init(PyObject *, PyTypeObject *)
    void PyObject_GC_Track(void *)
    void PyObject_GC_UnTrack(void *)
    bint PyObject_GC_IsTracked(PyObject *)

cdef extern from *:
    """
    static inline void aq_h_free(PyObject *op) { Py_TYPE(op)->tp_free(op); }
    static inline int aq_h_exact(PyObject *op, PyTypeObject *t)
    { return Py_TYPE(op) == t; }
    static inline void aq_h_drop(PyObject *op)
    {
        AqHandleObject *h = (AqHandleObject *)op;
        PyObject *t;
        t = h->callback; h->callback = NULL; Py_XDECREF(t);
        t = h->loop; h->loop = NULL; Py_XDECREF(t);
        if (h->nargs) {
            t = h->a0; h->a0 = NULL; Py_XDECREF(t);
            t = h->a1; h->a1 = NULL; Py_XDECREF(t);
            t = h->a2; h->a2 = NULL; Py_XDECREF(t);
        }
        Py_CLEAR(h->traceback);
        Py_CLEAR(h->text);
    }
    /* A handle that is empty, untracked and nobody else's yet; steals `context`. */
    static inline void aq_h_fill(PyObject *op, PyObject *loop, PyObject *callback,
                                 PyObject *const *args, Py_ssize_t n, PyObject *context,
                                 uint32_t flags)
    {
        AqHandleObject *h = (AqHandleObject *)op;
        h->callback = Py_NewRef(callback);
        h->context = context;
        h->loop = Py_NewRef(loop);
        h->nargs = (uint32_t)n;
        h->flags = flags;
        if (n > 0) {
            h->a0 = Py_NewRef(args[0]);
            if (n > 1) {
                h->a1 = Py_NewRef(args[1]);
                if (n > 2)
                    h->a2 = Py_NewRef(args[2]);
            }
        }
    }
    /* Weak references to handles are that rare: look before calling. */
    static inline void aq_h_forget_weak(PyObject *op)
    {
        if (*(PyObject **)((char *)op + Py_TYPE(op)->tp_weaklistoffset))
            PyObject_ClearWeakRefs(op);
    }
    static inline void aq_set_dealloc(PyTypeObject *t, destructor d)
    { t->tp_dealloc = d; }
    """
    void aq_h_free(PyObject *op)
    bint aq_h_exact(PyObject *op, PyTypeObject *t)
    void aq_h_drop(PyObject *op)
    void aq_h_fill(PyObject *op, PyObject *loop, PyObject *callback,
                   PyObject *const *args, Py_ssize_t n, PyObject *context, uint32_t flags)
    void aq_h_forget_weak(PyObject *op)
    ctypedef void (*destructor)(PyObject *) noexcept
    void aq_set_dealloc(PyTypeObject *t, destructor d)

cdef enum:
    FREE_MAX = 1024

cdef PyObject *free_handles[FREE_MAX]
cdef Py_ssize_t n_free_handles = 0
cdef PyObject *free_timers[FREE_MAX]
cdef Py_ssize_t n_free_timers = 0

# Set after the classes exist; what the inline checks compare with.
cdef PyTypeObject *HANDLE_TYPE = NULL
cdef PyTypeObject *TIMER_TYPE = NULL

# For threads that wait for the end of a callback: one for all, they are that rare.
cdef object _ended = threading.Condition()


cdef inline void _drop(PyObject *op) noexcept:
    cdef AqHandleObject *h = <AqHandleObject *>op
    cdef PyObject *context = h.context
    h.context = NULL
    if h.flags & HANDLE_LENT and context != NULL:
        context_put(context)
    else:
        Py_XDECREF(context)
    aq_h_drop(op)


cdef void _dealloc_handle(PyObject *op) noexcept:
    global n_free_handles
    PyObject_GC_UnTrack(op)
    aq_h_forget_weak(op)
    _drop(op)
    if n_free_handles < FREE_MAX and aq_h_exact(op, HANDLE_TYPE):
        free_handles[n_free_handles] = op
        n_free_handles += 1
    else:
        aq_h_free(op)


cdef void _dealloc_timer(PyObject *op) noexcept:
    # Not armed: an armed timer is referenced by its heap.
    global n_free_timers
    cdef PyObject *heap
    PyObject_GC_UnTrack(op)
    aq_h_forget_weak(op)
    _drop(op)
    heap = (<AqHandleObject *>op).heap
    (<AqHandleObject *>op).heap = NULL
    Py_XDECREF(heap)
    if n_free_timers < FREE_MAX and aq_h_exact(op, TIMER_TYPE):
        free_timers[n_free_timers] = op
        n_free_timers += 1
    else:
        aq_h_free(op)


cdef class Handle(HandleBase):
    """A scheduled callback, as `loop.call_soon` returns it (`asyncio.Handle`)."""

    def __init__(self):
        raise TypeError("handles are made by the loop")

    def cancel(self):
        """Do not call the callback.  Twice, or after the call, does nothing more.

        From Python 3.14 on, for a handle of `call_soon_threadsafe`: in a thread other
        than the loop's it waits until a callback that has begun is done.
        """
        _wait_for_end(self)
        _cancel(self)

    def cancelled(self):
        """Whether `cancel` was called.  Waits as `cancel` does."""
        _wait_for_end(self)
        return (<AqHandleObject *>self).flags & HANDLE_CANCELLED != 0

    def get_context(self):
        """The `contextvars.Context` that the callback runs in."""
        return _own_context(<AqHandleObject *><PyObject *>self)

    def _run(self):
        _run_reporting(self)

    @property
    def _cancelled(self):
        return (<AqHandleObject *>self).flags & HANDLE_CANCELLED != 0

    @property
    def _callback(self):
        return _borrowed((<AqHandleObject *>self).callback)

    @property
    def _args(self):
        return handle_args(<AqHandleObject *>self)

    @property
    def _context(self):
        return _own_context(<AqHandleObject *><PyObject *>self)

    @property
    def _loop(self):
        return _borrowed((<AqHandleObject *>self).loop)

    @property
    def _repr(self):
        return _borrowed((<AqHandleObject *>self).text)

    @property
    def _source_traceback(self):
        return _borrowed((<AqHandleObject *>self).traceback)

    @_source_traceback.setter
    def _source_traceback(self, value):
        _set_traceback(<AqHandleObject *>self, value)


cdef class TimerHandle(TimerHandleBase):
    """A callback with a time, as `loop.call_at` returns it (`asyncio.TimerHandle`)."""

    def __init__(self):
        raise TypeError("handles are made by the loop")

    def cancel(self):
        """Do not call the callback; the timer leaves the heap at once."""
        cdef PyObject *heap = _timer(self).handle.heap
        if heap != NULL:
            (<TimerHeap>heap).disarm(&_timer(self).timer)
        _cancel(self)

    def cancelled(self):
        """Whether `cancel` was called."""
        return (<AqHandleObject *>self).flags & HANDLE_CANCELLED != 0

    def get_context(self):
        """The `contextvars.Context` that the callback runs in."""
        return _own_context(<AqHandleObject *><PyObject *>self)

    def when(self):
        """When the callback is due, in seconds of `loop.time()`."""
        return _timer(self).when

    def _run(self):
        _run_reporting(self)

    @property
    def _when(self):
        return _timer(self).when

    @property
    def _scheduled(self):
        cdef PyObject *heap = _timer(self).handle.heap
        return heap != NULL and (<TimerHeap>heap).holds(&_timer(self).timer)

    @property
    def _cancelled(self):
        return (<AqHandleObject *>self).flags & HANDLE_CANCELLED != 0

    @property
    def _callback(self):
        return _borrowed((<AqHandleObject *>self).callback)

    @property
    def _args(self):
        return handle_args(<AqHandleObject *>self)

    @property
    def _context(self):
        return _own_context(<AqHandleObject *><PyObject *>self)

    @property
    def _loop(self):
        return _borrowed((<AqHandleObject *>self).loop)

    @property
    def _repr(self):
        return _borrowed((<AqHandleObject *>self).text)

    @property
    def _source_traceback(self):
        return _borrowed((<AqHandleObject *>self).traceback)

    @_source_traceback.setter
    def _source_traceback(self, value):
        _set_traceback(<AqHandleObject *>self, value)


cdef inline AqTimerObject *_timer(object handle) noexcept:
    return <AqTimerObject *><PyObject *>handle


cdef inline object _borrowed(PyObject *op):
    return None if op == NULL else <object>op


cdef object _own_context(AqHandleObject *h):
    """The context that programs see: no other handle's, from now on."""
    cdef PyObject *copy
    cdef PyObject *shared = h.context
    if h.flags & HANDLE_LENT and shared != NULL:        # the collector clears it
        if h.flags & HANDLE_RUNNING:
            h.flags &= ~<unsigned int>HANDLE_LENT       # handle_call() sees it
        else:
            copy = context_copy(shared)
            if h.flags & HANDLE_LENT and h.context == shared:
                h.context = copy
                h.flags &= ~<unsigned int>HANDLE_LENT
                context_put(shared)
            else:               # a finalizer has asked for it meanwhile
                Py_DECREF(<object>copy)
    return _borrowed(h.context)


cdef int _set_traceback(AqHandleObject *h, object value) except -1:
    cdef PyObject *old = h.traceback
    if value is None:
        h.traceback = NULL
    else:
        Py_INCREF(value)
        h.traceback = <PyObject *>value
    Py_XDECREF(old)
    return 0


cdef int _wait_for_end(object handle) except -1:
    cdef AqHandleObject *h = <AqHandleObject *><PyObject *>handle
    if h.flags & HANDLE_SHARED == 0 or h.flags & HANDLE_RUNNING == 0:
        return 0
    if (<object>h.loop)._thread_id == PyThread_get_thread_ident():
        return 0        # its callback asks about itself
    with _ended:
        while h.flags & HANDLE_RUNNING:
            # Said anew each time: whoever ends a callback takes the mark away.
            h.flags |= HANDLE_AWAITED
            _ended.wait()
    return 0


cdef void handle_ended(AqHandleObject *h) noexcept:
    h.flags &= ~<unsigned int>HANDLE_AWAITED
    with _ended:
        _ended.notify_all()


cdef void handle_keep(AqHandleObject *h, PyObject *shared) noexcept:
    h.flags &= ~<unsigned int>HANDLE_LENT
    context_put(shared)


cdef int handle_raised(AqHandleObject *h, PyObject *shared, PyObject *result) noexcept:
    cdef PyObject *t = NULL
    cdef PyObject *v = NULL
    cdef PyObject *tb = NULL
    PyErr_Fetch(&t, &v, &tb)
    if result == NULL and PyContext_Exit(h.context) < 0:
        PyErr_Clear()           # what the callback raised says more
    h.flags &= ~<unsigned int>HANDLE_RUNNING
    if shared != NULL:
        handle_keep(h, shared)      # reports are made in it
    Py_XDECREF(result)
    if h.flags & HANDLE_AWAITED:
        handle_ended(h)
    PyErr_Restore(t, v, tb)
    return -1


cdef int _cancel(object handle) except -1:
    cdef PyObject *old
    cdef AqHandleObject *h = <AqHandleObject *><PyObject *>handle
    if h.flags & HANDLE_CANCELLED:
        return 0
    h.flags |= HANDLE_CANCELLED
    if h.traceback != NULL and h.text == NULL:
        # Debug mode: reports still want to say what it was.
        text = repr(handle)
        Py_INCREF(text)
        h.text = <PyObject *>text
    if h.flags & HANDLE_RUNNING:
        return 0        # what is on the stack needs its callback and arguments
    # The references go at once, as the stock handle lets them go.
    old = h.callback
    h.callback = NULL
    Py_XDECREF(old)
    if h.nargs:
        h.nargs = 0
        old = h.a0
        h.a0 = NULL
        Py_XDECREF(old)
        old = h.a1
        h.a1 = NULL
        Py_XDECREF(old)
        old = h.a2
        h.a2 = NULL
        Py_XDECREF(old)
    return 0


cdef void handle_track(PyObject *op) noexcept:
    if not PyObject_GC_IsTracked(op):
        PyObject_GC_Track(op)


cdef tuple handle_args(AqHandleObject *h):
    if h.callback == NULL:
        return None
    if h.nargs == 0:
        return ()
    if h.nargs == 1:
        return (<object>h.a0,)
    if h.nargs == 2:
        return (<object>h.a0, <object>h.a1)
    if h.nargs == 3:
        return (<object>h.a0, <object>h.a1, <object>h.a2)
    return <tuple>h.a0


cdef int _run_reporting(object handle) except -1:
    # Only for code that calls the private method; the loop has its own way.
    cdef AqHandleObject *h = <AqHandleObject *><PyObject *>handle
    _own_context(h)         # who calls it again is in the same one again
    if handle_call(h) == 0:
        return 0
    try:
        _raise_current()
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as exc:
        (<object>h.loop).call_exception_handler({
            "message": f"Exception in callback {<object>h.callback!r}",
            "exception": exc,
            "handle": handle,
        })
    return 0


cdef int _raise_current() except -1:
    return -1       # the exception is set already


cdef int _fill(AqHandleObject *h, object loop, object callback, PyObject *a, PyObject *b,
               PyObject *c, tuple args, object context) except -1:
    cdef PyObject *ctx
    if context is None:
        ctx = context_take()
        if ctx == pristine:
            h.flags |= HANDLE_LENT
    else:
        ctx = <PyObject *>context
        Py_INCREF(context)
    h.context = ctx
    Py_INCREF(callback)
    h.callback = <PyObject *>callback
    Py_INCREF(loop)
    h.loop = <PyObject *>loop
    if a == NULL:
        if args is None:
            h.nargs = 0
        else:
            h.nargs = <unsigned int>len(args) + 4   # told from inline ones by being > 3
            Py_INCREF(args)
            h.a0 = <PyObject *>args
    else:
        Py_XINCREF(a)
        h.a0 = a
        h.nargs = 1
        if b != NULL:
            Py_XINCREF(b)
            h.a1 = b
            h.nargs = 2
            if c != NULL:
                Py_XINCREF(c)
                h.a2 = c
                h.nargs = 3
    return 0


cdef Handle new_handle(object loop, object callback, PyObject *a, PyObject *b,
                       PyObject *c, tuple args, object context):
    global n_free_handles
    cdef Handle handle
    cdef PyObject *op
    if context is not None and not PyContext_CheckExact(context):
        raise TypeError(f"a contextvars.Context is expected, got {context!r}")
    if n_free_handles:
        n_free_handles -= 1
        op = PyObject_Init(free_handles[n_free_handles], HANDLE_TYPE)
        (<AqHandleObject *>op).flags = 0
        (<AqHandleObject *>op).nargs = 0
        handle = <Handle>op
        Py_DECREF(handle)    # PyObject_Init gave one reference, the cast took another
    else:
        handle = Handle.__new__(Handle)
        PyObject_GC_UnTrack(<void *>handle)
    _fill(<AqHandleObject *><PyObject *>handle, loop, callback, a, b, c, args, context)
    return handle


cdef PyObject *take_handle(PyObject *loop, PyObject *callback, PyObject *const *args,
                           Py_ssize_t n, PyObject *context) except NULL:
    global n_free_handles
    cdef Handle handle
    cdef PyObject *op
    cdef PyObject *ctx
    cdef uint32_t flags = 0
    if n_free_handles == 0 or (
            context != <PyObject *>None and not PyContext_CheckExact(<object>context)):
        handle = new_handle(
            <object>loop, <object>callback,
            args[0] if n > 0 else NULL,
            args[1] if n > 1 else NULL,
            args[2] if n > 2 else NULL,
            None, <object>context)
        Py_INCREF(handle)
        return <PyObject *>handle
    if context == <PyObject *>None:
        ctx = context_take()
        if ctx == pristine:
            flags = HANDLE_LENT
        if n_free_handles == 0:     # other code has run meanwhile
            Py_DECREF(<object>ctx)
            return take_handle(loop, callback, args, n, context)
    else:
        ctx = context
        Py_INCREF(<object>ctx)
    n_free_handles -= 1
    op = PyObject_Init(free_handles[n_free_handles], HANDLE_TYPE)
    aq_h_fill(op, loop, callback, args, n, ctx, flags)
    return op


cdef TimerHandle new_timer_handle(object loop, object callback, tuple args,
                                  object context, double when):
    global n_free_timers
    cdef TimerHandle handle
    cdef PyObject *op
    cdef Py_ssize_t n = len(args)
    cdef PyObject *a = NULL
    cdef PyObject *b = NULL
    cdef PyObject *c = NULL
    if context is not None and not PyContext_CheckExact(context):
        raise TypeError(f"a contextvars.Context is expected, got {context!r}")
    if n_free_timers:
        n_free_timers -= 1
        op = PyObject_Init(free_timers[n_free_timers], TIMER_TYPE)
        (<AqHandleObject *>op).nargs = 0
        PyObject_GC_Track(op)
        handle = <TimerHandle>op
        Py_DECREF(handle)
    else:
        handle = TimerHandle.__new__(TimerHandle)
    (<AqHandleObject *><PyObject *>handle).flags = HANDLE_TIMER
    _timer(handle).timer.index = TIMER_IDLE
    _timer(handle).timer.cb = NULL         # when due, it is queued
    _timer(handle).timer.opaque = <void *>handle
    _timer(handle).when = when
    if n:
        if n <= 3:
            a = <PyObject *>args[0]
            if n > 1:
                b = <PyObject *>args[1]
            if n > 2:
                c = <PyObject *>args[2]
            args = None
    else:
        args = None
    _fill(<AqHandleObject *><PyObject *>handle, loop, callback, a, b, c, args, context)
    return handle


HANDLE_TYPE = <PyTypeObject *>Handle
TIMER_TYPE = <PyTypeObject *>TimerHandle
aq_set_dealloc(HANDLE_TYPE, _dealloc_handle)
aq_set_dealloc(TIMER_TYPE, _dealloc_timer)
