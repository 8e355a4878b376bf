from collections.abc import Callable
from typing import Any

from typing_extensions import disjoint_base

@disjoint_base
class Service: ...

@disjoint_base
class AioCore:
    @property
    def closed(self) -> bool: ...
    def set_exception_handler(
        self, handler: Callable[[dict[str, Any]], object] | None
    ) -> None: ...
    def notify(self) -> None: ...
