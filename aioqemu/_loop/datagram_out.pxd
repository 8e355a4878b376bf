"""Handing datagrams to the kernel, many by one call.  GIL held, no other code is run."""

cdef struct Segmenting:
    # What is known of segmentation offload on one socket.
    int below              # datagrams of fewer bytes may be merged; -1: not yet asked
    int refusals

# Send what is first in the queue, a deque of (data, address, address of the kernel's):
# `data` is bytes, the last one bytes or None.  None is the peer of a connected socket,
# or, if `connected` is false, ends what is sent.  Returns how many datagrams were sent,
# or -errno: why the first one was not.  0: try again.
cdef int send_first(int fd, bint connected, object queue, Segmenting *segmenting) except? -1
