import asyncio
import socket
from typing import Any, NoReturn

from typing_extensions import disjoint_base

from .core import LoopCore

@disjoint_base
class StreamTransport(asyncio.Transport):
    def __init__(self) -> NoReturn: ...

def make_stream_transport(
    loop: LoopCore,
    sock: socket.socket,
    protocol: Any,
    waiter: asyncio.Future[Any] | None = None,
    *,
    extra: dict[str, Any] | None = None,
    server: Any = None,
) -> StreamTransport: ...
