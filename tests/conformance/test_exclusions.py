"""The table of exclusions tells the truth: names exist, and no file is forgotten."""

from __future__ import annotations

import importlib
import pkgutil
import unittest
from pathlib import Path

import pytest

from .adapter import PACKAGE, classes_in, load
from .exclusions import EXCLUSIONS, Exclusion, excluded

# CPython's files use what is deprecated, some of it as they are imported.
pytestmark = pytest.mark.filterwarnings("default")

FILES = sorted(
    info.name
    for info in pkgutil.iter_modules(importlib.import_module(PACKAGE).__path__)
    if info.name.startswith("test_") and "windows" not in info.name
)
CURRENT = [entry for entry in EXCLUSIONS if entry.current]


def _resolves(name: str) -> bool:
    file, *rest = name.split(".")
    if "windows" in file:  # its import skips itself anywhere else
        return True
    found: object = load(file)
    for part in rest:
        found = getattr(found, part, None)
    return found is not None


@pytest.mark.parametrize("entry", CURRENT, ids=lambda e: e.tests[0])
def test_every_exclusion_names_tests_that_exist(entry: Exclusion) -> None:
    assert [name for name in entry.tests if not _resolves(name)] == []


def test_every_exclusion_has_its_reason() -> None:
    assert all(len(entry.reason.split()) >= 4 for entry in EXCLUSIONS)


def test_no_test_is_excluded_twice() -> None:
    names = [name for entry in CURRENT for name in entry.tests]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("file", FILES)
def test_every_file_of_cpython_is_run_or_excluded(file: str) -> None:
    left = [
        f"{cls.__name__}.{test}"
        for cls in classes_in(load(file))
        for test in unittest.TestLoader().getTestCaseNames(cls)
        if excluded(file, cls, test, control=False) is None
    ]
    ours = Path(__file__).with_name(file.replace("test_", "test_cpython_", 1) + ".py")
    assert ours.exists() == bool(left)
