"""WireProtocol: what stream transports know of the protocols that take raw memory.

A class of its own, so that transports need not know TLS nor TLS which transport is
below it; knows neither.
"""

cdef class WireProtocol:
    """A protocol of the loop's own."""

    cdef int wire_data(self, const char *data, Py_ssize_t n) except -1:
        raise NotImplementedError("a WireProtocol takes the data")
