"""The layer rule, read off the import lines of the source tree."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support import layers

if TYPE_CHECKING:
    from pathlib import Path


def test_the_source_tree_is_found() -> None:
    found = {path.relative_to(layers.SOURCE).parts[0] for path in layers.files()}
    assert {"_sys", "_engine", "_loop"} <= found


def test_imports_point_down_only() -> None:
    assert layers.layer_violations() == []


def test_engine_and_block_know_no_asyncio_socket_or_logging() -> None:
    assert layers.forbidden_violations() == []


def test_there_is_no_textual_include() -> None:
    assert layers.include_violations() == []


def test_async_def_is_in_py_only() -> None:
    assert layers.async_violations() == []


@pytest.mark.parametrize(
    "text, names",
    [
        ("import os, sys as s", ["os", "sys"]),
        ("cimport cython", ["cython"]),
        ("from aioqemu._sys cimport libc", ["aioqemu._sys.libc"]),
        ("from . import lists", ["aioqemu._engine.lists"]),
        ("from .lists cimport (\n    a,\n    b as c,\n)", None),
        ("from .. import EventLoop  # up", ["aioqemu.EventLoop"]),
        (
            "    from aioqemu._loop.core import LoopCore",
            ["aioqemu._loop.core.LoopCore"],
        ),
        ('"""\nimport asyncio\n"""', []),
        ("x = 'import asyncio'", []),
    ],
)
def test_the_reader_reads_what_it_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, names: list[str] | None
) -> None:
    source = tmp_path / "aioqemu" / "_engine" / "module.pyx"
    source.parent.mkdir(parents=True)
    source.write_text(text, encoding="utf-8")
    monkeypatch.setattr(layers, "SOURCE", tmp_path / "aioqemu")
    if names is None:
        names = ["aioqemu._engine.lists.a", "aioqemu._engine.lists.b"]
    found = [name for line in layers.lines(source) for name in layers.imported(line)]
    assert found == names


@pytest.mark.parametrize(
    "where, text, check",
    [
        ("_engine/a.pyx", "from aioqemu._loop cimport core", layers.layer_violations),
        ("_engine/a.py", "from .. import run", layers.layer_violations),
        ("_engine/a.pyx", "import asyncio.events", layers.forbidden_violations),
        ("_block/a.pyx", "from socket import socket", layers.forbidden_violations),
        ("_engine/a.pyx", "include 'b.pxi'", layers.include_violations),
        ("_loop/a.pyx", "async def f(): pass", layers.async_violations),
    ],
)
def test_a_breach_is_found(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    text: str,
    check: object,
) -> None:
    source = tmp_path / "aioqemu" / where
    source.parent.mkdir(parents=True)
    source.write_text(text, encoding="utf-8")
    monkeypatch.setattr(layers, "SOURCE", tmp_path / "aioqemu")
    assert callable(check)
    assert len(check()) == 1
