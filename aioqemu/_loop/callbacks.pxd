"""LoopCallbacks: what everybody needs of the loop.  Home thread, GIL held."""

from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

from aioqemu._engine.context cimport AioContext

cdef enum:
    # What is received at once.  With the head of a bytes object it is below malloc's limit
    # for memory that is mapped anew each time, and it is two full segments of loopback:
    # what is echoed in pieces of 128 KiB leaves as two packets and a tiny one.
    SCRATCH_SIZE = 130944

ctypedef int (*FlushCallback)(void *owner) except -1

cdef struct FlushNode:
    # Somebody with output to send when the running callback returns.
    FlushNode *next
    FlushCallback flush
    void *owner              # one reference while linked
    bint linked

cdef class LoopCallbacks:
    cdef readonly AioContext context
    cdef PyObject **ready          # a ring of handles, each with a reference
    cdef Py_ssize_t ready_mask     # places in it, a power of two or 0, less one
    cdef Py_ssize_t ready_first
    cdef readonly Py_ssize_t _n_ready
    cdef uint64_t callbacks
    cdef bint stopping
    cdef bint closed
    cdef bint debug
    cdef bint in_pass              # output waits for the end of the callback
    cdef unsigned long thread      # ident of the running thread, 0 if not running
    cdef FlushNode *flush_head
    cdef FlushNode *flush_tail
    cdef char *scratch_buffer
    cdef public double slow_callback_duration
    cdef public object _current_handle
    cdef public object _task_factory   # None: tasks are asyncio.Task
    cdef object __weakref__

    # Queue a handle; takes a reference.
    cdef int append(self, PyObject *handle) except -1
    # The same from any thread that has the GIL; wakes the loop if it sleeps.
    cdef int append_foreign(self, PyObject *handle) except -1
    cdef int _step_aside(self) except -1
    # Have room for `n` more.
    cdef int _grow_ready(self, Py_ssize_t n) except -1
    # call_soon for our own code: no checks, no debug traceback.
    cdef int soon(self, object callback, PyObject *a, PyObject *b, object context) except -1
    # Run what is in the queue now.
    cdef int _run_ready(self) except -1
    cdef void _look_ahead(self) noexcept
    # The n-th from the front.
    cdef PyObject *ready_at(self, Py_ssize_t n) noexcept
    cdef int _run_debug(self, PyObject *handle) except -1
    cdef int _drop_ready(self) noexcept
    # Have node.flush(owner) called when the running callback returns, or now.
    cdef int flush_later(self, FlushNode *node, FlushCallback flush, object owner) except -1
    cdef int flush_cancel(self, FlushNode *node) noexcept
    cdef int flush_all(self) except -1
    # Whether this process is a forked child of the loop's.
    cdef bint in_child(self) noexcept
    # A buffer of SCRATCH_SIZE bytes, valid until the next call of anything.
    cdef char *scratch(self) except NULL
    # Call protocol code: an exception that is set goes to the exception handler, but for
    # KeyboardInterrupt and SystemExit, which stay set (-1).
    cdef int handle_failed(self, object handle) except -1

    # Have the timers of our context queued here.
    cdef int take_timers(self) noexcept
    cdef int _check_closed_(self) except -1
    cdef int _check_debug(self, object callback, str method) except -1
    cdef object _call_at(self, double when, object callback, tuple args, object context)
