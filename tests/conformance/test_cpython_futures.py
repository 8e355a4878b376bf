"""CPython's `test_asyncio.test_futures` on every kind of loop."""

from __future__ import annotations

from .adapter import adapt

globals().update(adapt("test_futures"))
