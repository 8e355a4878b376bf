"""BlockRequest, the gate it passes, and what it needs of the service that serves it.

Home thread of the context and GIL.
"""

from cpython.object cimport PyObject
from libc.stdint cimport int64_t

from aioqemu._block.aiocb cimport AIOPool
from aioqemu._block.aiocb cimport BlockDriverAIOCB
from aioqemu._block.job cimport AioJob
from aioqemu._engine.context cimport AioContext
from aioqemu._engine.core cimport Service
from aioqemu._sys.libc cimport iovec

cpdef enum Engine:
    AUTO = 0
    URING = 1
    THREADS = 2
    AIO = 3
    NULL_DEVICE = 4

cpdef enum Kind:
    RET_INT = 0                  # what the system call gave
    RET_COUNT = 1                # bytes that the user wanted
    RET_BYTES = 2
    RET_NONE = 3
    RET_ZERO = 4                 # QEMU's: 0 for success
    RET_VALUE = 5                # `value`, or value(ret) if that can be called

cdef enum:
    IOV_MAX = 1024

cdef struct Cut:
    # A submission that was made short on purpose.
    iovec part
    iovec *iov                   # what it was cut from
    int niov

cdef struct Lone:
    Py_buffer view

cdef class BlockPool(AIOPool):
    pass

cdef class Gate:
    # How many requests of one device may be with the engines; the rest waits in order.
    cdef readonly Py_ssize_t limit
    cdef readonly Py_ssize_t active      # started and not over
    cdef readonly Py_ssize_t quiesced    # drained sections that are open
    cdef object waiting                  # OrderedDict whose keys are requests
    cdef Py_ssize_t queued               # its length
    cdef Py_ssize_t idle                 # of the active: those that wait for another device
    cdef list watchers                   # called without arguments when nothing is busy
    cdef list resumers                   # ... when the last drained section ends
    # Let it through (True: launch it), or have it wait.
    cdef bint enter(self, BlockRequest req) except -1
    # A request that waits is not to come: whether it did wait.
    cdef bint forget(self, BlockRequest req) except -1
    cdef int leave(self) except -1
    cdef int _tell(self) except -1
    cdef int release(self) except -1

cdef class Launcher(Service):
    # What a request needs of its service.
    cdef AioContext ctx
    cdef bint closing
    cdef readonly object hook_now        # fault rules for what is made now, or None
    cdef PyObject *first                 # requests in flight; the list holds references
    cdef PyObject *last
    cdef void link(self, BlockRequest req) noexcept
    cdef void unlink(self, BlockRequest req) noexcept
    # Give it to its engine, again or for the first time.
    cdef int launch(self, BlockRequest req) except -1
    # Ask the engine to end it early.
    cdef int cancel(self, BlockRequest req) except -1

cdef class BlockRequest(BlockDriverAIOCB):
    cdef AioJob job
    cdef readonly Launcher service
    cdef Gate gate
    cdef PyObject *before            # in the service's list of requests in flight
    cdef PyObject *behind
    cdef unsigned char linked        # ... which holds a reference
    cdef unsigned char entered       # counted by the gate
    cdef unsigned char full          # a transfer that ends early goes on
    cdef unsigned char kernel_has    # cancelled, and the kernel has not been told yet
    cdef unsigned char zeroes        # the null device fills what it reads with zeroes
    cdef unsigned char engine
    cdef unsigned char kind          # what result() gives
    cdef unsigned short retries
    cdef int64_t align               # of the file, 1 if it does not matter
    cdef int64_t mem_align           # of memory that is still to be looked at, or 0
    cdef int64_t moved
    cdef int64_t total               # what the kernel is asked for
    cdef int64_t head                # bytes of it before what the user wants
    cdef int64_t wanted              # bytes that the user wants
    cdef Cut *cut
    cdef char *bounce                # aligned memory used instead of the user's
    # Where the collector does not see them: clearing one would let go of memory that the
    # kernel may still write.  `lone`, or on the heap with the iovecs behind.
    cdef Py_buffer *views
    cdef Lone lone
    cdef Py_ssize_t n_views
    cdef object value                # result, or what must live as long as the request
    cdef object hook                 # hook(request) before each submission; faults
    cdef object after                # after(ret) -> ret before the completion is told
    cdef object steps                # a generator that yields requests
    cdef BlockRequest child          # the one it waits for
    cdef object timer
    cdef str what                    # says more than the errno
    cdef object filename
    # Take the buffers: None and a size for bytes of its own, one buffer, or a list.
    cdef int take_bytes(self, Py_ssize_t n) except -1
    cdef int take_buffer(self, object buffer, bint writable) except -1
    cdef int take_buffers(self, object buffers, bint writable) except -1
    cdef int _make_room(self, Py_ssize_t n) except -1
    # Use aligned memory of our own where the caller's does not do; MemoryError.
    cdef int align_memory(self) except -1
    cdef int _bounce(self, Py_ssize_t mem_align) except -1
    cdef void zero_memory(self) noexcept
    cdef void drop_memory(self) noexcept
    # The engine has nothing of it any more: tell everybody, once.
    cdef int over(self, int64_t ret) except -1
    # The kernel has it and will not give it back: it is over for us, and its memory is
    # never freed.
    cdef int abandon(self, int64_t ret, str what) except -1
    cdef int forget_waiters(self) except -1

# A request as new: its fields are zero, None, and `align` 1.
cdef BlockRequest new_request()

# The completion of every job: what CqeHandler.cb of a request is.
cdef int job_done(void *opaque) except -1
