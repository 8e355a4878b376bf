"""What a handle is made of: its size, and asyncio's own view of it.

Handles lie over the words of asyncio's slots, so asyncio's descriptors, which nobody
hides from a program, must find objects there or nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import weakref
from typing import Any

import pytest

from .helpers import one_pass

HANDLE = 128  # bytes, with what the allocator puts before an object; a size of its own
TIMER = 192


def _made(loop: Any, count: int) -> list[asyncio.Handle]:
    """Handles of both kinds with so many arguments."""
    args = range(1000, 1000 + count)
    return [
        loop.call_soon(print, *args),
        loop.call_soon_threadsafe(print, *args),
        loop.call_later(60, print, *args),
    ]


def test_a_handle_is_small(loop: Any) -> None:
    soon, _, later = _made(loop, 3)
    before = 32 if sys.version_info >= (3, 12) else 16
    assert type(soon).__basicsize__ + before <= HANDLE
    assert type(later).__basicsize__ + before <= TIMER
    soon.cancel()
    later.cancel()


@pytest.mark.parametrize("count", range(6))
@pytest.mark.parametrize("debug", [False, True])
def test_asyncios_own_descriptors_find_objects(
    loop: Any, count: int, debug: bool
) -> None:
    loop.set_debug(debug)
    handles = _made(loop, count)
    for cancelled in (False, True):
        for handle in handles:
            if cancelled:
                handle.cancel()
            for kind in (asyncio.Handle, asyncio.TimerHandle):
                if not isinstance(handle, kind):
                    continue
                for name in kind.__slots__:
                    with contextlib.suppress(AttributeError):  # an empty slot
                        repr(getattr(kind, name).__get__(handle))
        gc.collect()
    loop.set_debug(False)


@pytest.mark.parametrize("count", range(6))
def test_arguments_are_seen_while_they_are_used(
    any_loop: asyncio.AbstractEventLoop, count: int
) -> None:
    class Owner:
        def method(self, *args: int) -> None:
            gc.collect()
            seen.append((args, handle._args))  # type: ignore[attr-defined]
            handle.cancel()
            seen.append((args, args))

    seen: list[tuple[Any, Any]] = []
    args = tuple(range(1000, 1000 + count))
    handle = any_loop.call_soon(Owner().method, *args)
    one_pass(any_loop)
    assert seen == [(args, args), (args, args)]


@pytest.mark.parametrize("count", range(6))
@pytest.mark.parametrize("later", [False, True])
def test_a_cancelled_handle_goes_with_its_arguments(
    any_loop: asyncio.AbstractEventLoop, count: int, later: bool
) -> None:
    class Argument:
        handle: asyncio.Handle

    args = [Argument() for _ in range(count)]
    call = any_loop.call_soon if not later else lambda *a: any_loop.call_later(60, *a)
    handle = call(print, *args)
    for one in args:
        one.handle = handle
    watched: list[weakref.ref[Any]] = [weakref.ref(one) for one in [handle, *args]]
    del args, handle
    if count:
        del one
    gc.collect()
    assert all(ref() is not None for ref in watched)
    found = watched[0]()
    assert found is not None
    found.cancel()
    del found
    one_pass(any_loop)
    gc.collect()
    assert [ref() for ref in watched] == [None] * len(watched)


def test_a_handle_that_has_run_is_collected_with_its_owner(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    class Owner:
        def __init__(self) -> None:
            self.handle = any_loop.call_soon(self.method)

        def method(self) -> None:
            pass

    watched = weakref.ref(Owner())
    one_pass(any_loop)
    gc.collect()
    assert watched() is None
