"""This module's loop is chosen by aioqemu.run."""

from __future__ import annotations

import pytest

import aioqemu

from .programs import EXPECTED, program


def test_run_runs_the_program(fdmon: str) -> None:
    assert aioqemu.run(program(), fdmon=fdmon) == EXPECTED


def test_run_obeys_the_environment(fdmon: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOQEMU_FDMON", fdmon)
    for _ in range(3):
        assert aioqemu.run(program(), debug=True) == EXPECTED


def test_run_raises_what_the_program_raises(fdmon: str) -> None:
    async def failing() -> None:
        await program()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        aioqemu.run(failing(), fdmon=fdmon)
