"""This module's loop is chosen by asyncio.set_event_loop_policy.

Policies are deprecated in Python 3.14; what they promise holds as long as they
are there.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import TYPE_CHECKING

import pytest

import aioqemu

from .programs import EXPECTED, program

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*[Pp]olicy.*:DeprecationWarning"),
    pytest.mark.skipif(sys.version_info >= (3, 16), reason="policies are gone"),
]


@pytest.fixture(autouse=True)
def _policy(fdmon: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("AIOQEMU_FDMON", fdmon)
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(aioqemu.EventLoopPolicy())
    yield
    asyncio.set_event_loop_policy(before)


def test_asyncio_run_runs_the_program(fdmon: str) -> None:
    async def main() -> str:
        assert await program() == EXPECTED
        return asyncio.get_running_loop().fdmon  # type: ignore[attr-defined, no-any-return]

    assert asyncio.run(main()) == fdmon


def test_new_event_loop_is_ours() -> None:
    loop = asyncio.new_event_loop()
    try:
        assert isinstance(loop, aioqemu.EventLoop)
        assert loop.run_until_complete(program()) == EXPECTED
    finally:
        loop.close()


def test_set_and_get_event_loop() -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        assert asyncio.get_event_loop() is loop
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def test_another_thread_has_no_loop_of_its_own() -> None:
    caught: list[BaseException] = []

    def look() -> None:
        try:
            asyncio.get_event_loop_policy().get_event_loop()
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert "There is no current event loop" in str(caught[0])


def test_the_policy_is_asyncios() -> None:
    policy = asyncio.get_event_loop_policy()
    assert isinstance(policy, aioqemu.EventLoopPolicy)
    assert isinstance(policy, asyncio.AbstractEventLoopPolicy)
