"""Closing: nothing is left, nothing works any more, nothing crashes."""

from __future__ import annotations

import gc
import sys
import threading
import warnings
from typing import TYPE_CHECKING

import pytest
from support.guards import open_fds
from support.pipes import Pipe
from support.procs import run_script
from support.qemu import Busy

import aioqemu
from aioqemu import AioContext, EventNotifier

if TYPE_CHECKING:
    from collections.abc import Callable


def drop(held: list[AioContext]) -> None:
    """Let go of the last reference, and have the cycles behind it collected."""
    held.clear()
    gc.collect()


def test_close_gives_every_fd_back(fdmon: str) -> None:
    before = open_fds()
    for _ in range(20):
        ctx = AioContext(fdmon=fdmon)
        ctx.poll(False)
        ctx.fileno()
        ctx.close()
        assert ctx.closed is True
        assert open_fds() == before


def test_closing_twice_does_nothing(fdmon: str) -> None:
    ctx = AioContext(fdmon=fdmon)
    ctx.close()
    ctx.close()
    assert ctx.closed is True


def test_everything_is_refused_after_close(fdmon: str) -> None:
    ctx = AioContext(fdmon=fdmon)
    bh = ctx.bh_new(print)
    notifier = EventNotifier()
    ctx.close()
    for use in (
        ctx.poll,
        ctx.flush,
        ctx.bh_poll,
        ctx.pending,
        ctx.ref,
        ctx.unref,
        lambda: ctx.bh_new(print),
        lambda: ctx.timer_new(print),
        lambda: ctx.set_fd_handler(0, print, None),
        lambda: ctx.set_event_notifier(notifier, print),
        bh.schedule,
        bh.schedule_idle,
    ):
        with pytest.raises(RuntimeError):
            use()
    bh.cancel()
    bh.delete()
    notifier.close()


def test_close_drops_what_was_scheduled_and_registered(
    fdmon: str, make_pipe: Callable[[], Pipe]
) -> None:
    class Opaque:
        alive = 0

        def __init__(self) -> None:
            type(self).alive += 1

        def __del__(self) -> None:
            type(self).alive -= 1

    pipe = make_pipe()
    ctx = AioContext(fdmon=fdmon)
    ctx.bh_new(print, Opaque()).schedule()
    ctx.timer_new(print, Opaque()).mod(2**62)
    ctx.set_fd_handler(pipe.r, print, None, None, Opaque())
    assert Opaque.alive == 3
    ctx.close()
    gc.collect()
    assert Opaque.alive == 0


def test_a_dropped_context_gives_its_fds_back_with_a_warning(fdmon: str) -> None:
    gc.collect()
    before = open_fds()
    ctx = AioContext(fdmon=fdmon)
    ctx.bh_new(print)
    ctx.poll(False)
    held = [ctx]
    del ctx
    with pytest.warns(ResourceWarning):
        drop(held)
    assert open_fds() == before


def test_a_dropped_context_gives_its_fds_back_where_warnings_are_errors(
    fdmon: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unraisable: list[type[BaseException]] = []
    monkeypatch.setattr(
        sys, "unraisablehook", lambda args: unraisable.append(args.exc_type)
    )
    gc.collect()
    before = open_fds()
    held = [AioContext(fdmon=fdmon)]
    held[0].poll(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drop(held)
    assert open_fds() == before
    assert unraisable == [ResourceWarning]


@pytest.mark.parametrize("kind", ["bottom half", "timer", "fd handler"])
def test_a_dropped_context_with_something_on_it(
    fdmon: str, make_pipe: Callable[[], Pipe], kind: str
) -> None:
    pipe = make_pipe()
    gc.collect()
    before = open_fds()
    ctx = AioContext(fdmon=fdmon)
    if kind == "bottom half":
        ctx.bh_new(print).schedule()
    elif kind == "timer":
        ctx.timer_new(print).mod(2**62)
    else:
        ctx.set_fd_handler(pipe.r, print, None, None, ctx)
    held = [ctx]
    del ctx
    with pytest.warns(ResourceWarning):
        drop(held)
    assert open_fds() == before


@pytest.mark.parametrize("where", ["bh", "fd", "timer", "flush"])
def test_close_inside_a_callback(fdmon: str, where: str) -> None:
    # Either it works or it is refused with a clear error; the process goes on.
    ctx = AioContext(fdmon=fdmon)
    busy = Busy(ctx)
    pipe = Pipe()
    pipe.feed()
    refused: list[RuntimeError] = []
    later_ran: list[int] = []

    def close(_: object) -> int:
        pipe.drain()
        try:
            ctx.close()
        except RuntimeError as error:
            refused.append(error)
        return 0

    if where == "bh":
        ctx.bh_new(close).schedule()
        ctx.bh_new(later_ran.append, 1).schedule()
    elif where == "fd":
        ctx.set_fd_handler(pipe.r, close, None)
    elif where == "timer":
        ctx.timer_new(close).mod(0)
    else:
        ctx.set_fd_handler(pipe.r, close, None, close)
    for _ in range(3):
        if not ctx.closed:
            ctx.poll(False)
    assert ctx.closed or refused
    if ctx.closed:
        assert later_ran == []
    busy.close()
    ctx.close()
    pipe.close()


def test_close_inside_a_nested_poll(fdmon: str) -> None:
    ctx = AioContext(fdmon=fdmon)
    refused: list[RuntimeError] = []

    def inner(_: object) -> None:
        try:
            ctx.close()
        except RuntimeError as error:
            refused.append(error)

    def outer(_: object) -> None:
        ctx.bh_new(inner).schedule()
        ctx.poll(False)

    ctx.bh_new(outer).schedule()
    ctx.poll(False)
    assert ctx.closed or refused
    ctx.close()


def test_close_from_another_thread_while_idle(fdmon: str) -> None:
    ctx = AioContext(fdmon=fdmon)
    ctx.poll(False)
    raised: list[BaseException] = []

    def close() -> None:
        try:
            ctx.close()
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=close)
    thread.start()
    thread.join()
    assert ctx.closed or raised
    ctx.close()


def test_fds_of_ours_closed_behind_our_back_do_not_crash(fdmon: str) -> None:
    out = run_script(
        """
        import os, sys
        import aioqemu

        before = set(os.listdir("/proc/self/fd"))
        ctx = aioqemu.AioContext(fdmon=sys.argv[1])
        ctx.poll(False)
        for fd in set(os.listdir("/proc/self/fd")) - before:
            try:
                os.close(int(fd))
            except OSError:
                pass
        ctx.set_exception_handler(lambda context: None)
        bh = ctx.bh_new(lambda _: None)
        r, w = os.pipe()
        for use in (
            ctx.notify,
            bh.schedule,
            lambda: ctx.set_fd_handler(r, print, None, lambda _: 1),
            lambda: ctx.poll(False),
            ctx.close,
        ):
            try:
                use()
            except (OSError, RuntimeError) as error:
                print(type(error).__name__)
        print("alive")
        """,
        fdmon,
        options=("-W", "ignore"),
    )
    assert out.splitlines()[-1] == "alive"


def test_twenty_loops_in_one_process(fdmon: str) -> None:
    before = open_fds()
    loops = [aioqemu.new_event_loop(fdmon=fdmon) for _ in range(20)]
    ran: list[int] = []
    for number, loop in enumerate(loops):
        loop.call_soon(ran.append, number)
        loop.call_later(0.001, loop.stop)
    for loop in loops:
        loop.run_forever()
    assert ran == list(range(20))
    for loop in loops:
        loop.close()
        assert loop.context.closed is True
    assert open_fds() == before


def test_interpreter_exit_with_everything_open(fdmon: str) -> None:
    out = run_script(
        """
        import os, sys
        import aioqemu
        from aioqemu import qemu_aio

        ctx = aioqemu.AioContext(fdmon=sys.argv[1])
        loop = aioqemu.new_event_loop(fdmon=sys.argv[1])
        main = qemu_aio.qemu_get_aio_context()
        e = aioqemu.EventNotifier(True)
        for c in (ctx, main, loop.context):
            c.set_event_notifier(e, print, lambda _: 1)
            c.bh_new(print).schedule()
            c.timer_new(print).mod(2**62)
        loop.call_later(100, print)
        print("end")
        """,
        fdmon,
        options=("-W", "ignore"),
    )
    assert out == "end\n"


def test_memory_is_given_back_to_the_allocator_that_it_came_from(fdmon: str) -> None:
    """Python's debugging allocator, part of `-X dev`, aborts if it is not."""
    out = run_script(
        """
        import os, sys, aioqemu
        ctx = aioqemu.AioContext(fdmon=sys.argv[1])
        reading, writing = os.pipe()
        for _ in range(3):
            ctx.set_fd_handler(reading, print, None)
            ctx.poll(False)
            ctx.set_fd_handler(reading, None, None)
            ctx.poll(False)
        os.close(reading)
        os.close(writing)
        ctx.close()
        print("ok")
        """,
        fdmon,
        options=("-X", "dev", "-W", "error"),
    )
    assert out == "ok\n"
