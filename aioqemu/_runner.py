"""Making loops and running programs on them: new_event_loop() and run().

Thin over ``asyncio.Runner``, whose semantics (interrupts, cancelling what is left,
shutting generators and the executor down) are asyncio's own of the running version.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ._loop.loop import EventLoop
from .params import LoopParams

if TYPE_CHECKING:
    from collections.abc import Awaitable

_T = TypeVar("_T")


def new_event_loop(
    *,
    fdmon: str = "auto",
    poll_max_ns: int = 0,
    poll_grow: int = 0,
    poll_shrink: int = 0,
    hold_gil_ns: int = 100_000,
) -> EventLoop:
    """Make an event loop; does what a ``loop_factory`` is to do.

    The loop is not set as the current one. It may be run in another thread.

    Args:
        fdmon: "auto", "io_uring", "epoll" or "poll"; see ``LoopParams``.
        poll_max_ns: Longest spinning before a wait, in nanoseconds; 0 is off.
        poll_grow: Factor by which spinning grows; 0 stands for 2.
        poll_shrink: Divisor by which it shrinks; 0 sets it back to nothing.
        hold_gil_ns: Longest look for events with the GIL kept, in nanoseconds, while
            another thread computes; 0 is off.

    Raises:
        TypeError: An option is of the wrong type.
        ValueError: An option is out of range.
        BackendUnavailable: The backend asked for by name cannot run here.
    """
    params = LoopParams(
        fdmon=fdmon,
        poll_max_ns=poll_max_ns,
        poll_grow=poll_grow,
        poll_shrink=poll_shrink,
        hold_gil_ns=hold_gil_ns,
    )
    return EventLoop(**params.given())


def run(main: Awaitable[_T], *, debug: bool | None = None, **options: Any) -> _T:
    """Run a coroutine in a new loop, close the loop, and return the result.

    ``asyncio.run()`` on an aioqemu loop: main thread or not, interrupts, cancellation
    of the tasks left over and the shutdown of the executor are asyncio's.

    Args:
        main: A coroutine; from Python 3.14 on any awaitable.
        debug: Debug mode of the loop; None leaves it to PYTHONASYNCIODEBUG and -X dev.
        options: Options of ``new_event_loop()``.

    Raises:
        RuntimeError: Another loop runs in this thread.
        TypeError: An option is unknown or of the wrong type, or, from Python 3.14 on,
            ``main`` is no awaitable.
        ValueError: An option is out of range, or, before 3.14, ``main`` is no
            coroutine.
        BackendUnavailable: The backend asked for by name cannot run here.
    """
    # Before anything is made, as asyncio.run() does it.
    if _is_running():
        raise RuntimeError("aioqemu.run() cannot be called from a running event loop")
    with _Runner(debug=debug, loop_factory=lambda: new_event_loop(**options)) as runner:
        # Runner.run() is typed for coroutines; what it takes depends on the version.
        return runner.run(cast("Any", main))  # type: ignore[no-any-return]


class _Runner(asyncio.Runner):  # type: ignore[misc]  # final for typeshed only
    """A runner that lets a forked child leave through it, by `sys.exit()` say."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._pid = os.getpid()

    def close(self) -> None:
        if os.getpid() == self._pid:
            super().close()
        # In a child nothing is cancelled or shut down: the tasks are the parent's,
        # which goes on with them.


def _is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
