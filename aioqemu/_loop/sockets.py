"""The sock_* coroutines: one operation on a non-blocking socket of the caller's.

Try first, wait second: when the kernel has what is asked for, nothing but the
operation itself happens.  A wait only learns that the socket is ready; the operation
then runs in the task that asked, so that one cancelled meanwhile has taken nothing out
of the socket.
Knows nothing of transports; a socket that one of them owns is refused.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from .tls import check_ssl_socket

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from ._typing import Address, LoopBase
else:
    LoopBase = object


class SocketsMixin(LoopBase):
    """``sock_recv``, ``sock_sendall``, ``sock_accept`` and the others of a loop."""

    def _check_sock(self, sock: socket.socket) -> None:
        if type(sock) is not socket.socket:
            check_ssl_socket(sock)
        if self._debug and sock.gettimeout() != 0:
            raise ValueError("the socket must be non-blocking")

    async def _wait_writable(self, fd: int) -> None:
        """Return once there is room, or somebody else may have made use of it."""
        self._ensure_fd_no_transport(fd)
        ready = self.create_future()
        handle = self._add_writer(fd, self._set_ready, ready)
        try:
            await ready
        finally:
            # A cancelled handle: another call watches the fd now, perhaps under its
            # next owner.
            if not handle.cancelled():
                self._remove_writer(fd)

    async def _put(self, sock: socket.socket, operation: str, *args: Any) -> Any:
        """Wait and try until the method of the socket, which sends, does not block."""
        while True:
            await self._wait_writable(sock.fileno())
            try:
                return getattr(sock, operation)(*args)
            except (BlockingIOError, InterruptedError):
                continue

    async def sock_recv(self, sock: socket.socket, n: int) -> bytes:
        """Receive up to ``n`` bytes (`loop.sock_recv`).

        A cancelled call has received nothing.

        Args:
            sock: A non-blocking socket that no transport owns.
            n: Most bytes to receive.

        Returns:
            What was there, at least one byte; empty at the end of the stream.

        Raises:
            OSError: The operation failed.
            RuntimeError: A transport owns the socket.
            TypeError: It is an `ssl.SSLSocket`.
            ValueError: In debug mode: the socket is a blocking one.
        """
        if type(sock) is not socket.socket or self._debug:
            self._check_sock(sock)
        # What cannot be received is refused at once.
        if type(n) is not int or n <= 0 or not self._is_drained(sock):
            try:
                return sock.recv(n)
            except (BlockingIOError, InterruptedError):
                pass
        late: bytes = await self._taking(sock, n, sock.recv, n)
        return late

    async def sock_recv_into(self, sock: socket.socket, buf: WriteableBuffer) -> int:
        """Receive into a buffer; else as `sock_recv`.

        Args:
            sock: A non-blocking socket that no transport owns.
            buf: A writable buffer.

        Returns:
            The number of bytes received.
        """
        self._check_sock(sock)
        with memoryview(buf) as view:
            most = 0 if view.readonly else view.nbytes
        if not most or not self._is_drained(sock):
            try:
                return sock.recv_into(buf)
            except (BlockingIOError, InterruptedError):
                pass
        if not most:
            return sock.recv_into(buf)
        late: int = await self._taking(sock, most, sock.recv_into, buf)
        return late

    async def sock_recvfrom(
        self, sock: socket.socket, bufsize: int
    ) -> tuple[bytes, Address]:
        """Receive a datagram; else as `sock_recv`.

        Args:
            sock: A non-blocking socket that no transport owns.
            bufsize: Most bytes of it to keep.

        Returns:
            The datagram and its sender.
        """
        self._check_sock(sock)
        try:
            return sock.recvfrom(bufsize)
        except (BlockingIOError, InterruptedError):
            pass
        late: tuple[bytes, Address] = await self._taking(
            sock, 0, sock.recvfrom, bufsize
        )
        return late

    async def sock_recvfrom_into(
        self, sock: socket.socket, buf: WriteableBuffer, nbytes: int = 0
    ) -> tuple[int, Address]:
        """Receive a datagram into a buffer; else as `sock_recv`.

        Args:
            sock: A non-blocking socket that no transport owns.
            buf: A writable buffer.
            nbytes: Most bytes to receive; 0 for the length of the buffer.

        Returns:
            The number of bytes received and the sender.
        """
        self._check_sock(sock)
        if not nbytes:
            nbytes = len(buf)  # type: ignore[arg-type]
        try:
            return sock.recvfrom_into(buf, nbytes)
        except (BlockingIOError, InterruptedError):
            pass
        late: tuple[int, Address] = await self._taking(
            sock, 0, sock.recvfrom_into, buf, nbytes
        )
        return late

    async def sock_sendall(self, sock: socket.socket, data: ReadableBuffer) -> None:
        """Send all of ``data`` to the connected peer (`loop.sock_sendall`).

        How much was sent by a call that failed or was cancelled, cannot be known.

        Args:
            sock: A non-blocking socket that no transport owns.
            data: Bytes-like; must not change until the call is over.

        Raises:
            OSError: The operation failed.
            RuntimeError: A transport owns the socket.
            TypeError: It is an `ssl.SSLSocket`.
            ValueError: In debug mode: the socket is a blocking one.
        """
        self._check_sock(sock)
        try:
            sent = sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        if sent == len(data):  # type: ignore[arg-type]
            return
        with memoryview(data) as view, view.cast("B") as rest:
            while sent < len(rest):
                sent += await self._put(sock, "send", rest[sent:])

    async def sock_sendto(
        self, sock: socket.socket, data: ReadableBuffer, address: Address
    ) -> int:
        """Send a datagram to ``address`` (`loop.sock_sendto`).

        Args:
            sock: A non-blocking socket that no transport owns.
            data: The datagram.
            address: The receiver, of the socket's family.

        Returns:
            The number of bytes sent.

        Raises:
            OSError: The operation failed.
            RuntimeError: A transport owns the socket.
            TypeError: It is an `ssl.SSLSocket`.
            ValueError: In debug mode: the socket is a blocking one.
        """
        self._check_sock(sock)
        try:
            return sock.sendto(data, address)
        except (BlockingIOError, InterruptedError):
            pass
        late: int = await self._put(sock, "sendto", data, address)
        return late

    async def sock_accept(self, sock: socket.socket) -> tuple[socket.socket, Address]:
        """Accept a connection (`loop.sock_accept`).

        A cancelled call has accepted nothing.

        Args:
            sock: A non-blocking, listening socket.

        Returns:
            The connection, non-blocking, and the peer's address.

        Raises:
            OSError: The operation failed.
            RuntimeError: A transport owns the socket.
            TypeError: It is an `ssl.SSLSocket`.
            ValueError: In debug mode: the socket is a blocking one.
        """
        self._check_sock(sock)
        try:
            conn, address = sock.accept()
        except (BlockingIOError, InterruptedError):
            conn, address = await self._taking(sock, 0, sock.accept)
        conn.setblocking(False)
        return conn, address

    async def sock_connect(self, sock: socket.socket, address: Address) -> None:
        """Connect to ``address`` (`loop.sock_connect`).

        Host names of Internet addresses are resolved first.

        Args:
            sock: A non-blocking socket.
            address: The peer's address, of the socket's family.

        Raises:
            OSError: The connection failed, or the name was not found.
            RuntimeError: A transport owns the socket.
            TypeError: It is an `ssl.SSLSocket`.
            ValueError: In debug mode: the socket is a blocking one.
        """
        self._check_sock(sock)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            resolved = await self._ensure_resolved(
                address,
                family=sock.family,
                type=sock.type,
                proto=sock.proto,
                loop=self,
            )
            address = resolved[0][4]
        fd = sock.fileno()
        try:
            sock.connect(address)
        except (BlockingIOError, InterruptedError):
            # Either way the kernel goes on connecting.
            await self._wait_writable(fd)
            err = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if err:
                raise OSError(err, f"Connect call failed {address}") from None
