"""How a native iterator ends: with a value, as `return value` of a generator does."""

from cpython.object cimport PyObject
from cpython.object cimport PyTypeObject

cdef extern from *:
    """
    #ifndef AQ_ITERATORS
    #define AQ_ITERATORS
    /* Cheaper than `raise StopIteration(value)`, which makes a traceback. */
    static inline int aq_stop_iteration(PyObject *value)
    {
        PyObject *exc;

        if (PyTuple_Check(value) || PyExceptionInstance_Check(value)) {
            /* would be taken for arguments, or for the exception itself */
            exc = PyObject_CallOneArg(PyExc_StopIteration, value);
            if (exc != NULL) {
                PyErr_SetObject(PyExc_StopIteration, exc);
                Py_DECREF(exc);
            }
        } else {
            PyErr_SetObject(PyExc_StopIteration, value);
        }
        return 0;
    }
    /* The same for an exact int.  `await` takes the number out and drops the exception,
     * which then serves again: as long as nobody else has it or hung anything on it. */
    static inline int aq_stop_with_int(PyObject *value)
    {
        static PyStopIterationObject *last;

        if (last == NULL || Py_REFCNT(last) != 1
            || last->traceback != NULL || last->context != NULL || last->cause != NULL
            || last->dict != NULL || last->notes != NULL || last->suppress_context
            || Py_REFCNT(last->args) != 1 || PyTuple_GET_SIZE(last->args) != 1
            || !PyLong_CheckExact(PyTuple_GET_ITEM(last->args, 0))
            || last->value == NULL || !PyLong_CheckExact(last->value)) {
            PyObject *exc = PyObject_CallOneArg(PyExc_StopIteration, value);

            if (exc == NULL)
                return 0;
            Py_XDECREF(last);
            last = (PyStopIterationObject *)exc;
        } else {
            PyObject *old = PyTuple_GET_ITEM(last->args, 0);

            PyTuple_SET_ITEM(last->args, 0, Py_NewRef(value));
            Py_DECREF(old);
            Py_SETREF(last->value, Py_NewRef(value));
        }
        Py_INCREF(last);
    #if PY_VERSION_HEX >= 0x030C0000
        PyErr_SetRaisedException((PyObject *)last);
    #else
        PyErr_Restore(Py_NewRef(PyExc_StopIteration), (PyObject *)last, NULL);
    #endif
        return 0;
    }
    /* What `await` asks: plain C functions, so that an iterator can end with None by
     * returning NULL with no exception set, and with a value, where the interpreter asks
     * for that, without an exception that carries it. */
    static inline void aq_set_next(PyTypeObject *type, iternextfunc next, sendfunc send)
    {
        static PyAsyncMethods methods;

        if (type->tp_as_async == NULL)
            type->tp_as_async = &methods;
        type->tp_as_async->am_send = send;
        type->tp_iternext = next;
    }
    #endif
    """
    int aq_stop_iteration(object value) noexcept
    int aq_stop_with_int(object value) noexcept
    ctypedef enum PySendResult:
        PYGEN_RETURN
        PYGEN_ERROR
        PYGEN_NEXT
    ctypedef PyObject *(*iternextfunc)(PyObject *) noexcept
    ctypedef PySendResult (*sendfunc)(PyObject *, PyObject *, PyObject **) noexcept
    void aq_set_next(PyTypeObject *type, iternextfunc next, sendfunc send)
