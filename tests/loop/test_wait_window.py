"""What runs where a loop is about to sleep: signal handlers, the collector, threads.

There no bytecode may have run since the timeout was asked for, and none may run before
the sleep is announced; a callback in C leads right up to it.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import os
import resource
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from support.pipes import Pipe

import aioqemu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LATE = 5.0  # seconds: when the guard ends what was forgotten
SOON = 3.0

# Raises a signal and comes back with its handler still to be run.
raise_signal: Callable[[int], int] = getattr(ctypes.PyDLL(None), "raise")


@pytest.fixture
def on_signal() -> Iterator[Callable[[Callable[[], object]], int]]:
    """Have a function run as the handler of a signal, whose number is given back."""
    before = signal.getsignal(signal.SIGUSR1)

    def install(handler: Callable[[], object]) -> int:
        signal.signal(signal.SIGUSR1, lambda *_: handler())
        return int(signal.SIGUSR1)

    yield install
    signal.signal(signal.SIGUSR1, before)


def _run(loop: asyncio.AbstractEventLoop) -> float:
    guard = loop.call_later(LATE, loop.stop)
    started = time.monotonic()
    loop.run_forever()
    guard.cancel()
    return time.monotonic() - started


@pytest.mark.parametrize("how", ["call_soon_threadsafe", "call_soon", "call_later"])
def test_what_a_signal_handler_queues_ends_the_wait(
    loop: aioqemu.EventLoop, on_signal: Any, how: str
) -> None:
    arguments = (0.0, loop.stop) if how == "call_later" else (loop.stop,)
    number = on_signal(lambda: getattr(loop, how)(*arguments))
    loop.call_soon(raise_signal, number)
    assert _run(loop) < SOON


def test_what_another_thread_queues_during_a_signal_handler_ends_the_wait(
    any_loop: asyncio.AbstractEventLoop, on_signal: Any
) -> None:
    go, posted = threading.Event(), threading.Event()

    def post() -> None:
        go.wait(LATE)
        any_loop.call_soon_threadsafe(any_loop.stop)
        posted.set()

    def handler() -> None:
        go.set()
        posted.wait(LATE)

    thread = threading.Thread(target=post)
    thread.start()
    any_loop.call_soon(raise_signal, on_signal(handler))
    assert _run(any_loop) < SOON
    thread.join()


@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="it collects at once before 3.12"
)
def test_what_a_finalizer_queues_ends_the_wait(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    class Cycle:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            any_loop.call_soon_threadsafe(any_loop.stop)

    Cycle()
    kept: list[object] = []
    any_loop.call_soon(kept.extend, zip(range(20_000), strict=False))
    assert _run(any_loop) < SOON


@pytest.mark.parametrize("ends", ["thread", "signal"])
def test_callbacks_in_c_that_queue_each_other_let_others_have_their_turn(
    any_loop: asyncio.AbstractEventLoop, on_signal: Any, ends: str
) -> None:
    again = functools.partial(any_loop.call_soon)
    again.__setstate__((any_loop.call_soon, (again,), {}, None))
    number = on_signal(any_loop.stop)

    def other() -> None:
        if ends == "thread":
            any_loop.call_soon_threadsafe(any_loop.stop)
        else:
            os.kill(os.getpid(), number)

    timer = threading.Timer(0.05, other)
    timer.start()
    any_loop.call_soon(again)
    assert _run(any_loop) < SOON
    timer.join()
    again.__setstate__((print, (), {}, None))  # no cycle


def test_a_signal_during_adaptive_polling_is_noticed(
    fdmon: str, on_signal: Any
) -> None:
    polled_ns = 150_000_000
    loop = aioqemu.new_event_loop(
        fdmon=fdmon, poll_max_ns=polled_ns, poll_grow=1_000_000
    )
    seen: list[float] = []
    number = on_signal(lambda: seen.append(time.monotonic()))

    async def main() -> None:
        # Each ends a little after the polling, which is the longer for it.
        for delay in (0.001, 0.01):
            await asyncio.sleep(delay)
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
        await asyncio.sleep(1.5)

    try:
        loop.run_until_complete(main())
        assert loop.stats()["polled_ns"] >= polled_ns
        assert time.monotonic() - seen[0] > 0.75
    finally:
        loop.close()


@pytest.mark.parametrize("how", ["poll", "busy"])
def test_a_handler_that_was_masked_in_its_own_callback_is_watched_again(
    loop: aioqemu.EventLoop, how: str
) -> None:
    ctx, pipe = loop.context, Pipe()
    seen = 0

    def read(_: object) -> None:
        nonlocal seen
        seen += 1
        pipe.drain()
        if seen == 2:
            loop.stop()
            return
        if how == "poll":
            ctx.poll(False)
        else:
            assert not ctx.busy
        # Once the loop sleeps.
        timers.append(threading.Timer(0.05, pipe.feed))
        timers[0].start()

    timers: list[threading.Timer] = []
    ctx.set_fd_handler(pipe.r, read, None, lambda _: False)
    pipe.feed()
    assert _run(loop) < SOON
    timers[0].join()
    ctx.set_fd_handler(pipe.r, None, None)
    pipe.close_r()
    pipe.close_w()


def test_a_poll_beside_fds_of_the_loop_sleeps(loop: aioqemu.EventLoop) -> None:
    ctx, ours, its = loop.context, Pipe(), Pipe()
    seen: list[bytes] = []
    ctx.set_fd_handler(
        ours.r, lambda _: seen.append(ours.drain()), None, lambda _: not seen
    )
    loop.add_reader(its.r, lambda: None)
    # The loop is woken from its sleep, which leaves a count in its notifier.
    thread = threading.Timer(0.05, loop.call_soon_threadsafe, (loop.stop,))
    thread.start()
    loop.run_forever()
    thread.join()
    timer = threading.Timer(0.1, ours.feed)
    timer.start()
    before = loop.stats()["waits"]
    while not seen:
        ctx.poll(True)
    assert loop.stats()["waits"] - before < 10
    timer.join()
    loop.remove_reader(its.r)
    ctx.set_fd_handler(ours.r, None, None)
    for pipe in (ours, its):
        pipe.close_r()
        pipe.close_w()


def test_a_loop_whose_new_ring_was_refused_goes_on(loop: aioqemu.EventLoop) -> None:
    loop.run_until_complete(asyncio.sleep(0))
    pipe = Pipe()
    loop.add_reader(pipe.r, print)  # a ring is made when there is something to watch
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    errors: list[OSError] = []

    def elsewhere() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            loop.call_later(0.001, loop.stop)
            loop.run_forever()
        except OSError as error:
            errors.append(error)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert bool(errors) == (loop.fdmon == "io_uring")
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    loop.remove_reader(pipe.r)
    pipe.close_r()
    pipe.close_w()
