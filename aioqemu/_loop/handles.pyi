import asyncio
from typing import NoReturn

from typing_extensions import disjoint_base

@disjoint_base
class Handle(asyncio.Handle):
    def __init__(self) -> NoReturn: ...

@disjoint_base
class TimerHandle(asyncio.TimerHandle):
    def __init__(self) -> NoReturn: ...
