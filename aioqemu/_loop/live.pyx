"""LiveGenerators: the async generators that a loop has begun to iterate and that live.

Knows no loop.  Most async generators are iterated to their end and gone soon, and nobody
is told of that; so a weak reference without a callback is kept of each, by its address,
which the next generator at that address takes over.  The dead ones are swept out when the
table has doubled.
"""

from cpython.dict cimport PyDict_SetItem
from cpython.dict cimport PyDict_Size
from cpython.long cimport PyLong_FromVoidPtr

cdef extern from "Python.h":
    object PyWeakref_NewRef(object op, object callback)

cdef enum:
    FEW = 1024      # dead ones that do no harm


cdef class LiveGenerators:
    """A set of weak references to async generators, made for many that die soon.

    Any thread.
    """

    cdef dict refs          # address: weak reference
    cdef Py_ssize_t limit

    def __cinit__(self):
        self.refs = {}
        self.limit = FEW

    def add(self, agen, /):
        """Keep a weak reference; the `firstiter` hook of `sys.set_asyncgen_hooks`."""
        PyDict_SetItem(
            self.refs, PyLong_FromVoidPtr(<void *>agen), PyWeakref_NewRef(agen, None))
        if PyDict_Size(self.refs) > self.limit:
            self._sweep()

    def discard(self, agen, /):
        """Forget one, as far as it is known."""
        self.refs.pop(PyLong_FromVoidPtr(<void *>agen), None)

    def take(self):
        """Forget all; those that live, as a list."""
        cdef dict refs = self.refs
        self.refs = {}
        self.limit = FEW
        live = [ref() for ref in refs.values()]
        return [agen for agen in live if agen is not None]

    def __len__(self):
        """How many are kept, at most twice as many as live and a thousand."""
        return len(self.refs)

    cdef int _sweep(self) except -1:
        self.refs = {place: ref for place, ref in self.refs.items() if ref() is not None}
        self.limit = 2 * len(self.refs) + FEW
        return 0
