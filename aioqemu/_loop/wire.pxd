"""WireProtocol: a native protocol that takes what was received where it lies.

Home thread, GIL held.  What sits below it need not make an object of the data, and may
reuse the memory as soon as `wire_data` returns.
"""

cdef class WireProtocol:
    # n > 0 bytes came.  They are in the loop's scratch buffer or in an object that the
    # caller holds: the callee copies or consumes them before it calls anything of the
    # program's.  The caller has entered the context of the protocol's callbacks.
    cdef int wire_data(self, const char *data, Py_ssize_t n) except -1
