from typing import final

@final
class BusySet: ...
