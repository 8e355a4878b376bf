"""Connecting the loop to pipe-like file objects: connect_read_pipe, connect_write_pipe.

The transports are the core's; here they are waited for, and closed when the caller
gives up. It must never know what is behind the pipe.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from .private import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._typing import LoopBase
else:
    LoopBase = object

_ProtocolT = TypeVar("_ProtocolT", bound=asyncio.BaseProtocol)


class PipesMixin(LoopBase):
    """``connect_read_pipe`` and ``connect_write_pipe`` of a loop."""

    async def connect_read_pipe(
        self, protocol_factory: Callable[[], _ProtocolT], pipe: Any
    ) -> tuple[asyncio.ReadTransport, _ProtocolT]:
        """Read from a pipe, a socket or a character device.

        The transport takes over ``pipe`` (a file object): it is made non-blocking and
        closed with the transport.

        Args:
            protocol_factory: Makes the protocol.
            pipe: File object opened for reading.

        Returns:
            Transport and protocol; ``connection_made`` has been called.

        Raises:
            ValueError: It is another kind of file.
        """
        protocol = protocol_factory()
        waiter: asyncio.Future[None] = self.create_future()
        transport = self._make_read_pipe_transport(pipe, protocol, waiter)
        await self._pipe_connected("Read", waiter, pipe, transport, protocol)
        return transport, protocol

    async def connect_write_pipe(
        self, protocol_factory: Callable[[], _ProtocolT], pipe: Any
    ) -> tuple[asyncio.WriteTransport, _ProtocolT]:
        """Write to a pipe, a socket or a character device.

        The transport takes over ``pipe`` (a file object): it is made non-blocking and
        closed with the transport.

        Args:
            protocol_factory: Makes the protocol.
            pipe: File object opened for writing.

        Returns:
            Transport and protocol; ``connection_made`` has been called.

        Raises:
            ValueError: It is another kind of file.
        """
        protocol = protocol_factory()
        waiter: asyncio.Future[None] = self.create_future()
        transport = self._make_write_pipe_transport(pipe, protocol, waiter)
        await self._pipe_connected("Write", waiter, pipe, transport, protocol)
        return transport, protocol

    async def _pipe_connected(
        self,
        kind: str,
        waiter: asyncio.Future[None],
        pipe: Any,
        transport: asyncio.ReadTransport | asyncio.WriteTransport,
        protocol: asyncio.BaseProtocol,
    ) -> None:
        try:
            await waiter
        except BaseException:
            transport.close()
            raise
        if self._debug:
            logger.debug(
                "%s pipe %r connected: (%r, %r)",
                kind,
                pipe.fileno(),
                transport,
                protocol,
            )
