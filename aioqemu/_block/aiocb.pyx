"""One request: QEMU's callback form and asyncio's awaitable form of the same object.

Knows no driver and no disk; knows asyncio only by what `bind_futures` was given.

Life of an AIOCB: taken from a pool (in flight, its context busy), completed by its
driver (the context no longer busy, then `cb(opaque, ret)`, once), released to the pool.
Invariant: `counted` says whether the request is in `in_flight` of its context, and the
callback runs exactly once unless the request is released without having completed.

The callback never runs inside the call that submits.  A completion counts as "inside"
when the context has dispatched nothing since `take`; it is then told by a bottom half.

As a future the object follows the protocol that Task speaks to foreign futures.  What is
used as a future is guarded: it serves again only when nobody holds it any more, since a
task reads the result after the driver has released the request.
"""

import os
import types

import cython

from cpython.contextvars cimport PyContext_CopyCurrent
from cpython.object cimport PyObject
from cpython.object cimport PyTypeObject
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport int64_t
from libc.stdint cimport uint64_t

from aioqemu._engine.context cimport AioContext
from aioqemu._engine.handlers cimport BottomHalf
from aioqemu._sys.iterators cimport PYGEN_NEXT
from aioqemu._sys.iterators cimport PYGEN_RETURN
from aioqemu._sys.iterators cimport aq_set_next
from aioqemu._sys.iterators cimport aq_stop_iteration
from aioqemu._sys.iterators cimport aq_stop_with_int
from aioqemu._sys.iterators cimport iternextfunc
from aioqemu._sys.iterators cimport sendfunc
from aioqemu._sys.libc cimport ECANCELED

from aioqemu._engine import main_context

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject *o)
    void Py_INCREF(PyObject *o)
    void Py_DECREF(PyObject *o)
    bint PyCFunction_CheckExact(object o)
    bint PyLong_CheckExact(object o)
    ctypedef void *PyCFunction
    PyCFunction PyCFunction_GET_FUNCTION(object o)

cdef enum:
    FREE_MAX = 128      # AIOCBs that a pool keeps, as many as a disk has in flight

# What bind_futures was given.
cdef object running_loop = None
cdef object CancelledError = None
cdef object InvalidStateError = None
cdef object finished = None

# The C function that tasks give as done callback, once one was seen.
cdef PyCFunction wakeup = NULL


def bind_futures(get_running_loop, cancelled_error, invalid_state_error, done_future):
    """Tell what asyncio's own futures use; called once by the layer that knows it.

    Args:
        get_running_loop: gives the running loop of the thread or None.
        cancelled_error: raised where the future was cancelled.
        invalid_state_error: raised where it has no result yet.
        done_future: one that is over; tasks are woken with it.
    """
    global running_loop, CancelledError, InvalidStateError, finished
    finished = done_future
    running_loop = get_running_loop
    CancelledError = cancelled_error
    InvalidStateError = invalid_state_error


@cython.final
cdef class Unplaced:
    pass


cdef Unplaced unplaced = Unplaced()


def _place(AioContext ctx not None):
    """The main context was made: what has waited for it makes it busy."""
    global unplaced
    unplaced.ctx = ctx
    ctx.in_flight += unplaced.in_flight
    unplaced = Unplaced()


main_context.on_made.append(_place)


cdef AioContext _context_of(object bs):
    """The context of a block device; None for the main one, made or not."""
    cdef object ctx
    if isinstance(bs, AioContext):
        return bs
    if bs is not None:
        ctx = getattr(bs, "ctx", None)
        if not isinstance(ctx, AioContext):
            ctx = getattr(bs, "context", None)
        if isinstance(ctx, AioContext):
            return ctx
    return main_context.peek()


cdef inline uint64_t _dispatched(AioContext ctx) noexcept:
    return (ctx.counts.passes + ctx.counts.bottom_halves + ctx.counts.fd_events
            + ctx.counts.timers)


cdef int _deferred(BlockDriverAIOCB acb, uint64_t life) except -1:
    if acb.life == life and acb.state == ACB_COMPLETING:
        acb.finish(acb.result_code)
    return 0


def _run_deferred(asked):
    _deferred(asked[0], asked[1])


cdef bint _wakes_a_task(object callback):
    """Whether it is what the C task gives as done callback.

    That looks only for an error in the future it is called with, by way of slow calls if
    it is none of asyncio's, and lets the coroutine go on, which then asks the request
    itself: so any future that is over will do.
    """
    global wakeup
    if not PyCFunction_CheckExact(callback) or finished is None:
        return False
    if wakeup == NULL and callback.__name__ == "task_wakeup" and (
            type(callback.__self__).__module__ == "_asyncio"):
        wakeup = PyCFunction_GET_FUNCTION(callback)
    return PyCFunction_GET_FUNCTION(callback) == wakeup


cdef class AIOPool:
    """Where the requests of one kind of driver come from (`AIOPool`).

    Args:
        cancel: called as `cancel(acb)` to ask the driver to end a request early, which
            then completes it soon, with -ECANCELED or the true result; None if requests
            cannot be cancelled.  It must not wait.
        aiocb_type: the class of the requests, `BlockDriverAIOCB` or one derived from it,
            which is made without arguments.

    Raises:
        TypeError: an argument is of the wrong type.
    """

    def __init__(self, cancel=None, aiocb_type=BlockDriverAIOCB):
        if cancel is not None and not callable(cancel):
            raise TypeError(f"a callable object or None is expected, got {cancel!r}")
        if not (isinstance(aiocb_type, type)
                and issubclass(aiocb_type, BlockDriverAIOCB)):
            raise TypeError(
                f"a class derived from BlockDriverAIOCB is expected, got {aiocb_type!r}")
        self.on_cancel = cancel
        self.aiocb_type = aiocb_type
        self.free = []
        self.plain = aiocb_type is BlockDriverAIOCB
        self.has_dict = getattr(aiocb_type, "__dictoffset__", 0) != 0
        self.has_init = aiocb_type.__init__ is not BlockDriverAIOCB.__init__
        slots = []
        for base in aiocb_type.__mro__:
            if base is BlockDriverAIOCB:
                break
            for descriptor in vars(base).values():
                if type(descriptor) is types.MemberDescriptorType:
                    slots.append(descriptor)
        self.slots = tuple(slots)

    def __repr__(self):
        return f"<AIOPool of {self.aiocb_type.__name__}>"

    cdef BlockDriverAIOCB take(self, object bs, object cb, object opaque):
        cdef BlockDriverAIOCB acb = None
        cdef AioContext ctx
        if self.free is None:
            raise RuntimeError("the AIOPool was not initialised")
        if cb is not None and not callable(cb):
            raise TypeError(f"a callable object or None is expected, got {cb!r}")
        ctx = _context_of(bs)
        if ctx is not None:
            ctx.check_usable()
        while self.free:
            acb = self.free.pop()
            if not acb.guarded or Py_REFCNT(<PyObject *>acb) == 1:
                break
            acb = None      # somebody still reads its result: it is theirs
        if acb is None:
            acb = self.aiocb_type()
            acb.pool = self
        elif not self.plain:
            self._clean(acb)     # of what was set on it since
            if self.has_init:
                acb.__init__()
        acb.bs = bs
        acb.cb = cb
        acb.opaque = opaque
        acb.loop = None
        acb.waiter = None
        acb.waiter_context = None
        acb.more_waiters = None
        acb.cancel_message = None
        acb.result_code = 0
        acb.life += 1
        acb.state = ACB_IN_FLIGHT
        acb.asked = False
        acb.asking = False
        acb.cancel_wanted = False
        acb.release_wanted = False
        acb.guarded = False
        acb._asyncio_future_blocking = False
        acb._count(ctx)
        return acb

    cdef int put(self, BlockDriverAIOCB acb, bint guarded) except -1:
        if acb.pool is not self:
            raise RuntimeError("the request is not of this pool")
        if acb.state == ACB_FREE or acb.release_wanted:
            raise RuntimeError("the request has been released before")
        if guarded:
            acb.guarded = True
        if acb.state == ACB_COMPLETING:
            acb.release_wanted = True     # after the callback, which must see it whole
            return 0
        if acb.state == ACB_IN_FLIGHT:
            # Given up without completing: nobody may wait for it any more.
            acb.cancel_wanted = True
            acb.result_code = -ECANCELED
            acb.state = ACB_FREE
            acb._uncount()
            if acb.ctx is not None:
                acb.ctx.wake()
            acb._tell_waiters()
        acb.state = ACB_FREE
        acb.bs = None
        acb.cb = None
        acb.opaque = None
        acb.ctx = None
        acb.unplaced = None
        acb.reset()
        if not self.plain:
            self._clean(acb)
        if len(self.free) < FREE_MAX:
            self.free.append(acb)
        return 0

    cdef int _clean(self, BlockDriverAIOCB acb) except -1:
        if self.has_dict:
            acb.__dict__.clear()
        for descriptor in self.slots:
            try:
                descriptor.__delete__(acb)
            except AttributeError:
                pass            # it was never set
        return 0

    def get(self, bs, cb, opaque):
        """Start a request (`qemu_aio_get`); see `aioqemu.qemu_aio`."""
        return self.take(bs, cb, opaque)

    def release(self, BlockDriverAIOCB acb not None):
        """End the life of a request (`qemu_aio_release`)."""
        self.put(acb, False)

    def cancel(self, BlockDriverAIOCB acb not None):
        """End a request early and return when it is over (QEMU's `bdrv_aio_cancel`).

        Its callback has then run, with -ECANCELED or the true result.  Unlike
        `acb.cancel()` this always waits; awaiters get the same result.

        Raises:
            RuntimeError: called where the context cannot be polled, such as inside a
                task of its loop (use `acb.cancel_async()`), or after the release.
        """
        if acb.pool is not self:
            raise RuntimeError("the request is not of this pool")
        acb._check_live()
        acb._ask()
        acb._poll_until_over()


@cython.final
@cython.freelist(64)
cdef class _Waiting:
    """What `await` iterates over; one for each await."""

    cdef BlockDriverAIOCB acb
    cdef object outcome

    def __iter__(self):
        return self

    def __next__(self):
        # What `await` calls is _waiting_next; this is for who asks for it by name.
        acb = self._step()
        if acb is None:
            raise StopIteration(self.outcome)
        return acb

    cdef object _step(self):
        """The request to wait for, or None: it is over, and `outcome` is there."""
        cdef BlockDriverAIOCB acb = self.acb
        if acb is None:
            raise RuntimeError("the await is over")
        if acb.state == ACB_IN_FLIGHT or acb.state == ACB_COMPLETING:
            if acb._asyncio_future_blocking:
                raise RuntimeError("await wasn't used with future")
            acb._get_loop()
            acb._asyncio_future_blocking = True
            return acb
        self.acb = None
        self.outcome = acb._outcome()
        return None


cdef int _waiting_step(PyObject *op, PyObject **out) except -1:
    cdef _Waiting self = <_Waiting>op
    cdef object found = self._step()
    cdef bint over = found is None
    if over:
        found = self.outcome
        self.outcome = None
    Py_INCREF(<PyObject *>found)
    out[0] = <PyObject *>found
    return over


cdef PyObject *_waiting_next(PyObject *op) except? NULL:
    cdef PyObject *found = NULL
    if _waiting_step(op, &found) == 0:
        return found
    if PyLong_CheckExact(<object>found):
        aq_stop_with_int(<object>found)
    else:
        aq_stop_iteration(<object>found)
    Py_DECREF(found)
    return NULL


cdef int _waiting_send(PyObject *op, PyObject *_arg, PyObject **out) except -1:
    out[0] = NULL
    return PYGEN_RETURN if _waiting_step(op, out) else PYGEN_NEXT


# An error leaves the exception set, as both slots want it: -1 is PYGEN_ERROR, too.
aq_set_next(<PyTypeObject *>_Waiting, <iternextfunc>_waiting_next,
            <sendfunc>_waiting_send)


cdef class BlockDriverAIOCB:
    """A request in flight (`BlockDriverAIOCB`), with a callback, awaitable, or both.

    Made by `qemu_aio_get`.  `cb(opaque, ret)` is called once, from the context's
    dispatch and never before the submitting call has returned; `ret` is 0 or a positive
    number, or -errno.  `await acb` gives `ret`, or raises OSError; no task is made, and
    it works wherever asyncio takes a future (`gather`, `wait`, `wait_for`, ...).

    Attributes:
        pool: the `AIOPool`.
        bs: what the request was made for.
        cb: the callback or None.
        opaque: its first argument.
    """

    def __del__(self):
        if self.counted:
            # Lost by its driver: nobody can complete it, so nobody may wait for it.
            self._uncount()
            if self.ctx is not None:
                self.ctx.wake()

    def __repr__(self):
        name = type(self).__name__
        if self.state == ACB_FREE:
            return f"<{name} released>"
        state = f"ret={self.result_code}" if self.state == ACB_DONE else "in flight"
        return f"<{name} {state} bs={self.bs!r}>"

    @property
    def ret(self):
        """0, a positive number or -errno; None while the request is in flight."""
        return self.result_code if self.done() else None

    # -- the driver's side ----------------------------------------------------------------

    cdef int request_cancel(self) except -1:
        if self.pool.on_cancel is not None:
            self.pool.on_cancel(self)
        return 0

    cdef int reset(self) except -1:
        return 0

    cdef AioContext context(self):
        cdef AioContext main
        if self.ctx is None:
            if self.unplaced is None:
                raise RuntimeError("the request has been released")
            main = main_context.get()     # tells _place
            self.ctx = main if self.unplaced.ctx is None else self.unplaced.ctx
        return self.ctx

    cdef int _count(self, AioContext ctx) except -1:
        self.ctx = ctx
        self.unplaced = None
        self.counted = True
        if ctx is not None:
            ctx.in_flight += 1
            self.stamp = _dispatched(ctx)
        else:
            self.unplaced = unplaced
            unplaced.in_flight += 1
            self.stamp = 0
        return 0

    cdef void _uncount(self) noexcept:
        if not self.counted:
            return
        self.counted = False
        if self.ctx is None and self.unplaced is not None:
            self.ctx = self.unplaced.ctx
        if self.ctx is not None:
            self.ctx.in_flight -= 1
        elif self.unplaced is not None:
            self.unplaced.in_flight -= 1

    def complete(self, ret):
        """Say that the request is over; for its driver, once, from any thread.

        The callback runs at once if the call comes from a bottom half, handler or
        completion after the submission, and from a bottom half of the context else.

        Args:
            ret: 0 or a positive number for success, -errno for failure.

        Raises:
            RuntimeError: it is over already, or released.
        """
        cdef int64_t code = ret
        cdef AioContext ctx
        cdef BottomHalf bh
        if self.state != ACB_IN_FLIGHT:
            self._check_live()
            raise RuntimeError("the request has been completed before")
        if self.cb is None:
            self.finish(code)
            if self.ctx is not None and self.ctx.home != PyThread_get_thread_ident():
                self.ctx.wake()     # it may sleep for this request alone
            return
        ctx = self.context()
        if (self.stamp != _dispatched(ctx) and not self.asking
                and ctx.home == PyThread_get_thread_ident()):
            self.finish(code)
            return
        bh = ctx.bh_new(_run_deferred, (self, self.life))
        bh._schedule(False)
        self.result_code = code
        self.state = ACB_COMPLETING

    cdef int finish(self, int64_t ret) except -1:
        cdef object cb, opaque
        cdef AioContext ctx
        cdef uint64_t life = self.life
        if self.state != ACB_IN_FLIGHT and self.state != ACB_COMPLETING:
            self._check_live()
            raise RuntimeError("the request has been completed before")
        # Over before the callback runs, as in QEMU: a flush inside it must not wait for
        # the request that it serves.
        self.state = ACB_DONE
        self.result_code = ret
        self._uncount()
        # First, because the callback may release the request and get it back as another.
        self._tell_waiters()
        cb = self.cb
        if cb is None:
            return 0
        opaque = self.opaque
        ctx = self.context()
        try:
            cb(opaque, ret)
        except BaseException as exc:
            ctx.report("Exception in a completion callback", exc, {"request": self})
        finally:
            if self.release_wanted and self.life == life:
                self.release_wanted = False
                self.pool.put(self, False)
        return 0

    cdef int _check_live(self) except -1:
        if self.state == ACB_FREE:
            raise RuntimeError("the request has been released")
        return 0

    cdef int _check_thread(self) except -1:
        if self.ctx is not None and self.ctx.home != 0 and (
                self.ctx.home != PyThread_get_thread_ident()):
            raise RuntimeError(
                "a request may be cancelled by the home thread of its context only")
        return 0

    # -- cancelling -----------------------------------------------------------------------

    cdef int _ask(self) except -1:
        """Pass the wish on to the driver, once."""
        self._check_thread()
        if self.asked or self.state != ACB_IN_FLIGHT:
            return 0
        self.asked = True
        self.asking = True
        try:
            self.request_cancel()
        except BaseException as exc:
            self.context().report("Exception in the cancel function of a driver", exc,
                                  {"request": self})
        finally:
            self.asking = False
        return 0

    cdef bint _may_poll(self) except -1:
        cdef AioContext ctx = self.context()
        ctx.check_usable()
        if ctx.poll_guard is None:
            return True
        try:
            ctx.poll_guard()
        except RuntimeError:
            return False
        return True

    cdef int _poll_until_over(self) except -1:
        cdef AioContext ctx = self.context()
        cdef uint64_t life = self.life
        while self.life == life and (
                self.state == ACB_IN_FLIGHT or self.state == ACB_COMPLETING):
            ctx._poll(True)
        return 0

    def cancel_async(self):
        """Ask for an early end and return at once (QEMU's `bdrv_aio_cancel_async`).

        The callback runs later, with -ECANCELED or the true result; awaiters get the
        same.  Does nothing if the request is over.

        Raises:
            RuntimeError: it has been released, or this is not its context's thread.
        """
        self._check_live()
        self._ask()

    def cancel(self, msg=None):
        """End the request early: QEMU's `bdrv_aio_cancel`, and a future's `cancel`.

        Nobody awaits it, and the context may be polled here (no task of the context's
        own loop is running): the call returns when the request is over and its callback
        has run, with -ECANCELED or the true result.  So it is in plain callback code.

        Somebody awaits it (a task, `gather`, `wait_for`, any done callback), or a task
        is running: the driver is asked and the call returns at once; when the request
        is over, and not before, awaiters get CancelledError, whatever its result.  So it
        is when a task that awaits the request is cancelled.

        Args:
            msg: passed to CancelledError.

        Returns:
            Whether it ends as cancelled; False if it was over.

        Raises:
            RuntimeError: it has been released, or this is not its context's thread.
        """
        cdef uint64_t life = self.life
        if self.state == ACB_FREE and self.loop is not None:
            return False            # a task that has not yet read the result is cancelled
        self._check_live()
        if self.state == ACB_DONE:
            return False
        if self.waiter is not None or not self._may_poll():
            self._check_thread()
            self.cancel_wanted = True
            self.cancel_message = msg
            self._ask()
            return True
        self._ask()
        self._poll_until_over()
        if self.life != life or self.result_code != -ECANCELED:
            return False
        self.cancel_wanted = True
        self.cancel_message = msg
        return True

    # -- asyncio's future protocol --------------------------------------------------------

    cdef object _get_loop(self):
        cdef object loop
        if self.loop is None:
            if running_loop is None:
                raise RuntimeError("asyncio support is not loaded: import aioqemu")
            if self.ctx is not None and self.ctx.runner is not None and (
                    self.ctx.home == PyThread_get_thread_ident()):
                loop = self.ctx.runner
            else:
                loop = running_loop()
            if loop is None and self.ctx is not None:
                loop = getattr(self.ctx, "loop", None)
            if loop is None:
                raise RuntimeError("no running event loop")
            self.loop = loop
            self.loop_thread = PyThread_get_thread_ident()
            self.guarded = True
        return self.loop

    def get_loop(self):
        """The loop whose tasks may await the request: the first that did, or runs now.

        Raises:
            RuntimeError: there is none.
        """
        return self._get_loop()

    cdef int _call_soon(self, object callback, object context) except -1:
        cdef object told = finished if _wakes_a_task(callback) else self
        if self.loop_thread != PyThread_get_thread_ident():
            self.loop.call_soon_threadsafe(callback, told, context=context)
        elif self.ctx is not None and self.ctx.runner is self.loop:
            self.ctx.soon(self.loop, callback, told, context)
        else:
            self.loop.call_soon(callback, told, context=context)
        return 0

    cdef int _tell_waiters(self) except -1:
        cdef object waiter = self.waiter
        cdef object context = self.waiter_context
        cdef list more = self.more_waiters
        if waiter is None:
            return 0
        self.waiter = None
        self.waiter_context = None
        self.more_waiters = None
        try:
            self._call_soon(waiter, context)
            if more is not None:
                for waiter, context in more:
                    self._call_soon(waiter, context)
        except BaseException as exc:      # the loop is closed
            self.context().report("Nobody can be told of a completion", exc,
                                  {"request": self})
        return 0

    def add_done_callback(self, callback, *, context=None):
        """Have the loop call `callback(acb)` soon after completion (as asyncio's)."""
        self._get_loop()
        if context is None:
            context = PyContext_CopyCurrent()
        if self.state != ACB_IN_FLIGHT and self.state != ACB_COMPLETING:
            self._call_soon(callback, context)
        elif self.waiter is None:
            self.waiter = callback
            self.waiter_context = context
        elif self.more_waiters is None:
            self.more_waiters = [(callback, context)]
        else:
            self.more_waiters.append((callback, context))

    def remove_done_callback(self, callback):
        """Remove all instances of a done callback; returns how many (as asyncio's)."""
        cdef list kept = []
        cdef Py_ssize_t removed = 0
        if self.waiter is None:
            return 0
        everyone = [(self.waiter, self.waiter_context)]
        if self.more_waiters is not None:
            everyone.extend(self.more_waiters)
        for pair in everyone:
            if pair[0] == callback:
                removed += 1
            else:
                kept.append(pair)
        if removed:
            self.waiter = None
            self.waiter_context = None
            self.more_waiters = None
            if kept:
                self.waiter, self.waiter_context = kept[0]
                if len(kept) > 1:
                    self.more_waiters = kept[1:]
        return removed

    def done(self):
        """Whether the request is over."""
        return self.state == ACB_DONE or (self.state == ACB_FREE and self.life != 0)

    def cancelled(self):
        """Whether it is over and `cancel` ended it."""
        return bool(self.done() and self.cancel_wanted)

    @property
    def _cancel_message(self):
        return self.cancel_message      # asyncio.gather asks for it

    def _make_cancelled_error(self):
        # asyncio.gather asks for it.
        if self.cancel_message is None:
            return CancelledError()
        return CancelledError(self.cancel_message)

    cdef object _exception(self):
        if not self.done():
            raise (InvalidStateError or RuntimeError)("the request is in flight")
        if self.cancel_wanted:
            raise self._make_cancelled_error()
        if self.result_code < 0:
            return OSError(-self.result_code, os.strerror(-self.result_code))
        return None

    def result(self):
        """What awaiting gives: 0 or a positive number.

        Raises:
            OSError: the request has failed.
            CancelledError: `cancel` ended it.
            InvalidStateError: it is in flight.
        """
        if not self.done():
            self._exception()        # raises
        return self._outcome()

    cdef object _outcome(self):
        if self.result_code < 0 or self.cancel_wanted:
            raise self._exception()
        return self.result_code

    def exception(self):
        """The OSError of a failed request, or None (as asyncio's future)."""
        return self._exception()

    def __await__(self):
        cdef _Waiting waiting = _Waiting.__new__(_Waiting)
        waiting.acb = self
        return waiting

    __iter__ = __await__
