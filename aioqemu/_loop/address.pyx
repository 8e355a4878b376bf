"""Socket addresses in both forms.  Knows no sockets and asks no name service."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.string cimport memset
from libc.string cimport strlen

from aioqemu._sys.inet cimport AF_INET
from aioqemu._sys.inet cimport AF_INET6
from aioqemu._sys.inet cimport AQ_PATH_OFFSET
from aioqemu._sys.inet cimport INET6_ADDRSTRLEN
from aioqemu._sys.inet cimport aq_address
from aioqemu._sys.inet cimport htonl
from aioqemu._sys.inet cimport htons
from aioqemu._sys.inet cimport inet_ntop
from aioqemu._sys.inet cimport inet_pton
from aioqemu._sys.inet cimport ntohl
from aioqemu._sys.inet cimport ntohs
from aioqemu._sys.inet cimport sockaddr_in
from aioqemu._sys.inet cimport sockaddr_in6

cdef extern from "string.h":
    size_t strnlen(const char *s, size_t n)

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object s, Py_ssize_t *n) except NULL
    object PyUnicode_DecodeFSDefaultAndSize(const char *s, Py_ssize_t n)
    object PyUnicode_FromString(const char *s)


cdef object address_name(const aq_address *a, unsigned int size):
    cdef char host[INET6_ADDRSTRLEN]
    if size == 0:
        return None
    if a.sa.sa_family == AF_INET:
        inet_ntop(AF_INET, &a.in4.sin_addr, host, sizeof(host))
        return (PyUnicode_FromString(host), ntohs(a.in4.sin_port))
    if a.sa.sa_family == AF_INET6:
        inet_ntop(AF_INET6, &a.in6.sin6_addr, host, sizeof(host))
        return (PyUnicode_FromString(host), ntohs(a.in6.sin6_port),
                ntohl(a.in6.sin6_flowinfo), a.in6.sin6_scope_id)
    if size <= AQ_PATH_OFFSET:
        return ""           # a Unix socket without a name
    if a.un.sun_path[0] == 0:
        return PyBytes_FromStringAndSize(a.un.sun_path, size - AQ_PATH_OFFSET)
    return PyUnicode_DecodeFSDefaultAndSize(
        a.un.sun_path, strnlen(a.un.sun_path, size - AQ_PATH_OFFSET))


cdef unsigned int address_parse(object name, int family, aq_address *a) except? 0:
    cdef Py_ssize_t i, n
    cdef Py_ssize_t size = 0
    cdef const char *host
    # Only what cannot change: it is remembered by identity.
    if type(name) is not tuple:
        return 0
    n = len(<tuple>name)
    if n < 2 or type((<tuple>name)[0]) is not str:
        return 0
    for i in range(1, n):
        if type((<tuple>name)[i]) is not int:
            return 0
    if not 0 <= name[1] <= 65535 or not (<str>(<tuple>name)[0]).isascii():
        return 0
    host = PyUnicode_AsUTF8AndSize((<tuple>name)[0], &size)
    if <Py_ssize_t>strlen(host) != size:
        return 0            # refused by who takes it
    memset(a, 0, sizeof(a[0]))
    if family == AF_INET and n == 2:
        if inet_pton(AF_INET, host, &a.in4.sin_addr) != 1:
            return 0
        a.in4.sin_family = AF_INET
        a.in4.sin_port = htons(name[1])
        return sizeof(sockaddr_in)
    if family == AF_INET6 and n <= 4:
        if inet_pton(AF_INET6, host, &a.in6.sin6_addr) != 1:
            return 0
        a.in6.sin6_family = AF_INET6
        a.in6.sin6_port = htons(name[1])
        if n > 2:
            if not 0 <= name[2] <= 0xfffff:
                return 0
            a.in6.sin6_flowinfo = htonl(name[2])
        if n > 3:
            if not 0 <= name[3] <= 0xffffffff:
                return 0
            a.in6.sin6_scope_id = name[3]
        return sizeof(sockaddr_in6)
    return 0
