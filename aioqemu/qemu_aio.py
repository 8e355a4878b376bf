"""qemu-aio.h under its own names: thin functions over the classes in brackets.

For code that is ported from QEMU, or written in its style.  The contracts are those of
the header of October 2012 as documented; what is undefined in C raises here.  Knows no
asyncio: the contexts may be driven by a loop or by `aio_poll`, and both at once.

"Any thread" says that a function may be called from any thread; all others belong to
the home thread of the context, the one that polls it first or that runs its loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, Protocol, cast

from aioqemu._block.aiocb import AIOPool, BlockDriverAIOCB
from aioqemu._engine import main_context
from aioqemu._engine.handlers import BottomHalf
from aioqemu._engine.notifier import EventNotifier
from aioqemu._loop.aiocontext import AioContext

IOHandler = Callable[[Any], object]
"""`io_read`, `io_write`: called with opaque; the result is ignored."""

AioFlushHandler = Callable[[Any], object]
"""`io_flush`: called with opaque; true while requests are outstanding."""

BlockDriverCompletionFunc = Callable[[Any, int], object]
"""Called with opaque and ret: 0 or a positive number, or -errno."""


class HasFileno(Protocol):
    """Anything with a file descriptor."""

    def fileno(self) -> int: ...


__all__ = [
    "AIOPool",
    "AioContext",
    "BlockDriverAIOCB",
    "BottomHalf",
    "EventNotifier",
    "aio_bh_new",
    "aio_bh_poll",
    "aio_context_new",
    "aio_context_ref",
    "aio_context_unref",
    "aio_flush",
    "aio_get_g_source",
    "aio_notify",
    "aio_pending",
    "aio_poll",
    "aio_set_event_notifier",
    "aio_set_fd_handler",
    "event_notifier_cleanup",
    "event_notifier_get_fd",
    "event_notifier_init",
    "event_notifier_set",
    "event_notifier_test_and_clear",
    "qemu_aio_flush",
    "qemu_aio_get",
    "qemu_aio_release",
    "qemu_aio_set_event_notifier",
    "qemu_aio_set_fd_handler",
    "qemu_aio_wait",
    "qemu_bh_cancel",
    "qemu_bh_delete",
    "qemu_bh_schedule",
    "qemu_bh_schedule_idle",
    "qemu_get_aio_context",
]


def _context(ctx: AioContext) -> AioContext:
    if not isinstance(ctx, AioContext):
        raise TypeError(f"an AioContext is expected, got {ctx!r}")
    return ctx


# -- contexts --------------------------------------------------------------------------


def aio_context_new() -> AioContext:
    """Make a context with one reference [`AioContext()`].

    Raises:
        OSError: no file descriptors could be had.
    """
    return AioContext()


def aio_context_ref(ctx: AioContext) -> None:
    """Take a reference [`ctx.ref()`]."""
    _context(ctx).ref()


def aio_context_unref(ctx: AioContext) -> None:
    """Drop a reference; the last one closes the context [`ctx.unref()`].

    Raises:
        RuntimeError: no reference is left.
    """
    _context(ctx).unref()


def qemu_get_aio_context() -> AioContext:
    """The main context of the process, made when first asked for.  Any thread.

    A loop that is made in the main thread while no open loop has the main context takes
    it as its own, and closes it with itself; the next is then made anew.
    """
    return cast("AioContext", main_context.get())


# -- bottom halves ---------------------------------------------------------------------


def aio_bh_new(
    ctx: AioContext, cb: Callable[[Any], object], opaque: object = None
) -> BottomHalf:
    """Make a bottom half that calls `cb(opaque)` [`ctx.bh_new`].  Any thread."""
    return _context(ctx).bh_new(cb, opaque)


def qemu_bh_schedule(bh: BottomHalf) -> None:
    """Run a bottom half in the next pass, once [`bh.schedule()`].

    Any thread, and signal handlers.  Scheduling what is scheduled does nothing; what is
    scheduled idle becomes urgent.

    Raises:
        RuntimeError: it was deleted, or its context closed.
    """
    BottomHalf.schedule(bh)


def qemu_bh_schedule_idle(bh: BottomHalf) -> None:
    """Run a bottom half within 10 ms [`bh.schedule_idle()`].  Any thread.

    It counts neither as progress nor as a reason not to sleep.

    Raises:
        RuntimeError: it was deleted, or its context closed.
    """
    BottomHalf.schedule_idle(bh)


def qemu_bh_cancel(bh: BottomHalf) -> None:
    """Do not run a scheduled bottom half after all [`bh.cancel()`].  Any thread."""
    BottomHalf.cancel(bh)


def qemu_bh_delete(bh: BottomHalf) -> None:
    """Cancel a bottom half and forget it [`bh.delete()`].  Any thread.

    Twice does nothing.
    """
    BottomHalf.delete(bh)


def aio_bh_poll(ctx: AioContext) -> bool:
    """Run the scheduled bottom halves; was one not idle? [`ctx.bh_poll()`]."""
    return _context(ctx).bh_poll()


# -- polling ---------------------------------------------------------------------------


def aio_poll(ctx: AioContext, blocking: bool) -> bool:
    """Make one pass over the context's own work [`ctx.poll(blocking)`].

    Bottom halves run first.  Then, if some `io_flush` says that requests are
    outstanding, or requests of a pool are, fds are looked at and their handlers run;
    with `blocking`, and if nothing has been done yet, the call waits until something
    is.  With nothing outstanding it never blocks.  Callbacks may call it.

    Returns:
        Whether progress was made.

    Raises:
        RuntimeError: this is not the home thread, or a task of the context's own loop
            is running (`await ctx.flushed()` there).
    """
    return _context(ctx).poll(blocking)


def aio_pending(ctx: AioContext) -> bool:
    """Was an fd reported ready whose handler has not run? [`ctx.pending()`]."""
    return _context(ctx).pending()


def aio_flush(ctx: AioContext) -> None:
    """Poll until nothing is outstanding and nothing happens [`ctx.flush()`]."""
    _context(ctx).flush()


def aio_notify(ctx: AioContext) -> None:
    """Make the running, or else the next, wait return [`ctx.notify()`].

    Any thread, and signal handlers.  A notification before the wait is not lost.
    """
    _context(ctx).notify()


def aio_set_fd_handler(
    ctx: AioContext,
    fd: int | HasFileno,
    io_read: IOHandler | None,
    io_write: IOHandler | None,
    io_flush: AioFlushHandler | None = None,
    opaque: object = None,
) -> None:
    """Watch an fd; with both callbacks None stop watching it [`ctx.set_fd_handler`].

    After a removal no callback of the fd runs any more.  The order in which handlers of
    different fds run is not defined; one fd is read before it is written.

    Args:
        ctx: the context.
        fd: a file descriptor, not owned and not closed.
        io_read: called with `opaque` when the fd is readable, hung up or in error.
        io_write: called with `opaque` when it is writable or in error.
        io_flush: called with `opaque`; true while requests are outstanding.  It decides
            whether `aio_poll` looks at the fd and may block, and should be cheap.
        opaque: passed to the callbacks.

    Raises:
        OSError: the fd is closed (EBADF) or cannot be watched (EPERM).
        RuntimeError: a transport or `add_reader` has the fd.
    """
    _context(ctx).set_fd_handler(fd, io_read, io_write, io_flush, opaque)


def aio_set_event_notifier(
    ctx: AioContext,
    notifier: EventNotifier,
    io_read: Callable[[EventNotifier], object] | None,
    io_flush: Callable[[EventNotifier], object] | None = None,
) -> None:
    """Watch an event notifier [`ctx.set_event_notifier`].

    The callbacks get the notifier, and `io_read` must `test_and_clear` it.
    """
    _context(ctx).set_event_notifier(notifier, io_read, io_flush)


def aio_get_g_source(ctx: AioContext) -> NoReturn:
    """The context as a `GLib.Source`; not to be had yet.

    Until then a GLib loop can watch `ctx.fileno()` and call `ctx.dispatch()`.

    Raises:
        ImportError: always.
    """
    raise ImportError(
        "aio_get_g_source() needs PyGObject (the module gi) and aioqemu's support for "
        "it, which this version does not have; ctx.fileno(), ctx.timeout_ns() and "
        "ctx.dispatch() serve the same purpose",
        name="gi",
    )


# -- the main context ------------------------------------------------------------------


def qemu_aio_flush() -> None:
    """`aio_flush` on the main context."""
    main_context.get().flush()


def qemu_aio_wait() -> bool:
    """`aio_poll(ctx, True)` on the main context; whether progress was made."""
    return main_context.get().poll(True)


def qemu_aio_set_fd_handler(
    fd: int | HasFileno,
    io_read: IOHandler | None,
    io_write: IOHandler | None,
    io_flush: AioFlushHandler | None = None,
    opaque: object = None,
) -> None:
    """`aio_set_fd_handler` on the main context."""
    main_context.get().set_fd_handler(fd, io_read, io_write, io_flush, opaque)


def qemu_aio_set_event_notifier(
    notifier: EventNotifier,
    io_read: Callable[[EventNotifier], object] | None,
    io_flush: Callable[[EventNotifier], object] | None = None,
) -> None:
    """`aio_set_event_notifier` on the main context."""
    main_context.get().set_event_notifier(notifier, io_read, io_flush)


# -- requests --------------------------------------------------------------------------


def qemu_aio_get(
    pool: AIOPool,
    bs: object,
    cb: BlockDriverCompletionFunc | None,
    opaque: object,
) -> BlockDriverAIOCB:
    """Start a request; for block drivers [`pool.get`].

    The last one released to the pool serves again, if there is one, and shows nothing
    of its former life.  Until it completes the request makes its context busy.

    Args:
        pool: the driver's pool.
        bs: what the request is for: a context, or an object whose `ctx` or `context` is
            one; with anything else the request belongs to the main context.
        cb: called once as `cb(opaque, ret)`, or None.
        opaque: its first argument.

    Returns:
        An object of the pool's `aiocb_type`, which the driver `complete`s and releases.

    Raises:
        TypeError: `pool` is no pool, or `cb` not callable.
        RuntimeError: the context is closed.
    """
    if not isinstance(pool, AIOPool):
        raise TypeError(f"an AIOPool is expected, got {pool!r}")
    return pool.get(bs, cb, opaque)


def qemu_aio_release(acb: BlockDriverAIOCB) -> None:
    """Give a request back to its pool; for block drivers [`pool.release`].

    To be called once, after the completion, which may be from inside the callback.  The
    object may then be the next request of the pool, so whoever still has it must not
    touch it; only what was awaited stays readable for its awaiters.  One that is
    released without having completed never calls its callback, and awaiters get
    CancelledError.

    Raises:
        TypeError: `acb` is no request.
        RuntimeError: it was released before, or never got.
    """
    if not isinstance(acb, BlockDriverAIOCB):
        raise TypeError(f"a BlockDriverAIOCB is expected, got {acb!r}")
    if acb.pool is None:
        raise RuntimeError("the request did not come from qemu_aio_get()")
    acb.pool.release(acb)


# -- event notifiers -------------------------------------------------------------------


def event_notifier_init(active: bool = False) -> EventNotifier:
    """Make an event notifier, set if `active` [`EventNotifier(active)`].

    Raises:
        OSError: no file descriptor could be had.
    """
    return EventNotifier(active)


def event_notifier_set(notifier: EventNotifier) -> None:
    """Make its fd readable [`notifier.set()`].  Any thread, and signal handlers.

    Raises:
        OSError: EBADF after `event_notifier_cleanup`.
    """
    EventNotifier.set(notifier)


def event_notifier_test_and_clear(notifier: EventNotifier) -> bool:
    """Drain it; had it been set? [`notifier.test_and_clear()`].  Any thread."""
    return EventNotifier.test_and_clear(notifier)


def event_notifier_get_fd(notifier: EventNotifier) -> int:
    """The fd to watch for reading, -1 after cleanup [`notifier.fileno()`]."""
    return EventNotifier.fileno(notifier)


def event_notifier_cleanup(notifier: EventNotifier) -> None:
    """Close it; twice does nothing [`notifier.close()`]."""
    EventNotifier.close(notifier)
