"""ThreadPool: plain system calls in native threads that never take the GIL.

Home thread of the context and GIL, unless said otherwise.
"""

from aioqemu._block.job cimport AioJob
from aioqemu._block.job cimport JobQueue
from aioqemu._engine.context cimport AioContext
from aioqemu._engine.types cimport AioState
from aioqemu._sys.atomic cimport aq_atomic_int
from aioqemu._sys.file cimport pthread_cond_t
from aioqemu._sys.file cimport pthread_mutex_t
from aioqemu._sys.file cimport pthread_t

cdef enum WorkerState:
    WORKER_NONE = 0
    WORKER_RUNS = 1
    WORKER_ENDED = 2         # by itself; to be joined

cdef struct Worker:
    PoolState *pool
    pthread_t id
    int state                # under the lock

cdef struct PoolState:
    pthread_mutex_t lock     # of all below; held for a few instructions only
    pthread_cond_t wanted    # there is work, or the end
    JobQueue queue
    JobQueue done
    int n_queued
    int idle
    int live
    int max
    bint stopping
    aq_atomic_int have_done
    void *ctx                # the AioContext; NULL: what still runs was left behind
    Worker workers[256]

cdef class ThreadPool:
    cdef PoolState *pool     # NULL after stop()
    cdef AioContext ctx
    # Take a job; it is appended to the completions later, whatever happens.
    cdef int submit(self, AioJob *job) noexcept
    # Take it back if no thread has begun with it; it then ends with -ECANCELED.
    cdef bint cancel(self, AioJob *job) noexcept
    # Append what is done to the completions of the context.
    cdef int collect(self, AioState *st) noexcept
    # Finish what runs, end all threads and wait for them, at most so long; what runs on
    # (a file that never answers) is left behind for ever.  Nothing is left queued.
    cdef int stop(self, bint child, int limit_ms) noexcept
