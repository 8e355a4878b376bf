"""SSLTransport: what a program sees of a TLS connection.

Knows the asyncio interface and hands everything on to its TlsProtocol.
"""

from cpython.bytes cimport PyBytes_CheckExact
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.object cimport PyTypeObject

from aioqemu._loop.core cimport LoopCore
from aioqemu._loop.flow cimport queue_push
from aioqemu._loop.shims cimport FlowTransportBase
from aioqemu._loop.tls_protocol cimport TlsProtocol
from aioqemu._loop.tls_protocol cimport new_tls_protocol
from aioqemu._sys.classes cimport refuse_new

from aioqemu._engine import unclosed
from aioqemu._loop.private import SendfileMode, constants

cdef object _warn_unclosed = unclosed.warn_unclosed


cdef tuple _marks(object high, object low, object kib):
    """(low, high) from the arguments of set_*_buffer_limits."""
    if high is None:
        high = kib * 1024 if low is None else 4 * low
    if low is None:
        low = high // 4
    if not high >= low >= 0:
        raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
    return (low, high)


def make_tls(LoopCore loop not None, protocol, sslcontext, waiter, *, server_side,
             server_hostname, ssl_handshake_timeout, ssl_shutdown_timeout,
             call_connection_made=True):
    """Make a protocol that does TLS, to be put on a transport, and its transport.

    Its `_app_transport` is the program's; `waiter` is resolved when the handshake is over.

    Raises:
        ValueError: A time-out is not positive, or a name to check is missing.
    """
    cdef TlsProtocol tls = new_tls_protocol(
        loop, protocol, sslcontext, waiter, server_side, server_hostname,
        ssl_handshake_timeout, ssl_shutdown_timeout, call_connection_made)
    cdef SSLTransport transport = SSLTransport.__new__(SSLTransport)
    transport.tls = tls
    tls.app_transport = transport
    return tls


cdef class SSLTransport(FlowTransportBase):
    """A TLS connection (`asyncio.Transport`).

    Made by the loop.  All methods belong to its thread.  The name has "ssl" in it because
    programs, and CPython's tests, look for that.
    """

    cdef TlsProtocol tls
    cdef dict __dict__
    cdef object __weakref__

    _start_tls_compatible = True
    _sendfile_compatible = SendfileMode.FALLBACK

    def __init__(self):
        raise TypeError("transports are made by the loop")

    def __repr__(self):
        return f"<SSLTransport of {self.tls!r}>"

    def __del__(self):
        cdef TlsProtocol tls = self.tls
        if tls is not None and not tls.app_closed and tls.transport is not None:
            tls.app_closed = True
            if _warn_unclosed is not None:   # else the interpreter goes down
                _warn_unclosed(f"unclosed transport {self!r}", self)

    # -- what asyncio's own code and its users look at ------------------------------------

    @property
    def _ssl_protocol(self):
        return self.tls

    @property
    def _loop(self):
        return self.tls.loop

    @property
    def _closed(self):
        return bool(self.tls.app_closed)

    @property
    def _protocol_paused(self):
        return bool(self.tls.writing_paused)

    @property
    def _high_water(self):
        return self.tls.write_high

    @property
    def _low_water(self):
        return self.tls.write_low

    def _test__append_write_backlog(self, data):
        # CPython's own tests fill the buffer with this.
        if data:
            queue_push(&self.tls.backlog, bytes(data))

    def get_extra_info(self, name, default=None):
        """Information about the connection: "ssl_object", "peercert", "socket", ..."""
        return self.tls.extra_info(name, default)

    def get_protocol(self):
        """The protocol in use."""
        return self.tls.app

    def set_protocol(self, protocol):
        """Use another protocol from now on."""
        self.tls.set_app(protocol)

    # -- life -----------------------------------------------------------------------------

    def is_closing(self):
        """Whether the transport is closing or closed."""
        cdef TlsProtocol tls = self.tls
        return bool(tls.app_closed) or (
            tls.transport is not None and tls.transport.is_closing())

    def close(self):
        """Close the connection once what was written is sent, with TLS's farewell."""
        cdef TlsProtocol tls = self.tls
        if not tls.app_closed:
            tls.app_closed = True
            tls.shut()

    def abort(self):
        """Close the connection now; what the kernel does not take at once is lost."""
        self.tls.force_close(None)

    def _force_close(self, exc):
        self.tls.force_close(exc)

    # -- reading --------------------------------------------------------------------------

    def is_reading(self):
        """Whether data is handed to the protocol."""
        return not self.tls.reading_paused

    def pause_reading(self):
        """Hand no data to the protocol until `resume_reading`."""
        self.tls.reading_paused = True

    def resume_reading(self):
        """Hand data to the protocol again."""
        self.tls.resume()

    def get_read_buffer_size(self):
        """The number of bytes that wait, encrypted, to be read."""
        return self.tls.unread()

    def get_read_buffer_limits(self):
        """The low and high water marks of `get_read_buffer_size`, in bytes."""
        return (self.tls.read_low, self.tls.read_high)

    def set_read_buffer_limits(self, high=None, low=None):
        """Set the marks at which the transport below pauses and resumes reading."""
        self.tls.read_low, self.tls.read_high = _marks(
            high, low, constants.FLOW_CONTROL_HIGH_WATER_SSL_READ)
        self.tls.control_reading()

    # -- writing --------------------------------------------------------------------------

    def write(self, data):
        """Encrypt and send `data` (bytes-like) when the running callback returns."""
        if not PyBytes_CheckExact(data):
            if not isinstance(data, (bytes, bytearray, memoryview)):
                raise TypeError(f"data: expecting a bytes-like instance, "
                                f"got {type(data).__name__}")
            data = bytes(data)
        if PyBytes_GET_SIZE(data):
            self.tls.write(data)

    def writelines(self, list_of_data):
        """Send the items, of any bytes-like type, in as few records as possible.

        If one of them cannot be sent nothing is.
        """
        cdef list parts = []
        for data in list_of_data:
            parts.append(data if PyBytes_CheckExact(data) else bytes(memoryview(data)))
        for data in parts:
            if PyBytes_GET_SIZE(data):
                self.tls.write(data)

    def write_eof(self):
        """Not with TLS, whose halves asyncio closes together.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError

    def can_write_eof(self):
        """False: TLS connections are not half closed."""
        return False

    def get_write_buffer_size(self):
        """The number of bytes that wait to be encrypted."""
        self.tls.flush()
        return self.tls.backlog.size

    def get_write_buffer_limits(self):
        """The low and high water marks in bytes."""
        return (self.tls.write_low, self.tls.write_high)

    def set_write_buffer_limits(self, high=None, low=None):
        """Set the marks at which the protocol is told to pause and resume writing."""
        self.tls.write_low, self.tls.write_high = _marks(
            high, low, constants.FLOW_CONTROL_HIGH_WATER_SSL_WRITE)
        self.tls.control_writing()


refuse_new(<PyTypeObject *>SSLTransport)
