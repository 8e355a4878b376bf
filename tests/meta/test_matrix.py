"""Async tests run on every chosen backend and on stock asyncio as control."""

from __future__ import annotations

import asyncio

import pytest
from support.backends import chosen


@pytest.mark.asyncio
async def test_each_loop_is_what_its_name_says(
    request: pytest.FixtureRequest,
) -> None:
    name = getattr(asyncio.get_running_loop(), "fdmon", None)
    running = "asyncio" if name is None else f"aioqemu-{name}"
    given = request.node.callspec.id
    if not given:  # the plugin shows no name where there is one loop alone
        (fdmon,) = chosen(request.config.getoption("--fdmon"))
        given = f"aioqemu-{fdmon}"
    assert running == given


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_test_may_choose_its_loop() -> None:
    assert not hasattr(asyncio.get_running_loop(), "fdmon")
