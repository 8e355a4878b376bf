"""StreamReader, and the reads that wait for it.  GIL held, the loop's thread."""

from cpython.object cimport PyObject

from aioqemu._loop.unread cimport Unread

cdef extern from "Python.h":
    PyObject **_PyObject_GetDictPtr(PyObject *op)

cdef enum ReadKind:
    READ_SOME            # read(n)
    READ_ALL             # read(-1)
    READ_EXACTLY
    READ_UNTIL
    READ_LINE
    READ_NEXT            # of `async for`
    READ_WAIT            # nothing is taken

cdef enum ReadState:
    READ_NEW
    READ_WAITING
    READ_OVER

cdef class StreamReader:
    cdef Unread unread
    cdef Py_ssize_t limit
    cdef Reading reading               # the read that made `_waiter`, if one did
    # As asyncio's reader calls them: programs and tests look at these.
    cdef public object _loop
    cdef public object _waiter
    cdef public object _exception
    cdef public object _transport
    cdef public object _source_traceback
    cdef public bint _eof
    cdef public bint _paused
    cdef dict __dict__
    cdef object __weakref__

    # Whether feed() may stand for feed_data(): nobody has put another in its place.
    cdef inline bint plain(self) noexcept:
        cdef PyObject **attributes = _PyObject_GetDictPtr(<PyObject *>self)
        return attributes[0] == NULL or not <dict>attributes[0]
    cdef int feed(self, bytes data) except -1
    cdef int _pause(self) except -1
    cdef int _resume(self) except -1
    cdef int _maybe_resume(self) except -1
    cdef int _wake(self) except -1

cdef class Reading:
    # What read(), readline(), ... return: awaitable once, and a coroutine to asyncio.
    cdef StreamReader reader           # None when it is over
    cdef object waiter                 # the future that it waits for
    cdef object result
    cdef object what                   # separators, sorted; or the caller's name
    cdef list parts                    # of read(-1)
    cdef Py_ssize_t n
    cdef Py_ssize_t offset             # there is no separator before it
    cdef ReadKind kind
    cdef ReadState state
    cdef bint woken                    # the waiter has its result

    # True if there is a waiter to wait for, else it is over and `result` is there.
    cdef bint _advance(self) except -1
    cdef int _wait(self) except -1
    cdef object _begin(self)
    cdef object _try(self)
    cdef object _until(self)
    cdef object _overrun(self, Py_ssize_t consumed, Py_ssize_t end)
    cdef int _leave(self) except -1

# What an awaitable raises for an exception, and for the arguments of throw().
cdef object raised(object exc)
cdef object thrown(object type_, object value, object traceback)
