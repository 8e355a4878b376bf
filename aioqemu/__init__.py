"""aioqemu: an asyncio event loop whose engine is an AioContext, as in QEMU.

Run a program with ``aioqemu.run(main())``, or hand ``aioqemu.new_event_loop`` to
whatever takes a loop factory. Public names only, each imported when it is first asked
for: importing the package costs next to nothing, warns about nothing, and loads no
native module (the pytest plugin relies on that).
"""

from __future__ import annotations

import sys

# Type checkers know the name. asyncio does without `typing` since Python 3.14, and its
# import takes longer than ours.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from ._engine.handlers import BottomHalf
    from ._engine.notifier import EventNotifier
    from ._loop.aiocontext import AioContext
    from ._loop.loop import EventLoop
    from ._runner import new_event_loop, run
    from .errors import BackendUnavailable
    from .params import LoopParams

    Loop = EventLoop
    __version__: str

    if sys.version_info < (3, 16):
        from .policy import EventLoopPolicy, install

__all__ = [
    "AioContext",
    "BackendUnavailable",
    "BottomHalf",
    "EventLoop",
    "EventNotifier",
    "Loop",
    "LoopParams",
    "__version__",
    "new_event_loop",
    "run",
]

# Where each public name lives.
_HOMES = {
    "AioContext": "._loop.aiocontext",
    "BackendUnavailable": ".errors",
    "BottomHalf": "._engine.handlers",
    "EventLoop": "._loop.loop",
    "EventNotifier": "._engine.notifier",
    "LoopParams": ".params",
    "new_event_loop": "._runner",
    "run": "._runner",
}
_OF_POLICIES = ("EventLoopPolicy", "install")
_SUBMODULES = ("block", "qemu_aio", "streams", "testing")

if sys.version_info < (3, 16):
    _HOMES.update(dict.fromkeys(_OF_POLICIES, ".policy"))
    # Star imports get them too, as they do not warn by themselves.
    __all__ += ["EventLoopPolicy", "install"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    value: Any
    if name == "Loop":
        value = __getattr__("EventLoop")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name], __name__), name)
    elif name == "__version__":
        from importlib.metadata import version

        value = version(__name__)
    elif name in _SUBMODULES:
        return import_module(f".{name}", __name__)
    elif name in _OF_POLICIES:
        raise AttributeError(
            f"aioqemu.{name} does not exist on Python 3.16 and later, which have no "
            "event loop policies: use aioqemu.run(main()), or "
            "asyncio.run(main(), loop_factory=aioqemu.new_event_loop)",
            name=name,
        )
    else:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}", name=name
        )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
