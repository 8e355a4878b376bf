"""EventNotifier: an eventfd (a pipe where there is none) that wakes a poller.

`notifier_set` is safe from any thread, without the GIL, and from a signal handler.
"""

cdef int notifier_init(int fds[2], bint active) noexcept nogil   # 0 or -errno
cdef int notifier_set(int fd) noexcept nogil                     # 0 or -errno
cdef bint notifier_clear(int fd) noexcept nogil                  # was it set?

cdef class EventNotifier:
    cdef int rfd
    cdef int wfd
    cdef object __weakref__
