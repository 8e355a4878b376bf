"""What Cython has no words for: classes that refuse, methods without its argument parsing."""

from cpython.object cimport PyObject
from cpython.object cimport PyTypeObject

cdef extern from *:
    """
    #ifndef AQ_CLASSES
    #define AQ_CLASSES
    #include <string.h>
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

    typedef PyObject *(*FastMethod)(PyObject *, PyObject *const *, Py_ssize_t,
                                        PyObject *);
    static inline FastMethod fast_method(PyTypeObject *type, const char *name,
                                             FastMethod method, const char *doc)
    {
        PyMethodDef *def = type->tp_methods;

        while (def != NULL && def->ml_name != NULL && strcmp(def->ml_name, name) != 0)
            def++;
        if (def == NULL || def->ml_name == NULL
                || def->ml_flags != (METH_FASTCALL | METH_KEYWORDS)) {
            PyErr_Format(PyExc_SystemError, "%s.%s is not called as expected",
                         type->tp_name, name);
            return NULL;
        }
        FastMethod old = (FastMethod)(void (*)(void))def->ml_meth;
        def->ml_meth = (PyCFunction)(void (*)(void))method;
        if (doc != NULL)
            def->ml_doc = doc;
        return old;
    }
    #endif
    """
    void refuse_new(PyTypeObject *type)

    ctypedef PyObject *(*FastMethod)(
        PyObject *, PyObject *const *, Py_ssize_t, PyObject *) except NULL
    # Put `method` before the method of that name, which Cython made, and return that one:
    # `method` takes the calls that it can read at a glance and passes on all others.
    # NULL and an exception if Cython passes arguments in another way than expected.
    FastMethod fast_method(PyTypeObject *type, const char *name, FastMethod method,
                           const char *doc) except NULL
