from typing_extensions import disjoint_base

from aioqemu._engine.context import AioContext

def unavailable() -> OSError | None: ...

@disjoint_base
class LinuxAio:
    def __init__(self, ctx: AioContext) -> None: ...
