import socket
import ssl
from typing import Any

from typing_extensions import disjoint_base

from ._typing import LoopBase, ProtocolFactory

@disjoint_base
class Listener:
    def __init__(
        self,
        loop: LoopBase,
        factory: ProtocolFactory,
        sock: socket.socket,
        tls: ssl.SSLContext | None,
        server: Any,
        backlog: int,
        tls_timeouts: tuple[float | None, float | None],
    ) -> None: ...
    def stop(self) -> None: ...
