from typing_extensions import disjoint_base

from aioqemu._engine.context import AioContext

@disjoint_base
class RingEngine:
    def __init__(self, ctx: AioContext) -> None: ...
    @property
    def private(self) -> bool: ...
