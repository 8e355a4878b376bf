"""This module's loop is chosen by asyncio.Runner(loop_factory=...)."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING

import aioqemu

from .programs import EXPECTED, program

if TYPE_CHECKING:
    import pytest


def test_a_runner_runs_the_program(fdmon: str) -> None:
    factory = functools.partial(aioqemu.new_event_loop, fdmon=fdmon)
    with asyncio.Runner(loop_factory=factory) as runner:
        assert runner.run(program()) == EXPECTED
        assert runner.run(program()) == EXPECTED
        assert runner.get_loop().fdmon == fdmon  # type: ignore[attr-defined]


def test_the_functions_and_the_class_are_factories(
    fdmon: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOQEMU_FDMON", fdmon)
    for factory in (aioqemu.new_event_loop, aioqemu.EventLoop, aioqemu.Loop):
        with asyncio.Runner(loop_factory=factory, debug=True) as runner:
            loop = runner.get_loop()
            assert isinstance(loop, aioqemu.EventLoop)
            assert loop.fdmon == fdmon
            assert runner.run(asyncio.sleep(0, loop.get_debug())) is True


def test_a_runner_closes_its_loop(fdmon: str) -> None:
    factory = functools.partial(aioqemu.new_event_loop, fdmon=fdmon)
    with asyncio.Runner(loop_factory=factory) as runner:
        loop = runner.get_loop()
    assert loop.is_closed()
