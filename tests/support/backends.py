"""Which engine backends the tests run on, and why one of them cannot.

Knows the names of the backends and how to ask the package about them; knows
nothing of fixtures (``conftest.py`` does the skipping and the failing).
"""

from __future__ import annotations

import errno
import functools
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

FDMONS: tuple[str, ...] = ("poll", "epoll", "io_uring")
"""Every backend that the package has, weakest first."""


def chosen(options: Iterable[str] | None) -> tuple[str, ...]:
    """Return the backends to run on.

    Args:
        options: What ``--fdmon`` was given, or nothing.

    ``AIOQEMU_FDMON`` narrows the choice to the one it names; the command line
    beats it, as an explicit ``fdmon=`` does in the package.
    """
    if options:
        return tuple(name for name in FDMONS if name in set(options))
    named = os.environ.get("AIOQEMU_FDMON", "auto")
    return (named,) if named in FDMONS else FDMONS


@functools.cache
def refusal(fdmon: str) -> str | None:
    """Return why ``fdmon`` cannot run on this kernel, or None when it can."""
    import aioqemu

    try:
        ctx = aioqemu.AioContext(fdmon=fdmon)
    except aioqemu.BackendUnavailable as error:
        name = errno.errorcode.get(error.errno or 0, "no errno")
        return f"{fdmon} is refused here: errno {error.errno} ({name}): {error}"
    ctx.close()
    return None
