"""One copy of the context for all callbacks that are scheduled in it; GIL held, any thread.

asyncio copies the current context for each callback, and few callbacks set a variable.
So a copy that nobody enters, `pristine`, is lent to the handles that are made as long as
the variables are the same, and another, `working`, is entered for one callback after the
other.  It serves again if its variables are those of the copy lent and nobody else has a
reference; a callback that sets a variable, or whose token outlives it, has it for good.
Who asks a handle for its context gets one that is the handle's own.

They do not keep values alive in a process at rest: unless they say what the context says
that the loop runs in, they are let go before the loop sleeps; in any case when the last
loop stops; and, while none runs, with the last handle.
"""

from cpython.object cimport PyObject

cdef extern from *:
    """
    #ifndef AQ_CONTEXTS
    #define AQ_CONTEXTS
    /* As CPython lays them out from 3.11 to 3.15; contexts.pyx tries it out before anything
     * is lent.  Only compared: two contexts with one `vars` have the same variables, since
     * that mapping is never written to. */
    typedef struct {
        PyObject_HEAD
        PyObject *prev;
        PyObject *vars;
    } AqContextObject;
    #define aq_context_vars(op) (((AqContextObject *)(op))->vars)
    #if PY_VERSION_HEX >= 0x030D0000
    #define aq_context_current() (PyThreadState_GetUnchecked()->context)
    #else
    #define aq_context_current() (_PyThreadState_UncheckedGet()->context)
    #endif
    #endif
    """
    PyObject *aq_context_vars(PyObject *context)
    PyObject *aq_context_current()      # borrowed; NULL in a thread that has had none

cdef extern from "Python.h":
    void aq_context_hold "Py_INCREF" (PyObject *)       # the macros, on a pointer
    void aq_context_drop "Py_XDECREF" (PyObject *)
    Py_ssize_t aq_context_count "Py_REFCNT" (PyObject *)

cdef PyObject *pristine
cdef PyObject *working

# A loop of this process begins, or ends, to run.
cdef void context_runs(int change) noexcept
# Let both go; their variables may take anything with them.
cdef void context_forget() noexcept
# A new copy of the current context, which is `pristine` now if others may have it too.
cdef PyObject *context_new() except NULL
# One to enter for a callback that is lent `shared` and cannot have `working`.
cdef PyObject *context_another(PyObject *shared) except NULL
# A copy of one that was lent.  The collector may run, and who lent it may give it back.
cdef PyObject *context_copy(PyObject *shared) except NULL
# Give up a reference to a copy that was lent.
cdef void context_put(PyObject *shared) noexcept


# Whether they keep what would be gone otherwise: variables that are not those of the
# context that the loop runs in, which the caller is in now.
cdef inline bint context_stale() noexcept:
    cdef PyObject *current
    if pristine == NULL and working == NULL:
        return False
    current = aq_context_current()
    return (current == NULL
            or pristine != NULL and aq_context_vars(pristine) != aq_context_vars(current)
            or working != NULL and aq_context_vars(working) != aq_context_vars(current))


# The context of a new handle: a new reference.  It is lent if it is `pristine`.
cdef inline PyObject *context_take() except NULL:
    cdef PyObject *current
    cdef PyObject *op = pristine
    if op != NULL:
        current = aq_context_current()
        if current != NULL and aq_context_vars(current) == aq_context_vars(op):
            aq_context_hold(op)
            return op
    return context_new()


# One to enter for a callback that is lent `shared`.  A new reference.
cdef inline PyObject *context_borrow(PyObject *shared) except NULL:
    global working
    cdef PyObject *op = working
    if (op != NULL and aq_context_vars(op) == aq_context_vars(shared)
            and aq_context_count(op) == 1):
        working = NULL
        return op
    return context_another(shared)


# The callback has ended and has set nothing.  Takes the reference.
cdef inline void context_return(PyObject *entered) noexcept:
    global working
    cdef PyObject *old = working
    if pristine == NULL or aq_context_vars(pristine) == aq_context_vars(entered):
        working = entered
        aq_context_drop(old)
    else:
        aq_context_drop(entered)
