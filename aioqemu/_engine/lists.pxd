"""Intrusive lists of the engine: ready queues, zombies, completions.  Inline, no GIL."""

from cpython.mem cimport PyMem_RawFree

from aioqemu._engine.types cimport AIO_OWNER_CONTEXT
from aioqemu._engine.types cimport AIO_OWNER_LOOP
from aioqemu._engine.types cimport AioHandler
from aioqemu._engine.types cimport AioQueue
from aioqemu._engine.types cimport AioState
from aioqemu._engine.types cimport CqeHandler


cdef inline AioQueue *queue_of(AioState *st, AioHandler *node) noexcept nogil:
    if node.owner <= AIO_OWNER_CONTEXT:
        return &st.ready_context
    if node.owner == AIO_OWNER_LOOP:
        return &st.ready_loop
    return &st.ready_transport


cdef inline void ready_push(AioState *st, AioHandler *node, unsigned revents) noexcept nogil:
    """Note that the kernel reported a node; a node is queued once."""
    cdef AioQueue *q
    node.revents |= revents
    if node.queued:
        return
    q = queue_of(st, node)
    node.queued = True
    node.next = NULL
    node.prev = q.tail
    if q.tail == NULL:
        q.head = node
    else:
        q.tail.next = node
    q.tail = node


cdef inline void ready_unlink(AioState *st, AioHandler *node) noexcept nogil:
    cdef AioQueue *q
    if not node.queued:
        return
    q = queue_of(st, node)
    if node.prev == NULL:
        q.head = node.next
    else:
        node.prev.next = node.next
    if node.next == NULL:
        q.tail = node.prev
    else:
        node.next.prev = node.prev
    node.prev = NULL
    node.next = NULL
    node.queued = False


cdef inline AioHandler *table_get(AioState *st, int fd) noexcept nogil:
    if fd < 0 or fd >= st.table_size:
        return NULL
    return st.table[fd]


cdef inline void zombie_link(AioState *st, AioHandler *node) noexcept nogil:
    node.prev = NULL
    node.next = st.zombies
    if st.zombies != NULL:
        st.zombies.prev = node
    st.zombies = node


cdef inline void node_reap(AioState *st, AioHandler *node) noexcept nogil:
    """Free a deleted node once nobody can come back to it."""
    if not node.deleted or node.walking or node.pending:
        return
    if node.prev != NULL:
        node.prev.next = node.next
    elif st.zombies == node:
        st.zombies = node.next
    if node.next != NULL:
        node.next.prev = node.prev
    PyMem_RawFree(node)


cdef inline void done_push(AioState *st, CqeHandler *cqe) noexcept nogil:
    cqe.next = NULL
    if st.done_tail == NULL:
        st.done_head = cqe
    else:
        st.done_tail.next = cqe
    st.done_tail = cqe


cdef inline CqeHandler *done_pop(AioState *st) noexcept nogil:
    cdef CqeHandler *cqe = st.done_head
    if cqe != NULL:
        st.done_head = cqe.next
        if st.done_head == NULL:
            st.done_tail = NULL
    return cqe
