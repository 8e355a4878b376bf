"""The contract of AioWaiting: waiting for events.  Home thread, GIL held."""

from libc.stdint cimport int64_t

from aioqemu._engine.core cimport AioCore

cdef class AioWaiting(AioCore):
    cdef int64_t now_ns            # read once a pass, after the wait
    cdef int64_t poll_ns, poll_max_ns, poll_grow, poll_shrink
    cdef int64_t hold_gil_ns
    cdef int64_t released_ns       # after the last wait without the GIL; -1: now_ns is that
    cdef int looks_wrong           # how often looks with the GIL found nothing, of late
    cdef int looks_off             # so many waits do not begin with one
    cdef int contended             # not 0: the GIL was long in coming, a few waits ago
    cdef int64_t taken_ns          # when that wait got it
    cdef int64_t spun_ns           # when the last wait began that only looked; 0: it did not

    # The longest that a wait may last, from bottom halves, queues and timers; -1: ever.
    cdef int64_t compute_timeout(self) noexcept
    # The same for poll(), which leaves the loop's ready fds alone.
    cdef int64_t _own_timeout(self) noexcept
    # Wait and collect; may return early with nothing.  Raises what a signal handler raised,
    # or OSError if the backend is gone.  Between the question for the timeout and this no
    # Python code may run, nor the GIL be let go: what it queued would not end the wait.
    # So who waits calls PyErr_CheckSignals() before the question.
    cdef int wait(self, int64_t timeout_ns) except -1

    # For the layers of the context alone.
    cdef bint _start_monitor(self) except -1    # whether it had to be
    cdef int _look_first(self, int found) noexcept
    cdef int _sleep(self, int64_t timeout_ns, int found, int64_t spun_ns) noexcept
    cdef int _spin(self, int64_t timeout_ns, int64_t longest_ns) noexcept nogil
    cdef int _look_with_gil(self, int64_t timeout_ns) noexcept
    cdef void _adjust_polling(self, int64_t blocked_ns) noexcept
