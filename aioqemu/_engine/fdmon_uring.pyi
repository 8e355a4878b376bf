from typing import final

from aioqemu._engine.fdmon import FdMon

@final
class FdMonUring(FdMon): ...

def unavailable() -> OSError | None: ...
