from collections.abc import Callable, Iterable
from enum import IntFlag
from typing import Any, Self

from typing_extensions import disjoint_base

from aioqemu._block.engines import Engines
from aioqemu._block.request import BlockPool, BlockRequest, Gate
from aioqemu._engine.context import AioContext

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
    MAP = 13

@disjoint_base
class BlockService(Engines):
    read_now_bytes: int
    def __new__(cls, ctx: AioContext) -> Self: ...
    @property
    def requests(self) -> BlockPool: ...
    def swap_hook(
        self, hook: Callable[[BlockRequest], object] | None
    ) -> Callable[[BlockRequest], object] | None: ...
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
        align: int = 1,
        mem_align: int = 1,
        after: Callable[[int], int] | None = None,
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
        hook: Callable[[BlockRequest], object] | None = None,
    ) -> BlockRequest: ...

def service_of(ctx: AioContext) -> BlockService: ...
