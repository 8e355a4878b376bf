"""Datagrams from the kernel, many by one call.  GIL held, no other code is run."""

from aioqemu._sys.inet cimport mmsghdr

cdef enum:
    # The largest UDP datagram has less than 64 KiB; others, of Unix sockets say, may
    # have as many bytes as asyncio receives at most.
    INET_SIZE = 64 * 1024
    INET_BATCH = 32
    OTHER_SIZE = 256 * 1024
    OTHER_BATCH = 8

# Where all transports of the process receive: INET_BATCH times INET_SIZE bytes.
cdef char *receive_area() except NULL
# If the kernel has coalesced any of n messages, received with room for a control message
# each: append all datagrams to `pieces`, how many a message to `counts`; else False.
cdef bint cut(mmsghdr *msgs, int n, list pieces, int *counts) except -1
