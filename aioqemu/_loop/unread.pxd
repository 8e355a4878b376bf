"""What was received and not read yet, in one bytes object.  GIL held.

It is the chunk as it was received, or, once a second one came, a block of our own that
grows.  Who takes all of either gets that object, without a copy.
"""

from cpython.object cimport PyObject

cdef struct Unread:
    # The bytes [start, end) of `block`; NULL, and both 0, if there are none.  Bytes can
    # be in no cycle, so the collector need not know.
    PyObject *block
    Py_ssize_t start
    Py_ssize_t end
    bint own                 # nobody else has the block: it may be written behind `end`

cdef inline Py_ssize_t unread_size(Unread *u) noexcept:
    return u.end - u.start

# Add a chunk, which is not empty.  If memory runs out, what was unread may be lost.
cdef int unread_push(Unread *u, bytes data) except -1
# Take the first n bytes, which are there.
cdef bytes unread_take(Unread *u, Py_ssize_t n)
# A copy of everything.
cdef bytes unread_copy(Unread *u)
# Forget the first n bytes, which are there.
cdef int unread_drop(Unread *u, Py_ssize_t n) noexcept
# Where n bytes begin, at `offset` or behind; -1 if nowhere.
cdef Py_ssize_t unread_find(Unread *u, const char *what, Py_ssize_t n,
                            Py_ssize_t offset) noexcept
