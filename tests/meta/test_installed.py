"""The tests judge the installed package, not the source tree by accident."""

from __future__ import annotations

from pathlib import Path

from support.layers import SOURCE

import aioqemu


def test_the_installed_package_is_under_test() -> None:
    where = Path(aioqemu.__file__).resolve()
    assert not where.is_relative_to(SOURCE), where
