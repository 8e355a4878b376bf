"""The loops under test: stock asyncio as control, and ours once a backend.

A kind makes loops, and for the length of one test it can put itself where code
that asks asyncio for "a new loop" will find it. It must never know which tests
run on it.
"""

from __future__ import annotations

import asyncio
import asyncio.unix_events
import contextlib
import importlib
import logging
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest import mock

from support.backends import FDMONS

import aioqemu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# The class that policies are made from; asyncio without policies has none.
_POLICY: Any = getattr(asyncio.unix_events, "_UnixDefaultEventLoopPolicy", None)


@dataclass(frozen=True)
class Kind:
    """One loop implementation on one backend.

    Attributes:
        name: Word for the test's id, such as ``asyncio`` or ``epoll``.
        fdmon: Backend of our loop, or None for the stock loop.
    """

    name: str
    fdmon: str | None = None

    @property
    def is_control(self) -> bool:
        """Whether this is the stock loop."""
        return self.fdmon is None

    def new_loop(self) -> asyncio.AbstractEventLoop:
        """Make a loop of this kind.

        Raises:
            aioqemu.BackendUnavailable: The kernel refuses the backend.
        """
        if self.fdmon is None:
            return asyncio.SelectorEventLoop()
        return aioqemu.new_event_loop(fdmon=self.fdmon)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Let asyncio's own ways to a new loop lead to this kind.

        Those ways are ``asyncio.new_event_loop``, ``run``, ``Runner``, the default
        policy, and the loop classes called by name. The control changes nothing.
        """
        if self.is_control:
            yield
            return
        name = _loop_name(self)
        with contextlib.ExitStack() as stack:
            for module, attr in _redirects():
                proxy = _Redirect(getattr(module, attr), attr)
                stack.enter_context(mock.patch.object(module, attr, proxy))
            for attr in ("SelectorEventLoop", "EventLoop"):
                if hasattr(asyncio, attr):
                    stack.enter_context(mock.patch.object(asyncio, attr, name))
            # CPython's tests ask what `call_soon_threadsafe` gives by a private name.
            if hasattr(asyncio.events, "_ThreadSafeHandle"):
                stack.enter_context(
                    mock.patch.object(
                        asyncio.events, "_ThreadSafeHandle", asyncio.Handle
                    )
                )
            if _POLICY is not None:
                stack.enter_context(
                    mock.patch.object(_POLICY, "_loop_factory", staticmethod(name))
                )
            else:
                for module in (asyncio, asyncio.events):
                    stack.enter_context(
                        mock.patch.object(module, "new_event_loop", self.new_loop)
                    )
            yield


class _Redirect:
    """A module or logger under a name, or the mock that a test put in its place.

    CPython's tests put mocks where the stock loop looks; through this ours sees
    them too.
    """

    def __init__(self, real: object, name: str) -> None:
        self.__dict__["_where"] = (real, name)

    def __getattr__(self, attr: str) -> Any:
        real, name = self._where
        if attr.startswith(
            "_"
        ):  # nothing that a test means: debug mode looks at frames
            return getattr(real, attr)
        for home in (asyncio.base_events, asyncio.unix_events):
            if (found := getattr(home, name, real)) is not real:
                return getattr(found, attr)
        return getattr(real, attr)


def _redirects() -> Iterator[tuple[ModuleType, str]]:
    """Names in our Python modules that CPython's tests mock in asyncio's."""
    importlib.import_module("aioqemu._loop.loop")  # on first use, and here it is due
    for full, module in list(sys.modules.items()):
        if full.startswith("aioqemu._loop.") and full != "aioqemu._loop.private":
            for attr in ("logger", "os", "signal", "socket", "sys"):
                if isinstance(vars(module).get(attr), ModuleType | logging.Logger):
                    yield module, attr


def _loop_name(kind: Kind) -> type:
    """A stand-in for a loop class of asyncio that makes loops of ``kind``."""

    class LoopName(type):
        def __call__(cls, selector: object = None) -> Any:
            return kind.new_loop()

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, aioqemu.EventLoop)

    return LoopName("SelectorEventLoop", (), {})


CONTROL = Kind("asyncio")
KINDS = (CONTROL, *(Kind(name, name) for name in FDMONS))


def reset_policy() -> None:
    """Forget the event loop policy that a test left behind."""
    reset: Callable[[None], None] | None = getattr(
        asyncio.events,
        "_set_event_loop_policy",
        getattr(asyncio.events, "set_event_loop_policy", None),
    )
    if reset is not None:
        reset(None)


VERSION = sys.version_info[:2]
