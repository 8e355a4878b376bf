"""The public names as a type checker sees them; checked by mypy, never run.

Each `assert_type` is a promise to users: a change here is a change of the API.
Errors that must stay errors carry an ignore, which strict mode refuses as unused
once the error is gone.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, assert_type

import aioqemu
from aioqemu import (
    AioContext,
    BackendUnavailable,
    BottomHalf,
    EventLoop,
    EventNotifier,
    Loop,
    LoopParams,
    new_event_loop,
    qemu_aio,
    run,
    streams,
)

if TYPE_CHECKING:
    from collections.abc import Callable


async def number() -> int:
    """A coroutine with a result."""
    return 1


def check_run() -> None:
    """run() gives the coroutine's type back."""
    assert_type(run(number()), int)
    assert_type(run(number(), debug=True), int)
    assert_type(run(number(), fdmon="epoll", poll_max_ns=1000), int)
    run(number)  # type: ignore[arg-type]


def check_choice() -> None:
    """Everything that takes a loop factory takes ours."""
    assert_type(new_event_loop(), EventLoop)
    assert_type(new_event_loop(fdmon="io_uring", poll_grow=2), EventLoop)
    factory: Callable[[], asyncio.AbstractEventLoop] = new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        assert_type(runner.run(number()), int)
    with asyncio.Runner(loop_factory=EventLoop) as runner:
        assert_type(runner.run(number()), int)
    other: type[EventLoop] = Loop
    assert other is EventLoop
    new_event_loop(fdmon=5)  # type: ignore[arg-type]
    new_event_loop("epoll")  # type: ignore[call-arg]
    if sys.version_info < (3, 16):
        asyncio.set_event_loop_policy(aioqemu.EventLoopPolicy())
        aioqemu.install()


class Mine(EventLoop):
    """The loop can be subclassed."""

    def get_debug(self) -> bool:
        """Override with the stock signature."""
        return super().get_debug()


def check_loop(loop: EventLoop) -> None:
    """A loop is asyncio's, and a little more."""
    plain: asyncio.AbstractEventLoop = loop
    assert plain is loop
    assert_type(loop.fdmon, str)
    assert_type(loop.context, AioContext)
    assert_type(loop.stats(), dict[str, Any])
    assert_type(loop.time(), float)
    assert_type(loop.run_until_complete(number()), int)
    handle: asyncio.Handle = loop.call_soon(print, 1)
    timer: asyncio.TimerHandle = loop.call_later(1, print, 1)
    future: asyncio.Future[int] = loop.create_future()
    task: asyncio.Task[int] = loop.create_task(number())
    handle.cancel()
    timer.cancel()
    future.cancel()
    task.cancel()
    loop.call_soon(5)  # type: ignore[arg-type]


async def check_flushed(ctx: AioContext) -> None:
    """What a task awaits instead of polling."""
    await ctx.flushed()


async def check_streams() -> None:
    """Streams are typed as asyncio's are."""
    reader, writer = await streams.open_connection("host", 80, limit=1 << 20)
    assert_type(reader, streams.StreamReader)
    assert_type(writer, streams.StreamWriter)
    assert_type(await reader.readuntil((b"\r", b"\n")), bytes)
    assert_type(await asyncio.wait_for(reader.read(10), 1), bytes)
    task = asyncio.create_task(reader.readline())
    assert_type(await task, bytes)
    async for line in reader:
        assert_type(line, bytes)
    await writer.drain()

    async def serve(_reader: streams.StreamReader, _writer: object) -> None: ...

    assert_type(await streams.start_server(serve, port=0), asyncio.Server)
    writer.write("text")  # type: ignore[arg-type]


def check_engine(ctx: AioContext) -> None:
    """The classes of the engine."""
    half = ctx.bh_new(lambda _opaque: None)
    assert_type(half, BottomHalf)
    half.schedule()
    half.schedule_idle()
    half.cancel()
    half.delete()
    assert_type(ctx.poll(False), bool)
    assert_type(ctx.fileno(), int)
    assert_type(ctx.timeout_ns(), int)
    assert_type(ctx.dispatch(), bool)
    notifier = EventNotifier(active=True)
    assert_type(notifier.test_and_clear(), bool)
    assert_type(notifier.fileno(), int)
    notifier.set()
    notifier.close()
    ctx.set_fd_handler(0, lambda _opaque: None, None)
    ctx.close()


def check_seed_names() -> None:
    """The functions of qemu-aio.h."""
    ctx = qemu_aio.aio_context_new()
    assert_type(ctx, AioContext)
    assert_type(qemu_aio.qemu_get_aio_context(), AioContext)
    half = qemu_aio.aio_bh_new(ctx, print, "opaque")
    assert_type(half, BottomHalf)
    qemu_aio.qemu_bh_schedule(half)
    qemu_aio.qemu_bh_delete(half)
    assert_type(qemu_aio.aio_poll(ctx, False), bool)
    assert_type(qemu_aio.aio_bh_poll(ctx), bool)
    assert_type(qemu_aio.aio_pending(ctx), bool)
    assert_type(qemu_aio.qemu_aio_wait(), bool)
    qemu_aio.aio_flush(ctx)
    qemu_aio.aio_notify(ctx)
    qemu_aio.aio_context_unref(ctx)
    qemu_aio.aio_poll(ctx)  # type: ignore[call-arg]


def check_errors(error: BackendUnavailable) -> None:
    """A backend that cannot run is an OSError with its reason."""
    base: OSError = error
    assert_type(base.errno, int | None)


def check_params() -> None:
    """The options as a value."""
    params = LoopParams(fdmon="poll")
    assert_type(params.fdmon, str)
    assert_type(params.poll_max_ns, int)
