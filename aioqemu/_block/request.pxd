"""BlockRequest, and BlockService, which hands requests to the engines of a context.

Home thread of the context and GIL.
"""

from cpython.object cimport PyObject
from libc.stdint cimport int64_t

from aioqemu._block.aiocb cimport AIOPool
from aioqemu._block.aiocb cimport BlockDriverAIOCB
from aioqemu._block.job cimport AioJob
from aioqemu._block.job cimport JobQueue
from aioqemu._block.linux_aio cimport LinuxAio
from aioqemu._block.threads cimport ThreadPool
from aioqemu._engine.context cimport AioContext
from aioqemu._engine.context cimport Service
from aioqemu._sys.libc cimport iovec

cdef class BlockPool(AIOPool):
    pass

cdef class Gate:
    # How many requests of one device may be with the engines; the rest waits in order.
    cdef readonly Py_ssize_t limit
    cdef readonly Py_ssize_t active      # started and not over
    cdef readonly Py_ssize_t quiesced    # drained sections that are open
    cdef object waiting                  # deque of requests
    cdef list watchers                   # called without arguments when active is 0
    cdef int leave(self) except -1
    cdef int release(self) except -1

cdef class BlockRequest(BlockDriverAIOCB):
    cdef AioJob job
    cdef readonly BlockService service
    cdef Gate gate
    cdef PyObject *before            # in the service's list of requests in flight
    cdef PyObject *behind
    cdef bint linked                 # ... which holds a reference
    cdef bint entered                # counted by the gate
    cdef bint full                   # a transfer that ends early goes on
    cdef bint kernel_has             # cancelled, and the kernel has not been told yet
    cdef bint lost                   # the kernel never gave it back: its memory stays
    cdef int engine
    cdef int kind                    # what result() gives
    cdef int retries
    cdef int64_t align               # of the file, 1 if it does not matter
    cdef int64_t moved
    cdef int64_t total               # what the kernel is asked for
    cdef int64_t head                # bytes of it before what the user wants
    cdef int64_t wanted              # bytes that the user wants
    cdef iovec cut                   # a submission that was made short on purpose,
    cdef iovec *cut_from             # and what it was cut from
    cdef int cut_niov
    cdef char *bounce                # aligned memory used instead of the user's
    cdef iovec *iov_heap
    cdef Py_buffer *views
    cdef Py_ssize_t n_views
    cdef object value                # result, or what must live as long as the request
    cdef object hook                 # hook(request) before each submission; faults
    cdef object after                # after(ret) -> ret before the completion is told
    cdef object steps                # a generator that yields requests
    cdef BlockRequest child          # the one it waits for
    cdef object timer
    cdef str what                    # says more than the errno
    cdef object filename
    cdef int _setup_iov(self) except -1
    cdef int _bounce(self, Py_ssize_t mem_align) except -1
    cdef void _drop_memory(self) noexcept
    cdef int _over(self, int64_t ret) except -1
    cdef int forget_waiters(self) except -1

cdef class BlockService(Service):
    cdef AioContext ctx
    cdef readonly BlockPool requests
    cdef ThreadPool pool
    cdef LinuxAio aio
    cdef PyObject *first             # requests in flight
    cdef PyObject *last
    cdef JobQueue pending            # for the ring, which had no room or does not exist
    cdef bint closing
    cdef bint untold                 # a cancelled request is still to be told of
    cdef Py_ssize_t budget           # bytes that may still be read on the spot
    cdef public Py_ssize_t read_now_bytes
    cdef public int max_threads
    cdef readonly object counts      # requests by engine
    cdef BlockRequest _new(self, object bs, object cb, object opaque, int op, int fd)
    cdef int _check_thread(self) except -1
    cdef int _start(self, BlockRequest req) except -1
    cdef int _launch(self, BlockRequest req) except -1
    cdef int _issue(self, BlockRequest req) except -1
    cdef int _end_soon(self, BlockRequest req, int ret) noexcept
    cdef bint _to_ring(self, AioJob *job) noexcept
    cdef int _advance(self, BlockRequest req, object ret) except -1
    cdef int _cancel(self, BlockRequest req) except -1
    cdef bint _tell_ring(self, BlockRequest req) noexcept
    cdef void _link(self, BlockRequest req) noexcept
    cdef void _unlink(self, BlockRequest req) noexcept
    cdef ThreadPool _threads(self)
    cdef bint _read_now(self, BlockRequest req) except -1
