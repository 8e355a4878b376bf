"""AioContext itself: construction, progress, flush, adaptive polling, counts.

The checklist has the famous pitfalls; here are the sentences of the design that
it does not cover.
"""

from __future__ import annotations

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


def test_a_fresh_context(ctx: AioContext, fdmon: str) -> None:
    assert ctx.fdmon == fdmon
    assert ctx.closed is False
    assert ctx.refcount == 1
    assert ctx.pending() is False
    assert ctx.poll() is False
    assert isinstance(ctx.stats(), dict)


def test_poll_takes_its_argument_by_position_and_name(ctx: AioContext) -> None:
    assert ctx.poll(True) is False
    assert ctx.poll(blocking=True) is False
    assert ctx.poll(blocking=False) is False


@pytest.mark.parametrize(
    "arguments, error",
    [
        ({"fdmon": "kqueue"}, ValueError),
        ({"fdmon": 3}, TypeError),
        ({"semantics": "ancient"}, ValueError),
        ({"semantics": 7}, (TypeError, ValueError)),
        ({"poll_max_ns": -1}, ValueError),
        ({"poll_grow": -1}, ValueError),
        ({"poll_shrink": -1}, ValueError),
        ({"hold_gil_ns": -1}, ValueError),
        ({"poll_max_ns": "much"}, TypeError),
        ({"no_such_option": 1}, TypeError),
    ],
)
def test_bad_arguments_are_refused(
    arguments: dict[str, Any], error: type[Exception] | tuple[type[Exception], ...]
) -> None:
    with pytest.raises(error):
        AioContext(**arguments)


def test_references(fdmon: str) -> None:
    ctx = AioContext(fdmon=fdmon)
    ctx.ref()
    assert ctx.refcount == 2
    ctx.unref()
    assert (ctx.refcount, ctx.closed) == (1, False)
    ctx.unref()
    assert ctx.closed is True
    with pytest.raises(RuntimeError):
        ctx.ref()


@pytest.mark.usefixtures("busy")
def test_a_notification_is_progress_of_a_busy_poll_once(ctx: AioContext) -> None:
    assert ctx.poll(False) is False
    ctx.notify()
    assert ctx.poll(False) is True
    assert ctx.poll(False) is False


@pytest.mark.usefixtures("busy")
def test_a_registration_is_progress_of_a_busy_poll_once(
    ctx: AioContext, make_pipe: MakePipe
) -> None:
    pipe = make_pipe()
    ctx.set_fd_handler(pipe.r, print, None)
    assert ctx.poll(False) is True
    assert ctx.poll(False) is False
    ctx.set_fd_handler(pipe.r, None, None)


def test_flush_runs_until_idle_not_until_what_was_outstanding(
    ctx: AioContext, event: MakeEvent
) -> None:
    data = event(active=1)
    follow_up = event(active=0)
    ctx.set_event_notifier(follow_up.e, follow_up.ready, follow_up.flush)

    def first(notifier: Any) -> None:
        data.ready(notifier)
        follow_up.active = 3
        follow_up.auto_set = True
        follow_up.e.set()

    ctx.set_event_notifier(data.e, first, data.flush)
    data.e.set()
    ctx.flush()
    assert (data.n, follow_up.n, follow_up.active) == (1, 3, 0)


def test_flush_runs_chains_of_bottom_halves(
    ctx: AioContext, counter: MakeCounter
) -> None:
    data = counter(max=50)
    assert data.bh is not None
    data.bh.schedule()
    ctx.flush()
    assert data.n == 50


def test_flush_serves_handlers_without_io_flush_meanwhile(
    ctx: AioContext, event: MakeEvent, later: Later
) -> None:
    data, plain = event(active=1), event()
    ctx.set_event_notifier(data.e, data.ready, data.flush)
    ctx.set_event_notifier(plain.e, plain.ready)
    later(0.03, plain.e.set)
    later(0.1, data.e.set)
    ctx.flush()
    assert (data.n, plain.n) == (1, 1)


def test_io_flush_gives_a_truth_value(ctx: AioContext, event: MakeEvent) -> None:
    data = event()
    for value, served in (("", 0), ([], 0), (None, 0), ("yes", 1), ([0], 2), (2.5, 3)):
        ctx.set_event_notifier(data.e, data.ready, lambda _, value=value: value)
        data.e.set()
        settle(ctx)
        assert data.n == served
        data.e.test_and_clear()


def test_io_flush_that_raises_is_reported_and_counts_as_zero(
    ctx: AioContext, event: MakeEvent, errors: list[dict[str, Any]]
) -> None:
    data = event()

    def flush(_: object) -> int:
        raise ValueError("is it?")

    ctx.set_event_notifier(data.e, data.ready, flush)
    data.e.set()
    assert ctx.poll(True) is False
    assert data.n == 0
    assert errors
    assert {str(error["exception"]) for error in errors} == {"is it?"}


def test_io_flush_may_remove_handlers(ctx: AioContext, event: MakeEvent) -> None:
    many = [event(active=1) for _ in range(4)]

    def flush(_: object) -> int:
        for data in many:
            ctx.set_event_notifier(data.e, None, None)
        return 1

    for data in many:
        ctx.set_event_notifier(data.e, data.ready, flush)
        data.e.set()
    for _ in range(3):
        ctx.poll(False)
    assert [data.n for data in many] == [0] * 4
    assert ctx.poll(True) is False


def test_adaptive_polling_sees_notifications_and_stays_correct(
    fdmon: str, later: Later
) -> None:
    ctx = AioContext(fdmon=fdmon, poll_max_ns=200_000, poll_grow=2, poll_shrink=2)
    busy = Busy(ctx)
    ran: list[int] = []
    bh = ctx.bh_new(ran.append, 1)
    for expected in range(1, 20):
        later(0.001, bh.schedule)
        while len(ran) < expected:
            ctx.poll(True)
    busy.close()
    ctx.close()


def test_stats_count_what_happened(loop: EventLoop, make_pipe: MakePipe) -> None:
    names = {
        "passes",
        "waits",
        "gil_releases",
        "callbacks",
        "bottom_halves",
        "fd_events",
        "timers",
        "notifies",
        "notify_writes",
        "submits",
    }
    before = loop.stats()
    assert names <= set(before)
    pipe = make_pipe()
    pipe.feed()

    def io_read() -> None:
        pipe.drain()
        loop.call_later(0.001, loop.stop)

    loop.add_reader(pipe.r, io_read)
    loop.context.bh_new(lambda _: None).schedule()
    loop.run_forever()
    loop.remove_reader(pipe.r)
    after = loop.stats()
    grown = {name: after[name] - before[name] for name in names}
    assert grown["bottom_halves"] >= 1
    assert grown["fd_events"] >= 1
    assert grown["timers"] >= 1
    assert grown["passes"] >= 2
    assert grown["waits"] >= 1
    assert grown["notify_writes"] == 0, "own thread: no system call"
