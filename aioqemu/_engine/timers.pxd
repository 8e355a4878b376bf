"""Timers: a 4-ary heap by (deadline, order of arming), with places kept in the nodes.

Home thread, GIL held.  Times are nanoseconds of CLOCK_MONOTONIC.
"""

from libc.stdint cimport int64_t
from libc.stdint cimport uint64_t

from aioqemu._engine.types cimport AioTimer

cdef struct TimerEntry:
    int64_t deadline_ns
    uint64_t seq
    AioTimer *timer

cdef class TimerHeap:
    cdef TimerEntry *entries
    cdef Py_ssize_t length
    cdef Py_ssize_t capacity
    cdef uint64_t seq
    cdef AioTimer *due_head
    cdef AioTimer *due_tail
    cdef TimerEntry *hint          # what was set aside in one go, in order; maybe gone
    cdef Py_ssize_t n_hint
    cdef Py_ssize_t hinted         # how many of them have run
    cdef Py_ssize_t told           # ... and how often later() was called
    cdef void _drop_hint(self) noexcept
    cdef void _fetch_ahead(self) noexcept
    cdef void _up(self, Py_ssize_t i, TimerEntry entry) noexcept
    cdef void _down(self, Py_ssize_t i, TimerEntry entry) noexcept
    cdef void _remove(self, Py_ssize_t i) noexcept
    cdef void _unlink_due(self, AioTimer *timer) noexcept
    cdef void _set_aside(self, AioTimer *timer) noexcept
    cdef bint _many_are_due(self, int64_t now_ns) noexcept
    cdef void _set_many_aside(self, int64_t now_ns) noexcept

    # Arm a timer (again); takes a reference to its owner.  -1: MemoryError.
    cdef int arm(self, AioTimer *timer, int64_t deadline_ns) except -1
    # Disarm; drops the reference.  True if it was armed or due.
    cdef bint disarm(self, AioTimer *timer) noexcept
    # Run what is due at `now_ns`.  A timer is unlinked before its callback, so that it
    # may be armed again; one armed again into the past waits for the next run.
    # Returns the number of callbacks run.
    cdef Py_ssize_t run(self, int64_t now_ns) except -1
    # For who goes through the owners of many in the order in which they ran: where a later
    # one was, to have that fetched; it may have gone. NULL: there was no such crowd.
    cdef char *later(self) noexcept
    # Drop everything without running it.
    cdef void clear(self) noexcept
