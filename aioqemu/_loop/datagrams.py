"""Making datagram endpoints: UDP and Unix.

The endpoint is the first pair of local and remote address, in the resolver's order,
that a socket can be bound and connected to.  Must never know how datagrams are sent.
"""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING, Any

from .private import logger
from .serve import set_reuse_port
from .serve_unix import remove_stale_socket

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._typing import Address, LoopBase
else:
    LoopBase = object


def _check_datagram_socket(sock: socket.socket, modifiers: dict[str, Any]) -> None:
    """Refuse a socket that is no datagram socket, or options that come too late."""
    if sys.version_info >= (3, 13):
        fits, kind = sock.type != socket.SOCK_STREAM, "datagram"
    else:
        fits, kind = sock.type == socket.SOCK_DGRAM, "UDP"
    if not fits:
        noun = "socket" if kind == "datagram" else "Socket"
        raise ValueError(f"A {kind} {noun} was expected, got {sock!r}")
    given = ", ".join(f"{name}={value}" for name, value in modifiers.items() if value)
    if given:
        raise ValueError(
            f"socket modifier keyword arguments can not be used "
            f"when sock is specified. ({given})"
        )


class DatagramMixin(LoopBase):
    """Datagram endpoints of the loop."""

    async def _pair_addresses(
        self,
        local_addr: Any,
        remote_addr: Any,
        family: int,
        proto: int,
        flags: int,
    ) -> list[tuple[int, int, Address | None, Address | None]]:
        """Resolve both addresses and pair them by family and protocol."""
        resolved: list[dict[tuple[int, int], Address]] = []
        for address in (local_addr, remote_addr):
            of_kind: dict[tuple[int, int], Address] = {}
            resolved.append(of_kind)
            if address is None:
                continue
            if not (isinstance(address, tuple) and len(address) == 2):
                raise TypeError("2-tuple is expected")
            infos = await self._ensure_resolved(
                address,
                family=family,
                type=socket.SOCK_DGRAM,
                proto=proto,
                flags=flags,
                loop=self,
            )
            if not infos:
                raise OSError("getaddrinfo() returned empty list")
            for info in infos:
                of_kind[info[0], info[2]] = info[4]
        local, remote = resolved
        pairs = [
            (kind[0], kind[1], local.get(kind), remote.get(kind))
            for kind in dict.fromkeys([*local, *remote])
            if not (local_addr and kind not in local)
            and not (remote_addr and kind not in remote)
        ]
        if not pairs:
            raise ValueError("can not get address information")
        return pairs

    async def _open_datagram_socket(
        self,
        family: int,
        proto: int,
        local: Address | None,
        remote: Address | None,
        reuse_port: bool | None,
        allow_broadcast: bool | None,
    ) -> socket.socket:
        """Make a datagram socket, bound and connected as told."""
        sock = socket.socket(family=family, type=socket.SOCK_DGRAM, proto=proto)
        try:
            if reuse_port:
                set_reuse_port(sock)
            if allow_broadcast:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sock.setblocking(False)
            if local:
                sock.bind(local)
            # Connected to a broadcast address it would hear none of the answers.
            if remote and not allow_broadcast:
                await self.sock_connect(sock, remote)
        except BaseException:
            self._remove_writer(sock.fileno())
            sock.close()
            raise
        return sock

    # The stubs still have reuse_address, which Python 3.11 took away.
    async def create_datagram_endpoint(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], Any],
        local_addr: Any = None,
        remote_addr: Any = None,
        *,
        family: int = 0,
        proto: int = 0,
        flags: int = 0,
        reuse_port: bool | None = None,
        allow_broadcast: bool | None = None,
        sock: socket.socket | None = None,
    ) -> tuple[Any, Any]:
        """Make a datagram endpoint; `loop.create_datagram_endpoint` of asyncio.

        Args:
            protocol_factory: Called without arguments, gives the protocol.
            local_addr: Host and port, or the path of a Unix socket, to bind to.  A
                socket file that was left there is removed first.
            remote_addr: Host and port, or path, to send to.
            family: Address family; `AF_UNIX` makes the addresses paths.
            proto: Passed to getaddrinfo.
            flags: Passed to getaddrinfo.
            reuse_port: Let other sockets bind to the same port.
            allow_broadcast: Let the endpoint send to broadcast addresses.
            sock: A datagram socket instead of all these; it belongs to the transport.

        Returns:
            The transport and the protocol.

        Raises:
            OSError: No pair of addresses could be used; the first error.
            ValueError: The arguments contradict each other.
        """
        remote: Address | None = None
        owned = sock is None
        if sock is not None:
            _check_datagram_socket(
                sock,
                {
                    "local_addr": local_addr,
                    "remote_addr": remote_addr,
                    "family": family,
                    "proto": proto,
                    "flags": flags,
                    "reuse_port": reuse_port,
                    "allow_broadcast": allow_broadcast,
                },
            )
            sock.setblocking(False)
        else:
            if not (local_addr or remote_addr):
                if family == 0:
                    raise ValueError("unexpected address family")
                pairs = [(family, proto, None, None)]
            elif family == socket.AF_UNIX:
                for address in (local_addr, remote_addr):
                    if address is not None and not isinstance(address, str):
                        raise TypeError("string is expected")
                remove_stale_socket(local_addr)
                pairs = [(family, proto, local_addr, remote_addr)]
            else:
                pairs = await self._pair_addresses(
                    local_addr, remote_addr, family, proto, flags
                )
            errors: list[OSError] = []
            try:
                for of_family, of_proto, local, remote in pairs:
                    try:
                        sock = await self._open_datagram_socket(
                            of_family,
                            of_proto,
                            local if local_addr else None,
                            remote if remote_addr else None,
                            reuse_port,
                            allow_broadcast,
                        )
                        break
                    except OSError as exc:
                        errors.append(exc)
                if sock is None:
                    raise errors[0]
            finally:
                # The exceptions hold this frame: do not let it hold them.
                del errors

        try:
            protocol = protocol_factory()
            waiter = self.create_future()
            transport = self._make_datagram_transport(
                sock, protocol, remote, waiter, exclusive=owned
            )
        except BaseException:
            if owned:
                sock.close()
            raise
        if self._debug:
            if local_addr:
                logger.info(
                    "Datagram endpoint local_addr=%r remote_addr=%r created: (%r, %r)",
                    local_addr,
                    remote_addr,
                    transport,
                    protocol,
                )
            else:
                logger.debug(
                    "Datagram endpoint remote_addr=%r created: (%r, %r)",
                    remote_addr,
                    transport,
                    protocol,
                )
        try:
            await waiter
        except BaseException:
            transport.close()
            raise
        return transport, protocol
