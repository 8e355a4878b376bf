"""CPython's `test_asyncio.test_free_threading` on every kind of loop."""

from __future__ import annotations

from .adapter import adapt

globals().update(adapt("test_free_threading", since=(3, 14)))
