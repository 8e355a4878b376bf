"""What callbacks raise: reported, never thrown away, never ending the pass.

KeyboardInterrupt, SystemExit and what signal handlers raise do come out of poll().
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from support.pipes import Pipe
from support.qemu import BHData, Busy, EventData, settle

if TYPE_CHECKING:
    from aioqemu import AioContext

MakeEvent = Callable[..., EventData]
MakePipe = Callable[[], Pipe]
MakeCounter = Callable[..., BHData]
Later = Callable[[float, Callable[[], object]], object]


def test_default_exception_handler_is_the_unraisable_hook(
    ctx: AioContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: seen.append(args.exc_value))

    def fails(_: object) -> None:
        raise ValueError("nobody listens")

    ctx.bh_new(fails).schedule()
    assert ctx.poll(False) is True
    assert [str(error) for error in seen] == ["nobody listens"]
    seen.clear()
    mine: list[Any] = []
    ctx.set_exception_handler(mine.append)
    ctx.bh_new(fails).schedule()
    ctx.poll(False)
    assert (len(mine), seen) == (1, [])
    ctx.set_exception_handler(None)
    ctx.bh_new(fails).schedule()
    ctx.poll(False)
    assert (len(mine), len(seen)) == (1, 1)


def test_an_exception_handler_that_raises_does_not_end_the_pass(
    ctx: AioContext, counter: MakeCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: seen.append(args.exc_value))

    def handler(_: dict[str, Any]) -> None:
        raise LookupError("handler")

    def fails(_: object) -> None:
        raise ValueError("callback")

    ctx.set_exception_handler(handler)
    data = counter()
    ctx.bh_new(fails).schedule()
    assert data.bh is not None
    data.bh.schedule()
    assert ctx.poll(False) is True
    assert data.n == 1
    assert any(isinstance(error, LookupError) for error in seen)


def test_exception_context_names_the_source(
    ctx: AioContext, busy: Busy, make_pipe: MakePipe, errors: list[dict[str, Any]]
) -> None:
    pipe = make_pipe()

    def fails(_: object) -> None:
        pipe.drain()
        raise ValueError

    bh = ctx.bh_new(fails)
    bh.schedule()
    settle(ctx)
    assert errors[-1]["bottom_half"] is bh
    pipe.feed()
    ctx.set_fd_handler(pipe.r, fails, None)
    settle(ctx)
    assert errors[-1]["fd"] == pipe.r
    ctx.set_fd_handler(pipe.r, None, None)
    assert len(errors) == 2
    assert busy.n == 0


def test_set_exception_handler_checks_its_argument(ctx: AioContext) -> None:
    with pytest.raises(TypeError):
        ctx.set_exception_handler(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.usefixtures("busy")
def test_interrupts_come_out_of_poll_and_leave_the_pass_consistent(
    ctx: AioContext,
    make_pipe: MakePipe,
    counter: MakeCounter,
    kind: type[BaseException],
) -> None:
    pipe, data, fed = make_pipe(), counter(), 0

    def interrupts(_: object) -> None:
        nonlocal fed
        fed += 1
        pipe.drain()
        raise kind

    def once_from(start: Callable[[], object]) -> None:
        before = data.n
        assert data.bh is not None
        start()
        data.bh.schedule()
        with pytest.raises(kind):
            settle(ctx)
        settle(ctx)
        assert data.n == before + 1

    once_from(ctx.bh_new(interrupts).schedule)
    once_from(lambda: ctx.timer_new(interrupts).mod(0))
    ctx.set_fd_handler(pipe.r, interrupts, None)
    once_from(pipe.feed)
    assert fed == 3
    ctx.set_fd_handler(pipe.r, None, None)


@pytest.mark.usefixtures("busy")
def test_what_a_signal_handler_raises_comes_out_of_a_blocked_poll(
    ctx: AioContext, counter: MakeCounter
) -> None:
    class Alarm(Exception):
        pass

    def handler(*_: object) -> None:
        raise Alarm

    old = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(Alarm):
            ctx.flush()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    data = counter()
    assert data.bh is not None
    data.bh.schedule()
    assert ctx.poll(True) is True
    assert data.n == 1
