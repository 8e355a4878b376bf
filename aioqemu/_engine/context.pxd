"""AioContext: the engine's contract.

Home thread and GIL unless said otherwise.  The home thread is the one that polls first;
a loop sets it each time it starts.
"""

from libc.stdint cimport int64_t
from libc.stdint cimport uint32_t
from libc.stdint cimport uint64_t

from aioqemu._engine.fdmon cimport FdMon
from aioqemu._engine.timers cimport TimerHeap
from aioqemu._engine.types cimport AioCallback
from aioqemu._engine.types cimport AioHandler
from aioqemu._engine.types cimport AioState
from aioqemu._engine.types cimport AioTimer
from aioqemu._sys.atomic cimport aq_atomic_int

# Raised by one in every forked child; a context of the parent is dead there.
cdef int fork_generation

cdef struct BhNode:
    BhNode *prev             # in the list of scheduled ones, or in the running slice
    BhNode *next
    void *owner              # the BottomHalf; one reference while linked
    bint scheduled
    bint idle
    bint in_slice

cdef struct BhList:
    BhNode *head
    BhNode *tail

cdef struct AioStats:
    uint64_t passes          # passes of the loop and calls of poll()
    uint64_t waits           # looks at the kernel
    uint64_t gil_releases    # waits that gave the GIL up
    uint64_t bottom_halves
    uint64_t fd_events       # dispatched nodes, the context's own notifier excluded
    uint64_t timers
    uint64_t notifies
    uint64_t notify_writes   # notifies that had to write the eventfd
    uint64_t polled_ns       # time spent in adaptive polling

cdef class BottomHalf:
    cdef BhNode node
    cdef readonly AioContext ctx
    cdef object cb
    cdef object opaque
    cdef readonly bint deleted
    cdef int _drop(self) noexcept
    cdef int _schedule(self, bint idle) except -1

cdef class FdHandler:
    # What set_fd_handler registered for one fd.
    cdef AioContext ctx
    cdef AioHandler *node      # NULL once removed
    cdef int fd
    cdef object io_read
    cdef object io_write
    cdef object io_flush
    cdef object opaque

cdef class Timer:
    cdef AioTimer timer
    cdef readonly AioContext ctx
    cdef object cb
    cdef object opaque

cdef class Service:
    # What brings completions to a context beside its fds (the block layer).  Home thread.
    # Hand over what waits, right before a sleep; completions may be appended to st.done.
    cdef int submit(self) except -1
    # Append what has completed elsewhere to st.done; right before the dispatch.
    cdef int collect(self) noexcept
    # The context closes: end what is in flight and let nothing come afterwards.
    # `child`: after a fork, touch nothing that is shared.
    cdef int shut(self, bint child) except -1

cdef class AioContext:
    cdef AioState st
    cdef FdMon mon
    cdef Service service
    cdef TimerHeap timers
    cdef AioStats counts
    cdef aq_atomic_int notified    # somebody called notify() since the last wait
    cdef aq_atomic_int notify_me   # the home thread sleeps, or is about to
    cdef int[2] notifier
    cdef AioHandler *notifier_node
    cdef bint always_write         # fileno() was asked for: never elide a notification
    cdef BhList bh_list            # scheduled
    cdef BhList bh_slice           # being run by the outermost pass
    cdef Py_ssize_t bh_urgent      # scheduled and not idle, in both lists
    cdef Py_ssize_t bh_idle
    cdef dict owners               # fd -> opaque of its node: the node's reference
    cdef list flushers             # FdHandlers with an io_flush
    cdef Py_ssize_t n_foreign      # nodes that poll() must leave to the loop
    cdef Py_ssize_t n_masked
    cdef Py_ssize_t in_flight      # requests that make the context busy
    cdef unsigned long home        # thread ident, 0 before the first poll
    cdef unsigned long mon_thread  # the thread that the monitor was started in
    cdef int fork_generation
    cdef int refs
    cdef bint modern
    cdef readonly bint closed
    cdef int64_t now_ns            # read once a pass, after the wait
    cdef int64_t poll_ns, poll_max_ns, poll_grow, poll_shrink
    cdef object exception_handler
    cdef public object poll_guard  # called by poll() before it does anything; may raise
    cdef object reason             # why the backend was chosen
    cdef object __weakref__

    # Watch `events` (POLLIN | POLLOUT) of an fd.  Takes a reference to `opaque`, dropped
    # by unwatch.  Raises OSError when the fd cannot be watched.  An earlier node of the
    # fd is removed; if it was a transport's, its io_lost is called.
    cdef AioHandler *watch(self, int fd, int owner, uint32_t events, AioCallback io_read,
                           AioCallback io_write, object opaque) except NULL
    # Change what is wanted.  Raises OSError when the fd has gone.
    cdef int modify(self, AioHandler *node, uint32_t events) except -1
    # After this no callback of the node runs again; the pointer is dead.
    cdef int unwatch(self, AioHandler *node) noexcept
    cdef inline AioHandler *lookup(self, int fd) noexcept:
        if fd < 0 or fd >= self.st.table_size:
            return NULL
        return self.st.table[fd]

    # Make the next (or running) wait return.  Any thread, with or without the GIL, and
    # signal handlers: no lock, no allocation.
    cdef void wake(self) noexcept nogil
    # The longest that a wait may last, from bottom halves, queues and timers; -1: ever.
    cdef int64_t compute_timeout(self) noexcept
    # The same for poll(), which leaves the loop's ready fds alone.
    cdef int64_t _own_timeout(self) noexcept
    # Is there something to dispatch, as far as memory tells?
    cdef bint has_work(self) noexcept
    # Wait and collect.  Raises what a signal handler raised, or OSError if the backend
    # is gone.
    cdef int wait(self, int64_t timeout_ns) except -1
    # Completions, bottom halves, ready nodes, due timers.  The number of callbacks.
    # Without `transports` their nodes stay where they are, for dispatch_transports.
    cdef Py_ssize_t dispatch_all(self, bint transports) except -1
    cdef Py_ssize_t dispatch_transports(self) except -1
    # Bind the context to the running thread; for the loop, when it starts.
    cdef int enter_thread(self) except -1
    cdef int check_usable(self) except -1
    # Report an exception of a user callback (the current one).
    cdef int report(self, str message, object exc, dict extra) except -1

    # The rest is the context's own.
    cdef int _close(self) except -1
    cdef int _check_made(self) except -1
    cdef int _check_home(self) except -1
    cdef int _unraisable(self, str message, object exc) except -1
    cdef int _grow_table(self, int fd) except -1
    cdef void _changed(self, int owner) noexcept
    cdef void _forget(self, AioHandler *node, bint child) noexcept
    cdef int _lose(self, AioHandler *node) except -1
    cdef int _drop_flusher(self, AioHandler *node) except -1
    cdef int _run_bottom_halves(self) except -1
    cdef bint has_ready(self) noexcept
    cdef int _start_monitor(self) except -1
    cdef bint _spin(self, int64_t timeout_ns) noexcept nogil
    cdef void _adjust_polling(self, int64_t blocked_ns) noexcept
    cdef int _dispatch_node(self, AioHandler *node) except -1
    cdef int _lose_and_report(self, AioHandler *node) except -1
    cdef Py_ssize_t _dispatch_done(self) except -1
    cdef Py_ssize_t _dispatch_context(self) except -1
    cdef Py_ssize_t _run_timers(self) except -1
    cdef int _mask(self, AioHandler *node, bint masked) noexcept
    cdef void _unmask(self) noexcept
    cdef bint _ask_busy(self) except -1
    cdef int _wait_context(self, int64_t timeout_ns) except -1
    cdef bint _poll_seed(self, bint blocking) except -1
    cdef bint _poll_modern(self, bint blocking) except -1
    cdef bint _poll(self, bint blocking) except -1
