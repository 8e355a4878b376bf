from typing_extensions import disjoint_base

from aioqemu._engine.context import AioContext

@disjoint_base
class ThreadPool:
    def __init__(self, ctx: AioContext, max_threads: int = 64) -> None: ...
    @property
    def threads(self) -> int: ...
    @property
    def max_threads(self) -> int: ...
