"""TlsSession: OpenSSL between two memory buffers, and what is known of its records.

Home thread, GIL held.  Ciphertext goes in by `decrypt`, `hold` and `refill`, plaintext
comes out by `decrypt` and `read_into`; `write_record` takes plaintext from `backlog`,
`drain` gives the ciphertext.

Nothing grows with what is transferred: the incoming buffer of OpenSSL gets a few records
at a time, the outgoing one is emptied after each record, and what cannot be read yet
waits in `held`.
"""

from aioqemu._loop.flow cimport OutQueue
from aioqemu._loop.wire cimport WireProtocol

cdef enum:
    TLS_WANT = -2              # no record is complete; more is to come first
    TLS_RECORD = 16384         # the most plaintext of a record

cdef class TlsSession(WireProtocol):
    cdef object sslcontext
    cdef object sslobj             # ssl.SSLObject, or of the class that the context names
    cdef object incoming           # ssl.MemoryBIO
    cdef object outgoing
    cdef object feed_call          # incoming.write
    cdef object drain_call         # outgoing.read
    cdef object read_call          # of OpenSSL's own object if `direct`, else of sslobj
    cdef object write_call
    cdef bint direct
    # The records that were fed: five bytes of header, then what the header says.
    cdef unsigned char header[5]
    cdef int header_have           # 5 while in a body
    cdef Py_ssize_t body_size
    cdef Py_ssize_t body_left
    cdef bint untracked            # these are no records that we know
    cdef Py_ssize_t records        # complete and not seen to be read; may be too many
    cdef Py_ssize_t readable       # no more plaintext than this is in them
    cdef Py_ssize_t in_bio         # bytes that OpenSSL's buffer may hold
    cdef OutQueue held             # ciphertext that is not in OpenSSL's buffer yet
    cdef OutQueue backlog          # plaintext to be sent
    # What a read found
    cdef bint peer_closed          # close_notify
    cdef object failure            # the exception that ended the stream
    cdef bint talked               # OpenSSL saw more than data: it may have answered

    cdef int open_session(self, object sslcontext, bint server_side,
                          object server_hostname) except -1
    # Keep n bytes for later, or feed what of them may be read at once.
    cdef int hold(self, const char *data, Py_ssize_t n) except -1
    cdef int take(self, const char *data, Py_ssize_t n) except -1
    # Feed the next records of `held`.
    cdef int refill(self) except -1
    # The bytes not yet read, but for what OpenSSL has taken in.
    cdef Py_ssize_t unread(self) except -1
    # After a handshake, which counts no records.
    cdef int recount(self) except -1
    # Feed n bytes, of which nothing may be held, and read all there is: bytes or None.
    # An error is in `failure` afterwards, and what came before it is returned.
    cdef object decrypt(self, const char *data, Py_ssize_t n)
    # Read into memory: how much, 0 at the peer's close_notify, or TLS_WANT.
    cdef Py_ssize_t read_into(self, char *to, Py_ssize_t size) except -1
    # Encrypt what is first in `backlog`, a record at most: 0, or TLS_WANT.
    cdef int write_record(self, char *scratch) except -1
    # The ciphertext that waits to be sent: bytes.
    cdef object drain(self)

    cdef Py_ssize_t _scan(self, const char *data, Py_ssize_t n) noexcept
    cdef int _feed(self, const char *data, Py_ssize_t n) except -1
    cdef int _all_read(self) noexcept
    cdef object _read_one(self)
    cdef object _piece(self, const char *data, Py_ssize_t size)
    cdef Py_ssize_t _refused(self) except -1
