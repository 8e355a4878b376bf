"""Rules of polling the loop's context from within the loop, and of sharing it.

Callbacks in QEMU's style and coroutines live in one loop: a plain callback may
poll the context in a nested way, a task may not and is told what to await.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support.pipes import Pipe

import aioqemu

from .helpers import collect_reports, new_like

MakePipe = Callable[[], Pipe]


def test_poll_from_a_callback_runs_bottom_halves(loop: Any) -> None:
    seen: list[str] = []
    half = loop.context.bh_new(lambda _: seen.append("half"))

    def callback() -> None:
        half.schedule()
        seen.append(f"progress {loop.context.poll(False)}")
        loop.stop()

    loop.call_soon(callback)
    loop.run_forever()
    half.delete()
    assert seen == ["half", "progress True"]


def test_poll_from_a_callback_leaves_asyncio_waiting(loop: Any) -> None:
    seen: list[str] = []
    half = loop.context.bh_new(lambda _: seen.append("half"))

    async def task() -> None:
        seen.append("task")

    def callback() -> None:
        loop.call_soon(seen.append, "callback")
        loop.call_later(0, seen.append, "timer")
        loop.create_task(task())
        half.schedule()
        while loop.context.poll(False):
            pass
        seen.append("end of poll")

    loop.call_soon(callback)
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    half.delete()
    assert seen[:2] == ["half", "end of poll"]
    assert sorted(seen[2:]) == ["callback", "task", "timer"]


def test_a_nested_poll_sees_the_rest_of_the_slice(loop: Any) -> None:
    seen: list[str] = []

    def first(_opaque: object) -> None:
        seen.append("first")
        loop.context.poll(False)
        seen.append("end of first")

    halves = [
        loop.context.bh_new(first),
        loop.context.bh_new(lambda _: seen.append("second")),
    ]
    for half in halves:
        half.schedule()
    loop.call_later(0.005, loop.stop)
    loop.run_forever()
    for half in halves:
        half.delete()
    assert seen == ["first", "second", "end of first"]


def test_a_blocking_poll_from_a_callback_waits_for_its_fd(
    loop: Any, make_pipe: MakePipe, later: Callable[..., threading.Thread]
) -> None:
    pipe = make_pipe()
    seen: list[bytes] = []
    busy = [True]

    def io_read(_opaque: object) -> None:
        seen.append(pipe.drain())
        busy[0] = False

    def callback() -> None:
        loop.context.set_fd_handler(pipe.r, io_read, None, lambda _: busy[0])
        later(0.02, pipe.feed)
        while busy[0]:
            loop.context.poll(True)
        loop.context.set_fd_handler(pipe.r, None, None)
        loop.stop()

    loop.call_soon(callback)
    loop.run_forever()
    assert seen == [b"x"]


def test_poll_from_a_task_is_refused(loop: Any) -> None:
    async def main() -> None:
        for blocking in (False, True):
            with pytest.raises(RuntimeError, match="flushed"):
                loop.context.poll(blocking)
        with pytest.raises(RuntimeError, match="flushed"):
            aioqemu.qemu_aio.aio_poll(loop.context, False)
        with pytest.raises(RuntimeError, match="flushed"):
            aioqemu.qemu_aio.aio_flush(loop.context)

    loop.run_until_complete(main())


def test_flushed_is_the_twin_for_tasks(loop: Any) -> None:
    seen: list[int] = []

    def again(_opaque: object) -> None:
        seen.append(len(seen))
        if len(seen) < 5:
            half.schedule()

    half = loop.context.bh_new(again)

    async def main() -> None:
        half.schedule()
        await loop.context.flushed()
        assert seen == [0, 1, 2, 3, 4]

    loop.run_until_complete(main())
    half.delete()


def test_another_context_may_be_polled_from_a_task(loop: Any, fdmon: str) -> None:
    other = aioqemu.AioContext(fdmon=fdmon)
    seen: list[str] = []

    async def main() -> None:
        half = other.bh_new(lambda _: seen.append("ran"))
        half.schedule()
        assert other.poll(False) is True
        half.delete()

    loop.run_until_complete(main())
    other.close()
    assert seen == ["ran"]


def test_the_context_of_a_loop_at_rest_may_be_polled(loop: Any) -> None:
    seen: list[str] = []
    half = loop.context.bh_new(lambda _: seen.append("half"))
    half.schedule()
    loop.call_soon(seen.append, "callback")
    assert loop.context.poll(False) is True
    assert seen == ["half"]
    loop.run_until_complete(asyncio.sleep(0))
    assert seen == ["half", "callback"]
    half.delete()


def test_bottom_halves_and_coroutines_take_turns(loop: Any) -> None:
    seen: list[str] = []

    def half_runs(_opaque: object) -> None:
        seen.append("half")
        event.set()

    half = loop.context.bh_new(half_runs)
    event = asyncio.Event()

    async def main() -> None:
        for _ in range(5):
            half.schedule()
            await event.wait()
            event.clear()
            seen.append("task")

    loop.run_until_complete(main())
    half.delete()
    assert seen == ["half", "task"] * 5


def test_a_bottom_half_of_another_thread_wakes_the_loop(
    loop: Any, later: Callable[..., threading.Thread]
) -> None:
    half = loop.context.bh_new(lambda _: loop.stop())
    guard = loop.call_later(10, pytest.fail, "never woken")
    later(0.02, half.schedule)
    loop.run_forever()
    guard.cancel()
    half.delete()


def test_an_event_notifier_wakes_the_loop(
    loop: Any, later: Callable[..., threading.Thread]
) -> None:
    seen: list[bool] = []
    notifier = aioqemu.qemu_aio.EventNotifier()

    def io_read(which: Any) -> None:
        seen.append(which.test_and_clear())
        loop.stop()

    loop.context.set_event_notifier(notifier, io_read)
    guard = loop.call_later(10, pytest.fail, "never woken")
    later(0.02, notifier.set)
    loop.run_forever()
    guard.cancel()
    loop.context.set_event_notifier(notifier, None)
    notifier.close()
    assert seen == [True]


def test_handlers_of_the_context_share_the_loop_with_transports(
    loop: Any, make_pipe: MakePipe
) -> None:
    pipe = make_pipe()
    seen: list[bytes] = []

    async def main() -> None:
        server = await asyncio.start_server(
            lambda _reader, writer: writer.close(), "127.0.0.1", 0
        )
        port = server.sockets[0].getsockname()[1]
        loop.context.set_fd_handler(pipe.r, lambda _: seen.append(pipe.drain()), None)
        for _ in range(5):
            pipe.feed(b"y")
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
        loop.context.set_fd_handler(pipe.r, None, None)
        server.close()
        await server.wait_closed()

    loop.run_until_complete(main())
    assert b"".join(seen) == b"y" * 5


def test_an_fd_of_the_context_is_not_taken_in_silence(
    loop: Any, make_pipe: MakePipe
) -> None:
    # Two owners of one fd would take it from each other: the second is refused, or
    # the first is told of its loss.
    reports = collect_reports(loop)
    pipe = make_pipe()
    seen: list[bytes] = []
    loop.context.set_fd_handler(pipe.r, lambda _: seen.append(pipe.drain()), None)
    refused = False
    try:
        loop.add_reader(pipe.r, lambda: seen.append(pipe.drain()))
    except RuntimeError:
        refused = True
    pipe.feed()
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    assert seen == [b"x"]
    assert refused or len(reports) == 1
    if refused:
        loop.context.set_fd_handler(pipe.r, None, None)
    else:
        loop.remove_reader(pipe.r)


def test_polling_from_a_foreign_thread_is_refused(loop: Any) -> None:
    caught: list[BaseException] = []

    def intrude() -> None:
        try:
            loop.context.poll(False)
        except RuntimeError as error:
            caught.append(error)
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=intrude)
    loop.call_soon(thread.start)
    loop.run_forever()
    thread.join()
    assert len(caught) == 1


def test_contexts_of_two_loops_are_two(loop: Any) -> None:
    other = new_like(loop)
    assert other.context is not loop.context  # type: ignore[attr-defined]
    other.close()
