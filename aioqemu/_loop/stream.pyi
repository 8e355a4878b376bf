import asyncio
import socket
from typing import Any

from typing_extensions import disjoint_base

from .core import LoopCore

@disjoint_base
class StreamTransport(asyncio.Transport):
    def __init__(self, *args: object, **kwargs: object) -> None: ...

def make_stream_transport(
    loop: LoopCore,
    sock: socket.socket,
    protocol: Any,
    waiter: asyncio.Future[Any] | None = None,
    *,
    extra: dict[str, Any] | None = None,
    server: Any = None,
) -> StreamTransport: ...
