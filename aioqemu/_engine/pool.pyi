from typing import final

@final
class ReceivePool:
    @property
    def buffers(self) -> int: ...
