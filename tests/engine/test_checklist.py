"""What naive event loops of this kind get wrong: N1 to N30, a test each.

The list is that of the seed header's pitfalls. Every test runs on each backend
on a context with the seed's semantics, unless its subject is today's.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support.pipes import Pipe
from support.procs import run_script
from support.qemu import BHData, Busy, EventData, settle

from aioqemu import AioContext, EventLoop, EventNotifier

MakeEvent = Callable[..., EventData]
MakePipe = Callable[[], Pipe]
Later = Callable[[float, Callable[[], object]], threading.Thread]
MakeCounter = Callable[..., BHData]


@contextmanager
def at_once() -> Iterator[None]:
    """Assert that the block does not wait for anything."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < 1.0


@contextmanager
def alarms(handler: Callable[..., object], interval: float) -> Iterator[None]:
    """Deliver SIGALRM every ``interval`` seconds to a Python handler."""
    old = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, interval, interval)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_N1_does_not_block_when_nothing_is_busy(
    ctx: AioContext, event: MakeEvent, make_pipe: MakePipe
) -> None:
    idle = event(active=0)
    pipe = make_pipe()
    with at_once():
        assert ctx.poll(True) is False
        ctx.set_event_notifier(idle.e, idle.ready, idle.flush)
        ctx.set_fd_handler(pipe.r, print, None)
        for _ in range(3):
            assert ctx.poll(True) is False
        ctx.flush()
    ctx.set_fd_handler(pipe.r, None, None)


def test_N2_blocks_when_busy(ctx: AioContext, event: MakeEvent, later: Later) -> None:
    data = event(active=1)
    ctx.set_event_notifier(data.e, data.ready, data.flush)
    settle(ctx)
    started = time.monotonic()
    later(0.1, data.e.set)
    assert ctx.poll(True) is True
    assert time.monotonic() - started >= 0.09
    assert data.n == 1
    assert ctx.poll(True) is False


def test_N3_fds_are_not_polled_when_nothing_is_busy(
    ctx: AioContext, event: MakeEvent, make_pipe: MakePipe
) -> None:
    pipe, data = make_pipe(), event()
    pipe.feed()
    data.e.set()
    ctx.set_event_notifier(data.e, data.ready, data.flush)
    ctx.set_fd_handler(pipe.r, lambda _: pytest.fail("not busy"), None)
    for blocking in (False, True, False):
        assert ctx.poll(blocking) is False
    assert data.n == 0
    ctx.set_fd_handler(pipe.r, None, None)


@pytest.mark.usefixtures("busy")
def test_N4_a_pending_bottom_half_keeps_a_busy_poll_from_blocking(
    ctx: AioContext, counter: MakeCounter
) -> None:
    data = counter()
    assert data.bh is not None
    data.bh.schedule()
    with at_once():
        assert ctx.poll(True) is True
    assert data.n == 1


def test_N5_an_idle_bottom_half_runs_but_is_no_progress(
    ctx: AioContext, counter: MakeCounter
) -> None:
    data = counter()
    assert data.bh is not None
    data.bh.schedule_idle()
    assert ctx.poll(False) is False
    assert data.n == 1
    data.bh.schedule_idle()
    assert ctx.bh_poll() is False
    assert data.n == 2
    data.bh.schedule_idle()
    with at_once():
        ctx.flush()
    assert ctx.poll(False) is False


def test_N6_scheduling_twice_runs_once(ctx: AioContext, counter: MakeCounter) -> None:
    data = counter()
    assert data.bh is not None
    for _ in range(5):
        data.bh.schedule()
    assert ctx.poll(False) is True
    assert ctx.poll(False) is False
    assert data.n == 1


def test_N7_a_bottom_half_that_reschedules_itself_runs_once_a_pass(
    ctx: AioContext, counter: MakeCounter
) -> None:
    data = counter(max=100)
    assert data.bh is not None
    data.bh.schedule()
    for expected in range(1, 6):
        assert ctx.poll(False) is True
        assert data.n == expected
    data.bh.delete()


@pytest.mark.parametrize("made_first", ["scheduler", "scheduled"])
def test_N8_a_bottom_half_scheduled_by_another_runs_in_the_next_pass(
    ctx: AioContext, made_first: str
) -> None:
    ran: list[str] = []

    def outer_cb(_: object) -> None:
        ran.append("outer")
        inner.schedule()

    def make_inner() -> Any:
        return ctx.bh_new(lambda _: ran.append("inner"))

    if made_first == "scheduled":
        inner = make_inner()
        outer = ctx.bh_new(outer_cb)
    else:
        outer = ctx.bh_new(outer_cb)
        inner = make_inner()
    outer.schedule()
    assert ctx.poll(False) is True
    assert ran == ["outer"]
    assert ctx.poll(False) is True
    assert ran == ["outer", "inner"]
    assert ctx.poll(False) is False


@pytest.mark.parametrize("method", ["cancel", "delete"])
def test_N9_cancel_and_delete_of_a_later_bottom_half_hold_in_the_same_pass(
    ctx: AioContext, counter: MakeCounter, method: str
) -> None:
    victim = counter()
    first = ctx.bh_new(lambda _: getattr(victim.bh, method)())
    first.schedule()
    assert victim.bh is not None
    victim.bh.schedule()
    assert ctx.poll(False) is True
    assert ctx.poll(False) is False
    assert victim.n == 0


def test_N10_delete_from_the_own_callback(ctx: AioContext) -> None:
    ran: list[int] = []

    def cb(number: int) -> None:
        ran.append(number)
        halves[number].delete()

    halves = [ctx.bh_new(cb, number) for number in range(4)]
    for half in halves:
        half.schedule()
    assert ctx.poll(False) is True
    assert ran == [0, 1, 2, 3]
    assert all(half.deleted for half in halves)
    assert ctx.poll(False) is False


def test_N11_a_nested_poll_sees_the_rest_of_the_outer_pass(ctx: AioContext) -> None:
    done: list[str] = []

    def waits(_: object) -> None:
        # A nested wait for work that the outer pass has already taken: a poll
        # that kept its slice to itself would never come back.
        for _ in range(10):
            if done:
                break
            assert ctx.poll(False) is True
        done.append("waiter")

    ctx.bh_new(waits).schedule()
    ctx.bh_new(lambda _: done.append("awaited")).schedule()
    ctx.bh_new(lambda _: done.append("last")).schedule()
    assert ctx.poll(False) is True
    assert done == ["awaited", "last", "waiter"]
    assert ctx.poll(False) is False


def test_N12_a_nested_poll_frees_nothing_that_the_outer_walk_holds(
    ctx: AioContext, busy: Busy, make_pipe: MakePipe
) -> None:
    pipes = [make_pipe() for _ in range(8)]
    calls: list[int] = []
    nested = 0

    def io_read(index: int) -> None:
        nonlocal nested
        calls.append(index)
        pipes[index].drain()
        if nested < 3:
            nested += 1
            # Everything goes, this handler too; the nested poll may free it all.
            for pipe in pipes:
                ctx.set_fd_handler(pipe.r, None, None)
            busy.e.set()
            assert ctx.poll(True) is True
            ctx.set_fd_handler(pipes[index].r, io_read, None, None, index)

    for index, pipe in enumerate(pipes):
        ctx.set_fd_handler(pipe.r, io_read, None, None, index)
        pipe.feed()
    settle(ctx)
    assert len(calls) == 1, "removed handlers must not run"
    victims: list[int] = []
    halves = [ctx.bh_new(victims.append, index) for index in range(4)]

    def deletes(_: object) -> None:
        halves[0].delete()
        halves[1].delete()
        killer.delete()
        ctx.poll(False)

    killer = ctx.bh_new(deletes)
    for half in (killer, *halves):
        half.schedule()
    settle(ctx)
    assert victims == [2, 3]
    for pipe in pipes:
        ctx.set_fd_handler(pipe.r, None, None)


@pytest.mark.usefixtures("busy")
def test_N13_a_handler_removed_by_an_earlier_handler_is_not_called(
    ctx: AioContext, make_pipe: MakePipe
) -> None:
    pipes = [make_pipe() for _ in range(5)]
    calls: list[int] = []

    def io_read(index: int) -> None:
        calls.append(index)
        for pipe in pipes:
            ctx.set_fd_handler(pipe.r, None, None)

    for index, pipe in enumerate(pipes):
        ctx.set_fd_handler(pipe.r, io_read, None, None, index)
        pipe.feed()
    settle(ctx)
    assert len(calls) == 1


@pytest.mark.usefixtures("busy")
def test_N14_a_reused_fd_number_does_not_inherit_readiness(
    ctx: AioContext, make_pipe: MakePipe
) -> None:
    pipes = [make_pipe(), make_pipe()]
    empty = make_pipe()
    calls: list[str] = []

    def io_read(index: int) -> None:
        calls.append("old")
        pipes[index].drain()
        other = pipes[1 - index]
        number = other.r
        if len(calls) > 1:
            return
        ctx.set_fd_handler(number, None, None)
        os.dup2(empty.r, number)
        os.set_blocking(number, False)
        ctx.set_fd_handler(number, lambda _: calls.append("new"), None)

    for index, pipe in enumerate(pipes):
        ctx.set_fd_handler(pipe.r, io_read, None, None, index)
        pipe.feed()
    settle(ctx)
    assert calls == ["old"]
    for pipe in pipes:
        ctx.set_fd_handler(pipe.r, None, None)


@pytest.mark.usefixtures("busy")
def test_N15_io_write_is_not_called_after_io_read_removed_the_handler(
    ctx: AioContext,
) -> None:
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        there.send(b"x")
        calls: list[str] = []

        def io_read(_: object) -> None:
            calls.append("read")
            ctx.set_fd_handler(here.fileno(), None, None)

        ctx.set_fd_handler(
            here.fileno(), io_read, lambda _: calls.append("write"), None
        )
        settle(ctx)
        assert calls == ["read"]


@pytest.mark.usefixtures("busy")
def test_N16_a_handler_whose_io_flush_is_zero_is_not_served(
    ctx: AioContext, event: MakeEvent
) -> None:
    idle, wanted, plain = event(active=0), event(active=1), event()
    ctx.set_event_notifier(idle.e, idle.ready, idle.flush)
    ctx.set_event_notifier(wanted.e, wanted.ready, wanted.flush)
    ctx.set_event_notifier(plain.e, plain.ready)
    for data in (idle, wanted, plain):
        data.e.set()
    settle(ctx)
    assert (idle.n, wanted.n, plain.n) == (0, 1, 1)


def test_N17_the_notifier_is_drained_and_does_not_spin(
    ctx: AioContext, busy: Busy, later: Later
) -> None:
    for _ in range(10):
        thread = threading.Thread(target=ctx.notify)
        thread.start()
        thread.join()
    settle(ctx)
    later(0.2, busy.release)
    cpu, polls = time.process_time(), 0
    while busy.n == 0:
        ctx.poll(True)
        polls += 1
    assert polls <= 5
    assert time.process_time() - cpu < 0.1


def test_N18_no_wakeup_is_lost(ctx: AioContext, busy: Busy) -> None:
    rounds = 1000
    ran = threading.Semaphore(0)
    bh = ctx.bh_new(lambda _: ran.release())
    stuck: list[int] = []

    def producer() -> None:
        for number in range(rounds):
            bh.schedule()
            # The next one is sent only when this one has run: a lost wake-up
            # stands still here.
            if not ran.acquire(timeout=10):
                stuck.append(number)
                break
        busy.release()

    thread = threading.Thread(target=producer)
    thread.start()
    while busy.n == 0:
        ctx.poll(True)
    thread.join()
    assert stuck == []


@pytest.mark.parametrize("who", ["own thread", "other thread"])
@pytest.mark.usefixtures("busy")
def test_N19_a_notify_before_the_wait_is_not_lost(ctx: AioContext, who: str) -> None:
    if who == "own thread":
        ctx.notify()
    else:
        thread = threading.Thread(target=ctx.notify)
        thread.start()
        thread.join()
    with at_once():
        assert ctx.poll(True) is True


@pytest.mark.usefixtures("busy")
def test_N20_scheduling_from_a_signal_handler_wakes_a_blocked_poll(
    ctx: AioContext, counter: MakeCounter
) -> None:
    data = counter()
    bh = data.bh
    assert bh is not None
    with alarms(lambda *_: bh.schedule(), 0.02):
        started = time.monotonic()
        while data.n < 5:
            ctx.poll(True)
            assert time.monotonic() - started < 10
    settle(ctx)


def test_N20_scheduling_from_a_signal_handler_while_the_loop_is_busy(
    ctx: AioContext, counter: MakeCounter
) -> None:
    data, seen, worker = counter(), 0, counter(max=1 << 40)
    assert data.bh is not None
    assert worker.bh is not None
    bh = data.bh

    def handler(*_: object) -> None:
        nonlocal seen
        seen += 1
        bh.schedule()
        ctx.notify()

    worker.bh.schedule()
    deadline = time.monotonic() + 0.5
    with alarms(handler, 0.001):
        while time.monotonic() < deadline:
            ctx.poll(False)
            bh.schedule()
    ctx.poll(False)
    ctx.poll(False)
    assert seen > 10
    assert bh.scheduled is False
    worker.bh.delete()


def test_N21_interrupted_waits_do_not_end_a_flush(
    ctx: AioContext, event: MakeEvent, later: Later
) -> None:
    data = event(active=3)
    ctx.set_event_notifier(data.e, data.ready, data.flush)
    for delay in (0.1, 0.2, 0.3):
        later(delay, data.e.set)
    signals: list[int] = []
    with alarms(lambda number, _: signals.append(number), 0.01):
        ctx.flush()
    assert (data.n, data.active) == (3, 0)
    assert len(signals) > 5


@pytest.mark.usefixtures("busy")
def test_N22_an_exception_skips_nothing_and_leaks_no_walk(
    ctx: AioContext, make_pipe: MakePipe, errors: list[dict[str, Any]]
) -> None:
    ran: list[object] = []

    def fails(what: object) -> None:
        ran.append(what)
        raise ValueError(what)

    pipes = [make_pipe() for _ in range(3)]

    def io_read(index: int) -> None:
        pipes[index].drain()
        fails(("fd", index))

    for index, pipe in enumerate(pipes):
        ctx.set_fd_handler(pipe.r, io_read, None, None, index)
        pipe.feed()
    for index in range(3):
        ctx.bh_new(fails, ("bh", index)).schedule()
    timer = ctx.timer_new(fails, ("timer", 0))
    timer.mod(0)
    settle(ctx)
    expected = [("bh", 0), ("bh", 1), ("bh", 2), ("fd", 0), ("fd", 1), ("fd", 2)]
    assert sorted(ran) == [*expected, ("timer", 0)]  # type: ignore[type-var]
    assert sorted(e["exception"].args[0] for e in errors) == sorted(ran)  # type: ignore[type-var]
    assert all(isinstance(e["message"], str) and e["message"] for e in errors)
    # Had a walk leaked, removed nodes would stay and be found again.
    for pipe in pipes:
        ctx.set_fd_handler(pipe.r, None, None)
        pipe.feed()
    settle(ctx)
    assert len(ran) == 7


def test_N23_the_last_unref_inside_a_callback(fdmon: str) -> None:
    for kind in ("bh", "fd", "timer"):
        context = AioContext(fdmon=fdmon)
        busy = Busy(context)

        def cb(_: object, context: AioContext = context) -> None:
            context.unref()

        pipe = Pipe()
        pipe.feed()
        if kind == "bh":
            context.bh_new(cb).schedule()
        elif kind == "fd":
            context.set_fd_handler(pipe.r, cb, None)
        else:
            context.timer_new(cb).mod(0)
        for _ in range(3):
            if not context.closed:
                context.poll(False)
        assert context.closed
        with pytest.raises(RuntimeError):
            context.poll(False)
        busy.close()
        pipe.close()


def test_N24_scheduling_a_deleted_bottom_half_raises(
    ctx: AioContext, counter: MakeCounter
) -> None:
    bh = counter().bh
    assert bh is not None
    bh.delete()
    bh.delete()
    for method in (bh.schedule, bh.schedule_idle):
        with pytest.raises(RuntimeError):
            method()
    assert ctx.poll(False) is False


@pytest.mark.usefixtures("fdmon")
def test_N25_a_saturated_notifier_does_not_block_the_writer() -> None:
    notifier = EventNotifier()
    os.write(notifier.fileno(), (2**64 - 2).to_bytes(8, sys.byteorder))
    with at_once():
        for _ in range(3):
            notifier.set()
    assert notifier.test_and_clear() is True
    assert notifier.test_and_clear() is False
    notifier.close()


def test_N26_a_timeout_below_a_millisecond_neither_spins_nor_fires_early(
    ctx: AioContext, busy: Busy
) -> None:
    fired: list[int] = []
    timer = ctx.timer_new(lambda _: fired.append(time.monotonic_ns()))
    for delay_ns in (1_000, 50_000, 300_000, 900_000, 1_500_000):
        fired.clear()
        deadline = time.monotonic_ns() + delay_ns
        timer.mod(deadline)
        polls = 0
        while not fired:
            ctx.poll(True)
            polls += 1
        assert fired[0] >= deadline
        assert polls <= 3
    assert busy.n == 0


@pytest.mark.parametrize("deadline", [2**62, 2**63 - 1])
@pytest.mark.parametrize("blocking_ms", [100])
def test_N27_a_huge_timeout_neither_returns_at_once_nor_blocks_for_ever(
    ctx: AioContext, busy: Busy, later: Later, deadline: int, blocking_ms: int
) -> None:
    timer = ctx.timer_new(lambda _: pytest.fail("not due for centuries"))
    timer.mod(deadline)
    settle(ctx)
    later(blocking_ms / 1000, busy.release)
    started = time.monotonic()
    assert ctx.poll(True) is True
    assert time.monotonic() - started >= blocking_ms / 1000 * 0.9
    assert busy.n == 1
    timer.delete()


def test_N28_a_timer_rearmed_into_the_past_runs_once_a_pass(ctx: AioContext) -> None:
    runs = 0

    def cb(_: object) -> None:
        nonlocal runs
        runs += 1
        timer.mod(0)

    timer = ctx.timer_new(cb)
    timer.mod(0)
    for expected in range(1, 6):
        assert ctx.poll(False) is True
        assert runs == expected
    timer.delete()
    assert ctx.poll(False) is False


@pytest.mark.usefixtures("busy")
def test_N29_ready_fds_and_bottom_halves_do_not_starve_each_other(
    ctx: AioContext, make_pipe: MakePipe, counter: MakeCounter
) -> None:
    pipe, data, reads = make_pipe(), counter(max=1 << 40), 0

    def io_read(_: object) -> None:
        nonlocal reads
        reads += 1

    pipe.feed()
    ctx.set_fd_handler(pipe.r, io_read, None)
    assert data.bh is not None
    data.bh.schedule()
    for _ in range(20):
        assert ctx.poll(False) is True
    assert data.n >= 10
    assert reads >= 1
    ctx.set_fd_handler(pipe.r, None, None)
    data.bh.delete()


def test_N29_one_pass_of_the_loop_does_both(
    loop: EventLoop, make_pipe: MakePipe
) -> None:
    pipe, ran = make_pipe(), []

    def cb(_: object) -> None:
        ran.append("bh")
        if len(ran) < 1000:
            bh.schedule()

    bh = loop.context.bh_new(cb)
    bh.schedule()
    pipe.feed()

    def io_read() -> None:
        ran.append("fd")
        loop.remove_reader(pipe.r)
        loop.call_soon(loop.stop)

    loop.add_reader(pipe.r, io_read)
    loop.run_forever()
    assert ran.index("fd") <= 3
    assert ran.count("bh") <= 5
    bh.delete()


def test_N30_what_a_forked_child_does_leaves_the_parent_alone(fdmon: str) -> None:
    out = run_script(
        """
        import os, sys
        import aioqemu

        ctx = aioqemu.AioContext(fdmon=sys.argv[1])
        seen = []
        e = aioqemu.EventNotifier()

        def io_read(notifier):
            notifier.test_and_clear()
            seen.append("fd")

        ctx.set_event_notifier(e, io_read, lambda notifier: 1)
        while ctx.poll(False):
            pass
        bh = ctx.bh_new(lambda _: seen.append("bh"))
        pid = os.fork()
        if pid == 0:
            for use in (
                lambda: ctx.notify(),
                lambda: bh.schedule(),
                lambda: ctx.poll(False),
                lambda: ctx.set_event_notifier(e, None, None),
                lambda: ctx.close(),
            ):
                try:
                    use()
                except RuntimeError:
                    pass
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert ctx.poll(False) is False and seen == [], seen
        e.set()
        assert ctx.poll(True) is True and seen == ["fd"], seen
        bh.schedule()
        assert ctx.poll(True) is True and seen == ["fd", "bh"], seen
        ctx.set_event_notifier(e, None, None)
        ctx.close()
        e.close()
        print("ok")
        """,
        fdmon,
        options=("-W", "ignore"),
    )
    assert out.splitlines()[-1] == "ok"
