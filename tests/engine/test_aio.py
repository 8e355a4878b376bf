"""QEMU's test-aio, `aio` group, under QEMU's names, through `aioqemu.qemu_aio`.

The first part has the results of the seed header's engine (October 2012); the
second what QEMU's tests of today say where they differ, on a context made with
``semantics="modern"``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from support.qemu import BHData, EventData, bh_delete_cb, bh_test_cb, wait_for_aio

from aioqemu import AioContext, EventNotifier, qemu_aio
from aioqemu.qemu_aio import (
    aio_bh_new,
    aio_notify,
    aio_poll,
    aio_set_event_notifier,
    qemu_bh_cancel,
    qemu_bh_delete,
    qemu_bh_schedule,
)

MakeEvent = Callable[..., EventData]


@pytest.fixture
def ctx(fdmon: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[AioContext]:
    """A context as C code gets one: no argument, the backend by environment."""
    monkeypatch.setenv("AIOQEMU_FDMON", fdmon)
    context = qemu_aio.aio_context_new()
    assert context.fdmon == fdmon
    yield context
    qemu_aio.aio_context_unref(context)
    assert context.closed


def new_bh(
    ctx: AioContext, max: int = 0, cb: Callable[[BHData], None] = bh_test_cb
) -> BHData:
    """Make a counting bottom half, not scheduled."""
    data = BHData(max=max)
    data.bh = aio_bh_new(ctx, cb, data)
    return data


def schedule(data: BHData) -> None:
    """Schedule the bottom half of ``data``."""
    assert data.bh is not None
    qemu_bh_schedule(data.bh)


def register(ctx: AioContext, data: EventData, flush: bool = True) -> None:
    """Register the notifier of ``data``, with or without its ``io_flush``."""
    aio_set_event_notifier(ctx, data.e, data.ready, data.flush if flush else None)


def unregister(ctx: AioContext, data: EventData) -> None:
    """Remove the notifier of ``data``."""
    aio_set_event_notifier(ctx, data.e, None, None)


def test_aio_notify(ctx: AioContext) -> None:
    assert aio_poll(ctx, False) is False
    aio_notify(ctx)
    assert aio_poll(ctx, True) is False
    assert aio_poll(ctx, False) is False


def test_aio_bh_schedule(ctx: AioContext) -> None:
    data = new_bh(ctx)
    schedule(data)
    assert data.n == 0
    assert aio_poll(ctx, True) is True
    assert data.n == 1
    assert aio_poll(ctx, False) is False
    assert data.n == 1
    assert data.bh is not None
    qemu_bh_delete(data.bh)


def test_aio_bh_schedule10(ctx: AioContext) -> None:
    data = new_bh(ctx, max=10)
    schedule(data)
    assert data.n == 0
    assert aio_poll(ctx, False) is True
    assert data.n == 1
    assert aio_poll(ctx, True) is True
    assert data.n == 2
    wait_for_aio(ctx)
    assert data.n == 10
    assert aio_poll(ctx, False) is False
    assert data.n == 10
    assert data.bh is not None
    qemu_bh_delete(data.bh)


def test_aio_bh_cancel(ctx: AioContext) -> None:
    data = new_bh(ctx)
    schedule(data)
    assert data.n == 0
    assert data.bh is not None
    qemu_bh_cancel(data.bh)
    assert data.n == 0
    assert aio_poll(ctx, False) is False
    assert data.n == 0
    qemu_bh_delete(data.bh)


def test_aio_bh_delete(ctx: AioContext) -> None:
    data = new_bh(ctx)
    schedule(data)
    assert data.n == 0
    assert data.bh is not None
    qemu_bh_delete(data.bh)
    assert data.n == 0
    assert aio_poll(ctx, False) is False
    assert data.n == 0


def test_aio_bh_callback_delete_one(ctx: AioContext) -> None:
    data = new_bh(ctx, max=1, cb=bh_delete_cb)
    schedule(data)
    assert data.n == 0
    wait_for_aio(ctx)
    assert data.n == 1
    assert data.bh is None
    assert aio_poll(ctx, False) is False
    assert aio_poll(ctx, True) is False


def test_aio_bh_callback_delete_many(ctx: AioContext) -> None:
    limits = (1, 3, 2, 4)
    many = [new_bh(ctx, max=limit, cb=bh_delete_cb) for limit in limits]
    for data in many:
        schedule(data)
    assert [data.n for data in many] == [0, 0, 0, 0]
    assert aio_poll(ctx, False) is True
    assert [data.n for data in many] == [1, 1, 1, 1]
    assert many[0].bh is None
    wait_for_aio(ctx)
    assert [data.n for data in many] == list(limits)
    assert [data.bh for data in many] == [None] * 4


def test_aio_bh_flush(ctx: AioContext) -> None:
    data = new_bh(ctx)
    schedule(data)
    assert data.n == 0
    wait_for_aio(ctx)
    assert data.n == 1
    assert aio_poll(ctx, False) is False
    assert data.n == 1
    assert data.bh is not None
    qemu_bh_delete(data.bh)


def test_aio_event_add_remove(ctx: AioContext, event: MakeEvent) -> None:
    data = event()
    register(ctx, data)
    assert aio_poll(ctx, False) is False
    assert data.n == 0
    unregister(ctx, data)
    assert aio_poll(ctx, False) is False
    assert data.n == 0


def test_aio_event_wait(ctx: AioContext, event: MakeEvent) -> None:
    data = event(active=1)
    register(ctx, data)
    # The registration notified, and draining that is progress of a busy poll.
    assert aio_poll(ctx, False) is True
    assert (data.n, data.active) == (0, 1)
    data.e.set()
    assert aio_poll(ctx, False) is True
    assert (data.n, data.active) == (1, 0)
    assert aio_poll(ctx, False) is False
    assert data.n == 1
    unregister(ctx, data)
    assert aio_poll(ctx, False) is False
    assert data.n == 1


def test_aio_event_wait_no_flush_cb(ctx: AioContext, event: MakeEvent) -> None:
    data = event()
    register(ctx, data, flush=False)
    assert aio_poll(ctx, False) is False
    assert data.n == 0
    data.e.set()
    assert aio_poll(ctx, True) is False
    data.n = 0
    dummy = event(active=1)
    register(ctx, dummy)
    data.e.set()
    assert aio_poll(ctx, False) is True
    assert data.n == 1
    assert aio_poll(ctx, False) is False
    assert data.n == 1
    data.e.set()
    assert aio_poll(ctx, False) is True
    assert data.n == 2
    assert aio_poll(ctx, False) is False
    assert data.n == 2
    dummy.e.set()
    wait_for_aio(ctx)
    assert (data.n, dummy.n, dummy.active) == (2, 1, 0)
    unregister(ctx, data)
    unregister(ctx, dummy)
    assert aio_poll(ctx, False) is False
    assert data.n == 2


def test_aio_event_flush(ctx: AioContext, event: MakeEvent) -> None:
    data = event(active=10, auto_set=True)
    register(ctx, data)
    assert aio_poll(ctx, False) is True
    assert (data.n, data.active) == (0, 10)
    data.e.set()
    assert aio_poll(ctx, False) is True
    assert (data.n, data.active) == (1, 9)
    assert aio_poll(ctx, False) is True
    assert data.n == 2
    wait_for_aio(ctx)
    assert (data.n, data.active) == (10, 0)
    assert aio_poll(ctx, False) is False
    unregister(ctx, data)
    assert aio_poll(ctx, False) is False


def test_aio_event_flush_takes_eight_blocking_polls_after_the_first_two(
    ctx: AioContext, event: MakeEvent
) -> None:
    data = event(active=10, auto_set=True)
    register(ctx, data)
    assert aio_poll(ctx, False) is True
    data.e.set()
    assert aio_poll(ctx, False) is True
    assert aio_poll(ctx, False) is True
    polls = 0
    while data.active:
        assert aio_poll(ctx, True) is True
        polls += 1
    assert polls == 8
    assert aio_poll(ctx, True) is False


# Today's semantics ---------------------------------------------------------------


def drain(ctx: AioContext) -> None:
    """Poll without blocking while there is progress."""
    while aio_poll(ctx, False):
        pass


@pytest.fixture
def modern_event(modern: AioContext) -> Iterator[MakeEvent]:
    """A factory of event notifiers for the modern context."""
    made: list[EventData] = []

    def make(**fields: int | bool) -> EventData:
        made.append(EventData(**fields))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for data in made:
        unregister(modern, data)
        data.close()


@pytest.mark.parametrize("first", [False, True], ids=["nonblocking", "blocking"])
def test_modern_aio_bh_schedule(modern: AioContext, first: bool) -> None:
    data = new_bh(modern, max=10)
    schedule(data)
    assert data.n == 0
    assert aio_poll(modern, first) is True
    assert data.n == 1
    while data.n < 10:
        assert aio_poll(modern, True) is True
    assert aio_poll(modern, False) is False
    assert data.n == 10


@pytest.mark.parametrize("function", [qemu_bh_cancel, qemu_bh_delete])
def test_modern_aio_bh_cancel_and_delete(
    modern: AioContext, function: Callable[[object], None]
) -> None:
    data = new_bh(modern)
    schedule(data)
    function(data.bh)
    assert aio_poll(modern, False) is False
    assert data.n == 0


def test_modern_aio_bh_callback_delete_many(modern: AioContext) -> None:
    limits = (1, 3, 2, 4)
    many = [new_bh(modern, max=limit, cb=bh_delete_cb) for limit in limits]
    for data in many:
        schedule(data)
    assert aio_poll(modern, False) is True
    assert [data.n for data in many] == [1, 1, 1, 1]
    assert many[0].bh is None
    while any(data.bh for data in many):
        assert aio_poll(modern, True) is True
    assert [data.n for data in many] == list(limits)
    assert aio_poll(modern, False) is False


def test_modern_aio_event_add_remove(
    modern: AioContext, modern_event: MakeEvent
) -> None:
    data = modern_event()
    register(modern, data, flush=False)
    assert aio_poll(modern, False) is False
    assert data.n == 0
    unregister(modern, data)
    assert aio_poll(modern, False) is False
    assert data.n == 0


def test_modern_aio_event_wait(modern: AioContext, modern_event: MakeEvent) -> None:
    drain(modern)
    data = modern_event(active=1)
    register(modern, data, flush=False)
    assert aio_poll(modern, False) is False
    assert (data.n, data.active) == (0, 1)
    data.e.set()
    assert aio_poll(modern, False) is True
    assert (data.n, data.active) == (1, 0)
    assert aio_poll(modern, False) is False
    assert data.n == 1
    unregister(modern, data)
    assert aio_poll(modern, False) is False


def test_modern_aio_event_wait_no_flush_cb(
    modern: AioContext, modern_event: MakeEvent
) -> None:
    drain(modern)
    data = modern_event()
    register(modern, data, flush=False)
    assert aio_poll(modern, False) is False
    data.e.set()
    # File descriptors are always watched now.
    assert aio_poll(modern, True) is True
    assert data.n == 1
    dummy = modern_event(active=1)
    register(modern, dummy)
    for expected in (2, 3):
        data.e.set()
        assert aio_poll(modern, False) is True
        assert data.n == expected
        assert aio_poll(modern, False) is False
        assert data.n == expected
    dummy.e.set()
    while dummy.active:
        assert aio_poll(modern, True) is True
    assert (data.n, dummy.n, dummy.active) == (3, 1, 0)


def test_modern_aio_event_flush(modern: AioContext, modern_event: MakeEvent) -> None:
    drain(modern)
    data = modern_event(active=10, auto_set=True)
    register(modern, data, flush=False)
    assert aio_poll(modern, False) is False
    assert (data.n, data.active) == (0, 10)
    data.e.set()
    assert aio_poll(modern, False) is True
    assert (data.n, data.active) == (1, 9)
    assert aio_poll(modern, False) is True
    assert data.n == 2
    while data.active:
        assert aio_poll(modern, True) is True
    assert (data.n, data.active) == (10, 0)
    assert aio_poll(modern, False) is False


def test_modern_aio_timer_schedule(modern: AioContext, modern_event: MakeEvent) -> None:
    interval = 75_000_000
    register(modern, modern_event(), flush=False)
    fired: list[int] = []

    def timer_cb(_: object) -> None:
        fired.append(time.monotonic_ns())
        if len(fired) < 2:
            deadlines.append(time.monotonic_ns() + interval)
            timer.mod(deadlines[-1])

    timer = modern.timer_new(timer_cb)
    deadlines = [time.monotonic_ns() + interval]
    timer.mod(deadlines[0])
    assert not fired
    drain(modern)
    assert aio_poll(modern, False) is False
    assert not fired
    time.sleep(0.1)
    assert not fired, "a timer runs in the loop only"
    assert aio_poll(modern, False) is True
    assert len(fired) == 1
    drain(modern)
    assert aio_poll(modern, False) is False
    assert len(fired) == 1
    assert aio_poll(modern, True) is True
    assert len(fired) == 2
    assert aio_poll(modern, False) is False
    assert len(fired) == 2
    assert all(at >= due for at, due in zip(fired, deadlines, strict=True))


def test_modern_notify_alone_ends_a_blocking_poll_without_progress(
    modern: AioContext, later: Callable[..., object]
) -> None:
    drain(modern)
    later(0.05, modern.notify)
    started = time.monotonic()
    assert aio_poll(modern, True) is False
    assert time.monotonic() - started >= 0.04


def test_modern_io_flush_is_ignored(
    modern: AioContext, modern_event: MakeEvent
) -> None:
    data = modern_event()
    asked: list[EventNotifier] = []

    def flush(notifier: EventNotifier) -> int:
        asked.append(notifier)
        return 0

    modern.set_event_notifier(data.e, data.ready, flush)
    data.e.set()
    assert aio_poll(modern, False) is True
    assert (data.n, asked) == (1, [])


def test_nested_aio_poll(fdmon: str) -> None:
    # QEMU's nested-aio-poll: with adaptive polling on, a handler polls again and
    # that inner poll completes through another handler.
    ctx = AioContext(
        fdmon=fdmon,
        semantics="modern",
        poll_max_ns=1_000_000,
        poll_grow=2,
        poll_shrink=2,
    )
    outer = EventNotifier(active=True)
    inner = EventNotifier()
    nested: list[bool] = []
    inner_runs: list[bool] = []
    depth = 0

    def outer_cb(notifier: EventNotifier) -> None:
        nonlocal depth
        assert depth == 0, "the outer handler was entered again"
        assert notifier.test_and_clear() is True
        inner.set()
        depth += 1
        nested.append(ctx.poll(True))
        depth -= 1

    def inner_cb(notifier: EventNotifier) -> None:
        assert depth == 1
        inner_runs.append(notifier.test_and_clear())

    ctx.set_event_notifier(outer, outer_cb)
    ctx.set_event_notifier(inner, inner_cb)
    for expected in (1, 2, 3):
        assert ctx.poll(True) is True
        assert nested == [True] * expected
        assert inner_runs == [True] * expected
        assert ctx.poll(False) is False
        outer.set()
    ctx.close()
    outer.close()
    inner.close()
