"""What a program should not do to a context, and what it must not cost then."""

from __future__ import annotations

import asyncio
import resource
import socket
import threading
import time
from typing import Any

import pytest
from support.pipes import Pipe

import aioqemu
from aioqemu import AioContext


@pytest.mark.parametrize("fd", [10**8, 2**31 - 1])
def test_a_wild_fd_number_takes_no_memory_and_no_time(ctx: AioContext, fd: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(OSError, match="Bad file descriptor"):
        ctx.set_fd_handler(fd, print, None)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_a_deadline_far_below_zero_is_due(ctx: AioContext) -> None:
    fired: list[Any] = []
    timer = ctx.timer_new(fired.append, 1)
    timer.mod(-(2**63))
    assert ctx.timeout_ns() == 0
    assert ctx.poll(False)
    assert fired == [1]


def test_objects_without_a_context_cannot_be_made(ctx: AioContext) -> None:
    for made in (ctx.bh_new(print), ctx.timer_new(print)):
        cls = type(made)
        with pytest.raises(TypeError):
            cls()
        with pytest.raises(TypeError):
            cls.__new__(cls)


def test_a_context_that_was_not_initialised_refuses_everything() -> None:
    class Lazy(AioContext):
        def __init__(self) -> None:
            pass

    lazy = Lazy()
    for name in ("poll", "flush", "stats", "fileno", "dispatch", "notify", "ref"):
        with pytest.raises(RuntimeError):
            getattr(lazy, name)()
    with pytest.raises(RuntimeError):
        _ = lazy.fdmon
    assert "closed" in repr(lazy)
    lazy.close()


@pytest.mark.parametrize("way", ["close", "unref"])
def test_a_context_is_not_closed_under_its_running_loop(fdmon: str, way: str) -> None:
    async def main() -> str:
        context = asyncio.get_running_loop().context  # type: ignore[attr-defined]
        for _ in range(2):
            with pytest.raises(RuntimeError, match="loop is running"):
                getattr(context, way)()
        await asyncio.sleep(0.001)
        return "went on"

    assert aioqemu.run(main(), fdmon=fdmon) == "went on"


def test_a_loop_whose_context_was_closed_says_so(fdmon: str) -> None:
    loop = aioqemu.new_event_loop(fdmon=fdmon)
    loop.context.close()
    with pytest.raises(RuntimeError, match="AioContext is closed"):
        loop.run_forever()
    loop.close()


def test_an_fd_that_became_the_loops_own_is_let_go(fdmon: str) -> None:
    """Closed before the first run, its number may be the one of the ring."""
    loop = aioqemu.new_event_loop(fdmon=fdmon)
    reports: list[Any] = []
    loop.set_exception_handler(lambda _, report: reports.append(report))
    left, right = socket.socketpair()
    fired: list[int] = []
    loop.add_reader(left.fileno(), fired.append, 1)
    left.close()
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    again, other = socket.socketpair()
    got: list[bytes] = []
    loop.add_reader(again, lambda: got.append(again.recv(9)))
    other.send(b"x")
    loop.call_later(0.02, loop.stop)
    loop.run_forever()
    assert got == [b"x"]
    assert fired == []
    assert len(reports) <= 1
    loop.remove_reader(again)
    for sock in (right, again, other):
        sock.close()
    loop.close()


def test_a_nested_poll_sleeps_though_the_loop_has_ready_fds(fdmon: str) -> None:
    loop = aioqemu.new_event_loop(fdmon=fdmon)
    ctx = loop.context
    first, other, own = Pipe(), Pipe(), Pipe()
    served: list[str] = []
    spent: list[float] = []

    def nested() -> None:
        first.drain()
        while ctx.poll(False):
            pass
        threading.Timer(0.3, own.feed).start()
        began = time.thread_time()
        while "own" not in served:
            ctx.poll(True)
        spent.append(time.thread_time() - began)
        loop.call_soon(loop.stop)

    loop.add_reader(first.r, nested)
    loop.add_reader(other.r, lambda: (other.drain(), served.append("other")))
    ctx.set_fd_handler(
        own.r,
        lambda _: (own.drain(), served.append("own")),
        None,
        lambda _: "own" not in served,
    )
    first.feed()
    other.feed()
    loop.run_forever()
    assert spent[0] < 0.1
    assert "own" in served
    loop.remove_reader(first.r)
    loop.remove_reader(other.r)
    ctx.set_fd_handler(own.r, None, None)
    loop.close()
    for pipe in (first, other, own):
        pipe.close()
