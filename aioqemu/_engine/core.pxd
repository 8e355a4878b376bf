"""The contract of AioCore: fds, waking, waiting, and the fields of a context.

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
from aioqemu._sys.atomic cimport aq_atomic_int
from aioqemu._sys.atomic cimport aq_load

# Raised by one in every forked child; a context of the parent is dead there.
cdef int fork_generation

cdef struct AioStats:
    uint64_t passes          # passes of the loop and calls of poll()
    uint64_t waits           # looks at the kernel
    uint64_t gil_releases    # waits that gave the GIL up
    uint64_t bottom_halves
    uint64_t fd_events       # dispatched nodes, the context's own notifier excluded
    uint64_t timers
    uint64_t notifies
    uint64_t notify_writes   # notifies that had to write the eventfd
    uint64_t gil_holds       # waits that first looked without giving it up
    uint64_t polled_ns       # time spent in looks of both kinds that do not sleep

# Have a running loop call callback(arg) in its next pass; `loop.call_soon` without the way
# through Python.
ctypedef int (*SoonCallback)(object loop, object callback, object arg,
                             object context) except -1

cdef class Service:
    # What brings completions to a context beside its fds (the block layer).  Home thread.
    # Hand over what waits, right before a sleep; completions may be appended to st.done.
    cdef int submit(self) except -1
    # Append what has completed elsewhere to st.done; right before the dispatch.
    cdef int collect(self) noexcept
    # The context closes: end what is in flight and let nothing come afterwards.
    # `child`: after a fork, touch nothing that is shared.
    cdef int shut(self, bint child) except -1

cdef class AioCore:
    cdef AioState st
    cdef FdMon mon
    cdef Service service
    cdef TimerHeap timers
    cdef AioStats counts
    cdef aq_atomic_int notified    # somebody called notify() since the last wait
    # The home thread sleeps, or is about to, and nobody has undertaken to wake it.
    cdef aq_atomic_int notify_me
    # Threads that will call signal() without the GIL; closing waits for them.  Raised with
    # the GIL held, by who has seen then that the context is open.
    cdef aq_atomic_int wakers
    cdef int[2] notifier
    cdef AioHandler *notifier_node
    cdef bint always_write         # fileno() was asked for: never elide a notification
    cdef int driven                # calls of dispatch() on the stack
    cdef Py_ssize_t bh_urgent      # bottom halves scheduled and not idle
    cdef Py_ssize_t bh_idle
    cdef Py_ssize_t n_fds          # nodes in the table
    cdef Py_ssize_t n_foreign      # nodes that poll() must leave to the loop
    cdef Py_ssize_t n_masked
    cdef Py_ssize_t in_flight      # requests that make the context busy
    cdef AioHandler *current       # whose callback runs, the innermost
    cdef unsigned long home        # thread ident, 0 before the first poll
    cdef unsigned long mon_thread  # the thread that the monitor was started in
    cdef int fork_generation
    cdef bint running              # a loop is inside its run; nobody else closes it
    cdef object runner             # ... that loop, if its call_soon is its own; else None
    cdef SoonCallback soon         # of the runner
    cdef readonly bint closed
    cdef object exception_handler
    # Debug mode: called with a transport and the seconds that its callbacks took.
    cdef object slow_hook
    cdef object reason             # why the backend was chosen
    cdef object __weakref__

    # Choose the backend and make what the kernel gives.  Raises OSError.
    cdef int open_core(self, object fdmon) except -1
    # Give that back; no callback runs.  In a forked child what is shared is left alone.
    cdef int close_core(self) except -1

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
    # The two halves of that.  After True the caller owes a call of signal(), at once: others
    # rely on it.
    cdef bint claim_wake(self) noexcept nogil
    cdef void signal(self) noexcept nogil
    # A deadline has become nearer: a sleeper must learn of it.
    cdef inline void sooner(self) noexcept:
        if aq_load(&self.notify_me) or (self.always_write and not self.driven):
            self.wake()
    # Bind the context to the running thread; for the loop, when it starts.
    cdef int enter_thread(self) except -1
    cdef int check_usable(self) except -1
    # Report an exception of a user callback (the current one).
    cdef int report(self, str message, object exc, dict extra) except -1

    # For the layers of the context alone.
    cdef int _check_home(self) except -1
    cdef int _unraisable(self, str message, object exc) except -1
    cdef int _grow_table(self, int fd) except -1
    cdef void _changed(self, int owner) noexcept
    cdef object _forget(self, AioHandler *node, bint child)
    cdef int _lose(self, AioHandler *node) except -1
    cdef int _dispatch_node(self, AioHandler *node) except -1
    cdef int _lose_and_report(self, AioHandler *node) except -1
