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
def prepare_listener(sock: socket.socket) -> tuple[int, int, int] | None: ...
def accept(fd: int) -> tuple[int, Any] | None: ...
def make_accepted_transport(
    loop: Any,
    fd: int,
    kind: tuple[int, int, int],
    protocol: Any,
    peername: Any,
    server: Any,
) -> StreamTransport: ...
