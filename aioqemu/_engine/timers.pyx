"""Timers: see timers.pxd for the contract.

Knows neither contexts nor asyncio.  Invariant: a timer is in the heap (index >= 0), or
in the list of due timers (TIMER_DUE), or in neither (TIMER_IDLE), and its owner has one
reference from here exactly in the first two cases.

Removing by place keeps the heap free of dead entries: the common timer is a timeout
that is cancelled long before it is due and sits among the leaves, where removing it
moves almost nothing.
"""

from cpython.mem cimport PyMem_RawFree
from cpython.mem cimport PyMem_RawMalloc
from cpython.mem cimport PyMem_RawRealloc
from cpython.ref cimport Py_DECREF
from cpython.ref cimport Py_INCREF
from cython cimport final
from libc.stdlib cimport qsort

from aioqemu._engine.types cimport TIMER_DUE
from aioqemu._engine.types cimport TIMER_IDLE
from aioqemu._sys.atomic cimport aq_prefetch


cdef enum:
    AHEAD = 8       # timers are spread over memory: fetch one while others are linked


cdef inline bint _before(TimerEntry *a, TimerEntry *b) noexcept nogil:
    return a.deadline_ns < b.deadline_ns or (
        a.deadline_ns == b.deadline_ns and a.seq < b.seq)


cdef int _compare(const void *a, const void *b) noexcept nogil:
    return -1 if _before(<TimerEntry *>a, <TimerEntry *>b) else 1


@final
cdef class TimerHeap:
    def __cinit__(self):
        self.entries = NULL
        self.length = 0
        self.capacity = 0
        self.seq = 0
        self.due_head = NULL
        self.due_tail = NULL

    def __dealloc__(self):
        PyMem_RawFree(self.entries)

    cdef void _up(self, Py_ssize_t i, TimerEntry entry) noexcept:
        cdef Py_ssize_t parent
        cdef TimerEntry *heap = self.entries
        while i > 0:
            parent = (i - 1) >> 2
            if not _before(&entry, &heap[parent]):
                break
            heap[i] = heap[parent]
            heap[i].timer.index = i
            i = parent
        heap[i] = entry
        entry.timer.index = i

    cdef void _down(self, Py_ssize_t i, TimerEntry entry) noexcept:
        cdef Py_ssize_t child, least, last
        cdef Py_ssize_t n = self.length
        cdef TimerEntry *heap = self.entries
        while True:
            child = (i << 2) + 1
            if child >= n:
                break
            last = child + 4 if child + 4 < n else n
            least = child
            child += 1
            while child < last:
                if _before(&heap[child], &heap[least]):
                    least = child
                child += 1
            if not _before(&heap[least], &entry):
                break
            heap[i] = heap[least]
            heap[i].timer.index = i
            i = least
        heap[i] = entry
        entry.timer.index = i

    cdef void _remove(self, Py_ssize_t i) noexcept:
        cdef TimerEntry last
        cdef TimerEntry gone = self.entries[i]
        self.length -= 1
        if i == self.length:
            return
        last = self.entries[self.length]
        if _before(&last, &gone):
            self._up(i, last)
        else:
            self._down(i, last)

    cdef void _unlink_due(self, AioTimer *timer) noexcept:
        if timer.prev == NULL:
            self.due_head = timer.next
        else:
            timer.prev.next = timer.next
        if timer.next == NULL:
            self.due_tail = timer.prev
        else:
            timer.next.prev = timer.prev

    cdef int arm(self, AioTimer *timer, int64_t deadline_ns) except -1:
        cdef TimerEntry entry
        cdef void *grown
        cdef Py_ssize_t capacity
        if self.length == self.capacity:
            capacity = self.capacity * 2 if self.capacity else 64
            grown = PyMem_RawRealloc(self.entries, capacity * sizeof(TimerEntry))
            if grown == NULL:
                raise MemoryError()
            self.entries = <TimerEntry *>grown
            self.capacity = capacity
        Py_INCREF(<object>timer.opaque)
        self.disarm(timer)
        timer.deadline_ns = deadline_ns
        entry.deadline_ns = deadline_ns
        entry.seq = self.seq
        entry.timer = timer
        self.seq += 1
        self.length += 1
        self._up(self.length - 1, entry)
        return 0

    cdef bint disarm(self, AioTimer *timer) noexcept:
        if timer.index >= 0:
            self._remove(timer.index)
        elif timer.index == TIMER_DUE:
            self._unlink_due(timer)
        else:
            return False
        timer.index = TIMER_IDLE
        Py_DECREF(<object>timer.opaque)
        return True

    cdef void _set_aside(self, AioTimer *timer) noexcept:
        timer.index = TIMER_DUE
        timer.next = NULL
        timer.prev = self.due_tail
        if self.due_tail == NULL:
            self.due_head = timer
        else:
            self.due_tail.next = timer
        self.due_tail = timer

    cdef void _set_many_aside(self, int64_t now_ns) noexcept:
        """All that is due at once: taken out, sorted, and the rest made a heap again.

        One by one, each costs a walk down the heap and a cache miss a level.
        """
        cdef Py_ssize_t i
        cdef Py_ssize_t kept = 0
        cdef Py_ssize_t due = 0
        cdef TimerEntry *heap = self.entries
        cdef TimerEntry *taken = <TimerEntry *>PyMem_RawMalloc(
            self.length * sizeof(TimerEntry))
        if taken == NULL:
            return          # the caller goes on one by one
        for i in range(self.length):
            if heap[i].deadline_ns <= now_ns:
                taken[due] = heap[i]
                due += 1
            else:
                heap[kept] = heap[i]
                heap[kept].timer.index = kept
                kept += 1
        self.length = kept
        i = (kept + 2) >> 2
        while i > 0:
            i -= 1
            self._down(i, heap[i])
        qsort(taken, due, sizeof(TimerEntry), _compare)
        for i in range(due):
            if i + AHEAD < due:
                aq_prefetch(taken[i + AHEAD].timer)
            self._set_aside(taken[i].timer)
        PyMem_RawFree(taken)

    cdef Py_ssize_t run(self, int64_t now_ns) except -1:
        cdef AioTimer *timer
        cdef Py_ssize_t n = 0
        cdef Py_ssize_t few = self.length >> 3
        cdef object owner
        # Everything due is set aside first: what a callback arms, even into the past,
        # is for the next run.  A nested run goes on with the same list.
        while self.length and self.entries[0].deadline_ns <= now_ns:
            if few < 0 and self.length > 64:
                few = self.length       # and if that finds no memory, never again
                self._set_many_aside(now_ns)
                continue
            few -= 1
            timer = self.entries[0].timer
            self._remove(0)
            self._set_aside(timer)
        while self.due_head != NULL:
            timer = self.due_head
            aq_prefetch(timer.next)
            self._unlink_due(timer)
            timer.index = TIMER_IDLE
            owner = <object>timer.opaque
            Py_DECREF(owner)   # the reference of arm(); `owner` holds it for the call
            n += 1
            timer.cb(timer.opaque)
        return n

    cdef void clear(self) noexcept:
        while self.due_head != NULL:
            self.disarm(self.due_head)
        while self.length:
            self.disarm(self.entries[self.length - 1].timer)
