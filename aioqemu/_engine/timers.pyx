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
from libc.stdint cimport int64_t
from libc.stdint cimport uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memcpy
from libc.string cimport memset

from aioqemu._engine.types cimport TIMER_DUE
from aioqemu._engine.types cimport TIMER_IDLE
from aioqemu._sys.atomic cimport aq_prefetch


cdef enum:
    AHEAD = 24       # timers are spread over memory: fetch one while others are linked


cdef inline void _fetch(const void *timer) noexcept:
    aq_prefetch(timer)
    aq_prefetch(<const char *>timer + sizeof(AioTimer) - 1)    # may be the next line


cdef inline bint _before(TimerEntry *a, TimerEntry *b) noexcept nogil:
    return a.deadline_ns < b.deadline_ns or (
        a.deadline_ns == b.deadline_ns and a.seq < b.seq)


cdef int _compare(const void *a, const void *b) noexcept nogil:
    return -1 if _before(<TimerEntry *>a, <TimerEntry *>b) else 1


cdef void _sort(TimerEntry *entries, Py_ssize_t n) noexcept:
    """By deadline and order of arming.

    The deadlines of what is due at once have few digits that differ, so they are dealt
    out by digits; what has the same deadline lies together then.
    """
    cdef Py_ssize_t[256] places
    cdef TimerEntry *a = entries
    cdef TimerEntry *b = <TimerEntry *>PyMem_RawMalloc(n * sizeof(TimerEntry))
    cdef TimerEntry *swap
    cdef int64_t least = entries[0].deadline_ns
    cdef int64_t most = least
    cdef uint64_t span
    cdef Py_ssize_t i, j, place, count
    cdef int shift = 0
    if b == NULL:
        qsort(entries, n, sizeof(TimerEntry), _compare)
        return
    for i in range(1, n):
        if a[i].deadline_ns < least:
            least = a[i].deadline_ns
        if a[i].deadline_ns > most:
            most = a[i].deadline_ns
    span = <uint64_t>most - <uint64_t>least
    while shift < 64 and span >> shift:
        memset(places, 0, sizeof(places))
        for i in range(n):
            places[((<uint64_t>a[i].deadline_ns - <uint64_t>least) >> shift) & 255] += 1
        place = 0
        for i in range(256):
            count = places[i]
            places[i] = place
            place += count
        for i in range(n):
            j = ((<uint64_t>a[i].deadline_ns - <uint64_t>least) >> shift) & 255
            b[places[j]] = a[i]
            places[j] += 1
        swap = a
        a = b
        b = swap
        shift += 8
    i = 0
    while i < n:
        j = i + 1
        while j < n and a[j].deadline_ns == a[i].deadline_ns:
            j += 1
        if j - i > 1:
            qsort(&a[i], j - i, sizeof(TimerEntry), _compare)
        i = j
    if a != entries:
        memcpy(entries, a, n * sizeof(TimerEntry))
        b = a
    PyMem_RawFree(b)


@final
cdef class TimerHeap:
    def __cinit__(self):
        self.entries = NULL
        self.length = 0
        self.capacity = 0
        self.seq = 0
        self.due_head = NULL
        self.due_tail = NULL
        self.hint = NULL

    def __dealloc__(self):
        PyMem_RawFree(self.entries)
        PyMem_RawFree(self.hint)

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

    cdef bint _many_are_due(self, int64_t now_ns) noexcept:
        """Whether it looks as if more than a quarter is due."""
        cdef Py_ssize_t i
        cdef Py_ssize_t due = 0
        cdef Py_ssize_t step = self.length // 32
        for i in range(32):
            if self.entries[i * step].deadline_ns <= now_ns:
                due += 1
        return due >= 8

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
        _sort(taken, due)
        for i in range(due):
            if i + AHEAD < due:
                _fetch(taken[i + AHEAD].timer)
            self._set_aside(taken[i].timer)
        self._drop_hint()
        self.hint = taken
        self.n_hint = due

    cdef void _fetch_ahead(self) noexcept:
        """One of those set aside is run: fetch a later one, with what lies before it."""
        cdef char *there
        self.hinted += 1
        if self.hinted + AHEAD < self.n_hint:
            there = <char *>self.hint[self.hinted + AHEAD].timer
            _fetch(there)
            aq_prefetch(there - 64)
            aq_prefetch(there - 128)

    cdef void _drop_hint(self) noexcept:
        PyMem_RawFree(self.hint)
        self.hint = NULL
        self.hinted = self.told = self.n_hint = 0

    cdef char *later(self) noexcept:
        self.told += 1
        if self.told + AHEAD // 2 < self.n_hint:
            return <char *>self.hint[self.told + AHEAD // 2].timer
        return NULL

    cdef Py_ssize_t run(self, int64_t now_ns) except -1:
        cdef AioTimer *timer
        cdef Py_ssize_t n = 0
        cdef Py_ssize_t few = 32
        cdef object owner
        if self.hint != NULL and self.due_head == NULL:
            self._drop_hint()
        # Everything due is set aside first: what a callback arms, even into the past,
        # is for the next run.  A nested run goes on with the same list.
        while self.length and self.entries[0].deadline_ns <= now_ns:
            if few == 0 and self.length > 64:
                if self._many_are_due(now_ns):
                    few = -1            # if that finds no memory, never again
                    self._set_many_aside(now_ns)
                    continue
                few = self.length >> 4
            few -= 1
            timer = self.entries[0].timer
            self._remove(0)
            self._set_aside(timer)
        while self.due_head != NULL:
            timer = self.due_head
            if self.hint != NULL:
                self._fetch_ahead()
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
