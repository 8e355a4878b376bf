from typing import final

from aioqemu._engine.fdmon import FdMon

FLAG_NAMES: dict[int, str]

@final
class FdMonUring(FdMon): ...

def unavailable() -> OSError | None: ...
