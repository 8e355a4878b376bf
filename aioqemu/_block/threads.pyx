"""The pool of threads for what the ring cannot or must not do (QEMU's thread-pool).

Knows jobs and the context's wake-up, no requests.  Grown lazily up to its maximum; a
thread that has had nothing to do for ten seconds ends.  Completions go onto a list and
only the first one there wakes the context, so a batch costs one wake-up.

Invariant: a job is in the queue, with one thread, or on the done list; each change is
made under the lock, and after it is on the done list no thread touches it.
"""

from libc.stdint cimport int64_t
from libc.stdlib cimport calloc
from libc.stdlib cimport free

from aioqemu._block.job cimport JOB_QUEUED
from aioqemu._block.job cimport JOB_RUNNING
from aioqemu._block.job cimport AioJob
from aioqemu._block.job cimport job_push
from aioqemu._block.job cimport job_run
from aioqemu._block.job cimport job_unlink
from aioqemu._engine.context cimport AioContext
from aioqemu._engine.lists cimport done_push
from aioqemu._engine.types cimport AioState
from aioqemu._sys.atomic cimport aq_load
from aioqemu._sys.atomic cimport aq_store
from aioqemu._sys.file cimport aq_cond_init
from aioqemu._sys.file cimport aq_cond_wait
from aioqemu._sys.file cimport aq_thread_start
from aioqemu._sys.file cimport pthread_cond_broadcast
from aioqemu._sys.file cimport pthread_cond_destroy
from aioqemu._sys.file cimport pthread_cond_signal
from aioqemu._sys.file cimport pthread_detach
from aioqemu._sys.file cimport pthread_join
from aioqemu._sys.file cimport pthread_mutex_destroy
from aioqemu._sys.file cimport pthread_mutex_init
from aioqemu._sys.file cimport pthread_mutex_lock
from aioqemu._sys.file cimport pthread_mutex_unlock
from aioqemu._sys.libc cimport ECANCELED
from aioqemu._sys.libc cimport aq_now_ns

cdef enum:
    THREADS_MAX = 256            # workers[] of PoolState

cdef int64_t IDLE_NS = 10 * <int64_t>1000000000


cdef bint _finish(PoolState *pool, AioJob *job, int res) noexcept nogil:
    """Under the lock; whether the context has to be woken."""
    job.cqe.res = res
    job_push(&pool.done, job)
    if aq_load(&pool.have_done):
        return False             # whoever was first wakes it
    aq_store(&pool.have_done, 1)
    return True


cdef void *_work(void *arg) noexcept nogil:
    cdef Worker *self = <Worker *>arg
    cdef PoolState *pool = self.pool
    cdef AioJob *job
    cdef int64_t ret
    cdef bint first
    cdef bint woken = True
    pthread_mutex_lock(&pool.lock)
    while True:
        job = pool.queue.head
        if job == NULL:
            if pool.stopping or not woken:
                break
            pool.idle += 1
            woken = aq_cond_wait(&pool.wanted, &pool.lock, IDLE_NS) == 0
            pool.idle -= 1
            continue
        woken = True
        job_unlink(&pool.queue, job)
        pool.n_queued -= 1
        job.state = JOB_RUNNING
        pthread_mutex_unlock(&pool.lock)
        ret = job_run(job)
        if ret > 0x7fffffff:
            ret = 0x7fffffff     # no call transfers more at once
        pthread_mutex_lock(&pool.lock)
        first = _finish(pool, job, <int>ret)
        if first and pool.stopping:
            if pool.ctx != NULL:
                (<AioContext>pool.ctx).wake()    # under the lock: it may go afterwards
        elif first:
            pthread_mutex_unlock(&pool.lock)
            (<AioContext>pool.ctx).wake()
            pthread_mutex_lock(&pool.lock)
    pool.live -= 1
    self.state = WORKER_ENDED
    if pool.stopping:
        pthread_cond_broadcast(&pool.wanted)
    pthread_mutex_unlock(&pool.lock)
    return NULL


cdef class ThreadPool:
    def __init__(self, AioContext ctx not None, int max_threads=64):
        cdef int err
        if not 1 <= max_threads <= THREADS_MAX:
            raise ValueError(
                f"the number of threads must be 1 to {THREADS_MAX}, not {max_threads}")
        self.ctx = ctx
        self.pool = <PoolState *>calloc(1, sizeof(PoolState))
        if self.pool == NULL:
            raise MemoryError()
        self.pool.max = max_threads
        self.pool.ctx = <void *>ctx
        err = -pthread_mutex_init(&self.pool.lock, NULL)
        if err == 0:
            err = aq_cond_init(&self.pool.wanted)
        if err < 0:
            free(self.pool)
            self.pool = NULL
            raise OSError(-err, "cannot make a thread pool")

    @property
    def threads(self):
        """How many threads there are now."""
        return 0 if self.pool == NULL else self.pool.live

    @property
    def max_threads(self):
        """How many there may be."""
        return 0 if self.pool == NULL else self.pool.max

    cdef int submit(self, AioJob *job) noexcept:
        cdef PoolState *pool = self.pool
        cdef Worker *worker
        cdef int i
        cdef int err = 0
        cdef bint first = False
        pthread_mutex_lock(&pool.lock)
        job.state = JOB_QUEUED
        job_push(&pool.queue, job)
        pool.n_queued += 1
        if pool.idle >= pool.n_queued:
            pthread_cond_signal(&pool.wanted)
        elif pool.live < pool.max:
            for i in range(pool.max):
                worker = &pool.workers[i]
                if worker.state != WORKER_RUNS:
                    break
            if worker.state == WORKER_ENDED:
                pthread_join(worker.id, NULL)     # has let go of the lock
            worker.pool = pool
            worker.state = WORKER_RUNS
            pool.live += 1
            err = aq_thread_start(&worker.id, _work, worker)
            if err < 0:
                worker.state = WORKER_NONE
                pool.live -= 1
                if pool.idle:
                    pthread_cond_signal(&pool.wanted)
        elif pool.idle:
            pthread_cond_signal(&pool.wanted)
        if err < 0 and pool.live == 0:
            # Nobody will ever come: do it here, late rather than never.
            while pool.queue.head != NULL:
                job = pool.queue.head
                job_unlink(&pool.queue, job)
                pool.n_queued -= 1
                job.state = JOB_RUNNING
                pthread_mutex_unlock(&pool.lock)
                with nogil:
                    err = <int>job_run(job)
                pthread_mutex_lock(&pool.lock)
                first = _finish(pool, job, err) or first
        pthread_mutex_unlock(&pool.lock)
        if first:
            self.ctx.wake()
        return 0

    cdef bint cancel(self, AioJob *job) noexcept:
        cdef PoolState *pool = self.pool
        cdef bint first = False
        cdef bint taken = False
        pthread_mutex_lock(&pool.lock)
        if job.state == JOB_QUEUED:
            taken = True
            job_unlink(&pool.queue, job)
            pool.n_queued -= 1
            job.state = JOB_RUNNING
            first = _finish(pool, job, -ECANCELED)
        pthread_mutex_unlock(&pool.lock)
        if first:
            self.ctx.wake()
        return taken

    cdef int collect(self, AioState *st) noexcept:
        cdef PoolState *pool = self.pool
        cdef AioJob *job
        cdef AioJob *following
        if pool == NULL or not aq_load(&pool.have_done):
            return 0
        pthread_mutex_lock(&pool.lock)
        job = pool.done.head
        pool.done.head = pool.done.tail = NULL
        aq_store(&pool.have_done, 0)
        pthread_mutex_unlock(&pool.lock)
        while job != NULL:
            following = job.next
            job.next = job.prev = NULL
            done_push(st, &job.cqe)
            job = following
        return 0

    cdef int stop(self, bint child, int limit_ms) noexcept:
        cdef PoolState *pool = self.pool
        cdef int i
        cdef int64_t left
        cdef int64_t end = aq_now_ns() + limit_ms * <int64_t>1000000
        if pool == NULL:
            return 0
        if child:
            self.pool = NULL     # its threads are the parent's, and may hold the lock
            return 0
        with nogil:
            pthread_mutex_lock(&pool.lock)
            pool.stopping = True
            pthread_cond_broadcast(&pool.wanted)
            while pool.live:
                left = end - aq_now_ns()
                if left <= 0:
                    pool.ctx = NULL
                    break
                aq_cond_wait(&pool.wanted, &pool.lock, left)
            for i in range(pool.max):
                if pool.workers[i].state == WORKER_RUNS:
                    pthread_detach(pool.workers[i].id)
            pthread_mutex_unlock(&pool.lock)
            for i in range(pool.max):
                # Those that have ended let go of the lock and return.
                if pool.workers[i].state == WORKER_ENDED and pool.ctx != NULL:
                    pthread_join(pool.workers[i].id, NULL)
                    pool.workers[i].state = WORKER_NONE
        self.collect(&self.ctx.st)
        self.pool = NULL
        if pool.ctx == NULL:
            return 0             # its memory is theirs
        pthread_mutex_destroy(&pool.lock)
        pthread_cond_destroy(&pool.wanted)
        free(pool)
        return 0

    def __dealloc__(self):
        # Only where the owner never got to stop it: then nothing was in flight.
        if self.pool != NULL and self.pool.live == 0:
            free(self.pool)
