"""AioJob: one operation on a file, as the engines see it.  Knows no Python object.

The memory belongs to the request that embeds it and stays until `cqe.cb` has run.  An
engine sets `cqe.res` and appends `cqe` to the completions of the context.
"""

from libc.stdint cimport int64_t
from libc.stdint cimport uint32_t

from aioqemu._engine.types cimport CqeHandler
from aioqemu._sys.file cimport AQ_BLKDISCARD
from aioqemu._sys.file cimport AQ_BLKZEROOUT
from aioqemu._sys.file cimport aq_blk_range
from aioqemu._sys.file cimport aq_copy
from aioqemu._sys.file cimport aq_extents
from aioqemu._sys.file cimport aq_openat
from aioqemu._sys.file cimport aq_preadv
from aioqemu._sys.file cimport aq_pwritev
from aioqemu._sys.file cimport aq_result
from aioqemu._sys.file cimport aq_statx
from aioqemu._sys.file cimport fallocate
from aioqemu._sys.file cimport fdatasync
from aioqemu._sys.file cimport fsync
from aioqemu._sys.file cimport ftruncate
from aioqemu._sys.libc cimport EINTR
from aioqemu._sys.libc cimport EINVAL
from aioqemu._sys.libc cimport close
from aioqemu._sys.libc cimport iovec

cdef enum JobOp:
    OP_READ = 0
    OP_WRITE = 1
    OP_FSYNC = 2
    OP_FDATASYNC = 3
    OP_FALLOCATE = 4
    OP_FTRUNCATE = 5
    OP_STATX = 6
    OP_OPENAT = 7
    OP_CLOSE = 8
    OP_COPY = 9
    OP_BLKDISCARD = 10
    OP_BLKZEROOUT = 11
    OP_FAIL = 12         # ends with what cqe.res holds
    OP_MAP = 13
    OP_COUNT = 14

cdef enum:
    MAP_EXTENTS = 128    # that one OP_MAP finds at most

cdef enum JobState:
    JOB_IDLE = 0         # with nobody
    JOB_PENDING = 1      # waits for room in the ring, or for the ring
    JOB_QUEUED = 2       # in the queue of the pool, or of Linux AIO
    JOB_RUNNING = 3      # a thread or the kernel has it

cdef struct AioJob:
    CqeHandler cqe       # first
    AioJob *prev         # in a queue of its engine
    AioJob *next
    int op               # JobOp
    int state            # JobState
    int engine           # who has it
    int fd
    int fd2              # copies: where to
    uint32_t flags       # RWF_*, mode of fallocate, flags of open, mask of statx
    uint32_t mode        # openat, flags of statx
    int niov
    int64_t offset       # the file's
    int64_t offset2      # copies: where to
    int64_t length
    iovec *iov
    iovec one
    const char *path
    void *out            # statx; map: MAP_EXTENTS pairs, and where it stopped


cdef inline int job_niov(const AioJob *job) noexcept nogil:
    """As many buffers as one call takes (IOV_MAX); the rest goes with the next one."""
    return job.niov if job.niov < 1024 else 1024


cdef inline int job_size(const AioJob *job) noexcept nogil:
    """How many bytes one call could transfer; 0 for what is no transfer."""
    cdef int64_t n = 0
    cdef int i
    for i in range(job_niov(job)):
        n += <int64_t>job.iov[i].iov_len
    return <int>(n if n < 0x7ffff000 else 0x7ffff000)


cdef inline int64_t job_run(AioJob *job) noexcept nogil:
    """Do it here and now, with plain system calls."""
    cdef int64_t ret
    cdef int op = job.op
    while True:
        if op == OP_READ:
            ret = aq_preadv(job.fd, job.iov, job_niov(job), job.offset, <int>job.flags)
        elif op == OP_WRITE:
            ret = aq_pwritev(job.fd, job.iov, job_niov(job), job.offset, <int>job.flags)
        elif op == OP_FSYNC:
            ret = aq_result(fsync(job.fd))
        elif op == OP_FDATASYNC:
            ret = aq_result(fdatasync(job.fd))
        elif op == OP_FALLOCATE:
            ret = aq_result(fallocate(job.fd, <int>job.flags, job.offset, job.length))
        elif op == OP_FTRUNCATE:
            ret = aq_result(ftruncate(job.fd, job.length))
        elif op == OP_STATX:
            ret = aq_statx(job.fd, job.path, <int>job.mode, job.flags, job.out)
        elif op == OP_OPENAT:
            ret = aq_openat(job.fd, job.path, <int>job.flags, job.mode)
        elif op == OP_CLOSE:
            # The number is free even if a signal came: never a second time.
            ret = aq_result(close(job.fd))
            return 0 if ret == -EINTR else ret
        elif op == OP_COPY:
            ret = aq_copy(job.fd, job.offset, job.fd2, job.offset2, <size_t>job.length)
        elif op == OP_BLKDISCARD:
            ret = aq_blk_range(job.fd, AQ_BLKDISCARD, job.offset, job.length)
        elif op == OP_BLKZEROOUT:
            ret = aq_blk_range(job.fd, AQ_BLKZEROOUT, job.offset, job.length)
        elif op == OP_MAP:
            ret = aq_extents(job.fd, job.offset, job.offset + job.length,
                             <int64_t *>job.out, MAP_EXTENTS)
        else:
            ret = -EINVAL
        if ret != -EINTR:
            return ret


cdef struct JobQueue:
    AioJob *head
    AioJob *tail


cdef inline void job_push(JobQueue *q, AioJob *job) noexcept nogil:
    job.next = NULL
    job.prev = q.tail
    if q.tail == NULL:
        q.head = job
    else:
        q.tail.next = job
    q.tail = job


cdef inline void job_unlink(JobQueue *q, AioJob *job) noexcept nogil:
    if job.prev == NULL:
        q.head = job.next
    else:
        job.prev.next = job.next
    if job.next == NULL:
        q.tail = job.prev
    else:
        job.next.prev = job.prev
    job.prev = NULL
    job.next = NULL
