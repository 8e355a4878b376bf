"""FdMon over epoll(7), level-triggered but for AIO_EDGE.

Knows only nodes.  What epoll really keys on is the open file, not the fd number: an fd
that was closed leaves the set only when no duplicate of it is open anywhere (a forked
child may hold one), and until then it goes on being reported, and cannot be removed,
since its number is gone.  So every event carries fd and generation; one that matches no
node is a ghost: it is removed by number, and if that fails the set is built anew.
"""

from cython cimport final
from libc.stdint cimport int64_t
from libc.stdint cimport uint32_t
from libc.stdint cimport uint64_t

from aioqemu._engine.fdmon cimport FdMon
from aioqemu._engine.lists cimport ready_push
from aioqemu._engine.lists cimport table_get
from aioqemu._engine.types cimport AioHandler
from aioqemu._sys.libc cimport EEXIST
from aioqemu._sys.libc cimport ENOENT
from aioqemu._sys.libc cimport ENOSYS
from aioqemu._sys.libc cimport EPERM
from aioqemu._sys.libc cimport EPOLL_CLOEXEC
from aioqemu._sys.libc cimport EPOLL_CTL_ADD
from aioqemu._sys.libc cimport EPOLL_CTL_DEL
from aioqemu._sys.libc cimport EPOLL_CTL_MOD
from aioqemu._sys.libc cimport POLLNVAL
from aioqemu._sys.libc cimport aq_epoll_pwait2
from aioqemu._sys.libc cimport close
from aioqemu._sys.libc cimport epoll_create1
from aioqemu._sys.libc cimport epoll_ctl
from aioqemu._sys.libc cimport epoll_event
from aioqemu._sys.libc cimport epoll_wait
from aioqemu._sys.libc cimport errno
from aioqemu._sys.libc cimport timespec

cdef enum:
    MAX_EVENTS = 256

# Set once epoll_pwait2 was refused (kernels before 5.11, filters).
cdef bint no_pwait2 = False


@final
cdef class FdMonEpoll(FdMon):
    cdef int epfd
    cdef int reported
    cdef epoll_event events[MAX_EVENTS]

    def __cinit__(self):
        self.name = "epoll"
        self.edges = True        # AIO_EDGE is epoll's own bit
        self.reported = 0
        self.epfd = epoll_create1(EPOLL_CLOEXEC)
        if self.epfd < 0:
            raise OSError(errno, "cannot create an epoll instance")

    def __dealloc__(self):
        self.close(False)

    cdef int _ctl(self, int op, AioHandler *node) noexcept:
        cdef epoll_event ev
        ev.events = node.events
        ev.data.u64 = (<uint64_t>node.generation << 32) | <uint32_t>node.fd
        if epoll_ctl(self.epfd, op, node.fd, &ev) != 0:
            return -errno
        node.armed = node.events | 0x80000000u   # never 0: level-triggered
        return 0

    cdef int add(self, AioHandler *node) noexcept:
        cdef int err = self._ctl(EPOLL_CTL_ADD, node)
        if err == -EEXIST:   # the file is still in the set under an earlier node
            err = self._ctl(EPOLL_CTL_MOD, node)
        return err

    cdef int update(self, AioHandler *node) noexcept:
        cdef int err
        if node.armed == (node.events | 0x80000000u):
            return 0
        err = self._ctl(EPOLL_CTL_MOD, node)
        if err == -ENOENT:   # closed and opened again behind our back
            err = self._ctl(EPOLL_CTL_ADD, node)
        return err

    cdef int remove(self, AioHandler *node) noexcept:
        cdef epoll_event ev
        ev.events = 0
        ev.data.u64 = 0
        if epoll_ctl(self.epfd, EPOLL_CTL_DEL, node.fd, &ev) != 0:
            return -errno
        return 0

    cdef int wait(self, int64_t timeout_ns) noexcept nogil:
        global no_pwait2
        cdef timespec ts
        cdef int n = -1
        cdef int64_t ms
        if timeout_ns <= 0:
            n = epoll_wait(self.epfd, self.events, MAX_EVENTS, 0 if timeout_ns == 0 else -1)
        else:
            if not no_pwait2:
                ts.tv_sec = timeout_ns // 1000000000
                ts.tv_nsec = timeout_ns % 1000000000
                n = aq_epoll_pwait2(self.epfd, self.events, MAX_EVENTS, &ts)
                if n < 0 and (errno == ENOSYS or errno == EPERM):
                    no_pwait2 = True
            if no_pwait2:
                # Whole milliseconds, rounded up: a little late, never early or spinning.
                ms = (timeout_ns + 999999) // 1000000
                n = epoll_wait(self.epfd, self.events, MAX_EVENTS,
                               <int>ms if ms < 0x7fffffff else 0x7fffffff)
        if n < 0:
            self.reported = 0
            return -errno
        self.reported = n
        return n

    cdef int collect(self) noexcept:
        cdef int i, n = 0
        cdef int fd
        cdef AioHandler *node
        cdef epoll_event ev
        cdef bint ghost = False
        cdef int reported = self.reported
        self.reported = 0
        for i in range(reported):
            fd = <int><uint32_t>self.events[i].data.u64     # a mask would be a Python int
            node = table_get(self.st, fd)
            if node != NULL and node.generation == <uint32_t>(self.events[i].data.u64 >> 32):
                ready_push(self.st, node, self.events[i].events)
                n += 1
            elif node != NULL or epoll_ctl(self.epfd, EPOLL_CTL_DEL, fd, &ev) != 0:
                ghost = True
        if ghost:
            self._rebuild()
        return n

    cdef void _rebuild(self) noexcept:
        # Without the fds that only ghosts keep in the set.
        cdef int fd, err
        cdef int fresh = epoll_create1(EPOLL_CLOEXEC)
        cdef AioHandler *node
        if fresh < 0:
            return   # no fd to be had just now; the next report tries again
        if self.shell >= 0:     # closing it does not take it out where a child has a copy
            epoll_ctl(self.shell, EPOLL_CTL_DEL, self.epfd, NULL)
        close(self.epfd)
        self.epfd = fresh
        if self.shell >= 0:
            self.shell_around(fresh)
        for fd in range(self.st.table_size):
            node = self.st.table[fd]
            if node != NULL:
                err = self._ctl(EPOLL_CTL_ADD, node)
                if err < 0:
                    # Gone without our being told: the dispatch reports it.
                    ready_push(self.st, node, POLLNVAL)

    cdef int outer_fd(self) noexcept:
        return self.shell if self.shell >= 0 else self.shell_around(self.epfd)

    cdef void close(self, bint child) noexcept:  # no-cython-lint
        self.mirror_close()
        if self.epfd >= 0:
            close(self.epfd)
            self.epfd = -1
