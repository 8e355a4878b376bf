import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any, TypeVar, final

from typing_extensions import disjoint_base

from ._typing import LoopBase

_T = TypeVar("_T")

def end_all() -> None: ...

@final
class WorkItem: ...

@disjoint_base
class WorkerPool:
    limit: int
    @property
    def threads(self) -> set[threading.Thread]: ...
    def call(
        self, loop: LoopBase, func: Callable[..., _T], args: tuple[Any, ...]
    ) -> asyncio.Future[_T]: ...
    def submit(
        self,
        future: concurrent.futures.Future[Any],
        func: Callable[..., object],
        args: tuple[Any, ...],
    ) -> None: ...
    def drain(
        self,
    ) -> list[tuple[asyncio.Future[Any] | concurrent.futures.Future[Any], Any]]: ...
    def end(self) -> None: ...
    def qsize(self) -> int: ...
    def empty(self) -> bool: ...
