"""What the engine's modules share: nodes of watched fds, timers, completions.

Structs here are linked by the engine and live inside, or point back to, the Python
object that owns them (`opaque`).  One reference is taken per membership: whoever
links takes it, whoever unlinks drops it.
"""

from libc.stdint cimport int64_t
from libc.stdint cimport uint16_t
from libc.stdint cimport uint32_t
from libc.stdint cimport uint8_t

# A callback of the engine.  Home thread, GIL held.  -1 with an exception set only for
# what must leave the pass (KeyboardInterrupt, SystemExit); ordinary exceptions of user
# code are reported by the callback itself.
ctypedef int (*AioCallback)(void *opaque) except -1

cdef enum AioOwner:
    AIO_OWNER_INTERNAL = 0   # the context's own: its notifier, the eventfds of engines
    AIO_OWNER_CONTEXT = 1    # set_fd_handler: context work, served by poll() too
    AIO_OWNER_LOOP = 2       # add_reader/add_writer: served by the loop's pass only
    AIO_OWNER_TRANSPORT = 3  # a transport: likewise, and add_reader refuses the fd

cdef struct Held:
    # What a request on the ring has received and nobody has taken yet, in order.
    uint16_t first           # number of a buffer, plus one; 0: none
    uint16_t last
    uint32_t taken           # bytes of the first that are gone already
    int end                  # after them: 0 nothing, 1 end of file, or -errno

cdef enum AioEvents:
    AIO_EDGE = 0x80000000u   # beside POLL*: tell what happens, not what is (FdMon.edges)

cdef struct AioHandler:
    # One for each idle connection: flags are bytes, counters as wide as they need to be.
    int fd
    uint32_t generation      # tells a node from an earlier one of the same fd number
    uint8_t owner            # AioOwner
    uint8_t deleted          # removed; memory stays until walking and pending are 0
    uint8_t masked           # io_flush said "nothing outstanding": not watched by poll()
    uint8_t queued           # linked into a ready queue
    # A TCP connection on io_uring may be received from by one lasting request.
    uint8_t streams          # it may: set by its transport
    uint8_t ringing          # ... and that is wanted now
    uint8_t receiving        # the kernel has the request
    uint8_t recalled         # ... and was told to give it up
    uint8_t hangup           # ... and a poll request that tells of hang-ups
    uint8_t full             # full buffers in a row
    uint16_t small           # small messages in a row
    uint16_t patience        # ... and how many of them are asked for
    uint16_t instant         # io_uring: requests in a row that completed when they were made
    uint16_t instant_least   # ... so many, and the node is put into the BusySet
    uint16_t busy            # ... its place there, plus one; 0: not in it
    int walking              # dispatches of this node that are on the stack
    int pending              # requests of this node that the kernel still holds
    uint32_t events          # POLL* wanted, AIO_EDGE
    uint32_t revents         # POLL* reported, not yet dispatched
    uint32_t armed           # POLL* that the kernel watches; backend's own
    uint32_t sqe_pos         # io_uring: place of the last poll request in the ring
    uint32_t receive_pos     # ... of the lasting request, and of the one for hang-ups
    uint32_t hangup_pos
    int index                # poll: place in the array
    Held held
    AioHandler *prev         # in a ready queue, or among the zombies
    AioHandler *next
    AioCallback io_read
    AioCallback io_write
    AioCallback io_lost      # the fd was closed behind our back (may be NULL)
    void *opaque             # owner; one reference while not deleted, but for the context
    AioHandler **keeper      # owner's pointer to the node: NULL when that goes; or NULL

cdef struct AioQueue:
    AioHandler *head
    AioHandler *tail

cdef struct CqeHandler:
    # A request on the ring that is not a watched fd.  The memory belongs to the request
    # and stays until cb has run; cb runs from the dispatch phase, never from submit.
    AioCallback cb
    void *opaque
    int res
    uint32_t flags
    CqeHandler *next

cdef struct AioState:
    # Shared by a context and its fd monitor.  Touched with the GIL held.
    AioHandler **table       # by fd; NULL where nothing is registered
    int table_size
    uint32_t generation
    AioQueue ready_context   # nodes that poll() may dispatch
    AioQueue ready_loop      # nodes of add_reader: only the loop's pass dispatches them
    AioQueue ready_transport  # nodes of transports: likewise
    AioHandler *zombies      # deleted, but the kernel still holds a request
    CqeHandler *done_head    # completions to dispatch
    CqeHandler *done_tail
    bint rearm_all           # a change could not be passed on; walk the table

cdef extern from *:
    """
    #ifndef AIOQEMU_TIMER
    #define AIOQEMU_TIMER
    #include <stdint.h>
    /* In C, because handles embed it in a layout that C lays down (layouts.pxd). */
    typedef struct AioTimer {
        Py_ssize_t index;         /* place in the heap; TIMER_IDLE; TIMER_DUE - place */
        int (*cb)(void *);        /* NULL: it is queued when it is due (TimerHeap.queue) */
        void *opaque;             /* owner; one reference while armed or due */
    } AioTimer;
    #endif
    """
    ctypedef struct AioTimer:
        Py_ssize_t index
        AioCallback cb
        void *opaque

cdef enum:
    TIMER_IDLE = -1
    TIMER_DUE = -2
