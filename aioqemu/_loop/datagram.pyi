import asyncio
import socket
from typing import Any

from typing_extensions import disjoint_base

from .core import LoopCore

@disjoint_base
class DatagramTransport(asyncio.DatagramTransport):
    max_size: int
    def __init__(self, *args: object, **kwargs: object) -> None: ...
    def is_reading(self) -> bool: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def get_write_buffer_size(self) -> int: ...
    def get_write_buffer_limits(self) -> tuple[int, int]: ...
    def set_write_buffer_limits(
        self, high: int | None = None, low: int | None = None
    ) -> None: ...

def make_datagram_transport(
    loop: LoopCore,
    sock: socket.socket,
    protocol: Any,
    address: Any = None,
    waiter: asyncio.Future[Any] | None = None,
    extra: dict[str, Any] | None = None,
    exclusive: bool = False,
) -> DatagramTransport: ...
