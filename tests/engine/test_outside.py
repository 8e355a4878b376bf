"""A context driven from outside: fileno(), timeout_ns(), dispatch()."""

from __future__ import annotations

import asyncio
import os
import select
import threading
import time
from collections.abc import Callable

import pytest
from support.pipes import Pipe
from support.qemu import EventData

from aioqemu import AioContext

MakeEvent = Callable[..., EventData]
MakePipe = Callable[[], Pipe]


class Driver:
    """What a foreign event loop does: wait for one fd with a timeout, dispatch."""

    def __init__(self, ctx: AioContext, kind: str) -> None:
        self._ctx = ctx
        self._epoll = select.epoll() if kind == "epoll" else None
        self._poll = select.poll()
        (self._epoll or self._poll).register(ctx.fileno(), select.POLLIN)

    def readable(self, timeout_s: float = 0.0) -> bool:
        if self._epoll is not None:
            return bool(self._epoll.poll(timeout_s))
        return bool(self._poll.poll(timeout_s * 1000))

    def step(self) -> bool:
        timeout_ns = self._ctx.timeout_ns()
        # A watchdog instead of "for ever": the caller loops anyway.
        self.readable(min(timeout_ns, 5e9) / 1e9 if timeout_ns >= 0 else 5.0)
        return self._ctx.dispatch()

    def drain(self) -> None:
        for _ in range(1000):
            if not self._ctx.dispatch():
                return
        raise AssertionError("dispatch makes progress for ever")

    def close(self) -> None:
        if self._epoll is not None:
            self._epoll.close()


@pytest.fixture(params=["poll", "epoll"])
def driver(ctx: AioContext, request: pytest.FixtureRequest) -> object:
    """A foreign loop on poll(2) and on epoll around the context."""
    made = Driver(ctx, request.param)
    made.drain()
    yield made
    made.close()


def test_timeout_of_an_empty_context(ctx: AioContext) -> None:
    assert ctx.timeout_ns() == -1
    assert ctx.dispatch() is False


def test_timeout_with_a_bottom_half(ctx: AioContext) -> None:
    bh = ctx.bh_new(lambda _: None)
    bh.schedule()
    assert ctx.timeout_ns() == 0
    assert ctx.dispatch() is True
    assert ctx.timeout_ns() == -1
    bh.schedule_idle()
    assert 0 <= ctx.timeout_ns() <= 10_000_000
    bh.cancel()
    assert ctx.timeout_ns() == -1


def test_an_idle_bottom_half_runs_in_dispatch(ctx: AioContext) -> None:
    ran: list[int] = []
    ctx.bh_new(ran.append, 1).schedule_idle()
    assert ctx.dispatch() is False
    assert ran == [1]


def test_work_that_renews_itself_leaves_the_fd_quiet(
    ctx: AioContext, driver: Driver
) -> None:
    """An idle bottom half and a timer are told by timeout_ns(), not by the fd."""
    ran: list[str] = []

    def idle(_: object) -> None:
        ran.append("idle")
        bh.schedule_idle()

    def tick(_: object) -> None:
        ran.append("tick")
        timer.mod(time.monotonic_ns() + 5_000_000)

    bh, timer = ctx.bh_new(idle), ctx.timer_new(tick)
    bh.schedule_idle()
    timer.mod(0)
    driver.drain()
    assert ran.count("idle") >= 1
    assert ran.count("tick") == 1
    assert driver.readable() is False
    assert 0 <= ctx.timeout_ns() <= 5_000_000
    bh.delete()
    timer.delete()


def test_timeout_with_timers(ctx: AioContext) -> None:
    timer = ctx.timer_new(lambda _: None)
    timer.mod(time.monotonic_ns() + 1_000_000_000)
    assert 0 < ctx.timeout_ns() <= 1_000_000_000
    bh = ctx.bh_new(lambda _: None)
    bh.schedule_idle()
    assert 0 < ctx.timeout_ns() <= 10_000_000
    bh.delete()
    timer.mod(0)
    assert ctx.timeout_ns() == 0
    assert ctx.dispatch() is True
    assert ctx.timeout_ns() == -1


def test_fileno_is_stable(ctx: AioContext) -> None:
    fd = ctx.fileno()
    assert ctx.fileno() == fd
    os.fstat(fd)
    ctx.dispatch()
    assert ctx.fileno() == fd


def test_the_fd_is_quiet_after_dispatch(driver: Driver) -> None:
    assert driver.readable() is False


def test_a_bottom_half_makes_the_fd_readable(ctx: AioContext, driver: Driver) -> None:
    ran: list[int] = []
    bh = ctx.bh_new(ran.append, 1)
    for expected in (1, 2, 3):
        bh.schedule()
        assert driver.readable() is True
        assert ctx.dispatch() is True
        assert len(ran) == expected
        driver.drain()
        assert driver.readable() is False


def test_notify_makes_the_fd_readable(ctx: AioContext, driver: Driver) -> None:
    ctx.notify()
    assert driver.readable() is True
    ctx.dispatch()
    driver.drain()
    assert driver.readable() is False


def test_notify_from_another_thread(ctx: AioContext, driver: Driver) -> None:
    ran: list[int] = []
    bh = ctx.bh_new(ran.append, 1)
    for expected in (1, 2, 3):
        thread = threading.Thread(target=bh.schedule)
        thread.start()
        assert driver.readable(5.0) is True
        thread.join()
        while len(ran) < expected:
            ctx.dispatch()
        driver.drain()
        assert driver.readable() is False


def test_fds_make_the_fd_readable_whatever_io_flush_says(
    ctx: AioContext, driver: Driver, event: MakeEvent, make_pipe: MakePipe
) -> None:
    data, pipe, got = event(active=0), make_pipe(), []
    ctx.set_event_notifier(data.e, data.ready, data.flush)
    ctx.set_fd_handler(pipe.r, lambda _: got.append(pipe.drain()), None)
    driver.drain()
    assert driver.readable() is False
    for expected in (1, 2):
        data.e.set()
        pipe.feed()
        assert driver.readable() is True
        while data.n < expected or len(got) < expected:
            assert ctx.dispatch() is True
        driver.drain()
        assert driver.readable() is False
    ctx.set_fd_handler(pipe.r, None, None)
    pipe.feed()
    driver.drain()
    assert driver.readable() is False


def test_an_fd_closed_behind_our_back_leaves_the_outer_loop_quiet(
    ctx: AioContext, driver: Driver, event: MakeEvent, make_pipe: MakePipe
) -> None:
    """Where a duplicate keeps the file open, the kernel goes on to report it."""
    number = ctx.fileno()
    pipe, data = make_pipe(), event()
    ctx.set_event_notifier(data.e, data.ready)
    ctx.set_fd_handler(pipe.r, lambda _: None, None)
    ctx.dispatch()
    duplicate = os.dup(pipe.r)
    other, other_end = os.pipe()
    try:
        os.dup2(other, pipe.r)  # closes the number, not the file
        got: list[bytes] = []
        ctx.set_fd_handler(pipe.r, lambda _: got.append(os.read(pipe.r, 9)), None)
        os.write(pipe.w, b"for nobody")
        os.write(other_end, b"new")
        while not got:
            assert driver.readable(5)
            ctx.dispatch()
        driver.drain()
        assert got == [b"new"]
        assert ctx.fileno() == number
        assert driver.readable() is False
        data.e.set()
        assert driver.readable() is True
        while not data.n:
            ctx.dispatch()
    finally:
        ctx.set_fd_handler(pipe.r, None, None)
        for fd in (duplicate, other, other_end):
            os.close(fd)


def test_registered_before_fileno_was_asked_for(
    ctx: AioContext, event: MakeEvent
) -> None:
    data = event()
    ctx.set_event_notifier(data.e, data.ready)
    ctx.poll(False)
    data.e.set()
    driver = Driver(ctx, "epoll")
    assert driver.readable() is True
    while data.n == 0:
        assert ctx.dispatch() is True
    driver.drain()
    assert driver.readable() is False
    driver.close()


def test_a_foreign_loop_drives_everything(
    ctx: AioContext, driver: Driver, event: MakeEvent, later: Callable[..., object]
) -> None:
    data, ran = event(), []
    ctx.set_event_notifier(data.e, data.ready)
    deadline = time.monotonic_ns() + 40_000_000
    timer = ctx.timer_new(lambda _: ran.append(time.monotonic_ns()))
    timer.mod(deadline)
    later(0.02, data.e.set)
    bh = ctx.bh_new(lambda _: None)
    later(0.03, bh.schedule)
    started = time.monotonic()
    steps = 0
    while not ran or data.n == 0 or bh.scheduled:
        driver.step()
        steps += 1
    assert ran[0] >= deadline
    assert time.monotonic() - started < 4
    assert steps < 50


def test_mixing_poll_and_dispatch(
    ctx: AioContext, driver: Driver, event: MakeEvent
) -> None:
    data = event(active=1 << 30)
    ctx.set_event_notifier(data.e, data.ready, data.flush)
    for expected in range(1, 7):
        data.e.set()
        if expected % 2:
            while data.n < expected:
                assert ctx.poll(True) is True
        else:
            assert driver.readable() is True
            while data.n < expected:
                ctx.dispatch()
        driver.drain()
        assert driver.readable() is False


def test_closed(fdmon: str) -> None:
    ctx = AioContext(fdmon=fdmon)
    ctx.fileno()
    ctx.close()
    for use in (ctx.fileno, ctx.timeout_ns, ctx.dispatch):
        with pytest.raises(RuntimeError):
            use()


def test_a_context_inside_a_stock_asyncio_loop(
    ctx: AioContext, event: MakeEvent
) -> None:
    data = event()
    ctx.set_event_notifier(data.e, data.ready)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        served = asyncio.Event()

        def dispatch() -> None:
            if ctx.dispatch():
                served.set()

        loop.add_reader(ctx.fileno(), dispatch)
        for expected in (1, 2, 3):
            data.e.set()
            while data.n < expected:
                await served.wait()
                served.clear()
        loop.remove_reader(ctx.fileno())

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main())
    assert data.n == 3


def test_an_fd_that_only_a_child_has_does_not_keep_fileno_readable(
    ctx: AioContext, make_pipe: MakePipe
) -> None:
    # Closed before it was removed, and open in a child, as the set around it is.
    known = make_pipe()
    out = ctx.fileno()
    ctx.set_fd_handler(known.r, lambda _: known.drain(), None)
    ctx.dispatch()
    released, release = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(release)
        os.read(released, 1)
        os._exit(0)
    fd = known.r
    known.close_r()
    ctx.set_fd_handler(fd, None, None)
    known.feed()
    for _ in range(20):
        if not select.select([out], [], [], 0.01)[0]:
            break
        ctx.dispatch()
    else:
        raise AssertionError("readable for ever")
    os.close(released)
    os.close(release)
    os.waitpid(child, 0)
