from collections.abc import Callable, Generator
from enum import IntFlag
from typing import Any

from typing_extensions import disjoint_base

from aioqemu._block.aiocb import AIOPool, BlockDriverAIOCB
from aioqemu._block.service import BlockService

class Engine(IntFlag):
    AUTO = 0
    URING = 1
    THREADS = 2
    AIO = 3
    NULL_DEVICE = 4

class Kind(IntFlag):
    RET_INT = 0
    RET_COUNT = 1
    RET_BYTES = 2
    RET_NONE = 3
    RET_ZERO = 4
    RET_VALUE = 5

OP_NAMES: tuple[str, ...]

class BlockPool(AIOPool): ...

@disjoint_base
class Gate:
    def __init__(self, limit: int) -> None: ...
    @property
    def limit(self) -> int: ...
    @property
    def active(self) -> int: ...
    @property
    def quiesced(self) -> int: ...
    @property
    def n_waiting(self) -> int: ...
    def quiesce(self) -> None: ...
    def resume(self) -> None: ...
    def watch(self, callback: Callable[[], object]) -> None: ...
    def turn_away(self) -> None: ...

@disjoint_base
class Launcher:
    @property
    def hook_now(self) -> Callable[[BlockRequest], object] | None: ...

@disjoint_base
class BlockRequest(BlockDriverAIOCB):
    def __init__(self, *args: object, **kwargs: object) -> None: ...
    @property
    def service(self) -> BlockService: ...
    @property
    def op(self) -> str: ...
    @property
    def offset(self) -> int: ...
    @property
    def length(self) -> int: ...
    def result(self) -> Any: ...
    def __await__(self) -> Generator[Any, None, Any]: ...
    __iter__ = __await__
