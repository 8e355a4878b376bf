"""Methods of the compiled classes, called with another object in place of `self`."""

from __future__ import annotations

import importlib
import pkgutil
from importlib.machinery import EXTENSION_SUFFIXES
from typing import TYPE_CHECKING

import pytest

import aioqemu

if TYPE_CHECKING:
    from collections.abc import Iterator


def _methods() -> Iterator[object]:
    for info in pkgutil.walk_packages(aioqemu.__path__, "aioqemu."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        if not str(module.__file__).endswith(tuple(EXTENSION_SUFFIXES)):
            continue
        for cls in vars(module).values():
            if isinstance(cls, type) and cls.__module__ == info.name:
                for name, method in vars(cls).items():
                    if callable(method) and "method" in type(method).__name__:
                        yield pytest.param(method, id=f"{cls.__qualname__}.{name}")


METHODS = list(_methods())


def test_there_are_many() -> None:
    assert len(METHODS) > 150


@pytest.mark.parametrize("method", METHODS)
def test_a_foreign_self_is_a_type_error(method: object) -> None:
    for wrong in (None, 7, object(), "text"):
        with pytest.raises(TypeError):
            method(wrong)  # type: ignore[operator]


@pytest.mark.parametrize(
    "cls",
    [
        cls
        for name in ("transport", "stream", "datagram", "pipe")
        for cls in vars(importlib.import_module(f"aioqemu._loop.{name}")).values()
        if isinstance(cls, type)
        and cls.__name__.endswith("Transport")
        and cls.__module__.startswith("aioqemu")
    ],
)
def test_transports_are_made_by_the_loop(cls: type) -> None:
    made = type("Made", (cls,), {"__init__": lambda _: None})
    for one in (cls, made):
        with pytest.raises(TypeError):
            one()
        with pytest.raises(TypeError):
            one.__new__(one)
