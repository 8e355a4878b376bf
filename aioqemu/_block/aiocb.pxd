"""AIOPool and BlockDriverAIOCB: one request in flight, and where it comes from.

A driver in Cython subclasses the AIOCB, takes one with `AIOPool.take`, and calls
`finish` from the dispatch of its completion; see aiocb.pyx for the life cycle.  Home
thread of the context and GIL unless said otherwise.
"""

from libc.stdint cimport int64_t
from libc.stdint cimport uint32_t
from libc.stdint cimport uint64_t

from aioqemu._engine.context cimport AioContext

cdef enum AcbState:
    ACB_FREE = 0          # never taken, or released
    ACB_IN_FLIGHT = 1
    ACB_COMPLETING = 2    # the result is known, a bottom half will tell
    ACB_DONE = 3

cdef class Unplaced:
    # Requests taken for the main context while there was none.
    cdef AioContext ctx
    cdef Py_ssize_t in_flight

cdef class AIOPool:
    cdef object on_cancel
    cdef readonly type aiocb_type
    cdef list free
    cdef bint plain            # exactly BlockDriverAIOCB
    cdef bint has_dict
    cdef bint has_init
    cdef tuple slots           # descriptors of __slots__ of Python subclasses

    # Start a request: cb is called as cb(opaque, ret), None for no call.  The context
    # is `bs` itself, `bs.ctx` or `bs.context`, or else the main one.
    cdef BlockDriverAIOCB take(self, object bs, object cb, object opaque)
    # End its life.  `guarded`: somebody unknown may still hold it, so it serves again
    # only when nobody does.
    cdef int put(self, BlockDriverAIOCB acb, bint guarded) except -1
    cdef int _clean(self, BlockDriverAIOCB acb) except -1

cdef class BlockDriverAIOCB:
    cdef readonly AIOPool pool
    cdef readonly object bs
    cdef readonly object cb
    cdef readonly object opaque
    cdef AioContext ctx             # None: `unplaced` knows
    cdef Unplaced unplaced
    cdef object loop                # once it is used as a future
    cdef object waiter              # the first done callback, and its context
    cdef object waiter_context
    cdef list more_waiters          # (callback, context)
    cdef object cancel_message
    cdef int64_t result_code
    cdef uint64_t stamp             # what the context had dispatched at take()
    cdef unsigned long loop_thread  # where `loop` was told
    cdef uint32_t life              # tells this request from the object's former ones
    cdef unsigned char state        # AcbState
    cdef bint counted               # in the in_flight of the context
    cdef bint asked                 # the driver has been told to cancel
    cdef bint asking                # ... is being told
    cdef bint cancel_wanted         # by the future's cancel(): ends as CancelledError
    cdef bint release_wanted        # release when the bottom half has told
    cdef bint guarded               # may serve again only when nobody holds it
    cdef public bint _asyncio_future_blocking

    # -- for drivers in Cython to override
    # Ask the driver to cancel; must not complete the request before it returns.
    cdef int request_cancel(self) except -1
    # The request is over and released: drop what belongs to it.
    cdef int reset(self) except -1

    # -- for drivers in Cython to call
    # Complete now: from a completion or a bottom half only.  cb runs inside, once.
    cdef int finish(self, int64_t ret) except -1
    # The context; the main one is made if it comes to that.
    cdef AioContext context(self)

    cdef int _count(self, AioContext ctx) except -1
    cdef void _uncount(self) noexcept
    cdef int _tell_waiters(self) except -1
    cdef int _call_soon(self, object callback, object context) except -1
    cdef int _check_live(self) except -1
    cdef int _check_thread(self) except -1
    cdef int _ask(self) except -1
    cdef bint _may_poll(self) except -1
    cdef int _poll_until_over(self) except -1
    cdef object _get_loop(self)
    cdef object _exception(self)
    # What result() gives once the request is over; raises what it raises.
    cdef object _outcome(self)
