"""FdMon: the abstract base of the backends.  Contracts in fdmon.pxd."""

from aioqemu._sys.libc cimport ENOSYS
from aioqemu._sys.libc cimport EPOLL_CLOEXEC
from aioqemu._sys.libc cimport EPOLL_CTL_ADD
from aioqemu._sys.libc cimport epoll_create1
from aioqemu._sys.libc cimport epoll_ctl
from aioqemu._sys.libc cimport epoll_event
from aioqemu._sys.libc cimport errno


cdef class FdMon:
    def __cinit__(self):
        self.name = "none"
        self.st = NULL
        self.waiting = False
        self.one_shot = False
        self.submits = 0
        self.requests = 0
        self.mirror = -1

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

    cdef int outer_fd(self) noexcept:
        return -ENOSYS

    cdef int mirror_open(self) noexcept:
        cdef int fd
        if self.mirror < 0:
            self.mirror = epoll_create1(EPOLL_CLOEXEC)
            if self.mirror < 0:
                return -errno
            for fd in range(self.st.table_size):
                if self.st.table[fd] != NULL:
                    self.mirror_ctl(EPOLL_CTL_ADD, self.st.table[fd])
        return self.mirror

    cdef void mirror_ctl(self, int op, AioHandler *node) noexcept:
        cdef epoll_event ev
        if self.mirror < 0:
            return
        ev.events = node.events   # EPOLL* and POLL* are the same bits on Linux
        ev.data.u64 = 0
        # An fd that is gone has left the mirror by itself.
        epoll_ctl(self.mirror, op, node.fd, &ev)

    cdef aq_sqe *add_sqe(self, CqeHandler *cqe) noexcept:
        return NULL

    cdef int settle(self, int64_t limit_ms) noexcept:
        return 0

    cdef void give_back(self) noexcept:
        pass

    cdef void close(self, bint child) noexcept:
        pass

    cdef dict info(self):
        return {}
