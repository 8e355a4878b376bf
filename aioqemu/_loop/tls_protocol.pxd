"""TlsProtocol: TLS between a transport and the program's protocol.

Home thread, GIL held.  The object below is any transport that can `start_tls`; a
StreamTransport is written to without a Python call.  What is above is a protocol; one
that is a WireProtocol (TLS inside TLS) gets the plaintext where it lies.
"""

from aioqemu._loop.callbacks cimport FlushNode
from aioqemu._loop.core cimport LoopCore
from aioqemu._loop.stream cimport StreamTransport
from aioqemu._loop.tls_session cimport TlsSession
from aioqemu._loop.wire cimport WireProtocol

cdef enum TlsState:
    TLS_UNWRAPPED          # not begun, or over
    TLS_HANDSHAKE
    TLS_WRAPPED
    TLS_FLUSHING           # closing: what was written goes out
    TLS_SHUTDOWN           # close_notify is sent

cdef enum TlsApp:
    APP_INIT               # connection_made is still to be called
    APP_MADE
    APP_EOF                # eof_received was called
    APP_LOST

cdef class TlsProtocol(TlsSession):
    cdef LoopCore loop
    cdef object transport          # the one below, from connection_made to connection_lost
    cdef StreamTransport native    # the same, if it is one
    cdef object app                # the program's protocol; None after connection_lost
    cdef object app_transport      # the SSLTransport, as long as there is a connection
    cdef object waiter             # of the handshake
    cdef object app_data           # its data_received; None for a buffered protocol
    cdef object app_buffer         # its get_buffer; None for a plain one
    cdef object app_updated        # its buffer_updated
    cdef WireProtocol app_wire
    cdef object handshake_timer
    cdef object shutdown_timer
    cdef object handshake_timeout  # seconds
    cdef object shutdown_timeout
    cdef double began              # time of the handshake, for debug mode
    cdef dict extra                # what was asked for of the session; or None
    cdef object __weakref__
    cdef FlushNode flush_node      # plaintext is encrypted when the callback returns
    cdef Py_ssize_t write_high
    cdef Py_ssize_t write_low
    cdef Py_ssize_t read_high
    cdef Py_ssize_t read_low
    cdef Py_ssize_t lost           # > 0: connection_lost was called; counts writes since
    cdef TlsState state
    cdef TlsApp app_state
    cdef bint server_side
    cdef bint shaken               # the handshake is done: the session can be asked
    cdef bint app_closed           # the program closed it, or it was lost
    cdef bint eof                  # the peer's end of file
    cdef bint reading_paused       # by the program
    cdef bint writing_paused       # the program was told to pause
    cdef bint lower_reading_paused
    cdef bint lower_full           # the transport told us to pause
    cdef bint encrypting           # a record is on its way; nobody else begins one
    cdef bint lower_closing        # its close() is queued

    cdef int set_app(self, object app) except -1
    cdef int write(self, object data) except -1
    cdef int flush(self) except -1
    # Begin to close, unless that has begun.
    cdef int shut(self) except -1
    # End now.  None: as abort() does.
    cdef int force_close(self, object exc) except -1
    cdef int resume(self) except -1
    cdef int control_writing(self) except -1
    cdef int control_reading(self) except -1
    cdef object extra_info(self, object name, object default)

    cdef int _advance(self) except -1
    cdef int _handshake(self) except -1
    cdef int _shaken(self, object exc) except -1
    cdef bint _reads(self) noexcept
    cdef int _read(self) except -1
    cdef int _read_all(self) except -1
    cdef int _read_plain(self) except -1
    cdef int _read_buffered(self) except -1
    cdef int _deliver(self, object data) except -1
    cdef int _found(self) except -1
    cdef int _app_eof(self) except -1
    cdef int _encrypt(self, bint everything) except -1
    cdef int _send(self, object data) except -1
    cdef int _send_drained(self) except -1
    cdef int _send_last(self) except -1
    cdef int _flush_and_shut(self) except -1
    cdef int _farewell(self) except -1
    cdef int _farewell_done(self) except -1
    cdef int _fail(self, object exc, str message) except -1
    cdef int _wake(self, object exc) except -1
    cdef int _cancel_timers(self) except -1

# A session, with its transport in `_app_transport` once `make_transport` has made it.
cdef TlsProtocol new_tls_protocol(
    LoopCore loop, object app, object sslcontext, object waiter, bint server_side,
    object server_hostname, object handshake_timeout, object shutdown_timeout,
    bint call_connection_made)
