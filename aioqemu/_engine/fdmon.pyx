"""FdMon: the abstract base of the backends.  Contracts in fdmon.pxd."""

from aioqemu._sys.libc cimport ENOSYS


cdef class FdMon:
    def __cinit__(self):
        self.name = "none"
        self.st = NULL
        self.waiting = False
        self.one_shot = False

    def __init__(self):
        if type(self) is FdMon:
            raise TypeError("FdMon is abstract")

    cdef int start(self) except -1:
        return 0

    cdef int add(self, AioHandler *node) noexcept:
        return -ENOSYS

    cdef int update(self, AioHandler *node) noexcept:
        return -ENOSYS

    cdef int remove(self, AioHandler *node) noexcept:
        return -ENOSYS

    cdef int prepare(self) noexcept:
        return 0

    cdef int wait(self, int64_t timeout_ns) noexcept nogil:
        return -ENOSYS

    cdef int collect(self) noexcept:
        return 0

    cdef bint has_work(self) noexcept nogil:
        return False

    cdef int flush(self) noexcept:
        return 0

    cdef int outer_fd(self, int notifier_fd) noexcept:
        return -ENOSYS

    cdef aq_sqe *add_sqe(self, CqeHandler *cqe) noexcept:
        return NULL

    cdef void close(self, bint child) noexcept:
        pass

    cdef dict info(self):
        return {}
