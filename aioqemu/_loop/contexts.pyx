"""What callbacks are lent as their context.  Contract in contexts.pxd."""

import contextvars

from cpython.object cimport PyObject

cdef extern from "Python.h":
    PyObject *PyContext_CopyCurrent() except NULL
    PyObject *PyContext_Copy(PyObject *)

cdef extern from *:
    """
    static inline int aq_context_fits(void)
    { return PyContext_Type.tp_basicsize >= (Py_ssize_t)sizeof(AqContextObject); }
    """
    bint aq_context_fits()

pristine = NULL
working = NULL
cdef int running = 0        # loops that do
cdef bint known = False     # the layout, as contexts.pxd has it


cdef bint _layout_is_known() except -1:
    cdef PyObject *before
    variable = contextvars.ContextVar("aioqemu")
    first = contextvars.copy_context()
    if not aq_context_fits():
        return False
    first.run(variable.set, 1)
    second = first.copy()
    before = aq_context_vars(<PyObject *>first)
    if before == NULL or aq_context_vars(<PyObject *>second) != before:
        return False

    def inside():
        # The current one is the one that was entered.
        return aq_context_current() == <PyObject *>second

    if not second.run(inside) or aq_context_vars(<PyObject *>second) != before:
        return False
    second.run(variable.set, 2)
    return (aq_context_vars(<PyObject *>second) != before
            and aq_context_vars(<PyObject *>first) == before)


cdef void context_forget() noexcept:
    global pristine, working
    cdef PyObject *first = pristine
    cdef PyObject *second = working
    pristine = working = NULL
    aq_context_drop(first)
    aq_context_drop(second)


cdef void context_runs(int change) noexcept:
    global running
    running += change
    if running == 0:
        context_forget()


cdef PyObject *context_new() except NULL:
    global pristine, working
    cdef PyObject *current = aq_context_current()
    cdef PyObject *op = working
    cdef PyObject *old
    if (op != NULL and current != NULL
            and aq_context_vars(op) == aq_context_vars(current)
            and aq_context_count(op) == 1):
        # Nobody has it, and what it says is what a copy would say.
        working = NULL
    else:
        op = PyContext_CopyCurrent()
        if not known:
            return op
    old = pristine
    pristine = NULL
    aq_context_drop(old)
    if pristine == NULL:        # what went with the old one has put none there
        aq_context_hold(op)
        pristine = op
    return op


cdef PyObject *context_another(PyObject *shared) except NULL:
    global pristine
    if shared == pristine:
        if aq_context_count(shared) == 2:
            # Only its handle has it but for us: no copy is needed.
            pristine = NULL
            return shared
    elif aq_context_count(shared) == 1:
        aq_context_hold(shared)
        return shared
    return context_copy(shared)


cdef PyObject *context_copy(PyObject *shared) except NULL:
    cdef PyObject *copy
    aq_context_hold(shared)
    copy = PyContext_Copy(shared)
    context_put(shared)
    return copy


cdef void context_put(PyObject *shared) noexcept:
    if running == 0 and shared == pristine and aq_context_count(shared) == 2:
        context_forget()
    aq_context_drop(shared)


known = _layout_is_known()
