"""Names and addresses: getaddrinfo, getnameinfo, and literals without a thread.

A numeric host with a numeric port needs no look-up, so libc is asked on the spot, with
the caller's own arguments: the answer is `socket.getaddrinfo`'s because it is its.
Whatever might block (names, services) goes to the executor.
Must never know about sockets that exist, connections or transports.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from .private import logger

if TYPE_CHECKING:
    import asyncio

    from ._typing import AddrInfo, LoopBase
else:
    LoopBase = object

# With other flags libc may do more than parse (AI_ADDRCONFIG asks for interfaces).
_CHEAP_FLAGS = (
    socket.AI_PASSIVE
    | socket.AI_NUMERICHOST
    | socket.AI_NUMERICSERV
    | socket.AI_CANONNAME
)
_NUMERIC_NAMES = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
_DIRECT_PROTOS = frozenset((0, socket.IPPROTO_TCP, socket.IPPROTO_UDP))
_PROTO_OF_TYPE: dict[int, int] = {
    socket.SOCK_STREAM: socket.IPPROTO_TCP,
    socket.SOCK_DGRAM: socket.IPPROTO_UDP,
}


def _parses_as(family: int, host: str) -> bool:
    """Tell whether `host` is a plain literal of the address family."""
    try:
        socket.inet_pton(family, host)
    except (OSError, ValueError):
        # ValueError: a null character inside, which is no literal either.
        return False
    return True


def _is_literal(host: object) -> bool:
    """Tell whether libc answers for `host` without asking anybody."""
    if isinstance(host, bytes):
        try:
            host = host.decode("ascii")
        except UnicodeDecodeError:
            return False
    if not isinstance(host, str) or not host:
        return False
    if host[-1].isdigit() and _parses_as(socket.AF_INET, host):
        return True
    address, percent, zone = host.partition("%")
    return bool(
        ":" in address
        and (zone or not percent)
        and _parses_as(socket.AF_INET6, address)
    )


def _is_numeric_port(port: object) -> bool:
    """Tell whether `port` is a number and not the name of a service."""
    if isinstance(port, (bytes, str)):
        return port.isascii() and port.isdigit()
    return port is None or isinstance(port, int)


def resolve_literal(
    host: object,
    port: object,
    family: int,
    type: int,
    proto: int,
    *scope: int,
) -> AddrInfo | None:
    """Make the one addrinfo of a literal address, without any call to libc's resolver.

    For connecting and binding, where the family or the socket type is known, as the
    stock loop's `_ensure_resolved` does it.  Callable from any thread.

    Args:
        host: An IPv4 or IPv6 literal without a zone; anything else gives None.
        port: A number, as int or text; None and the empty text are 0.
        family: `AF_UNSPEC`, `AF_INET` or `AF_INET6`.
        type: `SOCK_STREAM` or `SOCK_DGRAM`; others give None.
        proto: 0, TCP or UDP; the answer has the one that goes with `type`.
        *scope: Flow info and scope id of an IPv6 address.

    Returns:
        The addrinfo, or None if a resolver has to be asked.
    """
    known_proto = _PROTO_OF_TYPE.get(type)
    if host is None or known_proto is None or proto not in _DIRECT_PROTOS:
        return None
    if port is None or port in ("", b""):
        number = 0
    else:
        try:
            number = int(port)  # type: ignore[call-overload]
        except (TypeError, ValueError):
            return None  # the name of a service
    name = host.decode("idna") if isinstance(host, bytes) else host
    if not isinstance(name, str) or "%" in name:
        # The zone has to become a scope id, which is libc's business.
        return None
    if family in (socket.AF_UNSPEC, socket.AF_INET) and _parses_as(
        socket.AF_INET, name
    ):
        return socket.AF_INET, type, known_proto, "", (name, number)
    if family in (socket.AF_UNSPEC, socket.AF_INET6) and _parses_as(
        socket.AF_INET6, name
    ):
        flowinfo, scope_id = (*scope, 0, 0)[:2]
        address = (name, number, flowinfo, scope_id)
        return socket.AF_INET6, type, known_proto, "", address
    return None


class DnsMixin(LoopBase):
    """Name resolution of the loop."""

    def _getaddrinfo_debug(
        self, host: Any, port: Any, family: int, type: int, proto: int, flags: int
    ) -> Any:
        """Ask libc as `socket.getaddrinfo` does, and log how long it took."""
        given = {"family": family, "type": type, "proto": proto, "flags": flags}
        what = ", ".join(
            [f"{host}:{port!r}", *(f"{k}={v!r}" for k, v in given.items() if v)]
        )
        logger.debug("Get address info %s", what)
        started = self.time()
        answer = socket.getaddrinfo(host, port, family, type, proto, flags)
        took = self.time() - started
        log = logger.info if took >= self.slow_callback_duration else logger.debug
        log(f"Getting address info {what} took {took * 1e3:.3f}ms: {answer!r}")
        return answer

    async def getaddrinfo(
        self,
        host: Any,
        port: Any,
        *,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: Any = 0,
    ) -> Any:
        """Resolve a host and a service; `socket.getaddrinfo` for a coroutine.

        A numeric host with a numeric port is answered at once; everything else is
        looked up in the default executor.  In debug mode the time it took is logged,
        at level INFO when it reached `slow_callback_duration` seconds.

        Returns:
            The list that `socket.getaddrinfo` returns.

        Raises:
            socket.gaierror: As `socket.getaddrinfo` does.
        """
        resolve = self._getaddrinfo_debug if self._debug else socket.getaddrinfo
        if (
            _is_numeric_port(port)
            and isinstance(flags, int)
            and not flags & ~_CHEAP_FLAGS
            and _is_literal(host)
        ):
            self._check_closed()
            try:
                return resolve(
                    host, port, family, type, proto, flags | socket.AI_NUMERICHOST
                )
            except socket.gaierror:
                # AI_NUMERICHOST, which keeps libc from asking a name server about an
                # unknown zone, can change the error: let the plain call name it.
                logger.debug("%r is not a usable literal, asking the resolver", host)
        return await self.run_in_executor(
            None, resolve, host, port, family, type, proto, flags
        )

    async def getnameinfo(self, sockaddr: Any, flags: Any = 0) -> Any:
        """Name a socket address; `socket.getnameinfo` for a coroutine.

        With `NI_NUMERICHOST` and `NI_NUMERICSERV` there is nothing to look up, and no
        thread is used.

        Raises:
            socket.gaierror: As `socket.getnameinfo` does.
        """
        if isinstance(flags, int) and flags & _NUMERIC_NAMES == _NUMERIC_NAMES:
            self._check_closed()
            return socket.getnameinfo(sockaddr, flags)
        return await self.run_in_executor(None, socket.getnameinfo, sockaddr, flags)

    async def _ensure_resolved(
        self,
        address: tuple[Any, ...],
        *,
        family: int = 0,
        type: int = socket.SOCK_STREAM,
        proto: int = 0,
        flags: int = 0,
        loop: asyncio.AbstractEventLoop,
    ) -> list[AddrInfo]:
        """Return the addrinfos of an address, at once if it is a literal."""
        host, port = address[:2]
        if isinstance(host, str) and "\0" in host:
            raise ValueError("embedded null character")  # libc would stop there
        info = resolve_literal(host, port, family, type, proto, *address[2:])
        if info is not None:
            return [info]
        answer: Any = await loop.getaddrinfo(
            host, port, family=family, type=type, proto=proto, flags=flags
        )
        infos: list[AddrInfo] = answer
        return infos
