"""BusySet: what the fd monitor of a ring asks by one poll(2).

A poll request costs more than a look: the request is made, the fd's queue joined and left,
a completion written and read.  Where the fd stays readable, or what is sent is answered
before the next wait, the request completes the moment it is made, and nothing is gained
by it.  Whether that is so shows in what came before: requests that completed in the very
call that submitted them, several times in a row.  A look that is wrong makes the next one
for this node wait for twice as many.
"""

from cython cimport final
from libc.stdint cimport uint32_t

from aioqemu._engine.lists cimport ready_push
from aioqemu._engine.types cimport AioHandler
from aioqemu._engine.types cimport AioState
from aioqemu._sys.libc cimport ppoll
from aioqemu._sys.libc cimport timespec

cdef enum:
    INSTANT_MOST = 1024         # requests in a row before a node is tried again, at most


@final
cdef class BusySet:
    cdef void add(self, AioHandler *node, uint32_t events) noexcept:
        self.nodes[self.length] = node
        self.fds[self.length].fd = node.fd
        self.fds[self.length].events = <short>events
        self.length += 1
        node.busy = self.length

    cdef void change(self, AioHandler *node, uint32_t events) noexcept:
        self.fds[node.busy - 1].events = <short>events

    cdef void remove(self, AioHandler *node) noexcept:
        cdef int i = node.busy - 1
        node.busy = 0
        self.length -= 1
        if i != self.length:
            self.fds[i] = self.fds[self.length]
            self.nodes[i] = self.nodes[self.length]
            self.nodes[i].busy = i + 1

    cdef int look(self, AioState *st, int *missed) noexcept:
        cdef timespec now
        cdef AioHandler *node
        cdef int i, n, found
        now.tv_sec = now.tv_nsec = 0
        n = self.length
        found = ppoll(self.fds, n, &now, NULL)
        self.length = missed[0] = 0
        for i in range(n):
            node = self.nodes[i]
            node.busy = 0
            if found > 0 and self.fds[i].revents:
                node.instant_least = max(node.instant_least >> 1, INSTANT_LEAST)
                ready_push(st, node, <unsigned short>self.fds[i].revents)
                continue
            node.instant = 0
            node.instant_least = min(node.instant_least << 1, INSTANT_MOST)
            self.nodes[missed[0]] = node
            missed[0] += 1
        return found if found > 0 else 0
