"""Rules of call_soon_threadsafe: from threads and from signal handlers.

No call is lost, a sleeping loop wakes, and each thread's calls keep their order.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time

import pytest
from support.procs import count_syscalls


def test_threads_feed_the_loop_each_in_its_order(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    threads, each = 6, 500
    seen: list[tuple[int, int]] = []

    def got(item: tuple[int, int]) -> None:
        seen.append(item)
        if len(seen) == threads * each:
            any_loop.stop()

    def feed(thread: int) -> None:
        for number in range(each):
            any_loop.call_soon_threadsafe(got, (thread, number))

    feeders = [threading.Thread(target=feed, args=(n,)) for n in range(threads)]
    for feeder in feeders:
        feeder.start()
    any_loop.run_forever()
    for feeder in feeders:
        feeder.join()
    for thread in range(threads):
        assert [n for t, n in seen if t == thread] == list(range(each))


def test_a_thread_wakes_a_sleeping_loop(any_loop: asyncio.AbstractEventLoop) -> None:
    delays: list[float] = []

    def woken(sent: float) -> None:
        delays.append(time.monotonic() - sent)

    def wake() -> None:
        for _ in range(10):
            time.sleep(0.005)
            any_loop.call_soon_threadsafe(woken, time.monotonic())
        any_loop.call_soon_threadsafe(any_loop.stop)

    guard = any_loop.call_later(10, any_loop.stop)
    thread = threading.Thread(target=wake)
    thread.start()
    any_loop.run_forever()
    thread.join()
    guard.cancel()
    assert len(delays) == 10
    assert min(delays) < 0.05


def test_a_signal_handler_wakes_a_sleeping_loop(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    seen: list[int] = []

    def handler(signum: int, _frame: object) -> None:
        any_loop.call_soon_threadsafe(seen.append, signum)
        any_loop.call_soon_threadsafe(any_loop.stop)

    before = signal.signal(signal.SIGALRM, handler)
    guard = any_loop.call_later(10, any_loop.stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        started = time.monotonic()
        any_loop.run_forever()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        guard.cancel()
    assert seen == [signal.SIGALRM]
    assert time.monotonic() - started < 5


def test_a_storm_of_signal_handlers_loses_no_call(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    sent = 0
    got = 0

    def count() -> None:
        nonlocal got
        got += 1

    def handler(_signum: int, _frame: object) -> None:
        nonlocal sent
        sent += 1
        any_loop.call_soon_threadsafe(count)

    async def busy() -> None:
        while sent < 100:
            await asyncio.sleep(0)
            await asyncio.sleep(0.0005)
        signal.setitimer(signal.ITIMER_REAL, 0)
        await asyncio.sleep(0.005)

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0005)
        any_loop.run_until_complete(busy())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert got == sent >= 100


@pytest.mark.parametrize("posts_from, pauses", [("thread", 4), ("own thread", 0)])
def test_a_flood_lets_the_loop_have_the_gil_now_and_then(
    fdmon: str, posts_from: str, pauses: int
) -> None:
    counts = count_syscalls(
        """
        import os, sys, threading
        import aioqemu

        loop = aioqemu.new_event_loop(fdmon=sys.argv[1])
        posted = threading.Event()
        seen = []

        def post():
            # One is queued already: what ends the run.
            for n in range(4 * 2048):
                loop.call_soon_threadsafe(seen.append, n)
            posted.set()

        def callback():
            loop.call_soon(loop.call_soon, loop.stop)
            if sys.argv[2] == "thread":
                threading.Thread(target=post).start()
                posted.wait()       # the loop is in a pass, and takes nothing
            else:
                post()

        loop.call_soon(callback)
        os.getppid()
        loop.run_forever()
        os.getppid()
        assert seen == list(range(4 * 2048))
        loop.close()
        """,
        fdmon,
        posts_from,
    )
    assert counts["clock_nanosleep"] == pauses
