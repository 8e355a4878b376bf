"""Classes whose objects only our own code makes."""

from cpython.object cimport PyTypeObject

cdef extern from *:
    """
    #ifndef AQ_CLASSES
    #define AQ_CLASSES
    static PyObject *aq_refused_new(PyTypeObject *type, PyObject *args, PyObject *kwds)
    {
        (void)args; (void)kwds;
        PyErr_Format(PyExc_TypeError, "%s objects are made by their context or loop",
                     type->tp_name);
        return NULL;
    }
    /* An object that `__new__` alone has made has no context or loop, and its methods,
     * which look for none, would follow a null pointer.  Code of the class's own module
     * makes objects past this slot. */
    static inline void refuse_new(PyTypeObject *type)
    {
        type->tp_new = aq_refused_new;
        type->tp_vectorcall = NULL;     /* Cython's own would go past tp_new */
    }
    #endif
    """
    void refuse_new(PyTypeObject *type)
