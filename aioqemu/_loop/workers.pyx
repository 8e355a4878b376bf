"""WorkerPool: the threads behind run_in_executor(None), and the queue they work off.

Knows no executors, and of futures only that they can be cancelled and given a result.
Who wants a thread, takes one or goes to sleep holds the GIL anyway, so it is the only
lock; what costs here is to get it.  Hence a batch of calls wakes threads one by one, each
when the one before has come, and a loop is woken after the GIL was let go.

Invariant: while calls wait and a thread sleeps, one was called and is on its way.
"""

import os
import threading

from cpython.object cimport PyObject
from cpython.object cimport PyTypeObject
from cpython.pythread cimport PyThread_acquire_lock
from cpython.pythread cimport PyThread_allocate_lock
from cpython.pythread cimport PyThread_free_lock
from cpython.pythread cimport PyThread_release_lock
from cpython.pythread cimport WAIT_LOCK
from cpython.ref cimport Py_DECREF
from cpython.ref cimport Py_INCREF
from cython cimport final
from cython cimport freelist
from libc.stdint cimport int64_t

from aioqemu._engine.core cimport AioCore
from aioqemu._engine.core cimport fork_generation
from aioqemu._loop.callbacks cimport LoopCallbacks
from aioqemu._loop.handles cimport Handle
from aioqemu._loop.handles cimport new_handle
from aioqemu._sys.atomic cimport aq_add
from aioqemu._sys.atomic cimport aq_load
from aioqemu._sys.classes cimport refuse_new
from aioqemu._sys.libc cimport aq_now_ns

from aioqemu._loop.private import convert_future_exc, register_threading_atexit

cdef enum:
    TURN_NS = 1000000        # after so long at a stretch others may have the GIL

cdef set _pools = set()      # those with threads
cdef bint _exiting = False
cdef object _convert = convert_future_exc
cdef object _call_soon_threadsafe = LoopCallbacks.call_soon_threadsafe


def end_all():
    """The interpreter exits: finish what is queued, take nothing more, join all threads."""
    global _exiting
    cdef WorkerPool pool
    _exiting = True
    pools = list(_pools)
    for pool in pools:
        pool._call_all()
    for pool in pools:
        for thread in list(pool.threads):
            thread.join()


# Before the interpreter joins all threads, and thus before any daemon thread is in
# danger; as concurrent.futures does it, whose threads ours stand for.
register_threading_atexit(end_all)
os.register_at_fork(after_in_child=_pools.clear)


@final
@freelist(64)
cdef class WorkItem:
    """A call in the making; nothing for programs."""


def _deliver(WorkItem item not None):
    """In the loop's thread: end the future of a call."""
    future, value = item.future, item.value
    item.future = item.value = None
    if future.cancelled():
        return
    if item.failed:
        future.set_exception(_convert(value))
    else:
        future.set_result(value)


cdef object _deliver_ = _deliver


cdef class WorkerPool:
    """Up to `limit` threads, started when a call finds none idle, which end with it.

    Knows no executor and keeps none alive.  Threads are `threading.Thread` objects named
    as those of asyncio's default executor.
    """

    def __cinit__(self):
        self.threads = set()
        self.fork_generation = fork_generation
        self.limit = 1

    def __dealloc__(self):
        while self.head != NULL:
            self._dequeue()

    # -- the queue ----------------------------------------------------------------------

    cdef int _check_open(self) except -1:
        if self.fork_generation != fork_generation:
            self._renew()
        if self.ending:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if _exiting:
            raise RuntimeError(
                "cannot schedule new futures after interpreter shutdown")
        return 0

    def call(self, LoopCallbacks loop not None, func, tuple args not None):
        """Call `func(*args)` in a thread.

        Returns:
            A future of the loop.  If it is cancelled before the call has begun, nothing
            is called.

        Raises:
            RuntimeError: The pool or the interpreter is ending, or there is no thread
                and none can be started.
        """
        cdef WorkItem item
        self._check_open()
        item = WorkItem.__new__(WorkItem)
        item.loop = loop
        item.func = func
        item.args = args
        future = item.future = loop.create_future()
        self._enqueue(item)
        return future

    def submit(self, future, func, tuple args not None):
        """Call `func(*args)`, which must not raise and cares for `future` itself."""
        cdef WorkItem item
        self._check_open()
        item = WorkItem.__new__(WorkItem)
        item.func = func
        item.args = args
        item.future = future
        self._enqueue(item)

    def drain(self):
        """Take back what no thread has begun with: a list of (future, loop or None)."""
        cdef WorkItem item
        cdef list futures = []
        if self.fork_generation != fork_generation:
            self._renew()
        while self.head != NULL:
            item = self._dequeue()
            futures.append((item.future, item.loop))
        return futures

    def end(self):
        """Finish what is queued, take nothing more; twice does nothing more."""
        if self.fork_generation != fork_generation:
            self._renew()
        self.ending = True
        self._call_all()

    def qsize(self):
        """How many calls no thread has begun with."""
        return self.queued

    def empty(self):
        """Whether there is no such call."""
        return self.head == NULL

    cdef int _enqueue(self, WorkItem item) except -1:
        Py_INCREF(item)
        item.next = NULL
        if self.tail == NULL:
            self.head = <PyObject *>item
        else:
            (<WorkItem>self.tail).next = <PyObject *>item
        self.tail = <PyObject *>item
        self.queued += 1
        if (self.queued > self.idle + self.calling + self.starting
                and self.living < self.limit):
            try:
                self._start_thread()
            except BaseException:
                self._withdraw(item)
                raise
        self._call_one()
        return 0

    cdef WorkItem _dequeue(self):
        cdef PyObject *op = self.head
        cdef WorkItem item = <WorkItem>op
        self.head = item.next
        if self.head == NULL:
            self.tail = NULL
        item.next = NULL
        self.queued -= 1
        Py_DECREF(item)      # `item` keeps it
        return item

    cdef int _withdraw(self, WorkItem item) noexcept:
        """Take a call back, unless a thread has taken it meanwhile."""
        cdef PyObject *before = NULL
        cdef PyObject *op = self.head
        while op != NULL and op != <PyObject *>item:
            before = op
            op = (<WorkItem>op).next
        if op == NULL:
            return 0
        if before == NULL:
            self.head = item.next
        else:
            (<WorkItem>before).next = item.next
        if self.tail == op:
            self.tail = before
        item.next = NULL
        self.queued -= 1
        Py_DECREF(item)
        return 0

    # -- threads ------------------------------------------------------------------------

    cdef int _start_thread(self) except -1:
        thread = threading.Thread(target=self._work, name=f"asyncio_{self.begun}")
        self.begun += 1
        self.living += 1
        self.starting += 1
        _pools.add(self)
        try:
            thread.start()
        except BaseException as exc:
            if thread.ident is not None or thread in threading.enumerate():
                # A signal handler raised while we waited for the thread to begin.
                self.threads.add(thread)
                raise
            self.begun -= 1
            self.living -= 1
            self.starting -= 1
            if self.living and isinstance(exc, (RuntimeError, MemoryError)):
                return 0         # the threads that there are will do
            raise
        self.threads.add(thread)
        return 0

    cdef void _call_one(self) noexcept:
        cdef Sleeper *sleeper = self.sleepers
        if self.calling or sleeper == NULL:
            return
        self.sleepers = sleeper.next
        self.idle -= 1
        self.calling = sleeper.called = True
        PyThread_release_lock(sleeper.lock)

    cdef void _call_all(self) noexcept:
        cdef Sleeper *sleeper
        while self.sleepers != NULL:
            sleeper = self.sleepers
            self.sleepers = sleeper.next
            self.idle -= 1
            sleeper.called = False
            PyThread_release_lock(sleeper.lock)

    cdef int _renew(self) except -1:
        """In a forked child: threads and queue are the parent's."""
        self.fork_generation = fork_generation
        self.sleepers = NULL         # on stacks that nobody uses any more
        self.living = self.starting = self.idle = 0
        self.calling = False
        self.threads.clear()
        while self.head != NULL:
            self._dequeue()
        return 0

    def _work(self):
        """What a thread does; for `_start_thread` alone."""
        cdef Sleeper me
        cdef void *owed = NULL
        cdef int generation = fork_generation
        cdef int64_t began = aq_now_ns()
        self.starting -= 1
        me.lock = PyThread_allocate_lock()
        if me.lock == NULL:
            self.living -= 1
            raise MemoryError()
        PyThread_acquire_lock(me.lock, WAIT_LOCK)    # so that the next time sleeps
        while True:
            if self.head == NULL:
                if self.ending or _exiting:
                    break
                me.next = self.sleepers
                self.sleepers = &me
                self.idle += 1
                with nogil:
                    if owed != NULL:
                        (<AioCore>owed).signal()
                        aq_add(&(<AioCore>owed).wakers, -1)
                    PyThread_acquire_lock(me.lock, WAIT_LOCK)
                owed = NULL
                if me.called:
                    self.calling = False
                began = aq_now_ns()
                continue
            owed = self._perform(self._dequeue())
            if generation != fork_generation:
                return       # the child of a fork in there; all this is the parent's
            if self.head == NULL:
                continue
            if owed != NULL:
                # Now: the next call may take its time.
                (<AioCore>owed).signal()
                aq_add(&(<AioCore>owed).wakers, -1)
                owed = NULL
            if aq_now_ns() - began >= TURN_NS:
                with nogil:      # a call that runs no Python code never asks
                    pass
                began = aq_now_ns()
        if owed != NULL:
            (<AioCore>owed).signal()
            aq_add(&(<AioCore>owed).wakers, -1)
        PyThread_free_lock(me.lock)
        self.living -= 1
        if self.living == 0:
            _pools.discard(self)

    cdef void *_perform(self, WorkItem item) noexcept:
        cdef LoopCallbacks loop = item.loop
        cdef AioCore ctx
        cdef Handle handle
        cdef int generation = fork_generation
        if self.head != NULL:
            self._call_one()
        func, args = item.func, item.args
        item.func = item.args = None
        if loop is None:
            func(*args)
            return NULL
        future = item.future
        if future.cancelled():
            return NULL
        try:
            item.value = func(*args)
        except BaseException as exc:
            item.failed = True
            item.value = exc
        # What was called goes before anybody learns that it is done.
        func = args = None
        if loop.closed or generation != fork_generation or future.cancelled():
            return NULL
        if (type(loop).call_soon_threadsafe is not _call_soon_threadsafe
                or "call_soon_threadsafe" in vars(loop)):
            (<object>loop).call_soon_threadsafe(_deliver_, item)
            return NULL
        # As call_soon_threadsafe does it, but for when the loop is woken.
        item.loop = None
        handle = new_handle(loop, _deliver_, <PyObject *>item, NULL, NULL, None, None)
        loop.append(<PyObject *>handle)
        ctx = loop.context
        # With the GIL held, the loop sleeps if it says so, or else will look at its queue.
        if (aq_load(&ctx.notify_me) or ctx.always_write) and ctx.claim_wake():
            aq_add(&ctx.wakers, 1)
            return <void *>ctx
        return NULL


refuse_new(<PyTypeObject *>WorkItem)
