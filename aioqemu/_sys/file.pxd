"""Files, threads and Linux AIO as far as block requests use them."""

from libc.stdint cimport int64_t
from libc.stdint cimport uint32_t
from libc.stdint cimport uint64_t

from aioqemu._sys.libc cimport iovec
from aioqemu._sys.libc cimport timespec

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <pthread.h>
    #include <signal.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/ioctl.h>
    #include <sys/stat.h>
    #include <sys/syscall.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <unistd.h>

    #ifndef RWF_DSYNC
    #define RWF_DSYNC 2
    #endif
    #ifndef RWF_NOWAIT
    #define RWF_NOWAIT 8
    #endif
    /* <linux/fs.h>, which quarrels with <sys/mount.h> */
    #define AQ_BLKDISCARD _IO(0x12, 119)
    #define AQ_BLKZEROOUT _IO(0x12, 127)

    static inline int64_t aq_result(int64_t ret) { return ret < 0 ? -errno : ret; }

    /* The plain calls where no flag asks for more: old kernels have only those. */
    static inline int64_t aq_preadv(int fd, const struct iovec *iov, int n, int64_t off,
                                    int flags)
    {
        if (flags)
            return aq_result(preadv2(fd, iov, n, off, flags));
        if (n == 1)
            return aq_result(pread(fd, iov->iov_base, iov->iov_len, off));
        return aq_result(preadv(fd, iov, n, off));
    }
    static inline int64_t aq_pwritev(int fd, const struct iovec *iov, int n, int64_t off,
                                     int flags)
    {
        if (flags)
            return aq_result(pwritev2(fd, iov, n, off, flags));
        if (n == 1)
            return aq_result(pwrite(fd, iov->iov_base, iov->iov_len, off));
        return aq_result(pwritev(fd, iov, n, off));
    }
    static inline int aq_statx(int fd, const char *path, int flags, unsigned mask,
                               void *out)
    {
        return (int)aq_result(syscall(__NR_statx, fd, path, flags, mask, out));
    }
    static inline int aq_openat(int fd, const char *path, int flags, unsigned mode)
    {
        return (int)aq_result(openat(fd, path, flags, mode));
    }
    static inline int64_t aq_copy(int in, int64_t in_off, int out, int64_t out_off,
                                  size_t n)
    {
        int64_t a = in_off, b = out_off;
        return aq_result(syscall(__NR_copy_file_range, in, &a, out, &b, n, 0));
    }
    static inline int aq_blk_range(int fd, unsigned long op, int64_t off, int64_t n)
    {
        uint64_t range[2] = {(uint64_t)off, (uint64_t)n};
        return (int)aq_result(ioctl(fd, op, range));
    }

    /* Where a range holds data: pairs of start and end, as many as fit, and at out[2 * max]
       where it stopped looking. Moves the position of the file, which nobody uses. */
    static inline int64_t aq_extents(int fd, int64_t start, int64_t end, int64_t *out, int max)
    {
        int64_t data, hole;
        int n = 0;

        while (start < end && n < max) {
            data = lseek(fd, start, SEEK_DATA);
            if (data < 0 && errno != ENXIO)
                return -errno;
            if (data < 0 || data >= end) {
                start = end;
                break;
            }
            hole = lseek(fd, data, SEEK_HOLE);
            if (hole < 0 && errno != ENXIO)
                return -errno;
            if (hole <= data) {     /* it was truncated meanwhile */
                start = end;
                break;
            }
            if (hole > end)
                hole = end;
            out[2 * n] = data;
            out[2 * n + 1] = hole;
            n++;
            start = hole;
        }
        out[2 * max] = start;
        return n;
    }

    /* Linux AIO */
    typedef struct {
        uint64_t data;
        uint32_t key;
        int rw_flags;
        uint16_t opcode;
        int16_t prio;
        uint32_t fd;
        uint64_t buf, nbytes;
        int64_t offset;
        uint64_t reserved;
        uint32_t flags, resfd;
    } aq_iocb;
    typedef struct {
        uint64_t data, obj;
        int64_t res, res2;
    } aq_io_event;
    static inline int aq_io_setup(unsigned n, unsigned long *ctx)
    { return (int)aq_result(syscall(__NR_io_setup, n, ctx)); }
    static inline int aq_io_destroy(unsigned long ctx)
    { return (int)aq_result(syscall(__NR_io_destroy, ctx)); }
    static inline int aq_io_submit(unsigned long ctx, long n, aq_iocb **list)
    { return (int)aq_result(syscall(__NR_io_submit, ctx, n, list)); }
    static inline int aq_io_cancel(unsigned long ctx, aq_iocb *cb, aq_io_event *ev)
    { return (int)aq_result(syscall(__NR_io_cancel, ctx, cb, ev)); }
    static inline int aq_io_getevents(unsigned long ctx, long min, long n,
                                      aq_io_event *ev, struct timespec *ts)
    { return (int)aq_result(syscall(__NR_io_getevents, ctx, min, n, ev, ts)); }

    /* A thread of ours takes no signals, which are the main thread's, and little stack.
       It is joined by whoever started it. */
    static inline int aq_thread_start(pthread_t *id, void *(*run)(void *), void *arg)
    {
        sigset_t all, old;
        pthread_attr_t attr;
        int err;

        err = pthread_attr_init(&attr);
        if (err)
            return -err;
        pthread_attr_setstacksize(&attr, 256 * 1024);
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &old);
        err = pthread_create(id, &attr, run, arg);
        pthread_sigmask(SIG_SETMASK, &old, NULL);
        pthread_attr_destroy(&attr);
        return -err;
    }
    /* Waits at most so long; 0 if woken. */
    static inline int aq_cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock,
                                   int64_t ns)
    {
        struct timespec ts;

        clock_gettime(CLOCK_MONOTONIC, &ts);
        ns += ts.tv_nsec;
        ts.tv_sec += ns / 1000000000;
        ts.tv_nsec = ns % 1000000000;
        return pthread_cond_timedwait(cond, lock, &ts);
    }
    static inline int aq_cond_init(pthread_cond_t *cond)
    {
        pthread_condattr_t attr;
        int err = pthread_condattr_init(&attr);
        if (err)
            return -err;
        pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
        err = pthread_cond_init(cond, &attr);
        pthread_condattr_destroy(&attr);
        return -err;
    }
    """
    enum:
        RWF_DSYNC
        RWF_NOWAIT
        O_DIRECT
        AQ_BLKDISCARD
        AQ_BLKZEROOUT
    ctypedef struct aq_iocb:
        uint64_t data
        int rw_flags
        unsigned short opcode
        uint32_t fd
        uint64_t buf
        uint64_t nbytes
        int64_t offset
        uint32_t flags
        uint32_t resfd
    ctypedef struct aq_io_event:
        uint64_t data
        int64_t res
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int64_t aq_preadv(int fd, const iovec *iov, int n, int64_t off, int flags) nogil
    int64_t aq_pwritev(int fd, const iovec *iov, int n, int64_t off, int flags) nogil
    int aq_statx(int fd, const char *path, int flags, unsigned mask, void *out) nogil
    int aq_openat(int fd, const char *path, int flags, unsigned mode) nogil
    int64_t aq_copy(int fd, int64_t off, int fd2, int64_t off2, size_t n) nogil
    int64_t aq_extents(int fd, int64_t start, int64_t end, int64_t *out, int max) nogil
    int aq_blk_range(int fd, unsigned long op, int64_t off, int64_t n) nogil
    int64_t aq_result(int64_t ret) nogil
    int fsync(int fd) nogil
    int fdatasync(int fd) nogil
    int fallocate(int fd, int mode, int64_t off, int64_t n) nogil
    int ftruncate(int fd, int64_t n) nogil
    int aq_io_setup(unsigned n, unsigned long *ctx) nogil
    int aq_io_destroy(unsigned long ctx) nogil
    int aq_io_submit(unsigned long ctx, long n, aq_iocb **list) nogil
    int aq_io_cancel(unsigned long ctx, aq_iocb *cb, aq_io_event *ev) nogil
    int aq_io_getevents(unsigned long ctx, long min, long n, aq_io_event *ev,
                        timespec *ts) nogil
    int aq_thread_start(pthread_t *id, void *(*run)(void *) noexcept nogil,
                        void *arg) nogil
    int aq_cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock, int64_t ns) nogil
    int aq_cond_init(pthread_cond_t *cond) nogil
    int pthread_detach(pthread_t id) nogil
    int pthread_join(pthread_t id, void **ret) nogil
    int pthread_mutex_init(pthread_mutex_t *lock, void *attr) nogil
    int pthread_mutex_destroy(pthread_mutex_t *lock) nogil
    int pthread_mutex_lock(pthread_mutex_t *lock) nogil
    int pthread_mutex_unlock(pthread_mutex_t *lock) nogil
    int pthread_cond_destroy(pthread_cond_t *cond) nogil
    int pthread_cond_signal(pthread_cond_t *cond) nogil
    int pthread_cond_broadcast(pthread_cond_t *cond) nogil
