"""Connecting sockets: one address after the other, or as happy eyeballs.

Invariant: a socket made here has one owner at any time, and whoever owns it when an
error or a cancellation comes closes it, once, after its fd left the loop.  So no fd
number is ever closed, or unwatched, that may belong to somebody else by then.
Must never know protocols or transports.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import deque
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

from .private import logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ._typing import AddrInfo, LoopBase
else:
    LoopBase = object


def bind_error(address: Any, exc: OSError) -> OSError:
    """Make the error that says which address could not be bound to, and why."""
    why = str(exc)
    if sys.version_info < (3, 13) and exc.strerror:
        why = exc.strerror
    return OSError(
        exc.errno,
        f"error while attempting to bind on address {address!r}: {why.lower()}",
    )


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


class DialMixin(LoopBase):
    """Sockets of the loop that are being connected."""

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
                failures.append(bind_error(address, exc))
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
