"""Rules of loop.stats(): always there, growing, and honest about waits."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.pipes import Pipe


def test_stats_is_a_plain_dict(loop: Any) -> None:
    stats = loop.stats()
    assert type(stats) is dict
    assert all(type(key) is str for key in stats)
    json.dumps(stats)


def test_stats_name_the_backend_and_the_reason(loop: Any, fdmon: str) -> None:
    stats = loop.stats()
    assert loop.fdmon == fdmon
    assert fdmon in stats.values()


def test_passes_and_callbacks_are_counted(loop: Any) -> None:
    before = loop.stats()
    for _ in range(10):
        loop.call_soon(lambda: None)
    loop.run_until_complete(asyncio.sleep(0))
    after = loop.stats()
    assert after["passes"] > before["passes"]
    assert after["callbacks"] - before["callbacks"] >= 10


def test_a_wait_releases_the_gil_once(loop: Any) -> None:
    loop.run_until_complete(asyncio.sleep(0))
    before = loop.stats()
    loop.run_until_complete(asyncio.sleep(0.02))
    after = loop.stats()
    assert 1 <= after["gil_releases"] - before["gil_releases"] <= 3


def test_ready_work_alone_never_blocks(loop: Any) -> None:
    async def spin() -> None:
        for _ in range(1000):
            await asyncio.sleep(0)

    loop.set_debug(False)  # a slow pass may look more often
    loop.run_until_complete(asyncio.sleep(0))
    before = loop.stats()
    loop.run_until_complete(spin())
    after = loop.stats()
    assert after["gil_releases"] == before["gil_releases"]
    # The kernel is looked at now and then, and not once a pass.
    assert after["waits"] - before["waits"] < 500
    assert after["passes"] - before["passes"] >= 1000


def test_fd_events_are_counted(loop: Any, make_pipe: Callable[[], Pipe]) -> None:
    pipe = make_pipe()
    before = loop.stats()["fd_events"]
    loop.add_reader(pipe.r, pipe.drain)
    for _ in range(5):
        pipe.feed()
        loop.run_until_complete(asyncio.sleep(0.002))
    loop.remove_reader(pipe.r)
    assert loop.stats()["fd_events"] - before >= 5


def test_stats_can_be_read_at_any_time(loop: Any) -> None:
    seen: list[dict[str, Any]] = []
    loop.call_soon(lambda: seen.append(loop.stats()))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert set(loop.stats()) == set(seen[0])
