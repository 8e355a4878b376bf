"""Rules of add_signal_handler and of Python's own handlers under a loop."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time

import pytest

from .helpers import collect_reports, new_like, one_pass


def test_a_handler_is_called_with_its_arguments(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    seen: list[tuple[int, ...]] = []

    def handler(*args: int) -> None:
        seen.append(args)
        any_loop.stop()

    any_loop.add_signal_handler(signal.SIGUSR1, handler, 1, 2)
    any_loop.call_later(0.01, os.kill, os.getpid(), signal.SIGUSR1)
    any_loop.run_forever()
    assert seen == [(1, 2)]
    assert any_loop.remove_signal_handler(signal.SIGUSR1) is True
    assert any_loop.remove_signal_handler(signal.SIGUSR1) is False
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_a_signal_from_outside_wakes_the_loop(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    any_loop.add_signal_handler(signal.SIGALRM, any_loop.stop)
    guard = any_loop.call_later(10, any_loop.stop)
    started = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    any_loop.run_forever()
    assert time.monotonic() - started < 5
    guard.cancel()
    any_loop.remove_signal_handler(signal.SIGALRM)


def test_a_signal_that_came_before_the_run_is_served(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    any_loop.add_signal_handler(signal.SIGUSR1, any_loop.stop)
    guard = any_loop.call_later(10, any_loop.stop)
    started = time.monotonic()
    os.kill(os.getpid(), signal.SIGUSR1)
    any_loop.run_forever()
    assert time.monotonic() - started < 5
    guard.cancel()
    any_loop.remove_signal_handler(signal.SIGUSR1)


def test_several_signals_have_their_own_handlers(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    seen: list[str] = []
    for signum in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        any_loop.add_signal_handler(signum, seen.append, signum.name)
    for signum in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        any_loop.call_soon(os.kill, os.getpid(), signum)
    any_loop.call_later(0.02, any_loop.stop)
    any_loop.run_forever()
    assert sorted(seen) == ["SIGHUP", "SIGUSR1", "SIGUSR2"]
    for signum in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        any_loop.remove_signal_handler(signum)


def test_a_second_handler_replaces_the_first(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    seen: list[str] = []
    any_loop.add_signal_handler(signal.SIGUSR1, seen.append, "old")
    any_loop.add_signal_handler(signal.SIGUSR1, seen.append, "new")
    any_loop.call_soon(os.kill, os.getpid(), signal.SIGUSR1)
    any_loop.call_later(0.01, any_loop.stop)
    any_loop.run_forever()
    assert seen == ["new"]
    any_loop.remove_signal_handler(signal.SIGUSR1)


def test_close_gives_the_signals_back(any_loop: asyncio.AbstractEventLoop) -> None:
    any_loop.add_signal_handler(signal.SIGUSR1, print)
    any_loop.add_signal_handler(signal.SIGUSR2, print)
    any_loop.close()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1


def test_sigint_gets_its_default_handler_back(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    any_loop.add_signal_handler(signal.SIGINT, any_loop.stop)
    any_loop.call_later(0.005, os.kill, os.getpid(), signal.SIGINT)
    any_loop.run_forever()
    assert any_loop.remove_signal_handler(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_signals_that_cannot_be_caught(
    any_loop: asyncio.AbstractEventLoop, signum: signal.Signals
) -> None:
    with pytest.raises(RuntimeError, match=f"sig {signum.value} cannot be caught"):
        any_loop.add_signal_handler(signum, print)


def test_bad_arguments_are_refused(any_loop: asyncio.AbstractEventLoop) -> None:
    async def coroutine() -> None:
        pass

    with pytest.raises(ValueError, match="invalid signal number"):
        any_loop.add_signal_handler(1000, print)
    with pytest.raises(TypeError, match="sig must be an int"):
        any_loop.add_signal_handler("SIGINT", print)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="coroutines cannot be used"):
        any_loop.add_signal_handler(signal.SIGUSR1, coroutine)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_handlers_are_for_the_main_thread(any_loop: asyncio.AbstractEventLoop) -> None:
    caught: list[BaseException] = []

    def run() -> None:
        other = new_like(any_loop)
        try:
            other.add_signal_handler(signal.SIGUSR1, print)
        except Exception as error:
            caught.append(error)
        finally:
            other.close()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(caught) == 1
    assert isinstance(caught[0], (RuntimeError, ValueError))


def test_an_exception_of_a_handler_is_reported(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    reports = collect_reports(any_loop)
    any_loop.add_signal_handler(signal.SIGUSR1, lambda: 1 / 0)
    any_loop.call_soon(os.kill, os.getpid(), signal.SIGUSR1)
    any_loop.call_later(0.01, any_loop.stop)
    any_loop.run_forever()
    any_loop.remove_signal_handler(signal.SIGUSR1)
    assert len(reports) == 1
    assert isinstance(reports[0]["exception"], ZeroDivisionError)


def test_keyboard_interrupt_comes_out_of_a_sleeping_loop(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        started = time.monotonic()
        guard = any_loop.call_later(10, any_loop.stop)
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(KeyboardInterrupt):
            any_loop.run_forever()
        assert time.monotonic() - started < 5
        guard.cancel()
        assert not any_loop.is_running()
        one_pass(any_loop)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_runner_turns_ctrl_c_into_a_cancel(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    cancelled: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(0.01, os.kill, os.getpid(), signal.SIGINT)
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            cancelled.append("main")
            raise

    with pytest.raises(KeyboardInterrupt):
        with asyncio.Runner(loop_factory=lambda: new_like(any_loop)) as runner:
            runner.run(main())
    assert cancelled == ["main"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_storm_of_signals_is_served(any_loop: asyncio.AbstractEventLoop) -> None:
    served = 0

    def count() -> None:
        nonlocal served
        served += 1

    async def main() -> None:
        for _ in range(2000):
            os.kill(os.getpid(), signal.SIGUSR1)
            if not _ % 100:
                await asyncio.sleep(0)
        await asyncio.sleep(0.01)

    any_loop.add_signal_handler(signal.SIGUSR1, count)
    any_loop.run_until_complete(main())
    any_loop.remove_signal_handler(signal.SIGUSR1)
    assert 20 <= served <= 2000
