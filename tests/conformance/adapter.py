"""Turns test classes of `test.test_asyncio` into classes that run on a given loop.

For each class of a CPython test file and each kind of loop one subclass is made,
which asks the kind for its loops and leaves the tests as they are. What is left
out, and why, is said in exclusions.py. Nothing here knows how our loop works.
"""

from __future__ import annotations

import importlib
import unittest
from typing import TYPE_CHECKING, Any

import pytest

from .exclusions import excluded
from .kinds import KINDS, VERSION, Kind

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator
    from types import ModuleType

PACKAGE = "test.test_asyncio"


def load(file: str) -> ModuleType:
    """Import a test file of CPython; raises where the interpreter lacks it."""
    return importlib.import_module(f"{PACKAGE}.{file}")


def classes_in(module: ModuleType) -> Iterator[type[unittest.TestCase]]:
    """The concrete test classes that a CPython test file defines."""
    for value in vars(module).values():
        if (
            isinstance(value, type)
            and issubclass(value, unittest.TestCase)
            and value.__module__ == module.__name__
            and unittest.TestLoader().getTestCaseNames(value)
        ):
            yield value


def owner(cls: type, test: str) -> type:
    """The class in whose body ``test`` is written."""
    return next(base for base in cls.__mro__ if test in vars(base))


def adapt(
    file: str, *, since: tuple[int, int] = (3, 11), **extra: Callable[..., Any]
) -> dict[str, type[unittest.TestCase]]:
    """Make the classes of one CPython test file for every kind of loop.

    Args:
        file: Module in `test.test_asyncio`, such as ``test_events``.
        since: First Python version that has the file.
        **extra: Methods that replace those of a class, by ``Class__method``; they
            get the test case and its kind.

    Returns:
        The new classes by name, to be put into a module for pytest to find.

    Raises:
        ModuleNotFoundError: The interpreter came without its asyncio tests.
    """
    if since > VERSION:
        return {}
    module = load(file)
    made = {}
    for cls in classes_in(module):
        for kind in KINDS:
            names = unittest.TestLoader().getTestCaseNames(cls)
            out = {n for n in names if excluded(file, cls, n, kind.is_control)}
            if len(out) == len(names):
                continue
            new = _on_kind(cls, kind, out, extra)
            made[new.__name__] = new
    return made


def _on_kind(
    cls: type[unittest.TestCase],
    kind: Kind,
    out: set[str],
    extra: dict[str, Callable[..., Any]],
) -> type[unittest.TestCase]:
    """The subclass of ``cls`` that runs on ``kind``, without the tests ``out``."""
    body: dict[str, Any] = dict.fromkeys(out)  # None: not a test any more
    body["__module__"] = __name__
    body["kind"] = kind

    def run(self: Any, result: Any = None) -> Any:
        with kind.installed():
            return super(new, self).run(result)

    def make_loop(self: Any) -> asyncio.AbstractEventLoop:
        return kind.new_loop()

    def new_test_loop(self: Any, gen: object = None) -> asyncio.AbstractEventLoop:
        # The original gives a loop with a fake clock and no fds.
        loop = kind.new_loop()
        self.set_event_loop(loop)
        return loop

    body["run"] = run
    loops = {
        "create_event_loop": make_loop,
        "new_loop": make_loop,
        "new_test_loop": new_test_loop,
    }
    body.update((name, loops[name]) for name in loops if hasattr(cls, name))
    if issubclass(cls, unittest.IsolatedAsyncioTestCase):
        body["loop_factory"] = staticmethod(kind.new_loop)
    names = {base.__name__ for base in cls.__mro__}
    for key, function in extra.items():
        target, _, name = key.partition("__")
        if target in names:
            body[name] = _bound(function, kind)
    new = type(f"{cls.__name__}_{kind.name}", (cls,), body)
    pytest.mark.filterwarnings("default")(new)
    return new


def _bound(function: Callable[..., Any], kind: Kind) -> Callable[..., Any]:
    def method(self: Any, *args: Any) -> Any:
        return function(self, kind, *args)

    return method
