import asyncio
from typing import Any

from typing_extensions import disjoint_base

from .core import LoopCore

@disjoint_base
class ReadPipeTransport(asyncio.ReadTransport):
    max_size: int
    def __init__(self, *args: object, **kwargs: object) -> None: ...

@disjoint_base
class WritePipeTransport(asyncio.WriteTransport):
    def __init__(self, *args: object, **kwargs: object) -> None: ...

def make_read_pipe_transport(
    loop: LoopCore,
    pipe: Any,
    protocol: Any,
    waiter: asyncio.Future[Any] | None = None,
    extra: dict[str, Any] | None = None,
) -> ReadPipeTransport: ...
def make_write_pipe_transport(
    loop: LoopCore,
    pipe: Any,
    protocol: Any,
    waiter: asyncio.Future[Any] | None = None,
    extra: dict[str, Any] | None = None,
) -> WritePipeTransport: ...
