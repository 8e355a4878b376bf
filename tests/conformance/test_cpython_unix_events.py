"""CPython's `test_asyncio.test_unix_events` on every kind of loop."""

from __future__ import annotations

from .adapter import adapt

globals().update(adapt("test_unix_events"))
