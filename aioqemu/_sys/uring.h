/* The ring: just enough of the io_uring ABI, in static inline C11.
 *
 * Knows nothing of Python, fds' owners or contexts.  Nothing is linked and no
 * kernel header is needed, so a build on an old system runs on a new kernel and
 * the reverse; what the running kernel offers is probed, never assumed.
 *
 * One thread at a time uses a ring; the caller sees to that.  All functions
 * return 0 or more, or -errno.
 */
#ifndef AIOQEMU_URING_H
#define AIOQEMU_URING_H

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef __NR_io_uring_setup
#define __NR_io_uring_setup 425
#define __NR_io_uring_enter 426
#define __NR_io_uring_register 427
#endif

/* setup flags */
#define AQ_SETUP_CQSIZE (1U << 3)
#define AQ_SETUP_CLAMP (1U << 4)
#define AQ_SETUP_R_DISABLED (1U << 6)
#define AQ_SETUP_SUBMIT_ALL (1U << 7)
#define AQ_SETUP_COOP_TASKRUN (1U << 8)
#define AQ_SETUP_TASKRUN_FLAG (1U << 9)
#define AQ_SETUP_SINGLE_ISSUER (1U << 12)
#define AQ_SETUP_DEFER_TASKRUN (1U << 13)
#define AQ_SETUP_NO_SQARRAY (1U << 16)

/* enter flags */
#define AQ_ENTER_GETEVENTS (1U << 0)
#define AQ_ENTER_EXT_ARG (1U << 3)
#define AQ_ENTER_NO_IOWAIT (1U << 7)

/* submission ring flags, written by the kernel */
#define AQ_SQ_CQ_OVERFLOW (1U << 1)
#define AQ_SQ_TASKRUN (1U << 2)

/* features */
#define AQ_FEAT_SINGLE_MMAP (1U << 0)
#define AQ_FEAT_NODROP (1U << 1)
#define AQ_FEAT_EXT_ARG (1U << 8)
#define AQ_FEAT_CQE_SKIP (1U << 11)
#define AQ_FEAT_NO_IOWAIT (1U << 17)

/* register opcodes */
#define AQ_REGISTER_EVENTFD 4
#define AQ_UNREGISTER_EVENTFD 5
#define AQ_REGISTER_PROBE 8
#define AQ_REGISTER_ENABLE_RINGS 12
#define AQ_REGISTER_PBUF_RING 22
#define AQ_UNREGISTER_PBUF_RING 23

/* opcodes */
#define AQ_OP_NOP 0
#define AQ_OP_READV 1
#define AQ_OP_WRITEV 2
#define AQ_OP_FSYNC 3
#define AQ_OP_POLL_ADD 6
#define AQ_OP_POLL_REMOVE 7
#define AQ_OP_ASYNC_CANCEL 14
#define AQ_OP_FALLOCATE 17
#define AQ_OP_OPENAT 18
#define AQ_OP_CLOSE 19
#define AQ_OP_STATX 21
#define AQ_OP_READ 22
#define AQ_OP_WRITE 23
#define AQ_OP_RECV 27
#define AQ_OP_FTRUNCATE 55

#define AQ_SQE_BUFFER_SELECT (1U << 5)
#define AQ_SQE_CQE_SKIP_SUCCESS (1U << 6)
#define AQ_POLL_MULTISHOT (1U << 0) /* in len */
#define AQ_RECV_POLL_FIRST (1U << 0)
#define AQ_RECV_MULTISHOT (1U << 1)
#define AQ_CQE_F_BUFFER (1U << 0)
#define AQ_CQE_F_MORE (1U << 1)
#define AQ_CQE_BUFFER_SHIFT 16
#define AQ_OFF_SQ_RING 0ULL
#define AQ_OFF_CQ_RING 0x8000000ULL
#define AQ_OFF_SQES 0x10000000ULL

typedef struct aq_sqe {
    uint8_t opcode;
    uint8_t flags;
    uint16_t ioprio;
    int32_t fd;
    uint64_t off;
    uint64_t addr;
    uint32_t len;
    uint32_t op_flags; /* rw_flags, fsync_flags, poll32_events, ... */
    uint64_t user_data;
    uint16_t buf_index;
    uint16_t personality;
    int32_t file_index;
    uint64_t addr3;
    uint64_t pad2;
} aq_sqe;

typedef struct aq_cqe {
    uint64_t user_data;
    int32_t res;
    uint32_t flags;
} aq_cqe;

struct aq_sq_offsets {
    uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array, resv1;
    uint64_t user_addr;
};

struct aq_cq_offsets {
    uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags, resv1;
    uint64_t user_addr;
};

struct aq_params {
    uint32_t sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle;
    uint32_t features, wq_fd, resv[3];
    struct aq_sq_offsets sq_off;
    struct aq_cq_offsets cq_off;
};

struct aq_getevents_arg {
    uint64_t sigmask;
    uint32_t sigmask_sz;
    uint32_t min_wait_usec;
    uint64_t ts;
};

struct aq_timespec {
    int64_t tv_sec;
    int64_t tv_nsec;
};

typedef struct aq_ring {
    int fd; /* -1: no ring */
    uint32_t setup_flags;
    uint32_t features;
    uint32_t enter_flags; /* added to every waiting enter */
    uint32_t sq_mask, sq_entries, cq_mask;
    uint32_t sq_local; /* our tail; published by aq_enter */
    _Atomic uint32_t *sq_head, *sq_tail, *sq_flags;
    _Atomic uint32_t *cq_head, *cq_tail;
    aq_sqe *sqes;
    aq_cqe *cqes;
    void *sq_map, *cq_map;
    size_t sq_len, cq_len, sqes_len;
} aq_ring;

static inline void aq_ring_exit(aq_ring *r)
{
    if (r->sqes)
        munmap(r->sqes, r->sqes_len);
    if (r->cq_map && r->cq_map != r->sq_map)
        munmap(r->cq_map, r->cq_len);
    if (r->sq_map)
        munmap(r->sq_map, r->sq_len);
    if (r->fd >= 0)
        close(r->fd);
    memset(r, 0, sizeof(*r));
    r->fd = -1;
}

/* Maps are kept out of forked children: a child that touched them would change
 * the parent's ring. */
static inline void *aq_map(int fd, size_t len, uint64_t off)
{
    void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                   fd, (off_t)off);
    if (p == MAP_FAILED)
        return NULL;
    (void)madvise(p, len, MADV_DONTFORK);
    return p;
}

static inline int aq_ring_setup(aq_ring *r, uint32_t entries, uint32_t cq_entries,
                                uint32_t flags)
{
    struct aq_params p;
    uint32_t i;
    int fd, err;

    memset(r, 0, sizeof(*r));
    memset(&p, 0, sizeof(p));
    r->fd = -1;
    p.flags = flags | AQ_SETUP_CQSIZE | AQ_SETUP_CLAMP;
    p.cq_entries = cq_entries;
    fd = (int)syscall(__NR_io_uring_setup, entries, &p);
    if (fd < 0)
        return -errno;
    r->fd = fd;
    r->setup_flags = flags;
    r->features = p.features;
    r->sq_len = p.sq_off.array + p.sq_entries * sizeof(uint32_t);
    r->cq_len = p.cq_off.cqes + p.cq_entries * sizeof(aq_cqe);
    if (p.features & AQ_FEAT_SINGLE_MMAP) {
        if (r->cq_len > r->sq_len)
            r->sq_len = r->cq_len;
        r->cq_len = r->sq_len;
    }
    r->sq_map = aq_map(fd, r->sq_len, AQ_OFF_SQ_RING);
    if (!r->sq_map)
        goto fail;
    r->cq_map = (p.features & AQ_FEAT_SINGLE_MMAP)
                    ? r->sq_map
                    : aq_map(fd, r->cq_len, AQ_OFF_CQ_RING);
    if (!r->cq_map)
        goto fail;
    r->sqes_len = p.sq_entries * sizeof(aq_sqe);
    r->sqes = (aq_sqe *)aq_map(fd, r->sqes_len, AQ_OFF_SQES);
    if (!r->sqes)
        goto fail;
    r->sq_head = (_Atomic uint32_t *)((char *)r->sq_map + p.sq_off.head);
    r->sq_tail = (_Atomic uint32_t *)((char *)r->sq_map + p.sq_off.tail);
    r->sq_flags = (_Atomic uint32_t *)((char *)r->sq_map + p.sq_off.flags);
    r->sq_mask = *(uint32_t *)((char *)r->sq_map + p.sq_off.ring_mask);
    r->sq_entries = p.sq_entries;
    r->cq_head = (_Atomic uint32_t *)((char *)r->cq_map + p.cq_off.head);
    r->cq_tail = (_Atomic uint32_t *)((char *)r->cq_map + p.cq_off.tail);
    r->cq_mask = *(uint32_t *)((char *)r->cq_map + p.cq_off.ring_mask);
    r->cqes = (aq_cqe *)((char *)r->cq_map + p.cq_off.cqes);
    if (!(flags & AQ_SETUP_NO_SQARRAY)) {
        uint32_t *array = (uint32_t *)((char *)r->sq_map + p.sq_off.array);
        for (i = 0; i < p.sq_entries; i++)
            array[i] = i;
    }
    r->sq_local = atomic_load_explicit(r->sq_tail, memory_order_relaxed);
    if (p.features & AQ_FEAT_NO_IOWAIT)
        r->enter_flags |= AQ_ENTER_NO_IOWAIT;
    return 0;
fail:
    err = errno ? errno : ENOMEM;
    aq_ring_exit(r);
    return -err;
}

static inline int aq_register(aq_ring *r, unsigned op, void *arg, unsigned n)
{
    int ret = (int)syscall(__NR_io_uring_register, r->fd, op, arg, n);
    return ret < 0 ? -errno : ret;
}

/* A ring of buffers that requests choose from.  The first entry's last field is
 * not part of it: it is the ring's tail. */
typedef struct aq_buf {
    uint64_t addr;
    uint32_t len;
    uint16_t bid;
    _Atomic uint16_t tail;
} aq_buf;

static inline int aq_buffers_register(aq_ring *r, aq_buf *bufs, uint32_t entries)
{
    struct {
        uint64_t ring_addr;
        uint32_t ring_entries;
        uint16_t bgid, flags;
        uint64_t resv[3];
    } reg;

    memset(&reg, 0, sizeof(reg));
    reg.ring_addr = (uint64_t)(uintptr_t)bufs;
    reg.ring_entries = entries;
    atomic_store_explicit(&bufs->tail, 0, memory_order_relaxed);
    return aq_register(r, AQ_REGISTER_PBUF_RING, &reg, 1);
}

static inline int aq_buffers_unregister(aq_ring *r)
{
    struct {
        uint64_t ring_addr;
        uint32_t ring_entries;
        uint16_t bgid, flags;
        uint64_t resv[3];
    } reg;

    memset(&reg, 0, sizeof(reg));
    return aq_register(r, AQ_UNREGISTER_PBUF_RING, &reg, 1);
}

static inline void aq_buffer_add(aq_buf *bufs, uint32_t mask, uint16_t bid, void *addr,
                                 uint32_t len)
{
    uint16_t tail = atomic_load_explicit(&bufs->tail, memory_order_relaxed);
    aq_buf *buf = &bufs[tail & mask];

    buf->addr = (uint64_t)(uintptr_t)addr;
    buf->len = len;
    buf->bid = bid;
    /* release: pairs with the kernel's acquire of the tail before it reads entries */
    atomic_store_explicit(&bufs->tail, (uint16_t)(tail + 1), memory_order_release);
}

/* Zeroed memory that forked children do not get, or NULL. */
static inline void *aq_private_map(size_t len)
{
    void *p = mmap(NULL, len, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    (void)madvise(p, len, MADV_DONTFORK);
    return p;
}

static inline void aq_private_unmap(void *p, size_t len)
{
    (void)munmap(p, len);
}

/* 1 if the kernel knows the opcode, 0 if not. */
static inline int aq_has_op(aq_ring *r, int op)
{
    struct {
        uint8_t last_op, ops_len;
        uint16_t resv;
        uint32_t resv2[3];
        struct {
            uint8_t op, resv;
            uint16_t flags;
            uint32_t resv2;
        } ops[64];
    } probe;

    memset(&probe, 0, sizeof(probe));
    if (aq_register(r, AQ_REGISTER_PROBE, &probe, 64) < 0)
        return 0;
    return op < 64 && op <= probe.last_op && (probe.ops[op].flags & 1);
}

static inline uint32_t aq_sq_head(const aq_ring *r)
{
    /* acquire: pairs with the kernel's release of sq_head after it read an entry */
    return atomic_load_explicit(r->sq_head, memory_order_acquire);
}

/* The number of prepared requests that the kernel has not taken yet. */
static inline uint32_t aq_sq_pending(const aq_ring *r)
{
    return r->sq_local - aq_sq_head(r);
}

/* A zeroed entry, or NULL when the submission ring is full. */
static inline aq_sqe *aq_get_sqe(aq_ring *r)
{
    aq_sqe *sqe;

    if (aq_sq_pending(r) >= r->sq_entries)
        return NULL;
    sqe = &r->sqes[r->sq_local & r->sq_mask];
    r->sq_local++;
    memset(sqe, 0, sizeof(*sqe));
    return sqe;
}

static inline uint32_t aq_cq_ready(const aq_ring *r)
{
    /* acquire: pairs with the kernel's release of cq_tail after it wrote entries */
    return atomic_load_explicit(r->cq_tail, memory_order_acquire) -
           atomic_load_explicit(r->cq_head, memory_order_relaxed);
}

/* Work that only an enter can turn into completions: deferred task work, or
 * completions that did not fit into the ring. */
static inline int aq_needs_enter(const aq_ring *r)
{
    return (atomic_load_explicit(r->sq_flags, memory_order_relaxed) &
            (AQ_SQ_TASKRUN | AQ_SQ_CQ_OVERFLOW)) != 0;
}

static inline int aq_peek_cqe(aq_ring *r, aq_cqe *out)
{
    uint32_t head = atomic_load_explicit(r->cq_head, memory_order_relaxed);

    if (atomic_load_explicit(r->cq_tail, memory_order_acquire) == head)
        return 0;
    *out = r->cqes[head & r->cq_mask];
    /* release: pairs with the kernel's acquire of cq_head before it reuses a slot */
    atomic_store_explicit(r->cq_head, head + 1, memory_order_release);
    return 1;
}

/* Submit what is before tail; with wait, also wait for one completion or the timeout
 * (ns; negative: forever).  Returns the number submitted or -errno: -ETIME when
 * time ran out, -EINTR for a signal. */
static inline int aq_enter(aq_ring *r, uint32_t tail, int wait, int64_t timeout_ns)
{
    struct aq_getevents_arg arg;
    struct aq_timespec ts;
    uint32_t n, flags = AQ_ENTER_GETEVENTS;
    int ret;

    n = tail - aq_sq_head(r);
    /* release: pairs with the kernel's acquire of sq_tail before it reads entries */
    atomic_store_explicit(r->sq_tail, tail, memory_order_release);
    if (wait) {
        memset(&arg, 0, sizeof(arg));
        arg.sigmask_sz = _NSIG / 8;
        if (timeout_ns >= 0) {
            ts.tv_sec = timeout_ns / 1000000000;
            ts.tv_nsec = timeout_ns % 1000000000;
            arg.ts = (uint64_t)(uintptr_t)&ts;
        }
        flags |= AQ_ENTER_EXT_ARG | r->enter_flags;
        ret = (int)syscall(__NR_io_uring_enter, r->fd, n, 1, flags, &arg, sizeof(arg));
    } else {
        ret = (int)syscall(__NR_io_uring_enter, r->fd, n, 0, flags, NULL, 0);
    }
    return ret < 0 ? -errno : ret;
}

#endif
