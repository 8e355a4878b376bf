"""libc and Linux as far as the engine and the transports use them."""

from libc.stdint cimport int64_t
from libc.stdint cimport uint32_t
from libc.stdint cimport uint64_t

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from "errno.h" nogil:
    int errno
    enum:
        EPERM
        ENOENT
        EINTR
        EBADF
        EAGAIN
        EWOULDBLOCK
        ENOMEM
        ENOBUFS
        EBUSY
        EEXIST
        EINVAL
        EMFILE
        EPIPE
        ENOSYS
        ECANCELED
        ETIME
        EPROTOTYPE
        EIO
        EMSGSIZE
        ECONNRESET
        ECONNABORTED
        ENOTSUP
        ESHUTDOWN

cdef extern from "time.h" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    enum:
        CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *ts)

cdef extern from "unistd.h" nogil:
    ssize_t read(int fd, void *buf, size_t n)
    ssize_t write(int fd, const void *buf, size_t n)
    int close(int fd)
    int pipe2(int fds[2], int flags)
    int getpid()

cdef extern from "fcntl.h" nogil:
    enum:
        O_NONBLOCK
        O_CLOEXEC
        F_GETFL
        F_SETFL
    int fcntl(int fd, int cmd, ...)

cdef extern from "poll.h" nogil:
    enum:
        POLLIN
        POLLPRI
        POLLOUT
        POLLERR
        POLLHUP
        POLLNVAL
        POLLRDHUP
    struct pollfd:
        int fd
        short events
        short revents
    int ppoll(pollfd *fds, unsigned long n, const timespec *timeout, const void *mask)

cdef extern from "sys/eventfd.h" nogil:
    enum:
        EFD_NONBLOCK
        EFD_CLOEXEC
    int eventfd(unsigned int initval, int flags)

cdef extern from "sys/epoll.h" nogil:
    enum:
        EPOLLIN
        EPOLLOUT
        EPOLLERR
        EPOLLHUP
        EPOLLRDHUP
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_DEL
        EPOLL_CTL_MOD
    ctypedef union epoll_data_t:
        void *ptr
        int fd
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event *event)
    int epoll_wait(int epfd, epoll_event *events, int n, int timeout)

cdef extern from "sys/stat.h" nogil:
    struct stat_t "stat":
        unsigned int st_mode
    int fstat(int fd, stat_t *st)
    bint S_ISREG(unsigned int mode)
    bint S_ISDIR(unsigned int mode)

cdef extern from "pthread.h" nogil:
    int pthread_atfork(void (*prepare)() noexcept, void (*parent)() noexcept,
                       void (*child)() noexcept)

cdef extern from "sys/uio.h" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t writev(int fd, const iovec *iov, int n)

cdef extern from "sys/socket.h" nogil:
    enum:
        MSG_NOSIGNAL
        MSG_DONTWAIT
        SHUT_WR
    struct msghdr:
        void *msg_name
        unsigned int msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    ssize_t recv(int fd, void *buf, size_t n, int flags)
    ssize_t send(int fd, const void *buf, size_t n, int flags)
    ssize_t sendmsg(int fd, const msghdr *msg, int flags)

cdef extern from *:
    """
    #include <sys/syscall.h>
    #include <unistd.h>
    #include <errno.h>
    #include <time.h>
    #include <sys/epoll.h>
    #ifndef __NR_epoll_pwait2
    #define __NR_epoll_pwait2 441
    #endif
    /* By number: older libcs lack the wrapper, and seccomp may refuse the call. */
    static inline int aq_epoll_pwait2(int fd, struct epoll_event *ev, int n,
                                      const struct timespec *ts)
    {
        return (int)syscall(__NR_epoll_pwait2, fd, ev, n, ts, (void *)0,
                            (size_t)8);
    }
    static inline int64_t aq_now_ns(void)
    {
        struct timespec ts;
        clock_gettime(CLOCK_MONOTONIC, &ts);
        return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
    }
    static inline void aq_nap(void)
    {
        struct timespec ts = {0, 1000000};
        nanosleep(&ts, (void *)0);
    }
    """
    int aq_epoll_pwait2(int fd, epoll_event *ev, int n, const timespec *ts) nogil
    int64_t aq_now_ns() nogil
    void aq_nap() nogil     # a millisecond
