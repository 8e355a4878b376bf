"""Which fd monitor serves: names, availability, default choice.

Knows the environment variable, but no asyncio.  What is asked for by name fails loudly;
what is chosen automatically falls back without a word, and says why in `stats()`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from aioqemu._engine.errors import BackendUnavailable
from aioqemu._engine.fdmon_epoll import FdMonEpoll
from aioqemu._engine.fdmon_poll import FdMonPoll
from aioqemu._engine.fdmon_uring import FdMonUring, unavailable

if TYPE_CHECKING:
    from aioqemu._engine.fdmon import FdMon

NAMES = ("io_uring", "epoll", "poll")
ENVIRONMENT = "AIOQEMU_FDMON"

_uring_refusal: list[OSError | None] = []


def uring_refusal(*, again: bool = False) -> OSError | None:
    """Why io_uring cannot serve in this process, or None if it can.

    The kernel is asked once, with a ring that is made for that and dropped, which costs
    as much as the life of a small loop. `again` asks anew if the answer was no.
    """
    if not _uring_refusal or (again and _uring_refusal[0] is not None):
        _uring_refusal[:] = [unavailable()]
    return _uring_refusal[0]


def choose(name: str | None) -> tuple[FdMon, str]:
    """Make the monitor called `name`, or the best one that works.

    Args:
        name: "poll", "epoll", "io_uring"; "auto" or None lets the environment variable
            AIOQEMU_FDMON decide, and chooses if that is unset.

    Returns:
        The monitor and why it was chosen.

    Raises:
        ValueError: no backend is called so.
        TypeError: `name` is not a string.
        BackendUnavailable: the backend asked for by name cannot run here.
    """
    asked = "asked for by name"
    if name is not None and not isinstance(name, str):
        raise TypeError(f"fdmon must be a string or None, not {name!r}")
    if name is None or name == "auto":
        name = os.environ.get(ENVIRONMENT) or "auto"
        asked = f"asked for by {ENVIRONMENT}"
    if name == "auto":
        refusal = uring_refusal()
        if refusal is None:
            return FdMonUring(), "io_uring works here"
        return FdMonEpoll(), f"io_uring does not work here: {refusal}"
    if name == "poll":
        return FdMonPoll(), asked
    if name == "epoll":
        return FdMonEpoll(), asked
    if name == "io_uring":
        refusal = uring_refusal(again=True)
        if refusal is not None:
            raise BackendUnavailable(
                refusal.errno or 0,
                f"fdmon 'io_uring' cannot run here: {refusal.strerror} "
                "(an old kernel, the sysctl kernel.io_uring_disabled, or a seccomp "
                "filter as containers have it)",
            ) from refusal
        return FdMonUring(), asked
    raise ValueError(f"unknown fdmon {name!r}: choose from auto, {', '.join(NAMES)}")
