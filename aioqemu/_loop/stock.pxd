"""Feeding asyncio's own streams without a Python call.  Home thread, GIL held."""

# Whether feed_stock() may be used for a protocol: exactly asyncio's class, with nothing
# put in the place of the methods that it stands for.
cdef bint is_stock(object protocol) except -1
# Do what protocol.data_received() of n bytes would do; False if it has to be called after
# all.
cdef bint feed_stock(object protocol, const char *data, Py_ssize_t n) except -1
