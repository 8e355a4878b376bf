"""Socket addresses, datagrams, accepting, as far as the transports use them."""

from libc.stdint cimport uint16_t
from libc.stdint cimport uint32_t

from aioqemu._sys.libc cimport msghdr

cdef extern from *:
    """
    #include <stddef.h>
    #include <sys/socket.h>
    #include <sys/un.h>
    #include <netinet/in.h>
    #include <arpa/inet.h>
    #include <string.h>
    #ifndef SOL_UDP
    #define SOL_UDP 17
    #endif
    #ifndef UDP_SEGMENT
    #define UDP_SEGMENT 103
    #endif
    #ifndef UDP_GRO
    #define UDP_GRO 104
    #endif
    typedef union {
        struct sockaddr sa;
        struct sockaddr_in in4;
        struct sockaddr_in6 in6;
        struct sockaddr_un un;
        struct sockaddr_storage any;
    } aq_address;
    #define AQ_PATH_OFFSET ((unsigned int)offsetof(struct sockaddr_un, sun_path))

    /* A control message of one number. */
    typedef union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } aq_control;
    /* Have the kernel cut the message into datagrams of so many bytes. */
    static inline void aq_set_segment(struct msghdr *m, aq_control *c, uint16_t size)
    {
        struct cmsghdr *head = &c->align;

        m->msg_control = c->bytes;
        m->msg_controllen = CMSG_SPACE(sizeof(size));
        head->cmsg_level = SOL_UDP;
        head->cmsg_type = UDP_SEGMENT;
        head->cmsg_len = CMSG_LEN(sizeof(size));
        memcpy(CMSG_DATA(head), &size, sizeof(size));
    }
    /* Whether the socket can do that, and nobody has asked it to do so always. */
    static inline int aq_can_segment(int fd)
    {
        int value = 0;
        socklen_t size = sizeof(value);

        return getsockopt(fd, SOL_UDP, UDP_SEGMENT, &value, &size) == 0 && value == 0;
    }
    /* Whether the kernel may hand over many datagrams as one message; 0 or -1. */
    static inline int aq_set_coalescing(int fd, int value)
    {
        return setsockopt(fd, SOL_UDP, UDP_GRO, &value, sizeof(value));
    }
    /* The size of the datagrams in such a message; 0 if it is only one. */
    static inline int aq_segment_size(struct msghdr *m)
    {
        struct cmsghdr *head;
        int size = 0;

        for (head = CMSG_FIRSTHDR(m); head != NULL; head = CMSG_NXTHDR(m, head)) {
            if (head->cmsg_level == SOL_UDP && head->cmsg_type == UDP_GRO) {
                memcpy(&size, CMSG_DATA(head), sizeof(size));
            }
        }
        return size;
    }
    """
    struct sockaddr:
        unsigned short sa_family
    struct in_addr:
        pass
    struct in6_addr:
        pass
    struct sockaddr_in:
        unsigned short sin_family
        uint16_t sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        unsigned short sin6_family
        uint16_t sin6_port
        uint32_t sin6_flowinfo
        in6_addr sin6_addr
        uint32_t sin6_scope_id
    struct sockaddr_un:
        unsigned short sun_family
        char sun_path[108]
    ctypedef union aq_address:
        sockaddr sa
        sockaddr_in in4
        sockaddr_in6 in6
        sockaddr_un un
    ctypedef union aq_control:
        char bytes[1]
    void aq_set_segment(msghdr *m, aq_control *c, uint16_t size) nogil
    bint aq_can_segment(int fd) nogil
    int aq_set_coalescing(int fd, int value) nogil
    int aq_segment_size(msghdr *m) nogil
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    enum:
        AF_UNIX
        AF_INET
        AF_INET6
        INET6_ADDRSTRLEN
        AQ_PATH_OFFSET
        MSG_TRUNC
        SOCK_NONBLOCK
        SOCK_CLOEXEC
    uint16_t htons(uint16_t x) nogil
    uint16_t ntohs(uint16_t x) nogil
    uint32_t htonl(uint32_t x) nogil
    uint32_t ntohl(uint32_t x) nogil
    const char *inet_ntop(int family, const void *src, char *dst, unsigned int size) nogil
    int inet_pton(int family, const char *src, void *dst) nogil
    int recvmmsg(int fd, mmsghdr *msgs, unsigned int n, int flags, void *timeout) nogil
    int sendmmsg(int fd, mmsghdr *msgs, unsigned int n, int flags) nogil
    ssize_t sendto(int fd, const void *buf, size_t n, int flags, const sockaddr *to,
                   unsigned int to_len) nogil
    int accept4(int fd, sockaddr *address, unsigned int *size, int flags) nogil
    int getsockname(int fd, sockaddr *address, unsigned int *size) nogil
    int shutdown(int fd, int how) nogil
