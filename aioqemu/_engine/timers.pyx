"""Timers: see timers.pxd for the contract.

Knows neither contexts nor asyncio.  Invariant: a timer is in the heap, or among the due
ones, or in neither, and its owner has one reference from here exactly in the first two
cases.

What is due is an array, sorted; nothing is linked, so that the memory of a timer that is
only queued is not touched here.  Its index then still says where it was in the heap, where
another is now, or none.  A timer with a callback has TIMER_DUE less its place in the array.

Removing by place keeps the heap free of dead entries: the common timer is a timeout
that is cancelled long before it is due and sits among the leaves, where removing it
moves almost nothing.
"""

from cpython.mem cimport PyMem_RawFree
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

cdef enum:
    FEW_DUE = 1024      # memory for more due timers is given back


cdef inline bint _before(TimerEntry *a, TimerEntry *b) noexcept nogil:
    return a.deadline_ns < b.deadline_ns or (
        a.deadline_ns == b.deadline_ns and a.order < b.order)


cdef int _compare(const void *a, const void *b) noexcept nogil:
    return -1 if _before(<TimerEntry *>a, <TimerEntry *>b) else 1


cdef void _sort(TimerEntry *entries, Py_ssize_t n, TimerEntry *scratch) noexcept:
    """By deadline and order of arming; `scratch` has room for as many.

    The deadlines of what is due at once have few digits that differ, so they are dealt
    out by digits; what has the same deadline lies together then.
    """
    cdef Py_ssize_t[256] places
    cdef TimerEntry *a = entries
    cdef TimerEntry *b = scratch
    cdef TimerEntry *swap
    cdef int64_t least = entries[0].deadline_ns
    cdef int64_t most = least
    cdef uint64_t span
    cdef Py_ssize_t i, j, place, count
    cdef int shift = 0
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


@final
cdef class TimerHeap:
    def __cinit__(self):
        self.entries = NULL
        self.length = 0
        self.capacity = 0
        self.seq = 0
        self.due = NULL
        self.n_due = self.due_at = self.due_left = self.due_capacity = 0
        self.queue = NULL

    def __dealloc__(self):
        PyMem_RawFree(self.entries)
        PyMem_RawFree(self.due)

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
        entry.deadline_ns = deadline_ns
        entry.order = self.seq << 1
        if timer.cb == NULL:
            entry.order |= ENTRY_QUEUES
        entry.timer = timer
        self.seq += 1
        self.length += 1
        self._up(self.length - 1, entry)
        return 0

    cdef TimerEntry *_entry_of(self, AioTimer *timer) noexcept:
        """Its entry, in the heap or among the due ones with a callback; or NULL."""
        cdef TimerEntry *entry
        cdef Py_ssize_t place
        if timer.index >= 0:
            if timer.index >= self.length:
                return NULL
            entry = &self.entries[timer.index]
        else:
            place = TIMER_DUE - timer.index
            if place < self.due_at or place >= self.n_due:
                return NULL
            entry = &self.due[place]
        return entry if entry.timer == timer else NULL

    cdef bint holds(self, AioTimer *timer) noexcept:
        return self._entry_of(timer) != NULL

    cdef int64_t deadline_of(self, AioTimer *timer) noexcept:
        cdef TimerEntry *entry = self._entry_of(timer)
        return -1 if entry == NULL else entry.deadline_ns

    cdef bint disarm(self, AioTimer *timer) noexcept:
        cdef TimerEntry *entry = self._entry_of(timer)
        if entry == NULL:
            return False
        if timer.index >= 0:
            self._remove(timer.index)
        else:
            entry.timer = NULL
            self.due_left -= 1
        timer.index = TIMER_IDLE
        Py_DECREF(<object>timer.opaque)
        return True

    cdef int _reserve_due(self, Py_ssize_t n) except -1:
        cdef Py_ssize_t capacity = self.due_capacity * 2
        cdef void *grown
        n += self.n_due
        if n <= self.due_capacity:
            return 0
        if capacity < 64:
            capacity = 64
        if capacity < n:
            capacity = n
        grown = PyMem_RawRealloc(self.due, capacity * sizeof(TimerEntry))
        if grown == NULL:
            raise MemoryError()
        self.due = <TimerEntry *>grown
        self.due_capacity = capacity
        return 0

    cdef void _note_places(self, Py_ssize_t first) noexcept:
        """Tell those set aside that have a callback, from place `first` on, where."""
        cdef Py_ssize_t i
        for i in range(first, self.n_due):
            if not self.due[i].order & ENTRY_QUEUES:
                self.due[i].timer.index = TIMER_DUE - i

    cdef bint _many_are_due(self, int64_t now_ns) noexcept:
        """Whether it looks as if more than a quarter is due."""
        cdef Py_ssize_t i
        cdef Py_ssize_t due = 0
        cdef Py_ssize_t step = self.length // 32
        for i in range(32):
            if self.entries[i * step].deadline_ns <= now_ns:
                due += 1
        return due >= 8

    cdef int _set_many_aside(self, int64_t now_ns) except -1:
        """All that is due at once: taken out, sorted, and the rest made a heap again.

        One by one, each costs a walk down the heap and a cache miss a level.
        """
        cdef Py_ssize_t i
        cdef Py_ssize_t kept = 0
        cdef Py_ssize_t many = 0
        cdef TimerEntry *heap = self.entries
        cdef TimerEntry *taken
        for i in range(self.length):
            many += heap[i].deadline_ns <= now_ns
        self._reserve_due(many)
        taken = self.due + self.n_due
        many = 0
        for i in range(self.length):
            if heap[i].deadline_ns <= now_ns:
                taken[many] = heap[i]
                many += 1
            else:
                if kept != i:
                    heap[kept] = heap[i]
                    heap[kept].timer.index = kept
                kept += 1
        self.length = kept
        i = (kept + 2) >> 2
        while i > 0:
            i -= 1
            self._down(i, heap[i])
        _sort(taken, many, heap + kept)        # where they were, all told
        self.n_due += many
        self.due_left += many
        self._note_places(self.n_due - many)
        return 0

    cdef int _set_aside(self, int64_t now_ns) except -1:
        cdef Py_ssize_t few = 32
        while self.length and self.entries[0].deadline_ns <= now_ns:
            if few == 0 and self.length > 64:
                if self._many_are_due(now_ns):
                    return self._set_many_aside(now_ns)
                few = self.length >> 4
            few -= 1
            self._reserve_due(1)
            self.due[self.n_due] = self.entries[0]
            self._remove(0)
            self.n_due += 1
            self.due_left += 1
            self._note_places(self.n_due - 1)
        return 0

    cdef Py_ssize_t run(self, int64_t now_ns) except -1:
        cdef AioTimer *timer
        cdef Py_ssize_t n = 0
        cdef Py_ssize_t end
        cdef object owner
        if self.due_left == 0:
            self.due_at = self.n_due = 0
            if self.due_capacity > FEW_DUE:
                PyMem_RawFree(self.due)
                self.due = NULL
                self.due_capacity = 0
        # Everything due is set aside first: what a callback arms, even into the past,
        # is for the next run.  A nested run goes on with the same array.
        self._set_aside(now_ns)
        while self.due_left:
            end = self.due_at
            while end < self.n_due and self.due[end].order & ENTRY_QUEUES:
                end += 1
            if end > self.due_at:
                self.queue(self.queue_owner, self.due + self.due_at, end - self.due_at)
                n += end - self.due_at
                self.due_left -= end - self.due_at
                self.due_at = end
                continue
            timer = self.due[self.due_at].timer
            self.due_at += 1
            if timer == NULL:
                continue
            self.due_left -= 1
            timer.index = TIMER_IDLE
            owner = <object>timer.opaque
            Py_DECREF(owner)   # the reference of arm(); `owner` holds it for the call
            n += 1
            timer.cb(timer.opaque)
        return n

    cdef void clear(self) noexcept:
        cdef TimerEntry *entry
        while self.due_left:
            entry = &self.due[self.due_at]
            self.due_at += 1
            if entry.timer != NULL:
                self.due_left -= 1
                entry.timer.index = TIMER_IDLE
                Py_DECREF(<object>entry.timer.opaque)
        while self.length:
            self.disarm(self.entries[self.length - 1].timer)
