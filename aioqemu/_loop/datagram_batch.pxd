"""Many datagrams by one call, both ways.  GIL held, no other code is run."""

from aioqemu._sys.inet cimport mmsghdr

cdef enum:
    # The largest UDP datagram has less than 64 KiB; others, of Unix sockets say, may
    # have as many bytes as asyncio receives at most.
    INET_SIZE = 64 * 1024
    INET_BATCH = 32
    OTHER_SIZE = 256 * 1024
    OTHER_BATCH = 8

cdef struct Segmenting:
    # What is known of segmentation offload on one socket.
    int below              # datagrams of fewer bytes may be merged; -1: not yet asked
    int refusals

# Send what is first in the queue, a deque of (data, address, address of the kernel's):
# `data` is bytes, the last one bytes or None.  None is the peer of a connected socket,
# or, if `connected` is false, ends what is sent.  Returns how many datagrams were sent,
# or -errno: why the first one was not.  0: try again.
cdef int send_first(int fd, bint connected, object queue, Segmenting *segmenting) except? -1

# Where all transports of the process receive: INET_BATCH times INET_SIZE bytes.
cdef char *receive_area() except NULL
# If the kernel has coalesced any of n messages, received with room for a control message
# each: append all datagrams to `pieces`, how many a message to `counts`; else False.
cdef bint cut(mmsghdr *msgs, int n, list pieces, int *counts) except -1
