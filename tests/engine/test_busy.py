"""Fds that are ready each time: a ring may look at them instead of making requests."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

import aioqemu
from aioqemu import AioContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.pipes import Pipe

ENOUGH = 20  # passes after which an fd is known to be ready each time


@pytest.fixture
def modern(fdmon: str) -> Iterator[AioContext]:
    """A context that blocks whatever its handlers say."""
    ctx = AioContext(fdmon, "modern")
    yield ctx
    ctx.close()


class Reader:
    """Counts how often its pipe was readable; leaves in it what is there."""

    def __init__(self, ctx: AioContext, pipe: Pipe) -> None:
        self.pipe = pipe
        self.calls = 0
        self._ctx = ctx
        pipe.feed()
        ctx.set_fd_handler(pipe.r, self._io_read, None)

    def _io_read(self, _opaque: object) -> None:
        self.calls += 1

    def leave(self) -> None:
        """Watch the pipe no more."""
        self._ctx.set_fd_handler(self.pipe.r, None, None)


@pytest.fixture
def reader(modern: AioContext, make_pipe: Callable[[], Pipe]) -> Iterator[Reader]:
    """A reader whose pipe was readable in each of many passes."""
    found = Reader(modern, make_pipe())
    for _ in range(ENOUGH):
        assert modern.poll(True) is True
    assert found.calls >= ENOUGH - 1
    yield found
    if found.pipe.r >= 0:
        found.leave()


def test_no_more_requests_are_made(modern: AioContext, reader: Reader) -> None:
    calls = reader.calls
    submits = modern.stats()["submits"]
    for _ in range(ENOUGH):
        modern.poll(True)
    assert reader.calls == calls + ENOUGH
    assert modern.stats()["submits"] == submits


def test_one_that_was_emptied_is_waited_for(modern: AioContext, reader: Reader) -> None:
    calls = reader.calls
    reader.pipe.drain()
    assert modern.poll(False) is False
    assert reader.calls == calls
    feeding = threading.Timer(0.01, reader.pipe.feed)
    feeding.start()
    while reader.calls == calls:
        modern.poll(True)
    feeding.join()
    assert modern.poll(False) is True
    assert reader.calls == calls + 2


def test_it_is_tried_less_often_where_it_was_wrong(
    modern: AioContext, reader: Reader
) -> None:
    """Ready in all passes but the one after every fourth."""
    for turn in range(200):
        calls = reader.calls
        if turn % 4 == 3:
            reader.pipe.drain()
            assert modern.poll(False) is False
            assert reader.calls == calls
            reader.pipe.feed()
        assert modern.poll(True) is True
        assert reader.calls == calls + 1


def test_one_that_is_removed_is_not_called(
    modern: AioContext, reader: Reader, make_pipe: Callable[[], Pipe]
) -> None:
    calls = reader.calls
    reader.leave()
    other = Reader(modern, make_pipe())
    assert modern.poll(True) is True
    assert (reader.calls, other.calls) == (calls, 1)
    other.leave()


def test_its_number_may_be_another_file(
    modern: AioContext, reader: Reader, make_pipe: Callable[[], Pipe]
) -> None:
    number = reader.pipe.r
    reader.leave()
    reader.pipe.close_r()
    pipe = make_pipe()
    assert pipe.r == number
    again = Reader(modern, pipe)
    again.pipe.drain()
    assert modern.poll(False) is False
    again.pipe.feed()
    assert modern.poll(True) is True
    assert again.calls == 1
    again.leave()


def test_a_closed_one_is_told_of(modern: AioContext, reader: Reader) -> None:
    reports: list[dict[str, Any]] = []
    modern.set_exception_handler(reports.append)
    calls = reader.calls
    reader.pipe.close_r()
    for _ in range(3):
        modern.poll(False)
    assert reader.calls == calls
    if modern.fdmon != "epoll":  # there it leaves the set, and nobody hears of it
        assert isinstance(reports[0]["exception"], OSError)


def test_what_is_wanted_of_it_may_change(modern: AioContext) -> None:
    seen: list[str] = []

    def io_read(_opaque: object) -> None:
        seen.append("read")

    def io_write(_opaque: object) -> None:
        seen.append("write")

    left, right = socket.socketpair()
    with left, right:
        right.send(b"x")
        for wanted in ((io_read, None), (io_read, io_write), (None, io_write)) * 2:
            modern.set_fd_handler(left, *wanted)
            for _ in range(ENOUGH):
                seen.clear()
                assert modern.poll(True) is True
                assert len(seen) == sum(cb is not None for cb in wanted)
        modern.set_fd_handler(left, None, None)
        seen.clear()
        modern.poll(False)
    assert seen == []


def test_one_may_remove_the_others(
    modern: AioContext, make_pipe: Callable[[], Pipe]
) -> None:
    readers = [Reader(modern, make_pipe()) for _ in range(8)]
    for _ in range(ENOUGH):
        modern.poll(True)

    def remove_all(_opaque: object) -> None:
        for reader in readers:
            reader.leave()

    first = readers[0]
    modern.set_fd_handler(first.pipe.r, remove_all, None)
    while modern.poll(False):
        pass
    calls = [reader.calls for reader in readers]
    modern.poll(False)
    assert [reader.calls for reader in readers] == calls


def test_there_may_be_more_than_a_look_takes(
    modern: AioContext, make_pipe: Callable[[], Pipe]
) -> None:
    readers = [Reader(modern, make_pipe()) for _ in range(100)]
    for _ in range(ENOUGH):
        modern.poll(True)
    before = [reader.calls for reader in readers]
    for _ in range(5):
        modern.poll(True)
    assert [reader.calls for reader in readers] == [calls + 5 for calls in before]
    for reader in readers:
        reader.leave()


def test_another_thread_may_go_on(fdmon: str, make_pipe: Callable[[], Pipe]) -> None:
    loop = aioqemu.new_event_loop(fdmon=fdmon)
    pipe = make_pipe()
    left = 0

    def io_read() -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            loop.stop()

    def run() -> None:
        nonlocal left
        left = ENOUGH
        loop.run_forever()

    pipe.feed()
    loop.add_reader(pipe.r, io_read)
    for _ in range(2):
        run()
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    loop.remove_reader(pipe.r)
    loop.close()
    assert left <= 0
