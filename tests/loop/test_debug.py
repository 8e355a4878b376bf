"""Rules of debug mode: slow callbacks, the thread check, what was not awaited."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import socket
import sys
import threading
import time

import pytest
from support.procs import run_script

from .helpers import NEW_LOOP, kind_of, one_pass

SLOW = 0.02


def _logged(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


def test_debug_can_be_set(any_loop: asyncio.AbstractEventLoop) -> None:
    any_loop.set_debug(True)
    assert any_loop.get_debug() is True
    any_loop.set_debug(False)
    assert any_loop.get_debug() is False


def test_a_slow_protocol_is_told(
    any_loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    class Slow(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            time.sleep(2 * SLOW)
            transport.abort()

    left, right = socket.socketpair()
    transport, _ = any_loop.run_until_complete(
        any_loop.create_connection(Slow, sock=left)
    )
    any_loop.set_debug(True)
    any_loop.slow_callback_duration = SLOW
    right.send(b"x")
    any_loop.run_until_complete(asyncio.sleep(4 * SLOW))
    lines = [line for line in _logged(caplog).splitlines() if "Executing" in line]
    assert len(lines) == 1
    assert re.search(r"Executing <.*> took 0\.\d{3} seconds", lines[0])
    right.close()


@pytest.mark.parametrize("value", ["", "1"])
def test_the_environment_turns_debug_on(
    any_loop: asyncio.AbstractEventLoop, value: str
) -> None:
    script = NEW_LOOP + "loop = new_loop(); print(loop.get_debug()); loop.close()"
    out = run_script(script, kind_of(any_loop), env={"PYTHONASYNCIODEBUG": value})
    assert out == f"{bool(value)}\n"


def test_a_slow_callback_is_told(
    any_loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    any_loop.set_debug(True)
    any_loop.slow_callback_duration = SLOW
    any_loop.call_soon(time.sleep, SLOW * 1.5)
    any_loop.call_soon(time.sleep, 0)
    one_pass(any_loop)
    lines = [line for line in _logged(caplog).splitlines() if "Executing" in line]
    assert len(lines) == 1
    assert re.search(r"Executing <.*sleep.*> took \d\.\d{3} seconds", lines[0])
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_a_slow_task_is_told_by_its_name(
    any_loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    async def sluggish() -> None:
        time.sleep(SLOW * 1.5)  # noqa: ASYNC251

    any_loop.set_debug(True)
    any_loop.slow_callback_duration = SLOW
    task = any_loop.create_task(sluggish(), name="the-slow-one")
    any_loop.run_until_complete(task)
    assert "the-slow-one" in _logged(caplog)
    assert "sluggish" in _logged(caplog)


def test_nothing_is_told_when_debug_is_off(
    any_loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    any_loop.set_debug(False)
    any_loop.slow_callback_duration = SLOW
    any_loop.call_soon(time.sleep, SLOW * 1.5)
    one_pass(any_loop)
    assert "Executing" not in _logged(caplog)


def test_calls_of_another_thread_are_refused(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    caught: list[BaseException] = []

    def intrude() -> None:
        for call in (
            lambda: any_loop.call_soon(print),
            lambda: any_loop.call_later(0, print),
            lambda: any_loop.call_at(0, print),
        ):
            try:
                call()
            except RuntimeError as error:
                caught.append(error)
        any_loop.call_soon_threadsafe(any_loop.stop)

    any_loop.set_debug(True)
    thread = threading.Thread(target=intrude)
    any_loop.call_soon(thread.start)
    any_loop.run_forever()
    thread.join()
    assert len(caught) == 3
    assert all(
        "Non-thread-safe operation invoked on an event loop" in str(error)
        for error in caught
    )


def test_a_loop_that_does_not_run_may_be_fed_from_anywhere(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    seen: list[str] = []
    any_loop.set_debug(True)
    thread = threading.Thread(target=any_loop.call_soon, args=(seen.append, "fed"))
    thread.start()
    thread.join()
    one_pass(any_loop)
    assert seen == ["fed"]


def test_handles_know_where_they_were_made(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    any_loop.set_debug(True)
    handle = any_loop.call_soon(print)
    later = any_loop.call_later(10, print)
    assert __file__ in repr(handle)
    assert __file__ in repr(later)
    handle.cancel()
    later.cancel()
    assert "print" in repr(handle)


def test_coroutine_origins_are_tracked_while_it_runs(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    before = sys.get_coroutine_origin_tracking_depth()
    depths: list[int] = []
    any_loop.set_debug(True)
    any_loop.call_soon(lambda: depths.append(sys.get_coroutine_origin_tracking_depth()))
    one_pass(any_loop)
    assert depths[0] > 0
    assert sys.get_coroutine_origin_tracking_depth() == before


def test_a_coroutine_never_awaited_is_told_with_its_origin(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    async def forgotten() -> None:
        pass

    async def main() -> None:
        forgotten()  # type: ignore[unused-coroutine]
        gc.collect()

    any_loop.set_debug(True)
    with pytest.warns(RuntimeWarning) as told:
        any_loop.run_until_complete(main())
    assert "forgotten' was never awaited" in str(told[0].message)
    assert "Coroutine created at" in str(told[0].message)


def test_a_loop_dropped_open_warns(any_loop: asyncio.AbstractEventLoop) -> None:
    script = (
        NEW_LOOP
        + """
import gc, warnings
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    loop = new_loop()
    del loop
    gc.collect()
told = [w for w in told if "unclosed event loop" in str(w.message)]
print([w.category.__name__ for w in told])
"""
    )
    assert run_script(script, kind_of(any_loop)) == "['ResourceWarning']\n"


def test_repr_tells_the_state(any_loop: asyncio.AbstractEventLoop) -> None:
    assert "running=False closed=False debug=" in repr(any_loop)
    seen: list[str] = []
    any_loop.call_soon(lambda: seen.append(repr(any_loop)))
    one_pass(any_loop)
    assert "running=True" in seen[0]
    any_loop.close()
    assert "closed=True" in repr(any_loop)


def test_an_asyncgen_after_shutdown_warns(any_loop: asyncio.AbstractEventLoop) -> None:
    async def numbers() -> object:
        yield 1

    async def main() -> None:
        await asyncio.get_running_loop().shutdown_asyncgens()
        agen = numbers()
        with pytest.warns(ResourceWarning, match="was scheduled after"):
            await agen.__anext__()  # type: ignore[attr-defined]
        await agen.aclose()  # type: ignore[attr-defined]

    any_loop.run_until_complete(main())


def test_a_loop_that_is_left_open_in_debug_mode_ends_quietly(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    program = """
loop = new_loop()
loop.set_debug(True)
loop.run_until_complete(asyncio.sleep(0))
"""
    run_script(NEW_LOOP + program, kind_of(any_loop), options=("-W", "ignore"))
