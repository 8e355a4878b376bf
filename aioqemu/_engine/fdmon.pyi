from typing_extensions import disjoint_base

@disjoint_base
class FdMon:
    def __init__(self, *args: object, **kwargs: object) -> None: ...
    @property
    def name(self) -> str: ...
