"""FdMon over ppoll(2): works everywhere, costs O(fds) a wait.

Knows only nodes.  The array that the kernel sees is a copy of the working one, so that
another thread may register an fd while the home thread sleeps; what the kernel reports
is matched by fd and generation, so that a node that went away meanwhile is not touched.
"""

from cpython.mem cimport PyMem_RawFree
from cpython.mem cimport PyMem_RawRealloc
from cython cimport final
from libc.stdint cimport int64_t
from libc.stdint cimport uint32_t
from libc.string cimport memcpy

from aioqemu._engine.fdmon cimport FdMon
from aioqemu._engine.lists cimport ready_push
from aioqemu._engine.lists cimport table_get
from aioqemu._engine.types cimport AioHandler
from aioqemu._sys.libc cimport ENOMEM
from aioqemu._sys.libc cimport EPOLL_CTL_ADD
from aioqemu._sys.libc cimport EPOLL_CTL_DEL
from aioqemu._sys.libc cimport EPOLL_CTL_MOD
from aioqemu._sys.libc cimport errno
from aioqemu._sys.libc cimport pollfd
from aioqemu._sys.libc cimport ppoll
from aioqemu._sys.libc cimport timespec


@final
cdef class FdMonPoll(FdMon):
    cdef pollfd *work          # what is wanted; node.index is the place here
    cdef uint32_t *generations
    cdef pollfd *seen          # what the kernel is given
    cdef uint32_t *seen_generations
    cdef Py_ssize_t length
    cdef Py_ssize_t capacity
    cdef Py_ssize_t seen_length
    cdef Py_ssize_t seen_capacity
    cdef int reported
    cdef bint dirty

    def __cinit__(self):
        self.name = "poll"
        self.work = NULL
        self.generations = NULL
        self.seen = NULL
        self.seen_generations = NULL
        self.length = self.capacity = 0
        self.seen_length = self.seen_capacity = 0
        self.reported = 0
        self.dirty = False

    def __dealloc__(self):
        PyMem_RawFree(self.work)
        PyMem_RawFree(self.generations)
        PyMem_RawFree(self.seen)
        PyMem_RawFree(self.seen_generations)

    cdef int add(self, AioHandler *node) noexcept:
        cdef Py_ssize_t capacity
        cdef void *grown
        if self.length == self.capacity:
            capacity = self.capacity * 2 if self.capacity else 16
            grown = PyMem_RawRealloc(self.work, capacity * sizeof(pollfd))
            if grown == NULL:
                return -ENOMEM
            self.work = <pollfd *>grown
            grown = PyMem_RawRealloc(self.generations, capacity * sizeof(uint32_t))
            if grown == NULL:
                return -ENOMEM
            self.generations = <uint32_t *>grown
            self.capacity = capacity
        node.index = self.length
        self.length += 1
        self.work[node.index].fd = node.fd
        self.work[node.index].events = <short>node.events
        self.work[node.index].revents = 0
        self.generations[node.index] = node.generation
        node.armed = node.events | 0x80000000u   # never 0: level-triggered
        self.dirty = True
        self.mirror_ctl(EPOLL_CTL_ADD, node)
        return 0

    cdef int update(self, AioHandler *node) noexcept:
        if self.work[node.index].events != <short>node.events:
            self.work[node.index].events = <short>node.events
            self.dirty = True
            self.mirror_ctl(EPOLL_CTL_MOD, node)
        return 0

    cdef int remove(self, AioHandler *node) noexcept:
        cdef Py_ssize_t i = node.index
        cdef Py_ssize_t last = self.length - 1
        cdef AioHandler *moved
        if i < 0:
            return 0
        self.mirror_ctl(EPOLL_CTL_DEL, node)
        if i != last:
            self.work[i] = self.work[last]
            self.generations[i] = self.generations[last]
            moved = table_get(self.st, self.work[i].fd)
            if moved != NULL and moved.generation == self.generations[i]:
                moved.index = i
        self.length = last
        node.index = -1
        self.dirty = True
        return 0

    cdef int _take_copy(self) noexcept nogil:
        cdef void *grown
        if self.seen_capacity < self.length:
            grown = PyMem_RawRealloc(self.seen, self.capacity * sizeof(pollfd))
            if grown == NULL:
                return -ENOMEM
            self.seen = <pollfd *>grown
            grown = PyMem_RawRealloc(
                self.seen_generations, self.capacity * sizeof(uint32_t))
            if grown == NULL:
                return -ENOMEM
            self.seen_generations = <uint32_t *>grown
            self.seen_capacity = self.capacity
        memcpy(self.seen, self.work, self.length * sizeof(pollfd))
        memcpy(self.seen_generations, self.generations, self.length * sizeof(uint32_t))
        self.seen_length = self.length
        self.dirty = False
        return 0

    cdef int wait(self, int64_t timeout_ns) noexcept nogil:
        cdef timespec ts
        cdef int n
        # `prepare` made the copy with the GIL held; here nothing is shared any more.
        ts.tv_sec = timeout_ns // 1000000000
        ts.tv_nsec = timeout_ns % 1000000000
        n = ppoll(self.seen, self.seen_length, NULL if timeout_ns < 0 else &ts, NULL)
        if n < 0:
            self.reported = 0
            return -errno
        self.reported = n
        return n

    cdef int prepare(self) noexcept:
        if self.mirror_stale:
            self.mirror_renew()
        if self.dirty:
            return self._take_copy()
        return 0

    cdef int collect(self) noexcept:
        cdef Py_ssize_t i
        cdef int left = self.reported
        cdef int n = 0
        cdef AioHandler *node
        self.reported = 0
        for i in range(self.seen_length):
            if left == 0:
                break
            if self.seen[i].revents == 0:
                continue
            left -= 1
            node = table_get(self.st, self.seen[i].fd)
            if node != NULL and node.generation == self.seen_generations[i]:
                ready_push(self.st, node, <unsigned short>self.seen[i].revents)
                n += 1
        return n

    cdef int outer_fd(self) noexcept:
        return self.mirror_open()

    cdef void close(self, bint child) noexcept:  # no-cython-lint
        self.mirror_close()
        self.length = 0
        self.seen_length = 0
