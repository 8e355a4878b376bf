"""CPython's `test_asyncio.test_server_context` on every kind of loop."""

from __future__ import annotations

from .adapter import adapt

globals().update(adapt("test_server_context", since=(3, 15)))
