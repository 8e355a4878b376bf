"""Async tests run on every chosen backend and on stock asyncio as control."""

from __future__ import annotations

import asyncio

import pytest


@pytest.mark.asyncio
async def test_each_loop_is_what_its_name_says(
    request: pytest.FixtureRequest,
) -> None:
    name = getattr(asyncio.get_running_loop(), "fdmon", None)
    expected = "asyncio" if name is None else f"aioqemu-{name}"
    assert request.node.name.endswith(f"[{expected}]")
    await asyncio.sleep(0)


@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_a_test_may_choose_its_loop() -> None:
    assert not hasattr(asyncio.get_running_loop(), "fdmon")
