"""Fault rules that make no sense: refused when made, or the request fails."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from aioqemu import block
from aioqemu.block import Fault

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "wrong",
    [
        {"delay": float("nan")},
        {"delay": float("inf")},
        {"delay": -1.0},
        {"delay": 1e12},
        {"error": 10**12},
        {"error": -5},
        {"short": -1},
        {"after": -1},
    ],
    ids=str,
)
def test_rules_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        Fault(**wrong)


@pytest.mark.parametrize("answer", [5, 0, -5000, 10**20, float("nan"), "soon"], ids=str)
def test_a_rule_that_answers_nonsense_fails_the_request(
    answer: Any, run: Any, image: Path
) -> None:
    told: list[dict[str, Any]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(context))
        async with block.open(image) as blk:
            before = blk._service.swap_hook(lambda _: answer)
            request = blk.pread(8, 8)
            blk._service.swap_hook(before)
            with pytest.raises(OSError, match="Input/output"):
                await request
            assert blk.in_flight == 0
            assert await blk.pread(8, 8) == (1).to_bytes(8, "big")

    run(main())
    assert [context["message"] for context in told] == ["Exception in a fault rule"]


def test_a_rule_that_went_bad_may_be_cancelled(run: Any, image: Path) -> None:
    rule = Fault("read", delay=1.0)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: None)
        async with block.faults(block.open(image), [rule]) as blk:
            rule.delay = float("nan")
            request = blk.pread(8, 8)
            request.cancel()
            with pytest.raises((OSError, asyncio.CancelledError)):
                await request
            assert blk.in_flight == 0

    run(main())
