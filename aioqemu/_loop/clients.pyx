"""Who is connected to a server: counted in and out by the transports.

Knows nothing of listening.  The list is weak, so that a transport which its program
dropped is noticed as dropped: ours are linked and take themselves out when they are
deallocated, others are in a WeakSet.
"""

from weakref import WeakSet

from cpython.object cimport PyObject

from aioqemu._loop.transport cimport SocketTransport


cdef class ServerClients:
    def __dealloc__(self):
        while self.first != NULL:
            (<SocketTransport>self.first).leave_server()

    cdef int attach(self, SocketTransport transport) except -1:
        transport.leave_server()
        transport.next_client = self.first
        if self.first != NULL:
            (<SocketTransport>self.first).client_place = &transport.next_client
        self.first = <PyObject *>transport
        transport.client_place = &self.first
        return 0

    cdef int detach(self, SocketTransport transport) except -1:
        transport.leave_server()
        if self._listens_no_more and self._empty():
            self._all_gone()
        return 0

    cdef bint _empty(self) except -1:
        return self.first == NULL and self.anonymous == 0 and not self.others

    def _attach(self, transport=None):
        """Count a connection in; a transport calls it when it is made."""
        if transport is None:
            self.anonymous += 1
        elif isinstance(transport, SocketTransport):
            self.attach(transport)
        else:
            if self.others is None:
                self.others = WeakSet()
            self.others.add(transport)

    def _detach(self, transport=None):
        """Count a connection out, after its `connection_lost`."""
        if isinstance(transport, SocketTransport):
            self.detach(transport)
            return
        if transport is None:
            self.anonymous -= 1
        elif self.others is not None:
            self.others.discard(transport)
        if self._listens_no_more and self._empty():
            self._all_gone()

    def _listen_no_more(self):
        """The server was closed: the last connection ends it, or there is none."""
        self._listens_no_more = True
        if self._empty():
            self._all_gone()

    def _all_gone(self):
        raise NotImplementedError

    @property
    def _clients(self):
        """A list of the transports that are known."""
        cdef PyObject *op = self.first
        cdef list known = []
        while op != NULL:
            known.append(<object>op)
            op = (<SocketTransport>op).next_client
        known.reverse()
        if self.others is not None:
            known.extend(self.others)
        return known
