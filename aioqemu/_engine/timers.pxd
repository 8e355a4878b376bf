"""Timers: a 4-ary heap by (deadline, order of arming), with places kept in the nodes.

Home thread, GIL held.  Times are nanoseconds of CLOCK_MONOTONIC.
"""

from libc.stdint cimport int64_t
from libc.stdint cimport uint64_t

from aioqemu._engine.types cimport AioTimer

cdef enum:
    ENTRY_QUEUES = 1         # in `order`: the timer has no callback, it is queued

cdef struct TimerEntry:
    int64_t deadline_ns
    uint64_t order           # of arming, times two, and ENTRY_QUEUES
    AioTimer *timer          # NULL: was due and is disarmed

# Takes over timers that are due, with the reference that each has; all or (-1) none.
# Their memory is not to be touched before they run: it may be in no cache.
ctypedef int (*TimerQueue)(void *owner, TimerEntry *due, Py_ssize_t n) except -1

cdef class TimerHeap:
    cdef TimerEntry *entries
    cdef Py_ssize_t length
    cdef Py_ssize_t capacity
    cdef uint64_t seq
    cdef TimerEntry *due           # what was set aside, in order
    cdef Py_ssize_t n_due
    cdef Py_ssize_t due_at         # where the rest of it begins
    cdef Py_ssize_t due_left       # how many of that are not disarmed
    cdef Py_ssize_t due_capacity
    cdef TimerQueue queue          # where timers without a callback go
    cdef void *queue_owner         # no reference: it owns us, or nothing is armed
    cdef void _up(self, Py_ssize_t i, TimerEntry entry) noexcept
    cdef void _down(self, Py_ssize_t i, TimerEntry entry) noexcept
    cdef void _remove(self, Py_ssize_t i) noexcept
    cdef int _reserve_due(self, Py_ssize_t n) except -1
    cdef void _note_places(self, Py_ssize_t first) noexcept
    cdef bint _many_are_due(self, int64_t now_ns) noexcept
    cdef int _set_many_aside(self, int64_t now_ns) except -1
    cdef int _set_aside(self, int64_t now_ns) except -1
    cdef TimerEntry *_entry_of(self, AioTimer *timer) noexcept

    # Arm a timer (again); takes a reference to its owner.  -1: MemoryError.
    cdef int arm(self, AioTimer *timer, int64_t deadline_ns) except -1
    # Disarm; drops the reference.  True if it was armed or due.  One without a callback
    # that is due stays: who runs it finds out that it was cancelled.
    cdef bint disarm(self, AioTimer *timer) noexcept
    # Whether disarm() would have something to do.
    cdef bint holds(self, AioTimer *timer) noexcept
    # The deadline of a timer that it holds; else -1.
    cdef int64_t deadline_of(self, AioTimer *timer) noexcept
    # Run what is due at `now_ns`.  A timer is unlinked before its callback, so that it
    # may be armed again; one armed again into the past waits for the next run.
    # Returns the number of callbacks run and of timers queued.
    cdef Py_ssize_t run(self, int64_t now_ns) except -1
    # Drop everything without running it.
    cdef void clear(self) noexcept
