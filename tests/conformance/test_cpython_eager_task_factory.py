"""CPython's `test_asyncio.test_eager_task_factory` on every kind of loop."""

from __future__ import annotations

from .adapter import adapt

globals().update(adapt("test_eager_task_factory", since=(3, 12)))
