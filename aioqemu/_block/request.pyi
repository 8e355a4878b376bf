from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from enum import IntFlag
from typing import Any

from aioqemu._block.aiocb import AIOPool, BlockDriverAIOCB
from aioqemu._engine.context import AioContext

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

class Op(IntFlag):
    READ = 0
    WRITE = 1
    FSYNC = 2
    FDATASYNC = 3
    FALLOCATE = 4
    FTRUNCATE = 5
    STATX = 6
    OPENAT = 7
    CLOSE = 8
    COPY = 9
    BLKDISCARD = 10
    BLKZEROOUT = 11
    NOTHING = 12

OP_NAMES: tuple[str, ...]

class BlockPool(AIOPool): ...

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

class BlockRequest(BlockDriverAIOCB):
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
    def __iter__(self) -> Iterator[Any]: ...

class BlockService:
    read_now_bytes: int
    max_threads: int
    def __init__(self, ctx: AioContext) -> None: ...
    @property
    def context(self) -> AioContext: ...
    @property
    def threads(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def counts(self) -> Counter[str]: ...
    @property
    def requests(self) -> BlockPool: ...
    def engine_of(self, op: int, engine: int) -> Engine: ...
    def use_linux_aio(self) -> None: ...
    def rw(
        self,
        op: int,
        fd: int,
        buffers: Any,
        offset: int,
        flags: int,
        engine: int,
        *,
        full: bool = False,
        kind: int = ...,
        gate: Gate | None = None,
        bs: object = None,
        cb: Callable[[Any, int], object] | None = None,
        opaque: object = None,
        filename: object = None,
        what: str | None = None,
        align: int = 1,
        mem_align: int = 1,
        after: Callable[[int], int] | None = None,
        hook: Callable[[BlockRequest], object] | None = None,
        now: bool = False,
    ) -> BlockRequest: ...
    def control(
        self,
        op: int,
        fd: int,
        engine: int,
        *,
        offset: int = 0,
        length: int = 0,
        flags: int = 0,
        mode: int = 0,
        path: bytes | None = None,
        out: Any = None,
        fd2: int = -1,
        offset2: int = 0,
        kind: int = ...,
        value: object = None,
        gate: Gate | None = None,
        bs: object = None,
        cb: Callable[[Any, int], object] | None = None,
        opaque: object = None,
        filename: object = None,
        what: str | None = None,
        after: Callable[[int], int] | None = None,
        hook: Callable[[BlockRequest], object] | None = None,
    ) -> BlockRequest: ...
    def fail(
        self,
        err: int,
        what: str | None = None,
        *,
        bs: object = None,
        cb: Callable[[Any, int], object] | None = None,
        opaque: object = None,
        filename: object = None,
        after: Callable[[int], int] | None = None,
    ) -> BlockRequest: ...
    def ready(
        self,
        kind: int,
        value: object,
        ret: int = 0,
        *,
        gate: Gate | None = None,
        bs: object = None,
        cb: Callable[[Any, int], object] | None = None,
        opaque: object = None,
        hook: Callable[[BlockRequest], object] | None = None,
        after: Callable[[int], int] | None = None,
        filename: object = None,
    ) -> BlockRequest: ...
    def parked(self) -> BlockRequest: ...
    def unpark(self, req: BlockRequest) -> None: ...
    def compound(
        self,
        steps: Iterable[BlockRequest],
        *,
        kind: int = ...,
        wanted: int = 0,
        value: object = None,
        gate: Gate | None = None,
        bs: object = None,
        cb: Callable[[Any, int], object] | None = None,
        opaque: object = None,
        filename: object = None,
        after: Callable[[int], int] | None = None,
    ) -> BlockRequest: ...
    def shorten(self, req: BlockRequest, n: int) -> None: ...
    def flush(self) -> None: ...

def service_of(ctx: AioContext) -> BlockService: ...
def statx_now(fd: int, flags: int, mask: int, out: Any) -> int: ...
def address_of(memory: Any) -> int: ...
def size_of(memory: Any) -> int: ...
