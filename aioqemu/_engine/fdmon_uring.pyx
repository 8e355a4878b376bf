"""FdMon over io_uring: fds by one-shot poll requests, and requests of the block layer.

The ring belongs to the home thread: it is made by start() there, and made anew when the
home thread changes.  A node's poll request is armed again only after its dispatch, which
gives level-triggered behaviour, and rides along with the next wait: one system call a
pass.  Two kinds of nodes have none: those that are ready each time, which a look finds
(BusySet), and the notifier, whose request stays (AIO_EDGE).  Requests are told apart by
the lowest bit of user_data: 0 a node, 1 a CqeHandler; user_data 0 is nobody's.

A node that is removed while the kernel holds its request stays a zombie until the
completion has come.  A request that was prepared but not yet submitted is turned into a
no-op instead: its fd may be closed, and its number used by another file, before the next
submission.

Connections (`AioHandler.streams`) that are busy together and whose messages are small
are not polled: one lasting request receives into the buffers of a ReceivePool what comes,
and the node is ready when something has.  What large messages gain by that they lose to
the copies, and a lone connection gains nothing, so it is the traffic that decides, and
again when that changes.  With deferred task work, which this asks for, nothing is
received but inside our own enters.  Some kernels let such a request sleep on when a
hang-up comes together with data; a poll request beside it, made once, hears of hang-ups,
and the end of the stream is left to recv(2).
"""

from cython cimport final
from libc.stdint cimport int64_t
from libc.stdint cimport uint16_t
from libc.stdint cimport uint32_t
from libc.stdint cimport uint64_t
from libc.stdint cimport uintptr_t
from libc.string cimport memset

from aioqemu._engine.busy cimport BusySet
from aioqemu._engine.busy cimport INSTANT_LEAST
from aioqemu._engine.fdmon cimport FdMon
from aioqemu._engine.lists cimport done_push
from aioqemu._engine.lists cimport node_reap
from aioqemu._engine.lists cimport ready_push
from aioqemu._engine.pool cimport BUFFER_SIZE
from aioqemu._engine.pool cimport ReceivePool
from aioqemu._engine.notifier cimport notifier_clear
from aioqemu._engine.notifier cimport notifier_set
from aioqemu._engine.types cimport AIO_EDGE
from aioqemu._engine.types cimport AIO_OWNER_TRANSPORT
from aioqemu._engine.types cimport AioHandler
from aioqemu._engine.types cimport CqeHandler
from aioqemu._engine.types cimport Held
from aioqemu._sys.libc cimport EAGAIN
from aioqemu._sys.libc cimport EBADF
from aioqemu._sys.libc cimport EBUSY
from aioqemu._sys.libc cimport ECANCELED
from aioqemu._sys.libc cimport EEXIST
from aioqemu._sys.libc cimport EFD_CLOEXEC
from aioqemu._sys.libc cimport EFD_NONBLOCK
from aioqemu._sys.libc cimport EINVAL
from aioqemu._sys.libc cimport EINTR
from aioqemu._sys.libc cimport ENOBUFS
from aioqemu._sys.libc cimport ENOENT
from aioqemu._sys.libc cimport ENOSYS
from aioqemu._sys.libc cimport ENOTSUP
from aioqemu._sys.libc cimport EPOLL_CTL_ADD
from aioqemu._sys.libc cimport EPOLL_CTL_DEL
from aioqemu._sys.libc cimport EPOLL_CTL_MOD
from aioqemu._sys.libc cimport ETIME
from aioqemu._sys.libc cimport MSG_DONTWAIT
from aioqemu._sys.libc cimport POLLERR
from aioqemu._sys.libc cimport POLLIN
from aioqemu._sys.libc cimport POLLNVAL
from aioqemu._sys.libc cimport POLLRDHUP
from aioqemu._sys.libc cimport aq_nap
from aioqemu._sys.libc cimport aq_now_ns
from aioqemu._sys.libc cimport close
from aioqemu._sys.libc cimport errno
from aioqemu._sys.libc cimport eventfd
from aioqemu._sys.libc cimport pthread_atfork
from aioqemu._sys.libc cimport recv
from aioqemu._sys.uring cimport AQ_CQE_BUFFER_SHIFT
from aioqemu._sys.uring cimport AQ_CQE_F_BUFFER
from aioqemu._sys.uring cimport AQ_CQE_F_MORE
from aioqemu._sys.uring cimport AQ_FEAT_EXT_ARG
from aioqemu._sys.uring cimport AQ_FEAT_NODROP
from aioqemu._sys.uring cimport AQ_OP_ASYNC_CANCEL
from aioqemu._sys.uring cimport AQ_OP_NOP
from aioqemu._sys.uring cimport AQ_OP_POLL_ADD
from aioqemu._sys.uring cimport AQ_OP_POLL_REMOVE
from aioqemu._sys.uring cimport AQ_OP_READ
from aioqemu._sys.uring cimport AQ_OP_RECV
from aioqemu._sys.uring cimport AQ_OP_WRITE
from aioqemu._sys.uring cimport AQ_POLL_MULTISHOT
from aioqemu._sys.uring cimport AQ_RECV_MULTISHOT
from aioqemu._sys.uring cimport AQ_RECV_POLL_FIRST
from aioqemu._sys.uring cimport AQ_REGISTER_EVENTFD
from aioqemu._sys.uring cimport AQ_SETUP_COOP_TASKRUN
from aioqemu._sys.uring cimport AQ_SETUP_DEFER_TASKRUN
from aioqemu._sys.uring cimport AQ_SETUP_NO_SQARRAY
from aioqemu._sys.uring cimport AQ_SETUP_SINGLE_ISSUER
from aioqemu._sys.uring cimport AQ_SETUP_SUBMIT_ALL
from aioqemu._sys.uring cimport AQ_SETUP_TASKRUN_FLAG
from aioqemu._sys.uring cimport AQ_SQE_BUFFER_SELECT
from aioqemu._sys.uring cimport aq_buffers_unregister
from aioqemu._sys.uring cimport aq_cq_ready
from aioqemu._sys.uring cimport aq_cqe
from aioqemu._sys.uring cimport aq_enter
from aioqemu._sys.uring cimport aq_get_sqe
from aioqemu._sys.uring cimport aq_has_op
from aioqemu._sys.uring cimport aq_needs_enter
from aioqemu._sys.uring cimport aq_peek_cqe
from aioqemu._sys.uring cimport aq_register
from aioqemu._sys.uring cimport aq_ring
from aioqemu._sys.uring cimport aq_ring_exit
from aioqemu._sys.uring cimport aq_ring_setup
from aioqemu._sys.uring cimport aq_sq_head
from aioqemu._sys.uring cimport aq_sq_pending
from aioqemu._sys.uring cimport aq_sqe

cdef enum:
    SQ_ENTRIES = 256
    CQ_ENTRIES = 2048
    POLL_UPDATE_EVENTS = 1 << 1   # in sqe.len of a POLL_REMOVE
    RECEIVE = 2                   # in user_data, beside the node
    HANGUP = 4                    # likewise
    BUSY = 4                      # so many connections ready at once are busy together
    LONE_IN_A_ROW = 64            # so many times only one was ready, and it is alone
    SMALL_IN_A_ROW = 4            # so many small messages before a request receives
    PATIENCE_MAX = 1024           # ... which is doubled each time that was wrong
    FULL_IN_A_ROW = 2             # so many full buffers, and it was
    SMALL = BUFFER_SIZE // 2      # bytes
    RECALL_TRIES = 8

# The strongest set first; a kernel that does not know a flag answers EINVAL.
cdef uint32_t[4] FLAG_SETS
FLAG_SETS[0] = (AQ_SETUP_SINGLE_ISSUER | AQ_SETUP_DEFER_TASKRUN | AQ_SETUP_TASKRUN_FLAG
                | AQ_SETUP_SUBMIT_ALL | AQ_SETUP_NO_SQARRAY)
FLAG_SETS[1] = (AQ_SETUP_SINGLE_ISSUER | AQ_SETUP_DEFER_TASKRUN | AQ_SETUP_TASKRUN_FLAG
                | AQ_SETUP_SUBMIT_ALL)
FLAG_SETS[2] = AQ_SETUP_COOP_TASKRUN | AQ_SETUP_TASKRUN_FLAG | AQ_SETUP_SUBMIT_ALL
FLAG_SETS[3] = 0

FLAG_NAMES = {
    AQ_SETUP_SUBMIT_ALL: "SUBMIT_ALL",
    AQ_SETUP_COOP_TASKRUN: "COOP_TASKRUN",
    AQ_SETUP_TASKRUN_FLAG: "TASKRUN_FLAG",
    AQ_SETUP_SINGLE_ISSUER: "SINGLE_ISSUER",
    AQ_SETUP_DEFER_TASKRUN: "DEFER_TASKRUN",
    AQ_SETUP_NO_SQARRAY: "NO_SQARRAY",
}


cdef int ring_open(aq_ring *ring) noexcept:
    cdef int i, err = -ENOSYS
    for i in range(4):
        err = aq_ring_setup(ring, SQ_ENTRIES, CQ_ENTRIES, FLAG_SETS[i])
        if err != -EINVAL:
            break
    if err < 0:
        return err
    if not (ring.features & AQ_FEAT_EXT_ARG) or not (ring.features & AQ_FEAT_NODROP):
        aq_ring_exit(ring)
        return -ENOTSUP
    return 0


def unavailable():
    """None if a ring can be made that does what is needed, else the OSError why not."""
    cdef aq_ring ring
    cdef int op
    cdef int err = ring_open(&ring)
    if err < 0:
        return OSError(-err, "io_uring_setup was refused")
    try:
        for op in (AQ_OP_POLL_ADD, AQ_OP_POLL_REMOVE, AQ_OP_ASYNC_CANCEL, AQ_OP_READ,
                   AQ_OP_WRITE):
            if not aq_has_op(&ring, op):
                return OSError(ENOTSUP, f"io_uring lacks operation {op}")
        # A filter may allow the set-up and refuse the rest.
        err = aq_enter(&ring, ring.sq_local, 0, 0)
        if err < 0:
            return OSError(-err, "io_uring_enter was refused")
    finally:
        aq_ring_exit(&ring)
    return None


# Raised in every forked child, where the parent's rings are not mapped any more.
cdef int forks = 0


cdef void _after_fork() noexcept nogil:
    global forks
    forks += 1


pthread_atfork(NULL, NULL, _after_fork)


@final
cdef class FdMonUring(FdMon):
    cdef aq_ring ring
    cdef int ring_eventfd      # in the mirror, for completions that are not of fds; or -1
    cdef bint announced        # ring_eventfd is registered with the ring
    cdef int forks             # when it was made; another number: a child's copy
    cdef BusySet busy          # nodes that a look is enough for
    cdef uint32_t tail         # what was prepared before the wait ends here
    cdef uint32_t submit_from  # place of the first request that the last wait submitted
    cdef uint32_t submit_n     # ... and how many it did
    cdef ReceivePool pool      # None until it is needed
    cdef int pool_error        # why there is none, -errno
    cdef bint pooled           # this ring knows the pool
    cdef uint64_t received     # bytes that came by lasting requests
    cdef int together          # connections that the last completions made ready
    cdef int lone              # how often in a row it was but one, by such a request

    def __cinit__(self):
        memset(&self.ring, 0, sizeof(self.ring))
        self.ring.fd = -1
        self.name = "io_uring"
        self.one_shot = True
        self.edges = True        # a request that stays tells of each write
        self.ring_eventfd = -1
        self.forks = forks
        self.busy = BusySet.__new__(BusySet)

    def __dealloc__(self):
        aq_ring_exit(&self.ring)

    cdef int start(self) except -1:
        cdef int fd, err
        cdef AioHandler *node
        if self.ring.fd >= 0:
            if self.settle(1000):
                # Their memory is the kernel's until the thread that submitted them, and
                # nobody else can, has let the ring go on.
                raise RuntimeError(
                    "requests are in flight that another thread has submitted")
            self._drop_ring()
        err = ring_open(&self.ring)
        if err < 0:
            raise OSError(-err, "io_uring_setup was refused")
        self.announced = False
        for fd in range(self.st.table_size):
            node = self.st.table[fd]
            if node == NULL:
                continue
            if fd == self.ring.fd:
                # Closed behind our back: the number came free and is the ring's now.
                ready_push(self.st, node, POLLNVAL)
            else:
                self._arm(node)
        return 0

    cdef void _drop_ring(self) noexcept:
        # Closing the ring cancels what it holds; no completion comes any more.  Nor does
        # data: without a buffer nothing is received, and another thread than the ring's,
        # which may not ask for that, cannot make it run requests either.
        cdef int fd
        cdef AioHandler *node
        cdef AioHandler *following
        while self.busy.length:
            self.busy.remove(self.busy.nodes[0])
        if self.pooled:
            aq_buffers_unregister(&self.ring)
            self.pooled = False
        aq_ring_exit(&self.ring)
        for fd in range(self.st.table_size):
            node = self.st.table[fd]
            if node != NULL:
                node.pending = 0
                node.armed = 0
                node.receiving = node.recalled = node.hangup = False
        node = self.st.zombies
        while node != NULL:
            following = node.next
            node.pending = 0
            node_reap(self.st, node)
            node = following

    cdef aq_sqe *_sqe(self) noexcept:
        cdef aq_sqe *sqe
        if self.ring.fd < 0:
            return NULL
        sqe = aq_get_sqe(&self.ring)
        if sqe == NULL and not self.waiting:
            aq_enter(&self.ring, self.ring.sq_local, 0, 0)   # full: pass on what there is
            sqe = aq_get_sqe(&self.ring)
        return sqe

    cdef aq_sqe *_own_sqe(self, uint32_t place) noexcept:
        return &self.ring.sqes[place & self.ring.sq_mask]

    cdef bint _unsubmitted(self, uint32_t place, uint64_t user_data) noexcept:
        # Between the kernel's head and our tail, counted backwards from the tail.  Places
        # are used again, the count of them one day as well: so whose it is is looked at.
        return (not self.waiting
                and self.ring.sq_local - place <= aq_sq_pending(&self.ring)
                and self._own_sqe(place).user_data == user_data)

    cdef void _undo(self, uint32_t place) noexcept:
        cdef aq_sqe *sqe = self._own_sqe(place)
        memset(sqe, 0, sizeof(sqe[0]))
        sqe.opcode = AQ_OP_NOP

    cdef int add(self, AioHandler *node) noexcept:
        node.patience = SMALL_IN_A_ROW
        node.instant_least = INSTANT_LEAST
        self.mirror_ctl(EPOLL_CTL_ADD, node)
        return self._arm(node)

    cdef int update(self, AioHandler *node) noexcept:
        if self.mirror >= 0:
            self.mirror_ctl(EPOLL_CTL_MOD, node)
        return self._arm(node)

    cdef int _arm(self, AioHandler *node) noexcept:
        cdef uint32_t wanted = 0 if node.masked else node.events
        cdef aq_sqe *sqe
        if self.ring.fd < 0 or self.forks != forks:
            return 0            # start() arms everything
        if (node.ringing or node.receiving or node.held.first or node.held.end) and (
                self._arm_receive(node, wanted)):
            wanted &= ~<uint32_t>POLLIN
        if node.busy:
            if wanted:
                self.busy.change(node, wanted)
            else:
                self.busy.remove(node)
            return 0
        if node.armed == 0:
            if wanted == 0 or node.queued:
                return 0        # nothing to watch, or armed again after its dispatch
            if self.busy.wants(node):
                self.busy.add(node, wanted)
                return 0
            sqe = self._sqe()
            if sqe == NULL:
                self.st.rearm_all = True
                return 0
            node.sqe_pos = self.ring.sq_local - 1
            sqe.opcode = AQ_OP_POLL_ADD
            sqe.fd = node.fd
            sqe.op_flags = wanted & ~<uint32_t>AIO_EDGE
            sqe.len = AQ_POLL_MULTISHOT if wanted & AIO_EDGE else 0
            sqe.user_data = <uint64_t><uintptr_t>node
            node.armed = wanted
            node.pending += 1
            return 0
        if (wanted & ~node.armed) == 0:
            return 0            # what is not wanted any more is ignored when it comes
        if self._unsubmitted(node.sqe_pos, <uint64_t><uintptr_t>node):
            self._own_sqe(node.sqe_pos).op_flags = wanted
            node.armed = wanted
            return 0
        sqe = self._sqe()
        if sqe == NULL:
            self.st.rearm_all = True
            return 0
        # If the request has completed meanwhile this fails with ENOENT, which nobody
        # hears; the completion then leads to a dispatch and a new request.
        sqe.opcode = AQ_OP_POLL_REMOVE
        sqe.fd = -1
        sqe.addr = <uint64_t><uintptr_t>node
        sqe.len = POLL_UPDATE_EVENTS
        sqe.op_flags = wanted
        node.armed = wanted
        return 0

    cdef int remove(self, AioHandler *node) noexcept:
        self.mirror_ctl(EPOLL_CTL_DEL, node)
        if node.busy:
            self.busy.remove(node)
        if node.held.first or node.held.end:
            self.drop_held(&node.held)
        if node.pending == 0 or self.ring.fd < 0:
            node.pending = 0
            return 0
        if node.receiving and not node.recalled:
            self._recall(node)      # if there is no room, what comes next tells
        if node.hangup:
            self._forget_hangup(node)
        if node.armed == 0:
            return 0
        if self._cancel_poll(node) < 0:
            # The request stays until its file reports something or the ring goes.
            return -EBUSY
        if node.pending == 0:
            return 0
        if node.owner != AIO_OWNER_TRANSPORT:
            # The request holds the file: until it is gone, close() does not close it, and
            # a listening socket would go on accepting.  Transports close in a later pass.
            self.flush()
        return 0

    cdef int _cancel_poll(self, AioHandler *node) noexcept:
        cdef aq_sqe *sqe
        node.armed = 0
        if self._unsubmitted(node.sqe_pos, <uint64_t><uintptr_t>node):
            self._undo(node.sqe_pos)
            node.pending -= 1
            return 0
        sqe = self._sqe()
        if sqe == NULL:
            return -EBUSY
        sqe.opcode = AQ_OP_POLL_REMOVE
        sqe.fd = -1
        sqe.addr = <uint64_t><uintptr_t>node
        return 0

    cdef int prepare(self) noexcept:
        cdef int fd, found
        cdef AioHandler *node
        if self.ring_eventfd >= 0:
            notifier_clear(self.ring_eventfd)    # before looking, so that nothing is missed
        if self.mirror_stale:
            self.mirror_renew()
        if self.st.rearm_all:
            self.st.rearm_all = False
            for fd in range(self.st.table_size):
                node = self.st.table[fd]
                if node != NULL:
                    self._arm(node)
        found = self._look_at_busy() if self.busy.length else 0
        # What another thread prepares from now on is not complete without the GIL.
        self.tail = self.ring.sq_local
        return found

    cdef int _look_at_busy(self) noexcept:
        cdef int missed, i
        cdef int found = self.busy.look(self.st, &missed)
        for i in range(missed):
            self._arm(self.busy.nodes[i])
        return found

    cdef int wait(self, int64_t timeout_ns) noexcept nogil:
        cdef int ret
        cdef uint32_t pending
        if self.ring.fd < 0:
            return -EBADF
        if aq_cq_ready(&self.ring):
            timeout_ns = 0      # but what is prepared goes out: it may be ready as well
        pending = self.tail - aq_sq_head(&self.ring)
        self.submits += pending
        self.submit_from = self.tail - pending
        self.submit_n = pending
        if timeout_ns == 0:
            if pending == 0 and not aq_needs_enter(&self.ring):
                return 0
            ret = aq_enter(&self.ring, self.tail, 0, 0)
        else:
            ret = aq_enter(&self.ring, self.tail, 1, timeout_ns)
        if ret >= 0 or ret == -ETIME or ret == -EBUSY or ret == -EAGAIN:
            # EBUSY: completions are waiting that did not fit; collecting makes room.
            return 0
        return ret

    cdef bint has_work(self) noexcept nogil:
        return self.ring.fd >= 0 and self.forks == forks and (
            aq_cq_ready(&self.ring) != 0 or aq_needs_enter(&self.ring))

    cdef int collect(self) noexcept:
        cdef aq_cqe cqe
        cdef AioHandler *node
        cdef AioHandler *last = NULL    # that a lasting request has received for
        cdef CqeHandler *handler
        cdef int n = 0
        cdef int together = 0
        if self.ring.fd < 0:
            return 0
        while aq_peek_cqe(&self.ring, &cqe):
            if cqe.user_data == 0:
                continue
            if cqe.user_data & 1:
                handler = <CqeHandler *><uintptr_t>(cqe.user_data & ~<uint64_t>1)
                handler.res = cqe.res
                handler.flags = cqe.flags
                self.requests -= 1
                done_push(self.st, handler)
                n += 1
                continue
            if cqe.user_data & RECEIVE:
                node = <AioHandler *><uintptr_t>(cqe.user_data & ~<uint64_t>RECEIVE)
                if self._received(node, &cqe):
                    n += 1
                    if node != last:
                        together += 1
                        last = node
                continue
            if cqe.user_data & HANGUP:
                self._hung_up(<AioHandler *><uintptr_t>(
                    cqe.user_data & ~<uint64_t>HANGUP))
                continue
            node = <AioHandler *><uintptr_t>cqe.user_data
            if not cqe.flags & AQ_CQE_F_MORE:
                node.pending -= 1
                node.armed = 0
            if node.sqe_pos - self.submit_from >= self.submit_n:
                node.instant = 0
            elif node.instant < node.instant_least and not node.streams:
                node.instant += 1
            if node.deleted:
                node_reap(self.st, node)
            elif cqe.res == -ECANCELED:
                self._arm(node)
            elif cqe.res == -EINVAL and node.events & AIO_EDGE:
                node.events &= ~<uint32_t>AIO_EDGE      # before Linux 5.13
                self._arm(node)
            elif cqe.res < 0:
                ready_push(self.st, node, POLLNVAL if cqe.res == -EBADF else POLLERR)
                n += 1
            elif node.masked:
                pass            # watched again once io_flush says so
            else:
                ready_push(self.st, node, <uint32_t>cqe.res)
                n += 1
                together += node.streams
        if n:
            self.together = together
            if last == NULL or together > 1:
                self.lone = 0
            elif together == 1:
                self.lone += 1
                if self.lone == LONE_IN_A_ROW:
                    self.lone = 0
                    last.ringing = False    # told to the kernel after its dispatch
                    last.small = 0
        return n

    # -- receiving by a request -----------------------------------------------------------

    cdef bint _arm_receive(self, AioHandler *node, uint32_t wanted) noexcept:
        """Receive, or stop that; whether POLLIN need not be polled meanwhile."""
        cdef bint held = node.held.first != 0 or node.held.end != 0
        cdef aq_sqe *sqe
        if held and wanted & POLLIN:
            ready_push(self.st, node, POLLIN)
        if node.receiving:
            if node.ringing and not wanted & POLLIN:
                self._repent(node)      # who pauses often had better not begin
            if not node.ringing and not node.recalled:
                self._recall(node)
            if node.receiving:
                return True         # polled, if that is wanted, when it has ended
        if held or not node.ringing or not wanted & POLLIN:
            return held
        if not self.pooled and not self._make_pool():
            node.streams = node.ringing = False
            return False
        if not node.hangup and not self._watch_hangup(node):
            self.st.rearm_all = True
            return True
        sqe = self._sqe()
        if sqe == NULL:
            self.st.rearm_all = True
            return True
        node.receive_pos = self.ring.sq_local - 1
        sqe.opcode = AQ_OP_RECV
        sqe.flags = AQ_SQE_BUFFER_SELECT
        sqe.ioprio = AQ_RECV_MULTISHOT | AQ_RECV_POLL_FIRST
        sqe.fd = node.fd
        sqe.user_data = <uint64_t><uintptr_t>node | RECEIVE
        node.receiving = True
        node.recalled = False
        node.pending += 1
        return True

    cdef bint _make_pool(self) noexcept:
        if self.pool_error:
            return False
        if self.pool is None:
            self.pool = ReceivePool.__new__(ReceivePool)
        self.pool_error = self.pool.attach(&self.ring)
        self.pooled = self.pool_error == 0
        return self.pooled

    cdef bint _watch_hangup(self, AioHandler *node) noexcept:
        cdef aq_sqe *sqe = self._sqe()
        if sqe == NULL:
            return False
        node.hangup_pos = self.ring.sq_local - 1
        sqe.opcode = AQ_OP_POLL_ADD
        sqe.fd = node.fd
        sqe.op_flags = POLLRDHUP        # and, always, POLLHUP and POLLERR
        sqe.user_data = <uint64_t><uintptr_t>node | HANGUP
        node.hangup = True
        node.pending += 1
        return True

    cdef void _forget_hangup(self, AioHandler *node) noexcept:
        cdef uint64_t user_data = <uint64_t><uintptr_t>node | HANGUP
        cdef aq_sqe *sqe
        if self._unsubmitted(node.hangup_pos, user_data):
            self._undo(node.hangup_pos)
            node.hangup = False
            node.pending -= 1
            return
        sqe = self._sqe()
        if sqe != NULL:         # else it stays until the peer, too, has closed
            sqe.opcode = AQ_OP_POLL_REMOVE
            sqe.fd = -1
            sqe.addr = user_data

    cdef void _hung_up(self, AioHandler *node) noexcept:
        node.hangup = False
        node.pending -= 1
        if node.deleted:
            node_reap(self.st, node)
            return
        node.streams = node.ringing = False
        self._arm(node)

    cdef void _recall(self, AioHandler *node) noexcept:
        cdef aq_sqe *sqe
        if self._unsubmitted(node.receive_pos, <uint64_t><uintptr_t>node | RECEIVE):
            self._undo(node.receive_pos)
            node.receiving = False
            node.pending -= 1
            return
        sqe = self._sqe()
        if sqe == NULL:
            self.st.rearm_all = True
            return
        sqe.opcode = AQ_OP_ASYNC_CANCEL
        sqe.fd = -1
        sqe.addr = <uint64_t><uintptr_t>node | RECEIVE
        node.recalled = True

    cdef bint _received(self, AioHandler *node, aq_cqe *cqe) noexcept:
        """A completion of such a request; whether it makes its node ready."""
        cdef int res = cqe.res
        cdef uint16_t bid = <uint16_t>(cqe.flags >> AQ_CQE_BUFFER_SHIFT)
        cdef bint recalled = node.recalled
        if not cqe.flags & AQ_CQE_F_MORE:
            node.receiving = node.recalled = False
            node.pending -= 1
        if cqe.flags & AQ_CQE_F_BUFFER:
            if res > 0 and not node.deleted:
                self.pool.append(&node.held, bid, <uint32_t>res)
                self.received += <uint64_t>res
            else:
                self.pool.release(bid)
        if node.deleted:
            if node.receiving and not node.recalled:
                self._recall(node)
            node_reap(self.st, node)
            return False
        if res == BUFFER_SIZE:
            # Full: larger than that, or several messages.  Buffers only cost then.
            node.full += 1
            if node.full >= FULL_IN_A_ROW and node.ringing:
                self._repent(node)
        elif res > 0:
            node.full = 0
        elif res == 0:
            node.held.end = 1
        elif res == -ENOBUFS:
            # Read by recv(2) this time.  If there are no more buffers connections that are
            # paused have them, and some kernels would say so again and again.
            if not recalled and not self.pool.grow():
                self._repent(node)
        elif res == -EINVAL or res == -ENOTSUP or res == -EAGAIN:
            node.streams = node.ringing = False     # not of this kernel, or this socket
        elif res == -ECANCELED or res == -EINTR or (recalled and res == -ENOENT):
            self._arm(node)
            return False
        elif res == -EBADF:
            ready_push(self.st, node, POLLNVAL)
            return True
        else:
            node.held.end = res
        if not node.events & POLLIN or node.masked:
            return False            # held until it is wanted
        ready_push(self.st, node, POLLIN)
        return True

    cdef void _repent(self, AioHandler *node) noexcept:
        node.ringing = False
        node.small = node.full = 0
        node.patience = min(node.patience * 2, PATIENCE_MAX)

    cdef ssize_t receive(self, AioHandler *node, void *buf, size_t size) noexcept:
        cdef ssize_t n
        if self.forks != forks:
            return -EAGAIN          # the parent's to deliver, and its memory
        if node.held.first:
            n = <ssize_t>self.pool.take(&node.held, <char *>buf, size)
            self._go_on(node)
            return n if n else -EAGAIN
        if node.held.end:
            n = node.held.end
            node.held.end = 0
            return 0 if n > 0 else n
        if node.receiving:
            return -EAGAIN
        n = recv(node.fd, buf, size, MSG_DONTWAIT)
        if n < 0:
            return -errno
        if n > SMALL:
            node.small = 0
        elif node.streams and self.together >= BUSY and not node.ringing:
            node.small += 1
            if node.small >= node.patience and self.mirror < 0 and (
                    self.ring.setup_flags & AQ_SETUP_DEFER_TASKRUN):
                node.ringing = True
                node.small = 0
        return n

    cdef void _go_on(self, AioHandler *node) noexcept:
        # A node that waits for nothing by a poll request is armed again after its
        # dispatch; one that waits to write is not, so it is looked after here.
        if node.armed and not (node.receiving and node.ringing and node.held.first == 0):
            self._arm(node)

    cdef int recall(self, AioHandler *node, Held *held) noexcept:
        cdef int _i
        if self.forks != forks:
            return 0
        for _i in range(RECALL_TRIES):
            if not node.receiving:
                break
            if not node.recalled:
                self._recall(node)
            self.flush()
            self.collect()
        if node.receiving:
            return -EBUSY
        held[0] = node.held
        memset(&node.held, 0, sizeof(node.held))
        return 0

    cdef void drop_held(self, Held *held) noexcept:
        if self.pool is not None and self.forks == forks:
            self.pool.drop(held)
        memset(held, 0, sizeof(held[0]))

    # -- the rest -------------------------------------------------------------------------

    cdef int flush(self) noexcept:
        cdef int ret = 0
        cdef uint32_t pending
        if self.ring.fd < 0 or self.waiting or self.forks != forks:
            return 0
        pending = aq_sq_pending(&self.ring)
        if pending:
            self.submits += pending
            ret = aq_enter(&self.ring, self.ring.sq_local, 0, 0)
        if self.ring_eventfd >= 0:
            # Quiet, unless completions are left over.
            notifier_clear(self.ring_eventfd)
            if self.has_work():
                notifier_set(self.ring_eventfd)
        return ret

    cdef int outer_fd(self) noexcept:
        # With deferred task work an epoll set that holds the ring fd is never woken, and
        # an eventfd registered with the ring is told late of what another eventfd caused
        # (the kernel does not nest their wake-ups).  So the fds are watched a second time,
        # by an epoll set; the registered eventfd in it stands for all other completions.
        # What is told of by other means is polled from now on, as the set sees it.
        cdef int fd
        cdef AioHandler *node
        for fd in range(self.st.table_size):
            node = self.st.table[fd]
            if node == NULL:
                continue
            if node.ringing:
                node.ringing = False
                self._arm(node)
            if node.events & AIO_EDGE:
                node.events &= ~<uint32_t>AIO_EDGE
                if node.armed and self._cancel_poll(node) < 0:
                    return -EBUSY
                if node.pending:
                    node.armed = node.events    # until that has come to its end
                else:
                    self._arm(node)
        if self.ring_eventfd < 0:
            self.ring_eventfd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
            if self.ring_eventfd < 0:
                return -errno
            self.mirror_extra = self.ring_eventfd
        return self.mirror_open()

    cdef aq_sqe *add_sqe(self, CqeHandler *cqe) noexcept:
        cdef aq_sqe *sqe = self._sqe()
        if sqe != NULL:
            sqe.user_data = <uint64_t><uintptr_t>cqe | 1
            if self.ring_eventfd >= 0 and not self.announced:
                # Only from here on: poll requests would signal it too, and late.
                aq_register(&self.ring, AQ_REGISTER_EVENTFD, &self.ring_eventfd, 1)
                self.announced = True
            self.requests += 1
        return sqe

    cdef int settle(self, int64_t limit_ms) noexcept:
        cdef int err
        cdef int strange = 0
        cdef int64_t end = aq_now_ns() + limit_ms * 1000000
        self.collect()
        self.tail = self.ring.sq_local
        while self.requests and aq_now_ns() < end:
            with nogil:
                err = self.wait(10000000)
                if err < 0 and err != -EINTR and err != -EEXIST:
                    aq_nap()
            self.collect()
            self.tail = self.ring.sq_local
            if err == -EEXIST:
                # With deferred task work nothing completes unless the ring's own thread
                # enters it: do not wait long for what will not come.
                self.give_back()
                strange += 1
                if strange > 50:
                    break
                with nogil:
                    aq_nap()
        return self.requests != 0

    cdef void give_back(self) noexcept:
        # The ring is another thread's, or refused: nothing goes out any more.
        cdef uint32_t _i
        cdef aq_sqe *sqe
        cdef CqeHandler *handler
        for _i in range(aq_sq_pending(&self.ring)):
            self.ring.sq_local -= 1
            sqe = &self.ring.sqes[self.ring.sq_local & self.ring.sq_mask]
            if sqe.user_data & 1:
                handler = <CqeHandler *><uintptr_t>(sqe.user_data & ~<uint64_t>1)
                handler.res = -EAGAIN
                handler.flags = 0
                self.requests -= 1
                done_push(self.st, handler)

    cdef void close(self, bint child) noexcept:  # no-cython-lint
        if self.ring.fd < 0:
            pass
        elif child:
            # The maps did not come along (MADV_DONTFORK), and something else may live
            # at their addresses: close our copy of the fd and forget the rest.
            close(self.ring.fd)
            memset(&self.ring, 0, sizeof(self.ring))
            self.ring.fd = -1
        else:
            self._drop_ring()
        if self.pool is not None:
            self.pool.close(child)
        self.mirror_close()
        if self.ring_eventfd >= 0:
            close(self.ring_eventfd)
            self.ring_eventfd = -1

    cdef dict info(self):
        cdef list flags = []
        if self.ring.fd >= 0:
            for bit, name in FLAG_NAMES.items():
                if self.ring.setup_flags & <uint32_t>bit:
                    flags.append(name)
        return {"setup_flags": flags, "features": self.ring.features,
                "sq_entries": self.ring.sq_entries,
                "received": self.received,
                "receive_buffers": 0 if self.pool is None else self.pool.buffers,
                "receive_held": 0 if self.pool is None else self.pool.n_held,
                "receive_error": -self.pool_error}
