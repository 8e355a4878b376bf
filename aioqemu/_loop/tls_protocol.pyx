"""TlsProtocol: handshake, data and farewell between a transport and a protocol.

Knows neither OpenSSL's buffers (TlsSession) nor what the program sees as its transport
(SSLTransport).  It behaves as asyncio's SSLProtocol of today's Python on all versions.

What a callback writes is encrypted when the callback returns, small writes together in
one record, and is sent by the transport below in the same moment.
"""

import asyncio
import ssl

from cpython.buffer cimport PyBUF_SIMPLE
from cpython.buffer cimport PyBUF_WRITABLE
from cpython.buffer cimport PyBuffer_Release
from cpython.buffer cimport PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.object cimport PyTypeObject

from aioqemu._loop.core cimport LoopCore
from aioqemu._loop.flow cimport FLUSH_SIZE
from aioqemu._loop.flow cimport call_flow
from aioqemu._loop.flow cimport queue_clear
from aioqemu._loop.flow cimport queue_consume
from aioqemu._loop.flow cimport queue_push
from aioqemu._loop.stream cimport StreamTransport
from aioqemu._loop.tls_session cimport TLS_WANT
from aioqemu._loop.tls_session cimport TlsSession
from aioqemu._loop.wire cimport WireProtocol
from aioqemu._sys.classes cimport refuse_new

from aioqemu._loop.private import constants, logger

cdef object _BufferedProtocol = asyncio.BufferedProtocol
cdef tuple _again = (ssl.SSLWantReadError, ssl.SSLSyscallError)
cdef tuple _names = ("UNWRAPPED", "DO_HANDSHAKE", "WRAPPED", "FLUSHING", "SHUTDOWN")
cdef str _failed = "Fatal error on SSL protocol"


cdef int _flush(void *opaque) except -1:
    return (<TlsProtocol>opaque).flush()


cdef object _seconds(object given, object default, str name):
    if given is None:
        return default
    if given <= 0:
        raise ValueError(f"{name} should be a positive number, got {given}")
    return given


cdef object _client_context(bint server_side, object server_hostname):
    if server_side:
        raise ValueError("Server side SSL needs a valid SSLContext")
    sslcontext = ssl.create_default_context()
    if not server_hostname:
        sslcontext.check_hostname = False
    return sslcontext


cdef TlsProtocol new_tls_protocol(
        LoopCore loop, object app, object sslcontext, object waiter, bint server_side,
        object server_hostname, object handshake_timeout, object shutdown_timeout,
        bint call_connection_made):
    cdef TlsProtocol p = TlsProtocol.__new__(TlsProtocol)
    p.handshake_timeout = _seconds(
        handshake_timeout, constants.SSL_HANDSHAKE_TIMEOUT, "ssl_handshake_timeout")
    p.shutdown_timeout = _seconds(
        shutdown_timeout, constants.SSL_SHUTDOWN_TIMEOUT, "ssl_shutdown_timeout")
    if not sslcontext:
        sslcontext = _client_context(server_side, server_hostname)
    if server_side or not server_hostname:
        server_hostname = None
        if (not server_side and isinstance(sslcontext, ssl.SSLContext)
                and sslcontext.check_hostname):
            # Older Pythons would take any name that some authority has vouched for.
            raise ValueError("check_hostname requires server_hostname")
    p.loop = loop
    p.waiter = waiter
    p.server_side = server_side
    p.app_state = APP_INIT if call_connection_made else APP_MADE
    p.write_high = constants.FLOW_CONTROL_HIGH_WATER_SSL_WRITE * 1024
    p.write_low = p.write_high // 4
    p.read_high = constants.FLOW_CONTROL_HIGH_WATER_SSL_READ * 1024
    p.read_low = p.read_high // 4
    p.set_app(app)
    p.open_session(sslcontext, server_side, server_hostname)
    return p


cdef class TlsProtocol(TlsSession):
    """TLS between a transport and the program's protocol.

    Made by the loop; `_ssl_protocol` of the transport that the program gets.
    """

    def __cinit__(self):
        self.state = TLS_UNWRAPPED
        self.flush_node.linked = False
        self.flush_node.next = NULL

    def __repr__(self):
        return f"<TlsProtocol {_names[<int>self.state]} on {self.transport!r}>"

    # -- what programs look at -----------------------------------------------------------

    @property
    def _loop(self):
        return self.loop

    @property
    def _transport(self):
        return self.transport

    @property
    def _app_protocol(self):
        return self.app

    @property
    def _app_transport(self):
        return self.app_transport

    @property
    def _sslcontext(self):
        return self.sslcontext

    @property
    def _sslobj(self):
        return self.sslobj

    @property
    def _incoming(self):
        return self.incoming

    @property
    def _outgoing(self):
        return self.outgoing

    cdef object extra_info(self, object name, object default):
        if name == "sslcontext":
            return self.sslcontext
        if self.shaken and name in ("ssl_object", "peercert", "cipher", "compression"):
            # The stock protocol asks for all of it after each handshake.
            if name == "ssl_object":
                return self.sslobj
            if self.extra is None:
                self.extra = {}
            if name not in self.extra:
                self.extra[name] = getattr(
                    self.sslobj, "getpeercert" if name == "peercert" else name)()
            return self.extra[name]
        if self.transport is not None:
            return self.transport.get_extra_info(name, default)
        return default

    cdef int set_app(self, object app) except -1:
        self.app = app
        self.app_data = self.app_buffer = self.app_updated = None
        self.app_wire = app if isinstance(app, WireProtocol) else None
        if isinstance(app, _BufferedProtocol):
            self.app_buffer = app.get_buffer
            self.app_updated = app.buffer_updated
        else:
            self.app_data = getattr(app, "data_received", None)
        return 0

    # -- life -----------------------------------------------------------------------------

    def connection_made(self, transport):
        """Begin the handshake; the transport below calls it."""
        self.transport = transport
        self.native = transport if isinstance(transport, StreamTransport) else None
        self.state = TLS_HANDSHAKE
        if self.loop.debug:
            logger.debug("%r starts SSL handshake", self)
            self.began = self.loop.time()
        self.handshake_timer = self.loop.call_later(
            self.handshake_timeout, self._handshake_late)
        self._handshake()

    def connection_lost(self, exc):
        """Tell the program; the transport below calls it, once."""
        cdef bint told = self.state != TLS_HANDSHAKE and self.app_state in (
            APP_MADE, APP_EOF)
        cdef bint native = self.native is not None
        app = self.app
        self.loop.flush_cancel(&self.flush_node)
        queue_clear(&self.backlog)
        queue_clear(&self.held)
        self.lost += 1
        self.app_closed = True
        self.state = TLS_UNWRAPPED
        self.transport = self.native = self.app_transport = self.app = None
        self.app_data = self.app_buffer = self.app_updated = None
        self.app_wire = None
        self._cancel_timers()
        self._wake(exc)
        if told:
            self.app_state = APP_LOST
            if native:
                app.connection_lost(exc)    # from the queue already, in its context
            else:
                self.loop.soon(app.connection_lost, <PyObject *>exc, NULL, None)

    cdef int _cancel_timers(self) except -1:
        timer, self.handshake_timer = self.handshake_timer, None
        if timer is not None:
            timer.cancel()
        timer, self.shutdown_timer = self.shutdown_timer, None
        if timer is not None:
            timer.cancel()
        return 0

    cdef int _wake(self, object exc) except -1:
        waiter = self.waiter
        self.waiter = None
        if waiter is not None and not waiter.done():
            if exc is not None:
                waiter.set_exception(exc)
            else:
                waiter.set_result(None)
        return 0

    cdef int _fail(self, object exc, str message) except -1:
        transport = self.transport
        if transport is not None:
            transport._force_close(exc)
        if isinstance(exc, OSError):
            if self.loop.debug:
                logger.debug("%r: %s", self, message, exc_info=exc)
        elif not isinstance(exc, asyncio.CancelledError):
            self.loop.call_exception_handler({
                "message": message,
                "exception": exc,
                "transport": transport,
                "protocol": self,
            })
        return 0

    cdef int force_close(self, object exc) except -1:
        if exc is None and self.state == TLS_WRAPPED:
            self.flush()            # the stock protocol would have sent it in write()
        self.app_closed = True
        self.state = TLS_UNWRAPPED
        transport = self.transport
        if transport is None:
            return 0
        if exc is None:
            transport.abort()
        else:
            transport._force_close(exc)
        return 0

    # -- the transport below --------------------------------------------------------------

    cdef int wire_data(self, const char *data, Py_ssize_t n) except -1:
        if (self.state == TLS_WRAPPED and self.app_data is not None
                and not self.reading_paused and self.held.count == 0):
            try:
                self._deliver(self.decrypt(data, n))
                if self.talked or self.backlog.count:
                    self._encrypt(False)
            except Exception as exc:
                self._fail(exc, _failed)
            return 0
        if self.state != TLS_UNWRAPPED:
            self.take(data, n)
            self._advance()
        return 0

    def _take_ahead(self, bytes data not None):
        """Before the handshake: what was read of the connection already."""
        if data:
            self.hold(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))

    def data_received(self, data):
        """Take ciphertext from a transport that is not one of the loop's."""
        data = bytes(data)
        if data:
            self.wire_data(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))

    cdef int _advance(self) except -1:
        if self.state == TLS_HANDSHAKE:
            self._handshake()
        elif self.state == TLS_WRAPPED:
            self._read()
        elif self.state == TLS_FLUSHING:
            self._flush_and_shut()
        elif self.state == TLS_SHUTDOWN:
            self._farewell()
        return 0

    def eof_received(self):
        """End, with what is still to be read and written; true to stay open for it."""
        self.eof = True
        if self.loop.debug:
            logger.debug("%r received EOF", self)
        try:
            if self.state == TLS_HANDSHAKE:
                self._shaken(ConnectionResetError())
            elif self.state == TLS_WRAPPED:
                self.state = TLS_FLUSHING
                if self.reading_paused:
                    return True
                self._flush_and_shut()
            elif self.state == TLS_FLUSHING:
                self._encrypt(True)
                self.state = TLS_SHUTDOWN
                self._farewell()
            elif self.state == TLS_SHUTDOWN:
                self._farewell()
        except Exception:
            if self.transport is not None:
                self.transport.close()
            raise

    def pause_writing(self):
        """Encrypt no more for now; the transport below is full."""
        self.lower_full = True

    def resume_writing(self):
        """Go on: the transport below has room."""
        self.lower_full = False
        try:
            self._encrypt(False)
        except Exception as exc:
            self._fail(exc, _failed)

    # -- handshake ------------------------------------------------------------------------

    def _handshake_late(self):
        if self.state == TLS_HANDSHAKE:
            self._fail(ConnectionAbortedError(
                f"SSL handshake is taking longer than {self.handshake_timeout} seconds: "
                f"aborting the connection"), "Fatal error on transport")

    cdef int _handshake(self) except -1:
        while True:
            try:
                self.sslobj.do_handshake()
            except _again:
                self._send_drained()
                if self.state == TLS_HANDSHAKE and self.held.count:
                    self.refill()
                    continue
                return 0
            except ssl.SSLError as exc:
                self._shaken(exc)
            else:
                self._shaken(None)
            return 0

    cdef int _shaken(self, object exc) except -1:
        timer, self.handshake_timer = self.handshake_timer, None
        if timer is not None:
            timer.cancel()
        if exc is not None:
            self.state = TLS_UNWRAPPED
            message = "SSL handshake failed"
            if isinstance(exc, ssl.CertificateError):
                message = "SSL handshake failed on verifying the certificate"
            self._send_last()
            self._fail(exc, message)
            return self._wake(exc)
        self.state = TLS_WRAPPED
        self.shaken = True
        self.recount()
        if self.loop.debug:
            logger.debug("%r: SSL handshake took %.1f ms", self,
                         (self.loop.time() - self.began) * 1e3)
        # Our last words of the handshake; the peer need not wait for the protocol's.
        self._send_drained()
        if self.app_state == APP_INIT:
            self.app_state = APP_MADE
            self.app.connection_made(self.app_transport)
        self._wake(None)
        return self._read()

    # -- reading --------------------------------------------------------------------------

    cdef bint _reads(self) noexcept:
        return (not self.reading_paused and not self.peer_closed
                and (self.state == TLS_WRAPPED or self.state == TLS_FLUSHING))

    cdef int _read(self) except -1:
        """Hand up what has come; then what could not be sent for want of it."""
        if self.state != TLS_WRAPPED and self.state != TLS_FLUSHING:
            return 0
        try:
            self._read_all()
            if self.talked or self.backlog.count:
                self._encrypt(False)
            self.control_reading()
        except Exception as exc:
            self._fail(exc, _failed)
        return 0

    cdef int _read_all(self) except -1:
        while self._reads() and (self.records > 0 or self.held.count):
            if self.app_buffer is None:
                self._read_plain()
            else:
                self._read_buffered()
        return 0

    cdef int _read_plain(self) except -1:
        cdef Py_ssize_t skip, size
        if self.records > 0:
            return self._deliver(self.decrypt(NULL, 0))
        first = <object>self.held.ring[self.held.first]
        skip = self.held.head_sent
        size = PyBytes_GET_SIZE(first)
        queue_consume(&self.held, size - skip)
        return self._deliver(self.decrypt(PyBytes_AS_STRING(first) + skip, size - skip))

    cdef int _read_buffered(self) except -1:
        cdef Py_buffer view
        cdef Py_ssize_t done = 0
        cdef Py_ssize_t got
        while self.records <= 0:
            if not self.held.count:
                return 0
            self.refill()
        get_buffer = self.app_buffer
        buffer_updated = self.app_updated
        buf = get_buffer(self.readable)
        PyObject_GetBuffer(buf, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        if view.len == 0:
            PyBuffer_Release(&view)
            raise RuntimeError("get_buffer() returned an empty buffer")
        if self.app_buffer is not get_buffer or not self._reads():
            PyBuffer_Release(&view)
            return 0        # somebody else's now, or nobody's: nothing is lost yet
        try:
            while done < view.len:
                if self.records <= 0:
                    if not self.held.count:
                        break
                    self.refill()
                    continue
                got = self.read_into(<char *>view.buf + done, view.len - done)
                if got > 0:
                    done += got
                elif got != TLS_WANT:
                    break
        except Exception as exc:
            self.records = 0
            self.failure = exc
        finally:
            PyBuffer_Release(&view)
        if done:
            buffer_updated(done)
        return self._found()

    cdef int _deliver(self, object data) except -1:
        cdef WireProtocol wire
        if data is not None:
            wire = self.app_wire
            if wire is not None:
                wire.wire_data(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
            else:
                callback = self.app_data
                callback(data)
        if self.peer_closed or self.failure is not None:
            return self._found()
        return 0

    cdef int _found(self) except -1:
        """What else was in the stream: an error, or the peer's farewell."""
        exc = self.failure
        if exc is not None:
            self.failure = None
            if self.state != TLS_UNWRAPPED:
                self._send_last()
            raise exc
        if self.peer_closed and self.state != TLS_UNWRAPPED:
            self._app_eof()
            self.shut()
        return 0

    cdef int _app_eof(self) except -1:
        if self.app_state != APP_MADE:
            return 0
        self.app_state = APP_EOF
        try:
            if self.app.eof_received():
                logger.warning("returning true from eof_received() has no effect "
                               "when using ssl")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as exc:
            self._fail(exc, "Error calling eof_received()")
        return 0

    cdef int resume(self) except -1:
        if self.reading_paused:
            self.reading_paused = False
            if self.state != TLS_UNWRAPPED:
                self.loop.soon(
                    self._resumed, NULL, NULL,
                    None if self.native is None else self.native.ctx.copy())
        return 0

    def _resumed(self):
        if self.state != TLS_HANDSHAKE:
            self._advance()

    cdef int control_reading(self) except -1:
        """Stop the transport below while too much waits for the program."""
        cdef Py_ssize_t size
        if not self.held.count and not self.lower_reading_paused:
            return 0
        size = self.unread()
        if size >= self.read_high and self.held.count:
            if not self.lower_reading_paused:
                self.lower_reading_paused = True
                if self.transport is not None:
                    self.transport.pause_reading()
        elif size <= self.read_low and self.lower_reading_paused:
            self.lower_reading_paused = False
            if self.transport is not None:
                self.transport.resume_reading()
        return 0

    # -- writing --------------------------------------------------------------------------

    cdef int write(self, object data) except -1:
        """Take `data` (bytes, not empty)."""
        if self.state != TLS_WRAPPED and self.state != TLS_HANDSHAKE:
            if self.lost >= constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES:
                logger.warning("SSL connection is closed")
            self.lost += 1
            return 0
        queue_push(&self.backlog, data)
        if self.state != TLS_WRAPPED or self.lower_full:
            return self.control_writing()
        if self.backlog.size >= FLUSH_SIZE:
            return self.flush()
        return self.loop.flush_later(&self.flush_node, _flush, self)

    cdef int flush(self) except -1:
        """Encrypt what was written, and hand it to the transport below."""
        if self.loop.in_child():
            queue_clear(&self.backlog)      # the parent's to send
            return 0
        if self.state == TLS_WRAPPED:
            try:
                self._encrypt(False)
            except Exception as exc:
                self._fail(exc, _failed)
        return 0

    cdef int _encrypt(self, bint everything) except -1:
        if not self.encrypting:
            self.encrypting = True
            try:
                while (self.backlog.count and (everything or not self.lower_full)
                        and (self.state == TLS_WRAPPED or self.state == TLS_FLUSHING)):
                    if self.write_record(self.loop.scratch()) == TLS_WANT:
                        break
                    self._send_drained()
            finally:
                self.encrypting = False
        if self.talked:
            self._send_drained()
        return self.control_writing()

    cdef int _send_drained(self) except -1:
        data = self.drain()
        if data:
            self._send(data)
        return 0

    cdef int _send(self, object data) except -1:
        if self.native is not None:
            return self.native._write(data)
        if self.transport is not None:
            self.transport.write(data)
        return 0

    cdef int _send_last(self) except -1:
        """Send the alert that tells the peer what is wrong, before all ends."""
        data = self.drain()
        if data and self.transport is not None and not self.lower_full:
            self._send(data)
            self.transport.get_write_buffer_size()      # now: the rest is dropped
        return 0

    cdef int control_writing(self) except -1:
        cdef Py_ssize_t size = self.backlog.size
        if size >= self.write_high and size and not self.writing_paused:
            self.writing_paused = True
            call_flow(self.loop, None, self.app_transport, self.app, True)
        elif self.writing_paused and size <= self.write_low and self.app is not None:
            self.writing_paused = False
            call_flow(self.loop, None, self.app_transport, self.app, False)
        return 0

    # -- farewell -------------------------------------------------------------------------

    cdef int shut(self) except -1:
        if self.state == TLS_HANDSHAKE:
            return self.force_close(None)
        if self.state == TLS_WRAPPED:
            self.app_closed = True
            self.state = TLS_FLUSHING
            self.shutdown_timer = self.loop.call_later(
                self.shutdown_timeout, self._shutdown_late)
            self._flush_and_shut()
        return 0

    def _shutdown_late(self):
        if self.state in (TLS_FLUSHING, TLS_SHUTDOWN) and self.transport is not None:
            self.transport._force_close(TimeoutError("SSL shutdown timed out"))

    cdef int _flush_and_shut(self) except -1:
        self._read()
        if self.state != TLS_FLUSHING:
            return 0            # a callback went on with it, or ended it
        try:
            self._encrypt(True)
        except Exception as exc:
            return self._fail(exc, _failed)
        if self.backlog.count and not self.eof:
            return 0            # OpenSSL must hear from the peer first
        if self.state == TLS_FLUSHING:
            self.state = TLS_SHUTDOWN
            self._farewell()
        return 0

    cdef int _farewell(self) except -1:
        """Say that no more comes, and hear the same from the peer."""
        if self.lower_closing:
            return 0
        while not self.eof:
            try:
                self.sslobj.unwrap()
            except _again:
                self._send_drained()
                if self.held.count:
                    self.refill()
                    continue
                return 0
            except ssl.SSLError as exc:
                if getattr(exc, "reason", None) != "APPLICATION_DATA_AFTER_CLOSE_NOTIFY":
                    self._cancel_timers()
                    return self._fail(exc, "Fatal error on transport")
                # It still sends, but we said that we close.  What we wrote before is
                # not to be lost for that: its transport sends it, and closes.
                data = self.drain()
                if data:
                    self._send(data[:5 + (data[3] << 8 | data[4])])
                return self._farewell_done()
            break
        self._send_drained()
        self._app_eof()
        return self._farewell_done()

    cdef int _farewell_done(self) except -1:
        if self.transport is None:
            return 0
        # The transport below sends what it has first, which may take a peer that does not
        # read for ever: the time runs on.
        if self.shutdown_timer is None:
            self.shutdown_timer = self.loop.call_later(
                self.shutdown_timeout, self._shutdown_late)
        self.lower_closing = True
        self.loop.soon(self.transport.close, NULL, NULL, None)
        return 0


refuse_new(<PyTypeObject *>TlsProtocol)
