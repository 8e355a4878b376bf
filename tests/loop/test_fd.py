"""Rules of add_reader, add_writer and their removal.

The second half closes fds behind the loop's back: what was registered must not
get another file's events, the rest must be served, and nothing may spin.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import tempfile
from typing import TYPE_CHECKING, Any

import pytest

from .helpers import collect_reports, connected, cpu_seconds, fill, is_ours, one_pass

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.pipes import Pipe

    MakePipe = Callable[[], Pipe]


def _run_for(loop: asyncio.AbstractEventLoop, seconds: float) -> float:
    """Run the loop for a time; return the CPU time that it took."""
    loop.call_later(seconds, loop.stop)
    started = cpu_seconds()
    loop.run_forever()
    return cpu_seconds() - started


def test_a_reader_is_called_while_there_is_data(
    any_loop: asyncio.AbstractEventLoop, make_pipe: MakePipe
) -> None:
    pipe, calls = make_pipe(), []

    def readable(tag: str) -> None:
        calls.append(tag)
        if len(calls) == 3:
            pipe.drain()
            any_loop.call_soon(any_loop.stop)

    pipe.feed()
    any_loop.add_reader(pipe.r, readable, "tag")
    any_loop.run_forever()
    one_pass(any_loop)
    assert calls == ["tag"] * 3
    assert any_loop.remove_reader(pipe.r) is True


def test_a_writer_is_called_while_there_is_room(
    any_loop: asyncio.AbstractEventLoop, make_pipe: MakePipe
) -> None:
    pipe, calls = make_pipe(), []

    def writable() -> None:
        calls.append("w")
        if len(calls) == 3:
            pipe.fill()
            any_loop.call_soon(any_loop.stop)

    any_loop.add_writer(pipe.w, writable)
    any_loop.run_forever()
    one_pass(any_loop)
    assert calls == ["w"] * 3
    assert any_loop.remove_writer(pipe.w) is True


def test_removal_tells_whether_there_was_something(
    any_loop: asyncio.AbstractEventLoop, make_pipe: MakePipe
) -> None:
    pipe = make_pipe()
    assert any_loop.remove_reader(pipe.r) is False
    assert any_loop.remove_writer(pipe.w) is False
    any_loop.add_reader(pipe.r, print)
    assert any_loop.remove_writer(pipe.r) is False
    assert any_loop.remove_reader(pipe.r) is True
    assert any_loop.remove_reader(pipe.r) is False


def test_removal_after_close_finds_nothing(
    any_loop: asyncio.AbstractEventLoop, make_pipe: MakePipe
) -> None:
    pipe = make_pipe()
    any_loop.add_reader(pipe.r, print)
    any_loop.close()
    assert any_loop.remove_reader(pipe.r) is False
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        any_loop.add_reader(pipe.r, print)


def test_a_second_reader_replaces_the_first(
    any_loop: asyncio.AbstractEventLoop, make_pipe: MakePipe
) -> None:
    pipe, seen = make_pipe(), []
    any_loop.add_reader(pipe.r, seen.append, "old")
    any_loop.add_reader(pipe.r, seen.append, "new")
    pipe.feed()
    any_loop.call_later(0.005, any_loop.stop)
    any_loop.run_forever()
    assert set(seen) == {"new"}
    any_loop.remove_reader(pipe.r)


def test_reader_and_writer_of_one_fd_are_apart(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    left, right = socket.socketpair()
    seen: list[str] = []
    with left, right:
        any_loop.add_reader(left, seen.append, "read")
        any_loop.add_writer(left, seen.append, "write")
        one_pass(any_loop)
        one_pass(any_loop)
        assert set(seen) == {"write"}
        any_loop.remove_writer(left)
        seen.clear()
        right.send(b"x")
        any_loop.call_later(0.005, any_loop.stop)
        any_loop.run_forever()
        assert set(seen) == {"read"}
        assert any_loop.remove_reader(left) is True


def test_hangup_reaches_reader_and_writer(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    left, right = socket.socketpair()
    seen: set[str] = set()
    with left:
        left.setblocking(False)
        fill(left)
        any_loop.add_reader(left, seen.add, "read")
        any_loop.add_writer(left, seen.add, "write")
        right.close()
        any_loop.call_later(0.01, any_loop.stop)
        any_loop.run_forever()
        any_loop.remove_reader(left)
        any_loop.remove_writer(left)
    assert seen == {"read", "write"}


def test_file_objects_are_accepted(
    any_loop: asyncio.AbstractEventLoop, make_pipe: MakePipe
) -> None:
    pipe, seen = make_pipe(), []
    with os.fdopen(os.dup(pipe.r), "rb", buffering=0) as file:
        any_loop.add_reader(file, seen.append, "file")
        pipe.feed()
        any_loop.call_later(0.005, any_loop.stop)
        any_loop.run_forever()
        assert any_loop.remove_reader(file.fileno()) is True
    assert seen


def test_a_removed_handler_never_fires_again(
    any_loop: asyncio.AbstractEventLoop, make_pipe: MakePipe
) -> None:
    pipes = [make_pipe() for _ in range(10)]
    seen: list[int] = []

    def readable(number: int) -> None:
        seen.append(number)
        for pipe in pipes:
            any_loop.remove_reader(pipe.r)

    for number, pipe in enumerate(pipes):
        pipe.feed()
        any_loop.add_reader(pipe.r, readable, number)
    any_loop.call_later(0.01, any_loop.stop)
    any_loop.run_forever()
    assert len(seen) == 1


@pytest.mark.parametrize("fd", [-1, -5])
def test_a_negative_fd_is_refused(any_loop: asyncio.AbstractEventLoop, fd: int) -> None:
    for add in (any_loop.add_reader, any_loop.add_writer):
        with pytest.raises(ValueError, match="Invalid file descriptor"):
            add(fd, print)


@pytest.mark.parametrize("fileobj", ["3", 1.5, None, object()])
def test_what_is_no_file_is_refused(
    any_loop: asyncio.AbstractEventLoop, fileobj: Any
) -> None:
    for call in (any_loop.add_reader, any_loop.add_writer):
        with pytest.raises(ValueError, match="Invalid file object"):
            call(fileobj, print)
    with pytest.raises(ValueError, match="Invalid file object"):
        any_loop.remove_reader(fileobj)


def test_a_closed_fd_is_refused(
    any_loop: asyncio.AbstractEventLoop, make_pipe: MakePipe
) -> None:
    pipe = make_pipe()
    number = pipe.r
    pipe.close_r()
    with pytest.raises(OSError, match=re.escape("[Errno 9]")):
        any_loop.add_reader(number, print)
    assert any_loop.remove_reader(number) is False
    with socket.socket() as sock:
        sock.close()
        with pytest.raises(ValueError, match="Invalid file descriptor: -1"):
            any_loop.add_reader(sock, print)
    one_pass(any_loop)


def test_a_regular_file_is_refused_with_eperm(
    any_loop: asyncio.AbstractEventLoop, tmp_path: Path
) -> None:
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        for add in (any_loop.add_reader, any_loop.add_writer):
            with pytest.raises(PermissionError) as caught:
                add(file.fileno(), print)
            assert caught.value.errno == 1
        assert any_loop.remove_reader(file.fileno()) is False
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(PermissionError):
            any_loop.add_reader(folder, print)
    finally:
        os.close(folder)
    one_pass(any_loop)


@pytest.mark.asyncio
async def test_the_fd_of_a_transport_is_refused() -> None:
    loop = asyncio.get_running_loop()
    async with connected() as (transport, _, _):
        fd = transport.get_extra_info("socket").fileno()
        for call in (
            lambda: loop.add_reader(fd, print),
            lambda: loop.add_writer(fd, print),
            lambda: loop.remove_reader(fd),
            lambda: loop.remove_writer(fd),
        ):
            with pytest.raises(RuntimeError) as caught:
                call()
            assert str(caught.value).startswith(
                f"File descriptor {fd} is used by transport <"
            )


@pytest.mark.asyncio
async def test_the_fd_of_a_transport_is_free_once_it_is_closed() -> None:
    loop = asyncio.get_running_loop()
    async with connected() as (transport, protocol, _):
        fd = transport.get_extra_info("socket").fileno()
        transport.close()
        await protocol.lost
        left, right = socket.socketpair()
        with left, right:
            taken = fd in (left.fileno(), right.fileno())
            if not taken:
                os.dup2(left.fileno(), fd)
            try:
                loop.add_reader(fd, print)
                assert loop.remove_reader(fd) is True
            finally:
                if not taken:
                    os.close(fd)


def test_an_fd_closed_while_registered_harms_nobody(
    loop: Any, make_pipe: MakePipe
) -> None:
    reports = collect_reports(loop)
    victim, other = make_pipe(), make_pipe()
    seen: list[bytes] = []
    loop.add_reader(victim.r, lambda: pytest.fail("called for a closed fd"))
    loop.add_reader(other.r, lambda: seen.append(other.drain()))
    number = victim.r
    one_pass(loop)
    victim.close_r()
    assert _run_for(loop, 0.15) < 0.1
    other.feed(b"served")
    assert _run_for(loop, 0.02) < 0.02
    assert seen == [b"served"]
    # poll(2) tells of the closed fd, epoll drops it in silence.
    assert len(reports) <= 1
    if loop.fdmon == "poll":
        assert len(reports) == 1
        assert loop.remove_reader(number) is False
    else:
        loop.remove_reader(number)
    loop.remove_reader(other.r)


@pytest.mark.parametrize("announce", [False, True], ids=["silent", "removed"])
def test_a_reused_fd_number_gets_its_own_events(
    loop: Any, make_pipe: MakePipe, announce: bool
) -> None:
    collect_reports(loop)
    old, new = make_pipe(), make_pipe()
    seen: list[str] = []
    number = old.r
    loop.add_reader(number, seen.append, "old")
    one_pass(loop)
    if announce:
        loop.remove_reader(number)
    old.close_r()
    os.dup2(new.r, number)
    try:
        loop.add_reader(number, lambda: (seen.append("new"), new.drain()))
        new.feed()
        _run_for(loop, 0.02)
        assert seen == ["new"]
        new.feed()
        _run_for(loop, 0.02)
        assert seen == ["new", "new"]
        assert loop.remove_reader(number) is True
    finally:
        os.close(number)


def test_an_fd_swapped_within_a_pass_gets_no_stale_readiness(
    loop: Any, make_pipe: MakePipe
) -> None:
    pipes = [make_pipe(), make_pipe()]
    empty = make_pipe()
    seen: list[str] = []

    def swap(other: int) -> None:
        # Both are ready; whoever comes first puts an empty pipe in the other's
        # place, under its number.
        seen.append("first")
        for pipe in pipes:
            loop.remove_reader(pipe.r)
        os.dup2(empty.r, pipes[other].r)
        loop.add_reader(pipes[other].r, seen.append, "stale")

    for number, pipe in enumerate(pipes):
        pipe.feed()
        loop.add_reader(pipe.r, swap, 1 - number)
    _run_for(loop, 0.02)
    assert seen == ["first"]
    for pipe in pipes:
        loop.remove_reader(pipe.r)


def test_a_handler_whose_file_lives_on_elsewhere_does_not_spin(
    loop: Any, make_pipe: MakePipe
) -> None:
    # An epoll set keeps watching a file that a dup keeps open, under a number
    # that is closed and that can no longer be taken out by that number.
    reports = collect_reports(loop)
    pipe = make_pipe()
    number, copy = pipe.r, os.dup(pipe.r)
    try:
        loop.add_reader(number, lambda: None)
        one_pass(loop)
        pipe.close_r()
        loop.remove_reader(number)
        pipe.feed()
        assert _run_for(loop, 0.15) < 0.1
    finally:
        os.close(copy)
    assert len(reports) <= 1


def test_an_fd_closed_without_use_can_be_registered_again(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    collect_reports(any_loop)
    for _ in range(50):
        left, right = socket.socketpair()
        any_loop.add_reader(left, print)
        any_loop.add_writer(right, print)
        if not is_ours(any_loop):
            any_loop.remove_reader(left)
            any_loop.remove_writer(right)
        left.close()
        right.close()
    one_pass(any_loop)


@pytest.mark.parametrize("fd", [2**31, 2**40, 2**70])
def test_a_number_that_no_fd_can_have(
    any_loop: asyncio.AbstractEventLoop, fd: int
) -> None:
    assert any_loop.remove_reader(fd) is False
    assert any_loop.remove_writer(fd) is False
    with pytest.raises(OverflowError):
        any_loop.add_reader(fd, print)
    with pytest.raises(OverflowError):
        any_loop.add_writer(fd, print)
    any_loop.close()
    assert any_loop.remove_reader(fd) is False
    assert any_loop.remove_reader(-1) is False


def test_a_closed_file_object_can_be_removed(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    left, right = socket.socketpair()
    with left, right:
        any_loop.add_reader(left, print)
        any_loop.add_writer(right, print)
        left.close()
        assert any_loop.remove_reader(left) is True
        with pytest.raises(ValueError, match="Invalid file"):
            any_loop.remove_reader(left)
        assert any_loop.remove_writer(right) is True
        with pytest.raises(ValueError, match="Invalid file"):
            any_loop.remove_writer(left)
