"""FdMon: what a context asks of a backend.  One subclass a module (`fdmon_*`).

A backend watches nodes, waits, and appends what happened to the state's queues.  All
methods but `wait` run with the GIL held.  Kernel results come back as -errno; nothing
here aborts and nothing raises, except `start`.
"""

from libc.stdint cimport int64_t
from libc.stdint cimport uint64_t

from aioqemu._engine.types cimport AioHandler
from aioqemu._engine.types cimport AioState
from aioqemu._engine.types cimport CqeHandler
from aioqemu._engine.types cimport Held
from aioqemu._sys.uring cimport aq_sqe

cdef class FdMon:
    cdef readonly str name
    cdef AioState *st         # the context's; outlives the monitor
    cdef bint waiting         # the home thread is inside wait(), without the GIL
    # Reports an fd once and watches it again only after its dispatch (io_uring), and
    # has_work() sees from memory alone whether there is anything to collect.
    cdef bint one_shot
    # Tells each write to an eventfd once if AIO_EDGE is among the node's events, so that
    # nobody has to read it.
    cdef bint edges
    cdef readonly uint64_t submits   # requests handed to a ring
    cdef Py_ssize_t requests         # CqeHandlers whose completion has not come
    # For outer_fd; each -1 until it is needed.
    cdef int shell            # an epoll set with nothing in it but one that may be renewed
    cdef int mirror           # an epoll set of the same fds, in the shell
    cdef int mirror_extra     # an fd that belongs into the mirror as well
    cdef bint mirror_stale    # something is in the mirror that is watched no more

    # Make what belongs to the running thread; called before the first wait there, and
    # again when the home thread has changed.  Raises OSError.
    cdef int start(self) except -1
    # Watch a new node (node.events).  0 or -errno; then the node is not watched.
    cdef int add(self, AioHandler *node) noexcept
    # node.events (or node.masked) has changed.  0 or -errno.
    cdef int update(self, AioHandler *node) noexcept
    # Stop watching.  Afterwards the node may still be `pending`; it is freed by
    # node_reap when the kernel has let go of it.
    cdef int remove(self, AioHandler *node) noexcept
    # Get ready to wait; called with the GIL held right before wait().  0, more if
    # something was found ready meanwhile and queued, or -errno.
    cdef int prepare(self) noexcept
    # Wait for something, at most timeout_ns (-1: for ever, 0: only look).  Without the
    # GIL when the timeout is not 0.  0 or more, or -errno (-EINTR: a signal).
    cdef int wait(self, int64_t timeout_ns) noexcept nogil
    # Append what the last wait found to the queues; the number of nodes and completions.
    cdef int collect(self) noexcept
    # Is there something to collect, as far as memory tells?
    cdef bint has_work(self) noexcept nogil
    # Pass on to the kernel what has been prepared, without waiting.  0 or -errno.
    cdef int flush(self) noexcept
    # An fd that polls readable when something is there, made on first use; -errno.
    cdef int outer_fd(self) noexcept
    # A request of the caller's own on the ring, or NULL where there is no ring.
    cdef aq_sqe *add_sqe(self, CqeHandler *cqe) noexcept
    # Receive from the socket of a node whose `streams` is set, as recv(2) does without
    # blocking: the number of bytes, 0 at the end of file, or -errno.  It is the monitor
    # that decides how; nobody else may receive from the socket while the node exists.
    cdef ssize_t receive(self, AioHandler *node, void *buf, size_t size) noexcept
    # Receive nothing more for the node, which is to be removed, and move what has come to
    # `held`; 0 or -errno.  The caller puts it into a later node of the same socket
    # (followed by `update`), or calls drop_held.
    cdef int recall(self, AioHandler *node, Held *held) noexcept
    cdef void drop_held(self, Held *held) noexcept
    # Wait, at most so long, until the kernel has no request of add_sqe; then 0.
    cdef int settle(self, int64_t limit_ms) noexcept
    # End with -EAGAIN what was prepared and never submitted, and never will be.
    cdef void give_back(self) noexcept
    # Put an epoll set into the shell, made on first use; the shell or -errno.
    cdef int shell_around(self, int inner) noexcept
    # For backends whose own fd cannot be nested: a mirror in the shell, kept in step, and
    # made anew when it is stale (in `prepare`).  The shell, 0, or -errno.
    cdef int mirror_open(self) noexcept
    cdef int mirror_renew(self) noexcept
    cdef void mirror_ctl(self, int op, AioHandler *node) noexcept
    cdef void mirror_close(self) noexcept
    # Give everything back.  `child`: after a fork, touch nothing that is shared.
    cdef void close(self, bint child) noexcept
    cdef dict info(self)
