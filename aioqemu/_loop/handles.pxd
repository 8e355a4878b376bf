"""Handle and TimerHandle: callbacks with up to three arguments kept inline.

GIL held, any thread.  Handles are reused: `new_handle` and `new_timer_handle` are the only
ways to make one.
"""

from cpython.object cimport PyObject

from aioqemu._loop.contexts cimport aq_context_count
from aioqemu._loop.contexts cimport aq_context_vars
from aioqemu._loop.contexts cimport context_borrow
from aioqemu._loop.contexts cimport context_put
from aioqemu._loop.contexts cimport context_return
from aioqemu._loop.layouts cimport AqHandleObject
from aioqemu._loop.shims cimport HandleBase
from aioqemu._loop.shims cimport TimerHandleBase

cdef enum:
    HANDLE_CANCELLED = 1
    HANDLE_RUNNING = 2     # its callback is on the stack: cancel() keeps the fields
    HANDLE_TIMER = 4       # a TimerHandle
    HANDLE_SHARED = 8      # of call_soon_threadsafe: other threads wait for its end
    HANDLE_AWAITED = 16    # such a thread waits now
    HANDLE_LENT = 32       # its context may be others' too, and is not entered

cdef class Handle(HandleBase):
    pass

cdef class TimerHandle(TimerHandleBase):
    pass

# `args` is for more than three arguments, else a, b, c as far as they are not NULL.
# A context of NULL: a copy of the current one.  All references are taken, none stolen.
# The collector does not know a new Handle, nor does it while the ready queue has it: it
# would look at thousands of them again and again, for no end, as what is queued is no
# garbage.  Who keeps it elsewhere calls handle_track().
cdef Handle new_handle(object loop, object callback, PyObject *a, PyObject *b,
                       PyObject *c, tuple args, object context)
# The same for up to three arguments that lie in a row, without a reference counted twice:
# what every step of a task takes.  A new reference.
cdef PyObject *take_handle(PyObject *loop, PyObject *callback, PyObject *const *args,
                           Py_ssize_t n, PyObject *context) except NULL
cdef TimerHandle new_timer_handle(object loop, object callback, tuple args,
                                  object context, double when)
cdef void handle_track(PyObject *handle) noexcept
cdef tuple handle_args(AqHandleObject *h)
# Wakes the threads that wait for the end of a callback.  No exception may be set.
cdef void handle_ended(AqHandleObject *h) noexcept
# The context that the callback was entered in stays the handle's; takes `shared`.
cdef void handle_keep(AqHandleObject *h, PyObject *shared) noexcept
# What handle_call() does when the callback has raised, or has not left its context as it
# was; -1, with that set.  Takes `result`.
cdef int handle_raised(AqHandleObject *h, PyObject *shared, PyObject *result) noexcept

cdef extern from "Python.h":
    int PyContext_Enter(PyObject *)
    int PyContext_Exit(PyObject *)
    PyObject *PyObject_Vectorcall(PyObject *, PyObject **, size_t, PyObject *)
    PyObject *PyObject_Call(PyObject *, PyObject *, PyObject *)
    size_t PY_VECTORCALL_ARGUMENTS_OFFSET
    void aq_drop "Py_DECREF" (PyObject *)      # the macro, on a pointer
    Py_ssize_t Py_REFCNT(PyObject *)


# Drop the ready queue's reference; should anybody else have one, the collector must know.
cdef inline void handle_leave(PyObject *handle) noexcept:
    if Py_REFCNT(handle) > 1:
        handle_track(handle)
    aq_drop(handle)


# The callback has left, and without an error, the context that it was entered in for
# `shared`.
cdef inline void handle_restore(AqHandleObject *h, PyObject *shared) noexcept:
    cdef PyObject *entered = h.context
    if (h.flags & HANDLE_LENT and aq_context_vars(entered) == aq_context_vars(shared)
            and aq_context_count(entered) == 1 + (entered == shared)):
        h.context = shared
        context_return(entered)
    else:
        # Somebody has asked for it, it says something else now, or somebody has it, as
        # a token has.
        handle_keep(h, shared)


# Call it in its context.  0, or -1 with what it raised set; inline, because it is the
# one step that every callback takes.  The caller keeps the handle alive.
cdef inline int handle_call(AqHandleObject *h) noexcept:
    cdef PyObject *result
    cdef PyObject *args[4]
    cdef PyObject *shared = NULL
    cdef PyObject *entered
    if h.callback == NULL:
        return 0
    if h.flags & HANDLE_LENT:
        shared = h.context
        entered = context_borrow(shared)
        if entered == NULL:
            return -1
        if h.flags & HANDLE_LENT:
            h.context = entered
        else:                   # a finalizer has asked for it meanwhile
            context_put(entered)
            shared = NULL
    if PyContext_Enter(h.context) < 0:
        if shared != NULL:
            handle_keep(h, shared)
        return -1
    h.flags |= HANDLE_RUNNING
    if h.nargs <= 3:
        # On the stack there is a place before the first argument, which the callee may
        # write to: a bound method puts its self there.
        args[1] = h.a0
        args[2] = h.a1
        args[3] = h.a2
        result = PyObject_Vectorcall(
            h.callback, args + 1, h.nargs | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL)
    else:
        result = PyObject_Call(h.callback, h.a0, NULL)
    if result != NULL and PyContext_Exit(h.context) == 0:
        # From here on nothing runs before the handle has its context again.
        h.flags &= ~<unsigned int>HANDLE_RUNNING
        if shared != NULL:
            handle_restore(h, shared)
        aq_drop(result)
        if h.flags & HANDLE_AWAITED:
            handle_ended(h)
        return 0
    return handle_raised(h, shared, result)
