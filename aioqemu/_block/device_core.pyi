from collections.abc import Callable, Iterable
from typing import Any

from typing_extensions import disjoint_base

from aioqemu._block.request import BlockRequest, Gate
from aioqemu._block.service import BlockService
from aioqemu._engine.context import AioContext

ENGINE_NAMES: tuple[str, ...]

@disjoint_base
class DeviceCore:
    length: int
    _fd: int
    _closed: bool
    _reads_zeroes: bool
    _hook: Callable[[BlockRequest], object] | None
    def __init__(
        self,
        service: BlockService,
        fd: int,
        *,
        length: int,
        request_alignment: int,
        memory_alignment: int,
        is_block: bool,
        path: object,
        engine: int,
        read_only: bool,
        direct: bool,
        max_in_flight: int,
        strict_alignment: bool,
    ) -> None: ...
    @property
    def path(self) -> Any: ...
    @property
    def request_alignment(self) -> int: ...
    @property
    def memory_alignment(self) -> int: ...
    @property
    def read_only(self) -> bool: ...
    @property
    def direct(self) -> bool: ...
    @property
    def strict_alignment(self) -> bool: ...
    @property
    def _service(self) -> BlockService: ...
    @property
    def _gate(self) -> Gate: ...
    @property
    def _is_block(self) -> bool: ...
    @property
    def _tracks(self) -> bool: ...
    @property
    def _engine(self) -> int: ...
    @property
    def engine(self) -> str: ...
    @property
    def ctx(self) -> AioContext: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    def fileno(self) -> int: ...
    def _problem(
        self, verb: str, offset: int, n: int, *, writes: bool
    ) -> tuple[int, str] | None: ...
    def _refuse(
        self,
        problem: tuple[int, str],
        cb: Callable[[Any, int], object] | None = None,
        opaque: object = None,
    ) -> BlockRequest: ...
    def pread(self, n: int, offset: int) -> BlockRequest: ...
    def pread_into(self, buffer: Any, offset: int) -> BlockRequest: ...
    def preadv(self, buffers: Iterable[Any], offset: int) -> BlockRequest: ...
    def pwrite(self, data: Any, offset: int, fua: bool = False) -> BlockRequest: ...
    def pwritev(
        self, buffers: Iterable[Any], offset: int, fua: bool = False
    ) -> BlockRequest: ...
    def aio_preadv(
        self,
        offset: int,
        iov: Any,
        flags: int = 0,
        cb: Callable[[Any, int], object] | None = None,
        opaque: Any = None,
    ) -> BlockRequest: ...
    def aio_pwritev(
        self,
        offset: int,
        iov: Any,
        flags: int = 0,
        cb: Callable[[Any, int], object] | None = None,
        opaque: Any = None,
    ) -> BlockRequest: ...
    def _read_step(self, buffer: Any, offset: int) -> BlockRequest: ...
    def _write_step(
        self,
        buffers: Any,
        offset: int,
        flags: int = 0,
        kind: int = ...,
        cb: Callable[[Any, int], object] | None = None,
        opaque: Any = None,
        after: Callable[[int], int] | None = None,
        gated: bool = False,
    ) -> BlockRequest: ...
