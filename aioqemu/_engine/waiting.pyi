from typing_extensions import disjoint_base

from aioqemu._engine.core import AioCore

@disjoint_base
class AioWaiting(AioCore): ...
