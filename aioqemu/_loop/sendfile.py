"""Sending files: the kernel's sendfile, and reading and writing where it cannot.

The kernel's form waits for room in the socket, sends a piece, and waits again; the fd
is watched only while this module's own coroutine waits, and is let go in the same step
in which it ends.  Must never know how a transport writes.
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
import socket
import sys
from typing import TYPE_CHECKING, Any

from .private import SendfileMode, constants
from .tls import check_ssl_socket

if TYPE_CHECKING:
    from ._typing import LoopBase
else:
    LoopBase = object

NotAvailable = asyncio.SendfileNotAvailableError

# A read from the file and a write to the transport, where the kernel does neither.
_TRANSPORT_BLOCK = 16384
# sendfile(2) takes no more than this at once; more would overflow a ssize_t somewhere.
_LARGEST_PIECE = sys.maxsize // 2 + 1


def check_sendfile_arguments(sock: Any, file: Any, offset: Any, count: Any) -> None:
    """Refuse what can not be sent.

    Raises:
        TypeError: `offset` or `count` is no integer.
        ValueError: They are out of range, the file is in text mode, or the socket is
            no stream.
    """
    if "b" not in getattr(file, "mode", "b"):
        raise ValueError("file should be opened in binary mode")
    if sock.type != socket.SOCK_STREAM:
        raise ValueError("only SOCK_STREAM type sockets are supported")
    if count is not None:
        message = f"count must be a positive integer (got {count!r})"
        if not isinstance(count, int):
            raise TypeError(message)
        if count <= 0:
            raise ValueError(message)
    message = f"offset must be a non-negative integer (got {offset!r})"
    if not isinstance(offset, int):
        raise TypeError(message)
    if offset < 0:
        raise ValueError(message)


class _KernelTransfer:
    """One file on its way into a socket by sendfile(2)."""

    __slots__ = (
        "_file_fd",
        "_handle",
        "_left",
        "_loop",
        "_offset",
        "_sock",
        "_sock_fd",
        "done",
        "sent",
    )

    def __init__(
        self,
        loop: LoopBase,
        sock: socket.socket,
        file_fd: int,
        offset: int,
        count: int | None,
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._sock_fd = sock.fileno()
        self._file_fd = file_fd
        self._offset = offset
        self._left = count
        self._handle: asyncio.Handle | None = None
        self.sent = 0
        self.done: asyncio.Future[int] = loop.create_future()

    def step(self) -> None:
        """Send one piece, and see to it that this is called again if there is more."""
        if self.done.done():
            self._unwatch()
            return
        size = _LARGEST_PIECE if self._left is None else min(self._left, _LARGEST_PIECE)
        try:
            if self._sock.fileno() != self._sock_fd:
                raise ConnectionError("socket was closed during sendfile()")
            sent = os.sendfile(self._sock_fd, self._file_fd, self._offset, size)
        except (BlockingIOError, InterruptedError):
            self._watch()
            return
        except OSError as exc:
            self.fail(self._translate(exc))
            return
        except BaseException as exc:
            if isinstance(exc, (SystemExit, KeyboardInterrupt)):
                self._unwatch()
                raise
            self.fail(exc)
            return
        self.sent += sent
        self._offset += sent
        if self._left is not None:
            self._left -= sent
        if sent == 0 or self._left == 0:
            self._unwatch()
            self.done.set_result(self.sent)
        else:
            # Others' turn: a fast reader could keep us here until the file's end.
            self._watch()

    def _translate(self, exc: OSError) -> Exception:
        """Turn the kernel's error into the one that the caller is promised."""
        if not self.sent:
            # Most likely a file that can not be mapped: a pipe, a device.
            unavailable = NotAvailable("os.sendfile call failed")
            unavailable.__cause__ = exc
            return unavailable
        if exc.errno == errno.ENOTCONN and type(exc) is not ConnectionError:
            lost = ConnectionError("socket is not connected", errno.ENOTCONN)
            lost.__cause__ = exc
            return lost
        return exc

    def fail(self, exc: BaseException) -> None:
        """End the transfer with an error."""
        self._unwatch()
        if not self.done.done():
            self.done.set_exception(exc)

    def close(self) -> None:
        """Let the socket go and put the file position behind what was sent."""
        self._unwatch()
        if not self.done.cancel() and not self.done.cancelled():
            self.done.exception()  # seen: the awaiting task may have been cancelled
        try:
            os.lseek(self._file_fd, self._offset, os.SEEK_SET)
        except OSError as exc:
            # What can not be positioned has no position to keep up.
            if exc.errno != errno.ESPIPE:
                raise

    def _watch(self) -> None:
        if self._handle is None:
            self._handle = self._loop._add_writer(self._sock_fd, self.step)

    def _unwatch(self) -> None:
        handle, self._handle = self._handle, None
        # A cancelled handle: whoever has the fd now, it is not us any more.
        if handle is not None and not handle.cancelled():
            self._loop._remove_writer(self._sock_fd)


class _Interlude(asyncio.Protocol):
    """Stands in for a transport's protocol while a file is being sent.

    It learns of the end of the connection, and of room for writing, in its place.
    """

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport = transport
        self._protocol = transport.get_protocol()
        self._was_reading = transport.is_reading()
        self._was_paused = bool(getattr(transport, "_protocol_paused", False))
        self._room: asyncio.Future[None] | None = None
        # The kernel's transfer, which ends when the connection does.
        self.transfer: _KernelTransfer | None = None
        transport.pause_reading()
        transport.set_protocol(self)
        if self._was_paused:
            self._room = loop.create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        error = exc or ConnectionError("Connection is closed by peer")
        if self._room is not None and not self._room.done():
            self._room.set_exception(error)
            self._room.exception()  # seen: drain() may never be called again
        if self.transfer is not None:
            self.transfer.fail(error)
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        if self._room is None:
            self._room = self._loop.create_future()

    def resume_writing(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def data_received(self, data: bytes) -> None:
        raise RuntimeError("Invalid state: reading should be paused")

    def eof_received(self) -> None:
        raise RuntimeError("Invalid state: reading should be paused")

    async def drain(self) -> None:
        """Wait until the transport takes more.

        Raises:
            ConnectionError: It never will.
        """
        if self._transport.is_closing():
            raise ConnectionError("Connection closed by peer")
        if self._room is not None:
            await self._room

    def restore(self) -> None:
        """Give the transport back to its protocol."""
        self._transport.set_protocol(self._protocol)
        if self._was_reading:
            self._transport.resume_reading()
        room, self._room = self._room, None
        if room is not None:
            room.cancel()
            if not self._was_paused and not self._transport.is_closing():
                # Paused meanwhile and not resumed: now it is the protocol's affair.
                self._protocol.pause_writing()
        elif self._was_paused:
            self._protocol.resume_writing()


class SendfileMixin(LoopBase):
    """Sending files from the loop."""

    async def sendfile(
        self,
        transport: Any,
        file: Any,
        offset: int = 0,
        count: int | None = None,
        *,
        fallback: bool = True,
    ) -> int:
        """Send a file through a transport; `loop.sendfile` of asyncio.

        Afterwards, also after an error, the file position is behind what was sent.

        Args:
            transport: A stream or TLS transport.
            file: A regular file opened in binary mode.
            offset: Where to begin, in bytes.
            count: How many bytes to send; None is all up to the end.
            fallback: Read and write where the kernel's sendfile can not be used.

        Returns:
            The number of bytes sent.

        Raises:
            asyncio.SendfileNotAvailableError: The kernel can not send this file, and
                `fallback` is false.
            RuntimeError: The transport is closing, or can not send files.
            ConnectionError: The connection ended meanwhile.
        """
        if transport.is_closing():
            raise RuntimeError("Transport is closing")
        mode = getattr(transport, "_sendfile_compatible", SendfileMode.UNSUPPORTED)
        if mode is SendfileMode.UNSUPPORTED:
            raise RuntimeError(f"sendfile is not supported for transport {transport!r}")
        if mode is SendfileMode.TRY_NATIVE:
            try:
                return await self._sendfile_native(transport, file, offset, count)
            except NotAvailable:
                if not fallback:
                    raise
        if not fallback:
            raise RuntimeError(
                f"fallback is disabled and native sendfile is not "
                f"supported for transport {transport!r}"
            )
        return await self._sendfile_fallback(transport, file, offset, count)

    async def _sendfile_native(
        self, transp: Any, file: Any, offset: int, count: int | None
    ) -> int:
        """Send a file through a transport by sendfile(2)."""
        sock = transp._sock
        check_sendfile_arguments(sock, file, offset, count)
        interlude = _Interlude(transp, self)
        try:
            # What was written before goes first, and nothing can be written until
            # the waiter is taken back.
            await transp._make_empty_waiter()
            try:
                if transp.is_closing():
                    raise ConnectionError("Connection closed by peer")
                return await self._sock_sendfile_native(
                    sock, file, offset, count, interlude
                )
            finally:
                transp._reset_empty_waiter()
        finally:
            interlude.restore()

    async def _sendfile_fallback(
        self, transp: Any, file: Any, offset: int, count: int | None
    ) -> int:
        """Send a file through a transport by reading and writing."""
        if hasattr(file, "seek"):
            file.seek(offset)
        buffer = bytearray(min(count or _TRANSPORT_BLOCK, _TRANSPORT_BLOCK))
        sent = 0
        interlude = _Interlude(transp, self)
        try:
            while count is None or sent < count:
                room = len(buffer) if count is None else count - sent
                view = memoryview(buffer)[:room]
                got = await self.run_in_executor(None, file.readinto, view)
                if not got:
                    break
                # A copy: the transport may keep it, and the buffer is read into again.
                transp.write(bytes(view[:got]))
                await interlude.drain()
                sent += got
            return sent
        finally:
            if sent > 0 and hasattr(file, "seek"):
                file.seek(offset + sent)
            interlude.restore()

    async def sock_sendfile(
        self,
        sock: socket.socket,
        file: Any,
        offset: int = 0,
        count: int | None = None,
        *,
        fallback: bool | None = True,
    ) -> int:
        """Send a file through a socket; `loop.sock_sendfile` of asyncio.

        Afterwards, also after an error, the file position is behind what was sent.

        Args:
            sock: A connected, non-blocking stream socket.
            file: A regular file opened in binary mode.
            offset: Where to begin, in bytes.
            count: How many bytes to send; None is all up to the end.
            fallback: Read and send where the kernel's sendfile can not be used.

        Returns:
            The number of bytes sent.

        Raises:
            asyncio.SendfileNotAvailableError: The kernel can not send this file, and
                `fallback` is false.
            ValueError: An argument is out of range, or in debug mode the socket
                blocks.
        """
        if self._debug and sock.gettimeout() != 0:
            raise ValueError("the socket must be non-blocking")
        check_ssl_socket(sock)
        check_sendfile_arguments(sock, file, offset, count)
        self._ensure_fd_no_transport(sock)
        try:
            return await self._sock_sendfile_native(sock, file, offset, count)
        except NotAvailable:
            if not fallback:
                raise
        return await self._sock_sendfile_fallback(sock, file, offset, count)

    async def _sock_sendfile_native(
        self,
        sock: socket.socket,
        file: Any,
        offset: int,
        count: int | None,
        interlude: _Interlude | None = None,
    ) -> int:
        """Send a file through a socket by sendfile(2)."""
        try:
            file_fd = file.fileno()
            size = os.fstat(file_fd).st_size
        except (AttributeError, io.UnsupportedOperation, OSError) as exc:
            raise NotAvailable("not a regular file") from exc
        if not (count or size):
            return 0  # an empty file
        transfer = _KernelTransfer(self, sock, file_fd, offset, count)
        if interlude is not None:
            interlude.transfer = transfer
        try:
            transfer.step()
            return await transfer.done
        finally:
            transfer.close()

    async def _sock_sendfile_fallback(
        self, sock: socket.socket, file: Any, offset: int, count: int | None
    ) -> int:
        """Send a file through a socket by reading and sending."""
        if hasattr(file, "seek"):
            file.seek(offset)
        largest = constants.SENDFILE_FALLBACK_READBUFFER_SIZE
        buffer = bytearray(min(count or largest, largest))
        sent = 0
        try:
            while count is None or sent < count:
                room = len(buffer) if count is None else count - sent
                view = memoryview(buffer)[:room]
                got = await self.run_in_executor(None, file.readinto, view)
                if not got:
                    break
                await self.sock_sendall(sock, view[:got])
                sent += got
            return sent
        finally:
            if sent > 0 and hasattr(file, "seek"):
                file.seek(offset + sent)
