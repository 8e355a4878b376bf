"""CPython's `test_asyncio.test_streams` on the streams of `aioqemu.streams`.

The tests name the classes and functions as attributes of asyncio: for the length of a
test ours stand there. They run on every kind of loop, the stock one included.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from unittest import mock

from aioqemu import streams

from .adapter import adapt

if TYPE_CHECKING:
    import unittest

# What cannot hold, each with the reason.
EXCLUDED: dict[str, str] = {}


def _on_native_streams(cls: type[unittest.TestCase]) -> type[unittest.TestCase]:
    ours = {name: getattr(streams, name) for name in streams.__all__}

    def run(self: Any, result: Any = None) -> Any:
        with mock.patch.multiple(asyncio, **ours):
            return super(new, self).run(result)

    body: dict[str, Any] = dict.fromkeys(EXCLUDED)
    body["run"] = run
    body["__module__"] = __name__
    new = type(f"{cls.__name__}_native", (cls,), body)
    return new


globals().update(
    (f"{name}_native", _on_native_streams(cls))
    for name, cls in adapt("test_streams").items()
)
