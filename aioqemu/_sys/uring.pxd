"""Declarations of the ring header; what each function promises is told there."""

from libc.stdint cimport int32_t
from libc.stdint cimport int64_t
from libc.stdint cimport uint16_t
from libc.stdint cimport uint32_t
from libc.stdint cimport uint64_t
from libc.stdint cimport uint8_t

cdef extern from "uring.h" nogil:
    enum:
        AQ_SETUP_R_DISABLED
        AQ_SETUP_SUBMIT_ALL
        AQ_SETUP_COOP_TASKRUN
        AQ_SETUP_TASKRUN_FLAG
        AQ_SETUP_SINGLE_ISSUER
        AQ_SETUP_DEFER_TASKRUN
        AQ_SETUP_NO_SQARRAY
        AQ_FEAT_NODROP
        AQ_FEAT_EXT_ARG
        AQ_FEAT_CQE_SKIP
        AQ_REGISTER_EVENTFD
        AQ_UNREGISTER_EVENTFD
        AQ_REGISTER_ENABLE_RINGS
        AQ_OP_NOP
        AQ_OP_READV
        AQ_OP_WRITEV
        AQ_OP_FSYNC
        AQ_OP_POLL_ADD
        AQ_OP_POLL_REMOVE
        AQ_OP_ASYNC_CANCEL
        AQ_OP_FALLOCATE
        AQ_OP_OPENAT
        AQ_OP_CLOSE
        AQ_OP_STATX
        AQ_OP_READ
        AQ_OP_WRITE
        AQ_OP_RECV
        AQ_OP_FTRUNCATE
        AQ_SQE_CQE_SKIP_SUCCESS
        AQ_SQE_BUFFER_SELECT
        AQ_POLL_MULTISHOT
        AQ_RECV_POLL_FIRST
        AQ_RECV_MULTISHOT
        AQ_CQE_F_BUFFER
        AQ_CQE_F_MORE
        AQ_CQE_BUFFER_SHIFT

    ctypedef struct aq_sqe:
        uint8_t opcode
        uint8_t flags
        uint16_t ioprio
        int32_t fd
        uint64_t off
        uint64_t addr
        uint32_t len
        uint32_t op_flags
        uint64_t user_data
        uint16_t buf_index

    ctypedef struct aq_cqe:
        uint64_t user_data
        int32_t res
        uint32_t flags

    ctypedef struct aq_ring:
        int fd
        uint32_t setup_flags
        uint32_t features
        uint32_t sq_mask
        uint32_t sq_entries
        uint32_t sq_local
        aq_sqe *sqes

    ctypedef struct aq_buf:
        pass

    int aq_buffers_register(aq_ring *ring, aq_buf *bufs, uint32_t entries)
    int aq_buffers_unregister(aq_ring *ring)
    void aq_buffer_add(aq_buf *bufs, uint32_t mask, uint16_t bid, void *addr,
                       uint32_t len)
    void *aq_private_map(size_t len)
    void aq_private_unmap(void *p, size_t len)
    int aq_ring_setup(aq_ring *ring, uint32_t entries, uint32_t cq_entries,
                      uint32_t flags)
    void aq_ring_exit(aq_ring *ring)
    int aq_register(aq_ring *ring, unsigned op, void *arg, unsigned n)
    int aq_has_op(aq_ring *ring, int op)
    uint32_t aq_sq_pending(const aq_ring *ring)
    aq_sqe *aq_get_sqe(aq_ring *ring)
    uint32_t aq_cq_ready(const aq_ring *ring)
    int aq_needs_enter(const aq_ring *ring)
    int aq_peek_cqe(aq_ring *ring, aq_cqe *out)
    uint32_t aq_sq_head(const aq_ring *ring)
    int aq_enter(aq_ring *ring, uint32_t tail, int wait, int64_t timeout_ns)
