"""CPython's `test_asyncio.test_base_events` on every kind of loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .adapter import adapt, load

if TYPE_CHECKING:
    from .kinds import Kind


def _set_up(case: Any, kind: Kind) -> None:
    """Give the case a real loop instead of an abstract base with a mocked selector."""
    load("utils").TestCase.setUp(case)
    case.loop = kind.new_loop()
    case.set_event_loop(case.loop)


globals().update(adapt("test_base_events", BaseEventLoopTests__setUp=_set_up))
