"""The contract of WorkerPool: threads that call functions for loops.

GIL held, any thread.  The GIL is the lock of everything here but a sleeper's own.
"""

from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_type_lock

from aioqemu._loop.callbacks cimport LoopCallbacks

cdef struct Sleeper:
    # An idle thread; on that thread's stack.  Whoever releases `lock` has unlinked it.
    PyThread_type_lock lock
    Sleeper *next
    bint called            # to take a call, by _call_one; else only to look around

cdef class WorkItem:
    # A call, from the queue to the delivery of what came of it.
    cdef object future       # a future of `loop`; or, without a loop, one that may be cancelled
    cdef LoopCallbacks loop  # None: `func` itself takes care of the future
    cdef object func
    cdef tuple args
    cdef object value        # result, or exception if it failed
    cdef bint failed
    cdef PyObject *next      # in the queue, which has a reference

cdef class WorkerPool:
    cdef readonly set threads      # of threading; also those that have ended
    cdef public int limit          # how many threads there may be
    cdef int begun                 # threads ever started
    cdef int living                # threads that have not ended
    cdef int starting              # of these, not arrived yet
    cdef int idle                  # of these, linked into `sleepers`
    cdef bint calling              # one sleeper was called and has not come yet
    cdef bint ending
    cdef int fork_generation
    cdef Sleeper *sleepers         # the last that went to sleep first
    cdef PyObject *head            # WorkItems
    cdef PyObject *tail
    cdef Py_ssize_t queued

    cdef int _check_open(self) except -1
    cdef int _enqueue(self, WorkItem item) except -1
    cdef WorkItem _dequeue(self)
    cdef int _withdraw(self, WorkItem item) noexcept
    cdef int _start_thread(self) except -1
    cdef void _call_one(self) noexcept
    cdef void _call_all(self) noexcept
    cdef int _renew(self) except -1
    # Make the call.  The context that has to be woken for it, which is held open until its
    # `wakers` is lowered; or NULL.  What fails here and is not the call's is unraisable.
    cdef void *_perform(self, WorkItem item) noexcept
