"""Socket addresses in both forms, the kernel's and Python's.  GIL held."""

from aioqemu._sys.inet cimport aq_address

# The address as the socket module has it; None if there is none.  Internet and Unix
# addresses only.
cdef object address_name(const aq_address *a, unsigned int size)
# Put a numeric internet address into `a` and return its size; 0 if it is none of the
# family, or needs a look-up or an error message, which are the socket module's.
cdef unsigned int address_parse(object name, int family, aq_address *a) except? 0
