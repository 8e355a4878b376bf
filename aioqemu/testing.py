"""Helpers for test suites that run on aioqemu: which loops there are, what leaks.

They know the public API only and no test framework; the pytest plugin and plain
unittest classes are built from them.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

ENGINES = ("io_uring", "epoll", "poll")
"""The backends, best first."""

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


class LeakError(AssertionError):
    """Something that a block of code opened is still there after it."""


def loop_factory(engine: str = "auto", *, debug: bool | None = None) -> LoopFactory:
    """Return a function that makes aioqemu loops on one backend.

    Args:
        engine: "auto" or one of ``ENGINES``.
        debug: Debug mode of the loops; None leaves it as it is by default.
    """

    def factory() -> asyncio.AbstractEventLoop:
        from ._runner import new_event_loop

        loop: asyncio.AbstractEventLoop = new_event_loop(fdmon=engine)
        if debug is not None:
            loop.set_debug(debug)
        return loop

    factory.__name__ = factory.__qualname__ = f"aioqemu_{engine}"
    return factory


def loop_factories(
    engines: Sequence[str] = ("auto",), *, control: bool = False
) -> Mapping[str, LoopFactory]:
    """Return named loop factories, ready for pytest-asyncio's hook.

    Args:
        engines: Backends, "auto" among them.
        control: Whether the stock loop comes along under the name "asyncio".
    """
    factories: dict[str, LoopFactory] = {
        "aioqemu" if engine == "auto" else f"aioqemu-{engine}": loop_factory(engine)
        for engine in engines
    }
    if control:
        factories["asyncio"] = asyncio.SelectorEventLoop
    return factories


def refusal(engine: str) -> str | None:
    """Tell why a backend cannot run here, or None if it can.

    Raises:
        ValueError: No backend has that name.
    """
    from .errors import BackendUnavailable

    try:
        loop_factory(engine)().close()
    except BackendUnavailable as exc:
        return str(exc)
    return None


def available_engines() -> tuple[str, ...]:
    """Return the backends that run here, best first."""
    return tuple(engine for engine in ENGINES if refusal(engine) is None)


def open_fds() -> dict[int, str]:
    """Return the fds of this process and what they are, as /proc tells it."""
    fds: dict[int, str] = {}
    for name in os.listdir("/proc/self/fd"):
        # The listing's own fd is in the list and gone by now.
        with contextlib.suppress(FileNotFoundError):
            fds[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return fds


@contextlib.contextmanager
def no_leaks(*, threads: bool = True, grace: float = 1.0) -> Iterator[None]:
    """Check that the block leaves no fd open and no thread running.

    Args:
        threads: Whether threads count.
        grace: Seconds that threads on their way out are given.

    Raises:
        LeakError: There are fds or threads that were not there before.
    """
    gc.collect()
    fds_before = open_fds()
    threads_before = set(threading.enumerate())
    yield
    gc.collect()
    found = [
        f"fd {fd}: {what}"
        for fd, what in sorted(open_fds().items())
        if fds_before.get(fd) != what
    ]
    if threads:
        deadline = time.monotonic() + grace
        for thread in set(threading.enumerate()) - threads_before:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                found.append(f"thread {thread.name}")
    if found:
        raise LeakError("left behind: " + "; ".join(found))
