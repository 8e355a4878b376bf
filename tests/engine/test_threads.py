"""What is safe from any thread, and what is refused outside the home thread."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from support.qemu import Busy, settle

import aioqemu
from aioqemu import AioContext, EventLoop

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.pipes import Pipe


def in_thread(function: Callable[[], object]) -> list[BaseException]:
    """Run a function in a new thread and return what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised


def test_polling_from_a_foreign_thread_raises(ctx: AioContext) -> None:
    ctx.poll(False)
    for use in (lambda: ctx.poll(False), ctx.flush, ctx.bh_poll, ctx.dispatch):
        (error,) = in_thread(use)
        assert isinstance(error, RuntimeError)
    assert ctx.poll(False) is False


@pytest.mark.parametrize("with_reader", [False, True], ids=["alone", "reader"])
def test_closing_under_a_poll_of_another_thread_raises(
    fdmon: str, with_reader: bool, make_pipe: Callable[[], Pipe]
) -> None:
    """The kernel works on what close() would unmap."""
    ctx = AioContext(fdmon=fdmon, semantics="modern")
    pipe, idle = make_pipe(), make_pipe()
    ctx.set_fd_handler(pipe.r, lambda _: pipe.drain(), None)
    if with_reader:  # so that poll() waits for the context's own fds alone
        ctx.set_fd_handler(idle.r, print, None, lambda _: False)

    def poll() -> None:
        ctx.poll(False)  # the registrations have notified
        ctx.poll(True)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        while ctx.stats()["gil_releases"] == 0:
            time.sleep(0.001)
        with pytest.raises(RuntimeError, match="thread"):
            ctx.close()
        with pytest.raises(RuntimeError, match="thread"):
            ctx.unref()
        assert not ctx.closed
        assert ctx.refcount == 1
    finally:
        pipe.feed()
        thread.join()
    ctx.close()
    assert ctx.closed


def test_home_is_where_it_is_polled_first(fdmon: str) -> None:
    ctx = AioContext(fdmon=fdmon)
    ran: list[int] = []
    ctx.bh_new(lambda _: ran.append(threading.get_ident())).schedule()
    home: list[int] = []

    def poll() -> None:
        home.append(threading.get_ident())
        assert ctx.poll(False) is True

    assert in_thread(poll) == []
    assert ran == home
    with pytest.raises(RuntimeError):
        ctx.poll(False)
    ctx.close()


def test_a_loop_made_in_one_thread_and_run_in_another(fdmon: str) -> None:
    loop = aioqemu.new_event_loop(fdmon=fdmon)
    ran: list[int] = []

    def run() -> None:
        loop.call_soon(ran.append, threading.get_ident())
        loop.context.bh_new(lambda _: ran.append(threading.get_ident())).schedule()
        loop.call_later(0.005, loop.stop)
        loop.run_forever()

    for _ in range(3):
        assert in_thread(run) == []
    run()
    assert len(ran) == 8
    assert len(set(ran)) >= 2
    loop.close()


def test_what_is_registered_moves_with_the_loop_to_another_thread(
    fdmon: str, make_pipe: Callable[[], Pipe]
) -> None:
    loop = aioqemu.new_event_loop(fdmon=fdmon)
    pipe, ran = make_pipe(), []

    def io_read() -> None:
        ran.append((pipe.drain(), threading.get_native_id()))
        loop.stop()

    loop.add_reader(pipe.r, io_read)

    def run() -> None:
        loop.call_later(0.001, pipe.feed)
        loop.run_forever()

    run()
    assert in_thread(run) == []
    run()
    assert in_thread(run) == []
    assert [data for data, _ in ran] == [b"x"] * 4
    assert len({thread for _, thread in ran}) == 3
    loop.remove_reader(pipe.r)
    loop.close()


def test_schedule_from_many_threads(ctx: AioContext, busy: Busy) -> None:
    threads, rounds = 6, 300
    counts = [0] * threads
    finished = 0

    def cb(index: int) -> None:
        counts[index] += 1

    halves = [ctx.bh_new(cb, index) for index in range(threads)]

    def produce(index: int) -> None:
        nonlocal finished
        for _ in range(rounds):
            before = counts[index]
            halves[index].schedule()
            deadline = time.monotonic() + 10
            while counts[index] == before and time.monotonic() < deadline:
                time.sleep(0)
        finished += 1
        if finished == threads:
            busy.release()

    producers = [threading.Thread(target=produce, args=(i,)) for i in range(threads)]
    for thread in producers:
        thread.start()
    while busy.n == 0:
        ctx.poll(True)
    for thread in producers:
        thread.join()
    assert counts == [rounds] * threads


def test_schedule_cancel_delete_races(ctx: AioContext, busy: Busy) -> None:
    # Nothing to assert about counts: that no run follows a delete, that the
    # memory stays sound and that the end is reached.
    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    runs: list[int] = [0]

    def cb(_: object) -> None:
        runs[0] += 1

    halves = [ctx.bh_new(cb) for _ in range(20)]

    def hammer(seed: int) -> None:
        for number in range(3000):
            bh = halves[(number * seed) % len(halves)]
            if number % 3 == 0:
                bh.cancel()
            else:
                bh.schedule()
        ctx.notify()

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in (3, 7, 11)]
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            ctx.poll(False)
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(old)
    settle(ctx)
    for bh in halves:
        bh.schedule()
        bh.delete()
    before = runs[0]
    settle(ctx)
    assert runs[0] == before
    assert busy.n == 0


def test_fd_handlers_set_from_another_thread_wake_a_blocked_poll(
    ctx: AioContext,
    busy: Busy,
    make_pipe: Callable[[], Pipe],
    later: Callable[..., object],
) -> None:
    pipe, got = make_pipe(), []
    pipe.feed()
    later(
        0.05,
        lambda: ctx.set_fd_handler(pipe.r, lambda _: got.append(pipe.drain()), None),
    )
    started = time.monotonic()
    while not got:
        ctx.poll(True)
    assert time.monotonic() - started < 5
    ctx.set_fd_handler(pipe.r, None, None)
    assert busy.n == 0


def test_threadsafe_calls_wake_a_sleeping_loop(loop: EventLoop) -> None:
    delays: list[float] = []

    def produce() -> None:
        for _ in range(20):
            time.sleep(0.002)
            loop.call_soon_threadsafe(
                lambda sent: delays.append(time.monotonic() - sent), time.monotonic()
            )
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=produce)
    thread.start()
    loop.run_forever()
    thread.join()
    assert len(delays) == 20
    assert max(delays) < 2


def test_notify_writes_only_when_the_loop_may_sleep(loop: EventLoop) -> None:
    calls = 2000
    done = threading.Event()

    def produce() -> None:
        for _ in range(calls):
            loop.call_soon_threadsafe(int)
        done.set()

    def spin() -> None:
        if done.is_set():
            loop.stop()
        else:
            loop.call_soon(spin)

    thread = threading.Thread(target=produce)
    before = loop.stats()
    loop.call_soon(thread.start)
    loop.call_soon(spin)
    loop.run_forever()
    thread.join()
    after = loop.stats()
    assert after["notify_writes"] - before["notify_writes"] <= calls / 10


def test_one_of_many_calls_wakes_a_sleeping_loop(loop: EventLoop) -> None:
    """The loop cannot run between them: the thread keeps the GIL."""
    loop.set_debug(False)  # which looks at files for each call, and lets the GIL go
    calls = 2000
    seen: list[int] = []
    written: list[int] = []

    def produce() -> None:
        while not loop.stats()["gil_releases"] > before:
            time.sleep(0.001)
        time.sleep(0.01)  # it sleeps by now
        writes = loop.stats()["notify_writes"]
        for number in range(calls):
            loop.call_soon_threadsafe(seen.append, number)
        written.append(loop.stats()["notify_writes"] - writes)
        loop.call_soon_threadsafe(loop.stop)

    before = loop.stats()["gil_releases"]
    thread = threading.Thread(target=produce)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(10)
    try:
        thread.start()
        loop.run_forever()
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert seen == list(range(calls))
    # The collector may close a file of an earlier test meanwhile, without the GIL.
    assert 1 <= written[0] <= 3


def test_two_contexts_in_two_threads(fdmon: str) -> None:
    # Each wakes the other: a ping-pong over two blocked polls.
    rounds = 300
    contexts: list[AioContext | None] = [None, None]
    counts = [0, 0]
    ready = threading.Barrier(2)
    failures: list[str] = []

    def serve(index: int) -> None:
        ctx = AioContext(fdmon=fdmon)
        contexts[index] = ctx
        keeper = Busy(ctx)

        def ping(_: object) -> None:
            counts[index] += 1
            if counts[index] <= rounds:
                halves[1 - index].schedule()

        halves[index] = ctx.bh_new(ping)
        ready.wait()
        if index == 0:
            halves[1].schedule()
        deadline = time.monotonic() + 20
        while counts[index] < rounds:
            ctx.poll(True)
            if time.monotonic() > deadline:
                failures.append(f"stuck at {counts}")
                break
        ready.wait(timeout=20)
        keeper.close()
        ctx.close()

    halves: list = [None, None]
    threads = [threading.Thread(target=serve, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert min(counts) >= rounds
