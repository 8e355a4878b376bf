"""Fixtures of the engine tests: what keeps a context busy, what counts, what fails.

A context with the seed's semantics blocks only while some ``io_flush`` says
"busy"; most tests that block therefore ask for ``busy``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.qemu import BHData, Busy, EventData, bh_test_cb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import aioqemu

_HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # An engine that blocks when it must not would cost a minute a test.
    for item in items:
        if (
            item.path.is_relative_to(_HERE)
            and item.get_closest_marker("timeout") is None
        ):
            item.add_marker(pytest.mark.timeout(30))


@pytest.fixture
def busy(ctx: aioqemu.AioContext) -> Iterator[Busy]:
    """A registered notifier that expects events, so that ``poll(True)`` may block."""
    keeper = Busy(ctx)
    yield keeper
    keeper.close()


@pytest.fixture
def event(ctx: aioqemu.AioContext) -> Iterator[Callable[..., EventData]]:
    """A factory of event notifiers (``EventData``), unregistered afterwards."""
    made: list[EventData] = []

    def make(**fields: Any) -> EventData:
        made.append(EventData(**fields))
        return made[-1]

    yield make
    for data in made:
        if not ctx.closed:
            ctx.set_event_notifier(data.e, None, None)
        data.close()


@pytest.fixture
def errors(ctx: aioqemu.AioContext) -> list[dict[str, Any]]:
    """What the context's exception handler was called with."""
    seen: list[dict[str, Any]] = []
    ctx.set_exception_handler(seen.append)
    return seen


@pytest.fixture
def counter(ctx: aioqemu.AioContext) -> Callable[..., BHData]:
    """A factory of counting bottom halves, not scheduled yet."""

    def make(max: int = 0) -> BHData:
        data = BHData(max=max)
        data.bh = ctx.bh_new(bh_test_cb, data)
        return data

    return make
