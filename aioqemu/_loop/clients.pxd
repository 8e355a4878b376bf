"""ServerClients: the connections of a server, weakly.  Home thread, GIL held."""

from cpython.object cimport PyObject

from aioqemu._loop.transport cimport SocketTransport

cdef class ServerClients:
    cdef PyObject *first           # SocketTransport objects, linked; no references
    cdef object others             # a WeakSet of transports of other kinds, or None
    cdef Py_ssize_t anonymous      # transports that attached without saying who they are
    cdef readonly bint _listens_no_more
    # Count a connection of ours in; it leaves by itself when it is deallocated.
    cdef int attach(self, SocketTransport transport) except -1
    cdef int detach(self, SocketTransport transport) except -1
    cdef bint _empty(self) except -1
