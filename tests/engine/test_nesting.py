"""Polls inside callbacks, inside tasks, and of a loop that stands still.

The context's own work goes on in a nested poll; asyncio's stays queued.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from support.pipes import Pipe
from support.qemu import BHData, Busy, EventData, settle

from aioqemu import AioContext, EventLoop

MakeEvent = Callable[..., EventData]
MakePipe = Callable[[], Pipe]
MakeCounter = Callable[..., BHData]
Later = Callable[[float, Callable[[], object]], object]


def test_nested_polls_from_a_handler(
    ctx: AioContext, event: MakeEvent, busy: Busy
) -> None:
    inner = event()
    ctx.set_event_notifier(inner.e, inner.ready)
    outer = event()

    def cb(notifier: Any) -> None:
        outer.ready(notifier)
        inner.e.set()
        while inner.n < outer.n:
            assert ctx.poll(True) is True

    ctx.set_event_notifier(outer.e, cb)
    for expected in (1, 2, 3):
        outer.e.set()
        while outer.n < expected:
            assert ctx.poll(True) is True
        assert inner.n == expected
    assert busy.n == 0


@pytest.mark.parametrize("semantics", ["seed", "modern"])
def test_a_handler_that_polls_is_told_of_its_own_fd(fdmon: str, semantics: Any) -> None:
    ctx = AioContext(fdmon=fdmon, semantics=semantics)
    pipe = Pipe()
    seen: list[bytes] = []

    def read(_: object) -> None:
        seen.append(pipe.drain())
        if len(seen) == 1:
            pipe.feed(b"b")
            for _attempt in range(10):
                if len(seen) < 2:
                    ctx.poll(False)

    ctx.set_fd_handler(pipe.r, read, None, lambda _: True)
    pipe.feed(b"a")
    while not seen:
        ctx.poll(True)
    assert seen == [b"a", b"b"]
    pipe.feed(b"c")  # and watched as before
    while len(seen) < 3:
        ctx.poll(True)
    ctx.set_fd_handler(pipe.r, None, None)
    ctx.close()
    pipe.close_r()
    pipe.close_w()


def test_deeply_nested_polls(ctx: AioContext) -> None:
    depths: list[int] = []

    def cb(depth: int) -> None:
        if depth < 50:
            ctx.bh_new(cb, depth + 1).schedule()
            assert ctx.poll(False) is True
        depths.append(depth)

    ctx.bh_new(cb, 0).schedule()
    assert ctx.poll(False) is True
    assert depths == list(range(50, -1, -1))


def test_nested_flush_from_a_bottom_half(ctx: AioContext, event: MakeEvent) -> None:
    data = event(active=5, auto_set=True)
    ctx.set_event_notifier(data.e, data.ready, data.flush)
    seen: list[int] = []

    def cb(_: object) -> None:
        data.e.set()
        ctx.flush()
        seen.append(data.n)

    ctx.bh_new(cb).schedule()
    assert ctx.poll(False) is True
    assert seen == [5]


def test_readiness_used_up_by_a_nested_poll_is_not_dispatched_again(
    ctx: AioContext, make_pipe: MakePipe, busy: Busy
) -> None:
    pipes = [make_pipe(), make_pipe()]
    calls: list[bytes] = []

    def io_read(index: int) -> None:
        data = pipes[index].drain()
        calls.append(data)
        if len(calls) == 1:
            # The other one is ready too; the nested poll serves it.
            settle(ctx)

    for index, pipe in enumerate(pipes):
        ctx.set_fd_handler(pipe.r, io_read, None, None, index)
        pipe.feed()
    settle(ctx)
    assert calls == [b"x", b"x"]
    for pipe in pipes:
        ctx.set_fd_handler(pipe.r, None, None)
    assert busy.n == 0


def test_poll_of_the_running_loops_context_from_a_task_raises(
    loop: EventLoop,
) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="flushed"):
            loop.context.poll(False)
        with pytest.raises(RuntimeError, match="flushed"):
            loop.context.flush()

    loop.run_until_complete(main())


def test_awaitable_twin_of_flush(loop: EventLoop) -> None:
    ran: list[int] = []

    async def main() -> None:
        def cb(_: object) -> None:
            ran.append(1)
            if len(ran) < 5:
                bh.schedule()

        bh = loop.context.bh_new(cb)
        bh.schedule()
        await loop.context.flushed()
        assert len(ran) == 5

    loop.run_until_complete(main())


def test_poll_of_the_loops_context_from_a_plain_callback_does_context_work_only(
    loop: EventLoop,
) -> None:
    ran: list[str] = []

    def callback() -> None:
        loop.call_soon(ran.append, "soon")
        loop.context.bh_new(lambda _: ran.append("bh")).schedule()
        assert loop.context.poll(False) is True
        ran.append("callback")
        loop.call_soon(loop.stop)

    loop.call_soon(callback)
    loop.run_forever()
    assert ran == ["bh", "callback", "soon"]


def test_poll_of_another_context_works_from_a_task(loop: EventLoop, fdmon: str) -> None:
    other = AioContext(fdmon=fdmon)
    ran: list[int] = []

    async def main() -> None:
        other.bh_new(ran.append, 1).schedule()
        assert other.poll(True) is True
        await asyncio.sleep(0)

    loop.run_until_complete(main())
    assert ran == [1]
    other.close()


def test_a_loop_that_is_not_running_lets_its_context_be_polled(
    loop: EventLoop,
) -> None:
    ran: list[str] = []
    loop.call_soon(ran.append, "soon")
    loop.context.bh_new(lambda _: ran.append("bh")).schedule()
    assert loop.context.poll(False) is True
    assert ran == ["bh"]
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert ran == ["bh", "soon"]
