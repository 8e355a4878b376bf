"""Async generators: which ones a loop knows, and what it does with them."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from .helpers import eventually, is_ours

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

MANY = 5_000


async def numbers(ended: list[str]) -> AsyncGenerator[int, None]:
    """Count for ever; tell of the end, after a step."""
    try:
        number = 0
        while True:
            yield number
            number += 1
    finally:
        await asyncio.sleep(0)
        ended.append("closed")


async def one() -> AsyncGenerator[int, None]:
    """Give one number."""
    yield 1


def test_those_left_are_closed_and_only_those(any_loop: Any) -> None:
    ended: list[str] = []
    kept: list[Any] = []

    async def main() -> None:
        for turn in range(MANY):
            async for _ in one():
                pass
            if turn % 100 == 0:
                kept.append(numbers(ended))
                await anext(kept[-1])

    any_loop.run_until_complete(main())
    any_loop.run_until_complete(any_loop.shutdown_asyncgens())
    assert ended == ["closed"] * (MANY // 100)


def test_what_is_kept_of_the_dead_is_bounded(loop: Any) -> None:
    if not is_ours(loop):
        pytest.skip("the stock loop keeps none")

    async def main() -> None:
        for _ in range(MANY):
            agens = [one() for _ in range(10)]
            for agen in agens:
                await anext(agen)
            for agen in agens:
                await agen.aclose()

    loop.run_until_complete(main())
    assert len(loop._asyncgens) < 3_000


def test_a_dropped_one_is_closed_by_the_loop(any_loop: Any) -> None:
    ended: list[str] = []

    async def main() -> None:
        agens = [numbers(ended) for _ in range(3)]
        for agen in agens:
            await anext(agen)
        del agens, agen
        gc.collect()
        for _ in range(5):
            await asyncio.sleep(0)
        assert ended == ["closed"] * 3

    any_loop.run_until_complete(main())
    any_loop.run_until_complete(any_loop.shutdown_asyncgens())
    assert ended == ["closed"] * 3


def test_one_that_is_being_closed_is_not_closed_twice(any_loop: Any) -> None:
    reports: list[dict[str, Any]] = []
    ended: list[str] = []
    any_loop.set_exception_handler(lambda _loop, context: reports.append(context))

    async def main() -> None:
        agen = numbers(ended)
        await anext(agen)
        del agen
        gc.collect()  # its aclose() is a task that has not begun
        await any_loop.shutdown_asyncgens()

    any_loop.run_until_complete(main())
    for _ in range(5):
        any_loop.run_until_complete(asyncio.sleep(0))
    assert ended == ["closed"]
    assert reports == []


def test_errors_of_closing_are_reported(any_loop: Any) -> None:
    reports: list[dict[str, Any]] = []
    any_loop.set_exception_handler(lambda _loop, context: reports.append(context))

    async def stubborn() -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            raise LookupError("on purpose")

    agen = stubborn()

    async def main() -> None:
        await anext(agen)
        await any_loop.shutdown_asyncgens()

    any_loop.run_until_complete(main())
    [report] = reports
    assert isinstance(report["exception"], LookupError)
    assert report["asyncgen"] is agen


def test_the_hooks_of_others_stay(any_loop: Any) -> None:
    seen: list[Any] = []

    async def main() -> None:
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=seen.append)
        agen = one()
        await anext(agen)
        await any_loop.shutdown_asyncgens()
        other = one()
        await anext(other)
        assert seen == [agen, other]
        sys.set_asyncgen_hooks(*hooks)
        await agen.aclose()
        await other.aclose()

    before = sys.get_asyncgen_hooks()
    any_loop.run_until_complete(main())
    assert sys.get_asyncgen_hooks() == before


def test_a_later_run_warns_as_well(any_loop: Any) -> None:
    any_loop.run_until_complete(any_loop.shutdown_asyncgens())

    async def main() -> None:
        agen = one()
        with pytest.warns(ResourceWarning, match="was scheduled after"):
            await anext(agen)
        await agen.aclose()

    any_loop.run_until_complete(main())


def test_one_may_be_dropped_in_another_thread(any_loop: Any) -> None:
    ended: list[str] = []

    async def main() -> None:
        agens = [numbers(ended)]
        await anext(agens[0])
        thread = threading.Thread(target=agens.clear)
        thread.start()
        thread.join()
        await eventually(lambda: ended)

    any_loop.run_until_complete(main())
