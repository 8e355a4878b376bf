"""The contract of AioContext: the order of a pass.  Home thread and GIL.

What it inherits: fds, waking and waiting (core), registered callbacks (handlers).
"""

from libc.stdint cimport int64_t

from aioqemu._engine.handlers cimport AioHandlers

cdef class AioContext(AioHandlers):
    cdef int refs
    cdef bint modern
    cdef public object poll_guard  # called by poll() before it does anything; may raise

    # Completions, bottom halves, ready nodes, due timers.  The number of callbacks.
    # Without `transports` their nodes stay where they are, for dispatch_transports.
    # `now_ns` is the time since the wait, which whoever waited may know already.
    cdef Py_ssize_t dispatch_all(self, bint transports, int64_t now_ns) except -1
    cdef Py_ssize_t dispatch_transports(self) except -1

    # The rest is the context's own.
    cdef int _close(self) except -1
    cdef int _check_made(self) except -1
    cdef Py_ssize_t _dispatch_done(self) except -1
    cdef Py_ssize_t _dispatch_context(self) except -1
    cdef Py_ssize_t _run_timers(self) except -1
    cdef int _wait_context(self, int64_t timeout_ns) except -1
    cdef bint _poll_seed(self, bint blocking) except -1
    cdef bint _poll_modern(self, bint blocking) except -1
    cdef int _watch_current(self) noexcept
    cdef bint _poll(self, bint blocking) except -1
