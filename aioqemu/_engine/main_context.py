"""The process-wide main AioContext: made when first asked for, by one thread of many.

Knows no loops: a loop that takes the context as its own says so by `adopt`, and gives
it back by `release`.  Which class is made is told from above through `factory`, and who
has waited for the context to exist through `on_made`, so that nothing is imported
upwards.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from typing import TYPE_CHECKING

from aioqemu._engine.context import AioContext

if TYPE_CHECKING:
    from collections.abc import Callable

factory: Callable[..., AioContext] = AioContext
"""Makes the main context; takes the arguments of `AioContext`."""

on_made: list[Callable[[AioContext], object]] = []
"""Called with each new main context before anybody else sees it."""

# Re-entrant, because a signal handler may ask while its thread is in here.
_lock = threading.RLock()
_main: AioContext | None = None
# The one that a loop has adopted: the loop's, so a loop that is dropped takes it along.
_adopted: weakref.ref[AioContext] | None = None


def peek() -> AioContext | None:
    """The main context if there is one now.  Any thread."""
    main = _main if _adopted is None else _adopted()
    return None if main is None or main.closed else main


def get() -> AioContext:
    """The main context, made now if there is none (`qemu_get_aio_context`).

    Any thread may ask.  The context belongs to the thread that polls it first, or to
    the loop that has adopted it.

    Raises:
        OSError: no file descriptors could be had.
    """
    with _lock:
        return peek() or _make(None, {})


def _make(fdmon: str | None, params: dict[str, int]) -> AioContext:
    global _main, _adopted
    made = factory(fdmon=fdmon, **params)
    main = peek()
    if main is not None:
        made.close()  # a signal handler came first
        return main
    _main, _adopted = made, None
    for tell in on_made:
        tell(made)
    return made


def adopt(fdmon: str | None = None, **params: int) -> AioContext | None:
    """Take the main context as a new loop's own; made now if there is none.

    Args:
        fdmon: the backend that the loop was asked to use; None or "auto" for any.
        params: arguments of `AioContext` that differ from their defaults, such as
            `poll_max_ns`.

    Returns:
        The main context, or None if the loop must make its own: another open loop has
        it, this is not the main thread, or it exists and is not what was asked for.

    Raises:
        ValueError: an argument is out of range.
        BackendUnavailable: the backend asked for by name cannot run here.
        OSError: no file descriptors could be had.
    """
    global _main, _adopted
    if threading.get_ident() != threading.main_thread().ident:
        return None
    with _lock:
        main = peek()
        if main is None:
            main = _make(fdmon, params)
        elif (
            _adopted is not None or (fdmon not in (None, "auto", main.fdmon)) or params
        ):
            return None
        _main, _adopted = None, weakref.ref(main)
        return main


def release(ctx: AioContext) -> None:
    """Close an adopted main context with its loop; the next is made anew.

    Any other context is closed just the same, so that a loop need not tell.
    """
    global _main, _adopted
    with _lock:
        if ctx is peek():
            _main, _adopted = None, None
    ctx.close()


def _in_child() -> None:
    # The parent's context is of no use here, and its lock may be held for ever by a
    # thread that does not exist here.  An adopted one is closed by its loop.
    global _lock, _main, _adopted
    old = _main
    _lock = threading.RLock()
    _main, _adopted = None, None
    if old is not None:
        old.close()


def _at_exit() -> None:
    # Nobody else has the duty to close it.
    if _main is not None:
        _main.close()


os.register_at_fork(after_in_child=_in_child)
atexit.register(_at_exit)
