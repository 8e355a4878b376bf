"""CPython's `test_asyncio.test_tasks` on every kind of loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .adapter import adapt, load

if TYPE_CHECKING:
    from .kinds import Kind

_ROUNDS = 5  # more than any of these tests takes to come to rest


def _run_loop(case: Any, kind: Kind, loop: Any) -> None:
    """Let the loop come to rest, without a look into its ready queue."""
    for _ in range(_ROUNDS):
        load("utils").run_briefly(loop)


globals().update(adapt("test_tasks", GatherTestsBase___run_loop=_run_loop))
