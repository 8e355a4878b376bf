"""What is installed is what the source tree has: no file forgotten, none shadowed."""

from __future__ import annotations

import importlib.util
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "aioqemu"
INSTALLED_AS_THEY_ARE = {".py", ".pyi", ".pxd", ".h"}


def installed_package() -> Path:
    spec = importlib.util.find_spec("aioqemu")
    assert spec is not None
    assert spec.origin is not None, "a folder without __init__.py shadows the package"
    return Path(spec.origin).parent


def source_files() -> list[Path]:
    files = [path for path in SOURCES.rglob("*") if "__pycache__" not in path.parts]
    return sorted(path.relative_to(SOURCES) for path in files if path.is_file())


def test_tests_see_the_installed_package() -> None:
    assert installed_package() != SOURCES


def test_every_source_file_is_installed() -> None:
    package = installed_package()
    wanted = [
        path
        for path in source_files()
        if path.suffix in INSTALLED_AS_THEY_ARE or path.name == "py.typed"
    ]
    assert wanted
    missing = [str(path) for path in wanted if not (package / path).is_file()]
    stale = [
        str(path)
        for path in wanted
        if str(path) not in missing
        and (package / path).read_bytes() != (SOURCES / path).read_bytes()
    ]
    assert not missing
    assert not stale, "installed from other sources: run dev.py build"


def test_every_pyx_is_an_extension_module() -> None:
    package = installed_package()
    missing = [
        str(path)
        for path in source_files()
        if path.suffix == ".pyx"
        and not (package / path.with_suffix(EXTENSION_SUFFIXES[0])).is_file()
    ]
    assert not missing, "a package with .pyx files needs a meson.build like _engine's"


def test_nothing_is_installed_that_the_tree_does_not_have() -> None:
    package = installed_package()
    left_over = []
    for path in package.rglob("*"):
        if not path.is_file() or "__pycache__" in path.parts:
            continue
        relative = path.relative_to(package)
        source = SOURCES / relative
        if path.name.endswith(EXTENSION_SUFFIXES[0]):
            source = SOURCES / relative.with_name(path.name.split(".")[0] + ".pyx")
        if not source.is_file():
            left_over.append(str(relative))
    assert not left_over


@pytest.mark.parametrize("name", ["README.md", "LICENSE", "meson.build"])
def test_nothing_but_the_package_is_installed(name: str) -> None:
    assert not (installed_package().parent / name).exists()
