"""The options of a loop, checked before anything is made of them.

Which backends exist and what AIOQEMU_FDMON means is the engine's knowledge; this
module asks it. It must never make a loop or a context.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from ._engine.backends import ENVIRONMENT, NAMES

FDMONS = ("auto", *NAMES)
"""What ``fdmon`` may be; "auto" is the best that runs here."""

_INT64_MAX = 2**63 - 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoopParams:
    """Options of ``aioqemu.new_event_loop()`` and ``aioqemu.run()``.

    Attributes:
        fdmon: What waits for fds: "io_uring", "epoll", "poll", or "auto" for what the
            environment variable AIOQEMU_FDMON says, else the best that runs here.
        poll_max_ns: Longest time in nanoseconds to spin before a wait that blocks; 0
            never spins. QEMU's ``poll-max-ns``.
        poll_grow: Factor by which the spinning time grows; 0 stands for 2.
        poll_shrink: Divisor by which it shrinks; 0 sets it back to nothing.
        hold_gil_ns: Longest time in nanoseconds to look for events with the GIL kept,
            before a wait that would let it go, while another thread computes; 0 never
            does.

    Raises:
        TypeError: A value is of the wrong type.
        ValueError: A value is out of range, or no backend has that name.
    """

    fdmon: str = "auto"
    poll_max_ns: int = 0
    poll_grow: int = 0
    poll_shrink: int = 0
    hold_gil_ns: int = 100_000

    def __post_init__(self) -> None:
        if not isinstance(self.fdmon, str):
            raise TypeError(f"fdmon must be a string, not {self.fdmon!r}")
        _check_fdmon(self.fdmon, "fdmon")
        for name in ("poll_max_ns", "poll_grow", "poll_shrink", "hold_gil_ns"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an int, not {value!r}")
            if not 0 <= value <= _INT64_MAX:
                raise ValueError(f"{name} must be 0 or more and fit 63 bits: {value}")

    def given(self) -> dict[str, Any]:
        """Return the options that differ from their defaults, by name."""
        return {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        }


def wanted_fdmon() -> str:
    """Return the backend that AIOQEMU_FDMON names, "auto" without it.

    Raises:
        ValueError: It names no backend.
    """
    name = os.environ.get(ENVIRONMENT) or "auto"
    _check_fdmon(name, ENVIRONMENT)
    return name


def _check_fdmon(name: str, what: str) -> None:
    if name not in FDMONS:
        raise ValueError(f"{what} must be one of {', '.join(FDMONS)}, not {name!r}")
