"""Making stream connections: TCP with happy eyeballs, Unix, sockets made elsewhere.

Invariant: a socket made here has one owner at any time, and whoever owns it when an
error or a cancellation comes closes it, once, after its fd left the loop.  So no fd
number is ever closed, or unwatched, that may belong to somebody else by then.
Must never know how a transport reads and writes.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections import deque
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

from .private import logger
from .tls import check_ssl_socket, check_ssl_timeouts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ._typing import Address, AddrInfo, LoopBase, ProtocolFactory
    from .tls import SSLArgument
else:
    LoopBase = object


def interleave_families(infos: Sequence[AddrInfo], first_count: int) -> list[AddrInfo]:
    """Order addresses so that the families take turns (RFC 8305, section 4).

    Args:
        infos: What getaddrinfo answered, best first.
        first_count: How many of the first family come before the others' first.
    """
    by_family: dict[int, list[AddrInfo]] = {}
    for info in infos:
        by_family.setdefault(info[0], []).append(info)
    families = list(by_family.values())
    lead = max(first_count - 1, 0)
    head, families[0] = families[0][:lead], families[0][lead:]
    turns = chain.from_iterable(zip_longest(*families))
    return head + [info for info in turns if info is not None]


def _close_result(attempt: asyncio.Task[socket.socket]) -> None:
    """Close the socket of an attempt that connected when nobody needed it any more."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


def connection_error(failures: Sequence[Exception], all_errors: bool) -> Exception:
    """Make the one exception that tells why no address could be connected to."""
    if all_errors and failures:
        return ExceptionGroup("create_connection failed", failures)
    if not failures:
        return TimeoutError("create_connection failed")
    texts = [str(exc) for exc in failures]
    if len(set(texts)) == 1:
        return failures[0]
    return OSError("Multiple exceptions: {}".format(", ".join(texts)))


class ConnectMixin(LoopBase):
    """Outgoing stream connections of the loop."""

    # -- connecting sockets ----------------------------------------------------

    def _drop_socket(self, sock: socket.socket) -> None:
        """Close a socket made here, whatever the loop still waits for on it."""
        fd = sock.fileno()
        if fd >= 0:
            # While the fd is ours: after close() its number may be anybody's.
            self._remove_writer(fd)
        try:
            sock.close()
        except OSError:
            # The fd is gone all the same, and the error that led here says more.
            logger.debug("closing %r failed", sock, exc_info=True)

    def _bind_local(
        self,
        sock: socket.socket,
        local_infos: Iterable[AddrInfo],
        failures: list[Exception],
    ) -> None:
        """Bind to the first local address that can be had; the errors are noted."""
        for family, _, _, _, address in local_infos:
            if family != sock.family:
                continue
            try:
                sock.bind(address)
            except OSError as exc:
                why = str(exc)
                if sys.version_info < (3, 13) and exc.strerror:
                    why = exc.strerror
                message = (
                    f"error while attempting to bind on address "
                    f"{address!r}: {why.lower()}"
                )
                failures.append(OSError(exc.errno, message))
            else:
                return
        if failures:
            raise failures.pop()  # the caller notes it again
        raise OSError(f"no matching local address with family={sock.family!r} found")

    async def _connect_one(
        self,
        failures: list[Exception],
        info: AddrInfo,
        local_infos: Iterable[AddrInfo] | None,
    ) -> socket.socket:
        """Make a socket and connect it; the errors met go to `failures`."""
        family, type_, proto, _, address = info
        try:
            sock = socket.socket(family=family, type=type_, proto=proto)
            try:
                sock.setblocking(False)
                if local_infos is not None:
                    self._bind_local(sock, local_infos, failures)
                await self.sock_connect(sock, address)
            except BaseException:
                self._drop_socket(sock)
                raise
        except Exception as exc:
            failures.append(exc)
            raise
        finally:
            # The exception holds this frame: do not let the frame hold it.
            del failures
        return sock

    async def _connect_in_turn(
        self,
        infos: Iterable[AddrInfo],
        local_infos: Iterable[AddrInfo] | None,
        failures: list[list[Exception]],
    ) -> socket.socket | None:
        """Connect to the first address that answers, one after the other."""
        try:
            for info in infos:
                failures.append([])
                try:
                    return await self._connect_one(failures[-1], info, local_infos)
                except OSError:
                    continue  # it is in failures
            return None
        finally:
            del failures  # as in _connect_one

    async def _connect_race(
        self,
        infos: Iterable[AddrInfo],
        local_infos: Iterable[AddrInfo] | None,
        failures: list[list[Exception]],
        delay: float,
    ) -> socket.socket | None:
        """Connect to the address that answers first (RFC 8305, section 5).

        The next attempt starts when the latest one failed or is `delay` seconds old.
        Attempts that lose are cancelled and waited for; one that connected in the same
        instant has its socket closed.
        """
        waiting = deque(infos)
        running: set[asyncio.Task[socket.socket]] = set()
        winner: socket.socket | None = None
        try:
            while waiting:
                failures.append([])
                latest = self.create_task(
                    self._connect_one(failures[-1], waiting.popleft(), local_infos)
                )
                running.add(latest)
                start_next_at = self.time() + delay
                while running:
                    left = max(0.0, start_next_at - self.time()) if waiting else None
                    done, _ = await asyncio.wait(
                        running, timeout=left, return_when=asyncio.FIRST_COMPLETED
                    )
                    for attempt in done:
                        if not attempt.cancelled() and attempt.exception() is None:
                            running.discard(attempt)
                            winner = attempt.result()
                            return winner
                    running -= done
                    if waiting and (latest in done or not done):
                        break
            return None
        finally:
            for attempt in running:
                # Also closes what connects although it was cancelled or unseen.
                attempt.add_done_callback(_close_result)
                attempt.cancel()
            try:
                if running:
                    await asyncio.wait(running)
            except BaseException:
                if winner is not None:
                    self._drop_socket(winner)
                raise

    async def _connect_any(
        self,
        infos: Sequence[AddrInfo],
        local_infos: Sequence[AddrInfo] | None,
        delay: float | None,
        all_errors: bool,
    ) -> socket.socket:
        """Connect to one of the addresses, or raise what they all answered."""
        failures: list[list[Exception]] = []
        try:
            if delay is None:
                sock = await self._connect_in_turn(infos, local_infos, failures)
            else:
                sock = await self._connect_race(infos, local_infos, failures, delay)
            if sock is None:
                raise connection_error(
                    [exc for of_one in failures for exc in of_one], all_errors
                )
            return sock
        finally:
            # The exceptions hold this frame: do not let it hold them.
            del failures

    # -- from a connected socket to a transport --------------------------------

    async def _create_connection_transport(
        self,
        sock: socket.socket,
        protocol_factory: ProtocolFactory,
        ssl: SSLArgument,
        server_hostname: str | None,
        server_side: bool = False,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> tuple[Any, Any]:
        """Give a connected socket a transport and a protocol, and wait for both.

        The socket is the transport's from here on; it is closed if none can be made.
        """
        try:
            sock.setblocking(False)
            protocol = protocol_factory()
            waiter = self.create_future()
            if ssl:
                transport = self._make_ssl_transport(
                    sock,
                    protocol,
                    None if isinstance(ssl, bool) else ssl,
                    waiter,
                    server_side=server_side,
                    server_hostname=server_hostname,
                    ssl_handshake_timeout=ssl_handshake_timeout,
                    ssl_shutdown_timeout=ssl_shutdown_timeout,
                )
            else:
                transport = self._make_socket_transport(sock, protocol, waiter)
        except BaseException:
            sock.close()
            raise
        try:
            await waiter
        except BaseException:
            transport.close()
            raise
        finally:
            # The exception of a failed handshake holds this frame, the waiter it.
            del waiter
        return transport, protocol

    async def _resolve(
        self, address: tuple[Any, ...], family: int, proto: int, flags: int
    ) -> list[AddrInfo]:
        """Resolve the address of a stream, which has to give something."""
        infos = await self._ensure_resolved(
            address,
            family=family,
            type=socket.SOCK_STREAM,
            proto=proto,
            flags=flags,
            loop=self,
        )
        if not infos:
            raise OSError("getaddrinfo() returned empty list")
        return infos

    async def _open_connection(
        self,
        protocol_factory: ProtocolFactory,
        host: Any,
        port: Any,
        *,
        ssl: SSLArgument,
        family: int,
        proto: int,
        flags: int,
        sock: socket.socket | None,
        local_addr: tuple[Any, ...] | None,
        server_hostname: str | None,
        ssl_handshake_timeout: float | None,
        ssl_shutdown_timeout: float | None,
        happy_eyeballs_delay: float | None,
        interleave: int | None,
        all_errors: bool = False,
    ) -> tuple[Any, Any]:
        """Do what `create_connection` promises, on every Python version."""
        if not ssl and server_hostname is not None:
            raise ValueError("server_hostname is only meaningful with ssl")
        if ssl and server_hostname is None:
            # An empty name switches the check off, so it must be asked for by name.
            if not host:
                raise ValueError(
                    "You must set server_hostname when using ssl without a host"
                )
            server_hostname = host
        check_ssl_timeouts(ssl, ssl_handshake_timeout, ssl_shutdown_timeout)
        if sock is not None:
            check_ssl_socket(sock)

        if host is not None or port is not None:
            if sock is not None:
                raise ValueError(
                    "host/port and sock can not be specified at the same time"
                )
            infos = await self._resolve((host, port), family, proto, flags)
            local_infos = None
            if local_addr is not None:
                local_infos = await self._resolve(local_addr, family, proto, flags)
            if interleave is None and happy_eyeballs_delay is not None:
                interleave = 1
            if interleave:
                infos = interleave_families(infos, interleave)
            sock = await self._connect_any(
                infos, local_infos, happy_eyeballs_delay, all_errors
            )
        elif sock is None:
            raise ValueError("host and port was not specified and no sock specified")
        elif sock.type != socket.SOCK_STREAM:
            # Any family will do, Unix sockets too.
            raise ValueError(f"A Stream Socket was expected, got {sock!r}")

        transport, protocol = await self._create_connection_transport(
            sock,
            protocol_factory,
            ssl,
            server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        if self._debug:
            logger.debug(
                "%r connected to %s:%r: (%r, %r)",
                transport.get_extra_info("socket"),
                host,
                port,
                transport,
                protocol,
            )
        return transport, protocol

    # -- the public methods ----------------------------------------------------

    if sys.version_info >= (3, 12):

        async def create_connection(
            self,
            protocol_factory: Callable[[], Any],
            host: Any = None,
            port: Any = None,
            *,
            ssl: SSLArgument = None,
            family: int = 0,
            proto: int = 0,
            flags: int = 0,
            sock: socket.socket | None = None,
            local_addr: Any = None,
            server_hostname: str | None = None,
            ssl_handshake_timeout: float | None = None,
            ssl_shutdown_timeout: float | None = None,
            happy_eyeballs_delay: float | None = None,
            interleave: int | None = None,
            all_errors: bool = False,
        ) -> tuple[Any, Any]:
            """Open a stream connection to a host and port, or on a connected socket.

            As `asyncio.loop.create_connection`.  A cancelled or failed call leaves no
            socket behind.

            Args:
                protocol_factory: Called without arguments, gives the protocol.
                host: Name or literal; None is this machine.
                port: Number or service name.
                ssl: A context, or True for a default one.
                family: Address family to look up, 0 for any.
                proto: Passed to getaddrinfo.
                flags: Passed to getaddrinfo.
                sock: A connected stream socket instead of host and port; it belongs
                    to the transport.
                local_addr: Host and port to bind to.
                server_hostname: Name that the certificate must have; `host` if None.
                ssl_handshake_timeout: Seconds, 60 if None.
                ssl_shutdown_timeout: Seconds, 30 if None.
                happy_eyeballs_delay: Seconds until the next address is tried beside
                    those that have not answered; None tries one at a time.
                interleave: Addresses of the first family before the families take
                    turns; 1 if None and `happy_eyeballs_delay` is given.
                all_errors: Raise an ExceptionGroup of all errors (Python 3.12).

            Returns:
                The transport and the protocol.

            Raises:
                OSError: No address could be connected to.
                ValueError: The arguments contradict each other.
            """
            return await self._open_connection(
                protocol_factory,
                host,
                port,
                ssl=ssl,
                family=family,
                proto=proto,
                flags=flags,
                sock=sock,
                local_addr=local_addr,
                server_hostname=server_hostname,
                ssl_handshake_timeout=ssl_handshake_timeout,
                ssl_shutdown_timeout=ssl_shutdown_timeout,
                happy_eyeballs_delay=happy_eyeballs_delay,
                interleave=interleave,
                all_errors=all_errors,
            )

    else:

        async def create_connection(
            self,
            protocol_factory: Callable[[], Any],
            host: Any = None,
            port: Any = None,
            *,
            ssl: SSLArgument = None,
            family: int = 0,
            proto: int = 0,
            flags: int = 0,
            sock: socket.socket | None = None,
            local_addr: Any = None,
            server_hostname: str | None = None,
            ssl_handshake_timeout: float | None = None,
            ssl_shutdown_timeout: float | None = None,
            happy_eyeballs_delay: float | None = None,
            interleave: int | None = None,
        ) -> tuple[Any, Any]:
            """Open a stream connection; see the form of Python 3.12 above."""
            return await self._open_connection(
                protocol_factory,
                host,
                port,
                ssl=ssl,
                family=family,
                proto=proto,
                flags=flags,
                sock=sock,
                local_addr=local_addr,
                server_hostname=server_hostname,
                ssl_handshake_timeout=ssl_handshake_timeout,
                ssl_shutdown_timeout=ssl_shutdown_timeout,
                happy_eyeballs_delay=happy_eyeballs_delay,
                interleave=interleave,
            )

    async def create_unix_connection(
        self,
        protocol_factory: Callable[[], Any],
        path: str | bytes | os.PathLike[Any] | None = None,
        *,
        ssl: SSLArgument = None,
        sock: socket.socket | None = None,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> tuple[Any, Any]:
        """Open a connection to a Unix stream socket.

        As `asyncio.loop.create_unix_connection`.

        Args:
            protocol_factory: Called without arguments, gives the protocol.
            path: Where the socket is; a name that begins with a null character is in
                the abstract namespace.
            ssl: A context, or True for a default one.
            sock: A connected Unix stream socket instead of the path.
            server_hostname: Name that the certificate must have; needed with `ssl`.
            ssl_handshake_timeout: Seconds, 60 if None.
            ssl_shutdown_timeout: Seconds, 30 if None.

        Returns:
            The transport and the protocol.

        Raises:
            OSError: The connection could not be made.
            ValueError: The arguments contradict each other.
        """
        if server_hostname is not None and not isinstance(server_hostname, str):
            raise TypeError(f"server_hostname must be str, got {server_hostname!r}")
        if ssl and server_hostname is None:
            raise ValueError("you have to pass server_hostname when using ssl")
        if not ssl and server_hostname is not None:
            raise ValueError("server_hostname is only meaningful with ssl")
        check_ssl_timeouts(ssl, ssl_handshake_timeout, ssl_shutdown_timeout)

        if path is not None:
            if sock is not None:
                raise ValueError("path and sock can not be specified at the same time")
            address: Address = os.fspath(path)
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0)
            try:
                sock.setblocking(False)
                await self.sock_connect(sock, address)
            except BaseException:
                self._drop_socket(sock)
                raise
        elif sock is None:
            raise ValueError("no path and sock were specified")
        elif sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            raise ValueError(f"A UNIX Domain Stream Socket was expected, got {sock!r}")

        return await self._create_connection_transport(
            sock,
            protocol_factory,
            ssl,
            server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )

    async def connect_accepted_socket(
        self,
        protocol_factory: Callable[[], Any],
        sock: socket.socket,
        *,
        ssl: SSLArgument = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> tuple[Any, Any]:
        """Serve a connection that was accepted outside of asyncio.

        As `asyncio.loop.connect_accepted_socket`, for stream sockets of any family.

        Args:
            protocol_factory: Called without arguments, gives the protocol.
            sock: The accepted socket; it belongs to the transport.
            ssl: A context, to answer a TLS handshake.
            ssl_handshake_timeout: Seconds, 60 if None.
            ssl_shutdown_timeout: Seconds, 30 if None.

        Returns:
            The transport and the protocol.
        """
        if sock.type != socket.SOCK_STREAM:
            raise ValueError(f"A Stream Socket was expected, got {sock!r}")
        check_ssl_timeouts(ssl, ssl_handshake_timeout, ssl_shutdown_timeout)
        check_ssl_socket(sock)
        transport, protocol = await self._create_connection_transport(
            sock,
            protocol_factory,
            ssl,
            "",
            server_side=True,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        if self._debug:
            logger.debug(
                "%r handled: (%r, %r)",
                transport.get_extra_info("socket"),
                transport,
                protocol,
            )
        return transport, protocol
