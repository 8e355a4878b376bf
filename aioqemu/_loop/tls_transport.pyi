import asyncio
import ssl
from typing import Any

from typing_extensions import disjoint_base

from .core import LoopCore

@disjoint_base
class SSLTransport(asyncio.Transport):
    def __init__(self, *args: object, **kwargs: object) -> None: ...
    def get_read_buffer_size(self) -> int: ...
    def get_read_buffer_limits(self) -> tuple[int, int]: ...
    def set_read_buffer_limits(
        self, high: int | None = None, low: int | None = None
    ) -> None: ...

def make_tls(
    loop: LoopCore,
    protocol: Any,
    sslcontext: ssl.SSLContext | None,
    waiter: asyncio.Future[Any] | None,
    *,
    server_side: bool,
    server_hostname: str | None,
    ssl_handshake_timeout: float | None,
    ssl_shutdown_timeout: float | None,
    call_connection_made: bool = True,
) -> Any: ...
