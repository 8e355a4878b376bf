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
    ctypedef enum PySendResult:
        PYGEN_RETURN
        PYGEN_ERROR
        PYGEN_NEXT
    ctypedef PyObject *(*iternextfunc)(PyObject *) noexcept
    ctypedef PySendResult (*sendfunc)(PyObject *, PyObject *, PyObject **) noexcept
    void aq_set_next(PyTypeObject *type, iternextfunc next, sendfunc send)
