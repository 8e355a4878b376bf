"""CPython's `test_asyncio.test_runners` on every kind of loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .adapter import adapt

if TYPE_CHECKING:
    from .kinds import Kind


def _new_loop(case: Any, kind: Kind) -> Any:
    """A real loop that notes what the file's own one, of mocks, notes."""
    loop: Any = kind.new_loop()
    loop.shutdown_ag_run = False
    real = loop.shutdown_asyncgens

    async def shutdown_asyncgens() -> None:
        loop.shutdown_ag_run = True
        await real()

    loop.shutdown_asyncgens = shutdown_asyncgens
    return loop


globals().update(adapt("test_runners", BaseTest__new_loop=_new_loop))
