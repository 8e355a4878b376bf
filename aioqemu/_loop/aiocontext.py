"""The public AioContext: the engine's, with what needs asyncio.

That is the awaitable twin of `flush`, and riding on any asyncio loop.  Knows no loop
class: ours guards its context by one of its methods, any other is used through the
public methods of `asyncio.AbstractEventLoop`.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from aioqemu._block import aiocb
from aioqemu._engine import context, main_context
from aioqemu._loop.core import LoopCore
from aioqemu._loop.private import _get_running_loop

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

# How often a flush asks again where nothing tells it that requests have ended.
_ASK_AGAIN_S = 0.01

_IN_TASK = (
    "an AioContext must not be polled from inside a task of its own loop: "
    "use `await ctx.flushed()`"
)


def refuse_in_task(loop: asyncio.AbstractEventLoop) -> None:
    """Raise RuntimeError if a task of `loop` is running here."""
    if _get_running_loop() is loop and asyncio.current_task(loop) is not None:
        raise RuntimeError(_IN_TASK)


class AioContext(context.AioContext):
    """An event loop engine: fd handlers, event notifiers, bottom halves, timers.

    Stands for QEMU's `AioContext`.  One thread polls it, the first that does; `notify`
    and the methods of bottom halves and notifiers may be called from any thread.

    Args:
        fdmon: "poll", "epoll", "io_uring", or None/"auto" for the best one that works
            (the environment variable AIOQEMU_FDMON then decides if it is set).
        semantics: "seed" for the contract of 2012 (`io_flush` decides whether `poll`
            may block), "modern" for that of QEMU 10 (fds are always watched).
        poll_max_ns: longest adaptive polling before a wait, in ns; 0 switches it off.
        poll_grow: factor by which polling grows, 0 for 2.
        poll_shrink: divisor by which it shrinks, 0 for back to nothing.
        hold_gil_ns: longest look for events with the GIL kept, before a wait and while
            another thread computes, in ns; so long, too, waits that find something at
            once may keep it. 0 switches both off.

    Raises:
        BackendUnavailable: the backend asked for by name cannot run here.
        ValueError: an argument is out of range.
        OSError: no file descriptors could be had.
    """

    _attachment: Attachment | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The asyncio loop that drives the context, or None."""
        if self._attachment is not None:
            return self._attachment._loop
        # A loop guards its own context by one of its methods.
        owner = getattr(self.poll_guard, "__self__", None)
        return owner if isinstance(owner, asyncio.AbstractEventLoop) else None

    def attach(self, loop: asyncio.AbstractEventLoop) -> Attachment:
        """Have an asyncio loop (stock, uvloop, ours) serve the context.

        To be called in the thread that runs the loop, running or not; that thread
        becomes the context's home.  The loop does not keep running for the context.

        Args:
            loop: the loop; it must support `add_reader`.

        Returns:
            What `detach()`es it; also a context manager.  Closing the context detaches.

        Raises:
            RuntimeError: a loop has the context already, or it is closed.
            TypeError: `loop` is no event loop.
        """
        if not isinstance(loop, asyncio.AbstractEventLoop):
            raise TypeError(f"an event loop is expected, got {loop!r}")
        if self._attachment is not None or self.poll_guard is not None:
            raise RuntimeError("a loop drives the AioContext already")
        return Attachment(self, loop)

    async def flushed(self) -> None:
        """Return when nothing is outstanding and nothing happens (`aio_flush`).

        The awaitable twin of `flush`: the loop goes on meanwhile.  A context that no
        loop drives is attached to the running one until then.

        Raises:
            RuntimeError: another loop or thread has the context, or it is closed.
        """
        loop = asyncio.get_running_loop()
        attachment = self._attachment
        if self.loop is None and self.poll_guard is None:
            attachment = self.attach(loop)
            attachment._borrowers = 1
        elif self.loop is not None and self.loop is not loop:
            raise RuntimeError("another event loop drives the AioContext")
        elif attachment is not None and attachment._borrowers:
            attachment._borrowers += 1
        flush = _Flush(self, loop, attachment)
        try:
            await flush.over
        finally:
            flush.end()
            if attachment is not None and attachment._borrowers:
                attachment._borrowers -= 1
                if not attachment._borrowers:
                    attachment.detach()

    def set_fd_handler(
        self,
        fd: Any,
        io_read: Callable[[Any], object] | None,
        io_write: Callable[[Any], object] | None,
        io_flush: Callable[[Any], object] | None = None,
        opaque: object = None,
    ) -> None:
        """Watch an fd (`aio_set_fd_handler`); see `qemu_aio.aio_set_fd_handler`."""
        owner = getattr(self.poll_guard, "__self__", None)
        if isinstance(owner, LoopCore):
            owner._forget_idle(fd)
        super().set_fd_handler(fd, io_read, io_write, io_flush, opaque)

    def close(self) -> None:
        """Give everything back; twice does nothing.  What is scheduled does not run."""
        if self._attachment is not None:
            self._attachment.detach()
        super().close()


class Attachment:
    """A context riding on a loop; made by `AioContext.attach`."""

    def __init__(self, ctx: AioContext, loop: asyncio.AbstractEventLoop) -> None:
        self._ctx: AioContext | None = ctx
        self._loop = loop
        self._fd = ctx.fileno()
        self._timer: asyncio.Handle | None = None
        self._pid = os.getpid()
        self._borrowers = 0  # flushed() calls that it exists for
        self._watchers: list[Callable[[], object]] = []
        loop.add_reader(self._fd, self._serve)
        ctx._attachment = self
        ctx.poll_guard = self._guard
        self._arm()

    def __repr__(self) -> str:
        if self._ctx is None:
            return "<Attachment detached>"
        return f"<Attachment {self._ctx!r} on {self._loop!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.detach()

    def detach(self) -> None:
        """Take the context out of the loop; twice does nothing."""
        ctx, self._ctx = self._ctx, None
        if ctx is None:
            return
        ctx._attachment = None
        ctx.poll_guard = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # A forked child shares the kernel's side of the loop with its parent.
        if not self._loop.is_closed() and os.getpid() == self._pid:
            self._loop.remove_reader(self._fd)

    def _guard(self) -> None:
        refuse_in_task(self._loop)

    def _serve(self) -> None:
        ctx = self._ctx
        if ctx is None:
            return
        try:
            ctx.dispatch()
        finally:
            if self._ctx is not None:
                self._arm()
        for watch in list(self._watchers):
            watch()

    def _on_time(self) -> None:
        ctx = self._ctx
        if ctx is None:
            return
        left_ns = ctx.timeout_ns()
        if left_ns > 0:
            # uvloop rounds to milliseconds, down as well: no spinning until it is time.
            delay = max(left_ns / 1e9, 0.001)
            self._timer = self._loop.call_later(delay, self._on_time)
        else:
            self._serve()

    def _arm(self) -> None:
        """Come back when the next timer or bottom half is due."""
        assert self._ctx is not None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        timeout_ns = self._ctx.timeout_ns()
        if timeout_ns == 0:
            self._timer = self._loop.call_soon(self._serve)
        elif timeout_ns > 0:
            self._timer = self._loop.call_later(timeout_ns / 1e9, self._on_time)


class _Flush:
    """One `flushed()`: polls from plain callbacks, where polling is allowed."""

    def __init__(
        self,
        ctx: AioContext,
        loop: asyncio.AbstractEventLoop,
        attachment: Attachment | None,
    ) -> None:
        self.over: asyncio.Future[None] = loop.create_future()
        self._ctx = ctx
        self._loop = loop
        self._attachment = attachment
        self._again: asyncio.Handle = loop.call_soon(self._look)
        # In a loop's own context an idle bottom half runs in every pass, before the
        # fds; what it hands to call_soon runs after them.  An attached context would be
        # woken by it again and again; there the attachment tells.
        self._tick = ctx.bh_new(self._soon) if attachment is None else None
        if attachment is not None:
            attachment._watchers.append(self._soon)

    def end(self) -> None:
        """Leave nothing scheduled."""
        self._again.cancel()
        if self._tick is not None:
            self._tick.delete()
        if self._attachment is not None:
            self._attachment._watchers.remove(self._soon)

    def _soon(self, _: object = None) -> None:
        self._again.cancel()
        self._again = self._loop.call_soon(self._look)

    def _look(self) -> None:
        if self.over.done():
            return
        try:
            progress = self._ctx.poll(False)
            busy = self._ctx.busy
        except Exception as exc:
            self.over.set_exception(exc)
            return
        except BaseException:
            self._soon()  # the flush goes on if the loop does
            raise
        if progress:
            self._soon()
        elif not busy:
            self.over.set_result(None)
        elif self._tick is not None:
            self._tick.schedule_idle()
        else:
            self._again.cancel()
            self._again = self._loop.call_later(_ASK_AGAIN_S, self._look)


main_context.factory = AioContext


class _NoLoop:
    """All that a future asks of its loop when it is made and at once over."""

    def get_debug(self) -> bool:
        return False


_done_future: asyncio.Future[None] = asyncio.Future(loop=_NoLoop())  # type: ignore[arg-type]
_done_future.set_result(None)

aiocb.bind_futures(
    _get_running_loop,
    asyncio.CancelledError,
    asyncio.InvalidStateError,
    _done_future,
)
