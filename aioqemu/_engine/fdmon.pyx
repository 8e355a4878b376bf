"""FdMon: the abstract base of the backends.  Contracts in fdmon.pxd."""

from aioqemu._engine.types cimport AioHandler
from aioqemu._engine.types cimport Held
from aioqemu._sys.libc cimport ENOSYS
from aioqemu._sys.libc cimport EPOLL_CLOEXEC
from aioqemu._sys.libc cimport EPOLL_CTL_ADD
from aioqemu._sys.libc cimport EPOLLIN
from aioqemu._sys.libc cimport MSG_DONTWAIT
from aioqemu._sys.libc cimport close
from aioqemu._sys.libc cimport epoll_create1
from aioqemu._sys.libc cimport EPOLL_CTL_DEL
from aioqemu._sys.libc cimport epoll_ctl
from aioqemu._sys.libc cimport epoll_event
from aioqemu._sys.libc cimport errno
from aioqemu._sys.libc cimport recv


cdef class FdMon:
    def __cinit__(self):
        self.name = "none"
        self.st = NULL
        self.waiting = False
        self.one_shot = False
        self.submits = 0
        self.requests = 0
        self.mirror = self.shell = self.mirror_extra = -1
        self.mirror_stale = False

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

    cdef int shell_around(self, int inner) noexcept:
        cdef epoll_event ev
        if self.shell < 0:
            self.shell = epoll_create1(EPOLL_CLOEXEC)
            if self.shell < 0:
                return -errno
        ev.events = EPOLLIN
        ev.data.u64 = 0
        if epoll_ctl(self.shell, EPOLL_CTL_ADD, inner, &ev) != 0:
            return -errno
        return self.shell

    cdef int mirror_open(self) noexcept:
        cdef int fd
        cdef epoll_event ev
        if self.mirror >= 0:
            return self.shell
        self.mirror = epoll_create1(EPOLL_CLOEXEC)
        if self.mirror < 0:
            return -errno
        self.mirror_stale = False
        for fd in range(self.st.table_size):
            if self.st.table[fd] != NULL:
                self.mirror_ctl(EPOLL_CTL_ADD, self.st.table[fd])
        if self.mirror_extra >= 0:
            ev.events = EPOLLIN
            ev.data.u64 = 0
            if epoll_ctl(self.mirror, EPOLL_CTL_ADD, self.mirror_extra, &ev) != 0:
                return -errno
        return self.shell_around(self.mirror)

    cdef int mirror_renew(self) noexcept:
        cdef int old = self.mirror
        cdef int err
        self.mirror_stale = False
        self.mirror = -1
        err = self.mirror_open()
        if err < 0:
            if self.mirror >= 0:
                close(self.mirror)
            self.mirror = old           # noisy, but nothing is missed
            return err
        if self.shell >= 0:     # closing it does not take it out where a child has a copy
            epoll_ctl(self.shell, EPOLL_CTL_DEL, old, NULL)
        close(old)
        return 0

    cdef void mirror_ctl(self, int op, AioHandler *node) noexcept:
        cdef epoll_event ev
        if self.mirror < 0:
            return
        ev.events = node.events   # EPOLL* and POLL* are the same bits on Linux
        ev.data.u64 = 0
        if epoll_ctl(self.mirror, op, node.fd, &ev) != 0:
            # Closed behind our back: it has left the mirror by itself, unless a duplicate
            # keeps the file open.  Then nothing but a new set is rid of it.
            self.mirror_stale = True

    cdef void mirror_close(self) noexcept:
        if self.shell >= 0:
            close(self.shell)
        if self.mirror >= 0:
            close(self.mirror)
        self.shell = self.mirror = -1

    cdef aq_sqe *add_sqe(self, CqeHandler *cqe) noexcept:
        return NULL

    cdef ssize_t receive(self, AioHandler *node, void *buf, size_t size) noexcept:
        cdef ssize_t n = recv(node.fd, buf, size, MSG_DONTWAIT)
        return n if n >= 0 else -errno

    cdef int recall(self, AioHandler *node, Held *held) noexcept:
        return 0

    cdef void drop_held(self, Held *held) noexcept:
        pass

    cdef int settle(self, int64_t limit_ms) noexcept:
        return 0

    cdef void give_back(self) noexcept:
        pass

    cdef void close(self, bint child) noexcept:  # no-cython-lint
        pass

    cdef dict info(self):
        return {}
