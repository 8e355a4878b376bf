"""File descriptor handlers: events, changes, closed and reused descriptors."""

from __future__ import annotations

import errno
import os
import resource
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from support.pipes import Pipe
from support.qemu import Busy, settle

if TYPE_CHECKING:
    from aioqemu import AioContext

MakePipe = Callable[[], Pipe]
Later = Callable[[float, Callable[[], object]], object]

pytestmark = pytest.mark.usefixtures("busy")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected, non-blocking Unix sockets."""
    here, there = socket.socketpair()
    here.setblocking(False)
    there.setblocking(False)
    yield here, there
    here.close()
    there.close()


Pair = tuple[socket.socket, socket.socket]


def test_read_and_write_handlers_get_their_opaque(ctx: AioContext, pair: Pair) -> None:
    here, there = pair
    calls: list[tuple[str, object]] = []
    opaque = object()
    fd = here.fileno()
    ctx.set_fd_handler(
        fd,
        lambda o: calls.append(("read", o)),
        lambda o: calls.append(("write", o)),
        None,
        opaque,
    )
    assert ctx.poll(False) is True
    assert calls == [("write", opaque)]
    there.send(b"x")
    calls.clear()
    assert ctx.poll(False) is True
    assert calls == [("read", opaque), ("write", opaque)], "reading comes first"
    ctx.set_fd_handler(fd, None, None)
    calls.clear()
    settle(ctx)
    assert calls == []


def test_io_flush_gets_the_opaque(ctx: AioContext, make_pipe: MakePipe) -> None:
    pipe, seen = make_pipe(), []

    def flush(opaque: object) -> int:
        seen.append(opaque)
        return 0

    ctx.set_fd_handler(pipe.r, print, None, flush, "opaque")
    ctx.poll(False)
    assert set(seen) == {"opaque"}
    ctx.set_fd_handler(pipe.r, None, None)


def test_changing_the_mask(ctx: AioContext, pair: Pair) -> None:
    here, there = pair
    calls: list[str] = []
    fd = here.fileno()
    there.send(b"x")

    def read(_: object) -> None:
        calls.append("read")

    def write(_: object) -> None:
        calls.append("write")

    for io_read, io_write, expected in (
        (read, None, ["read"]),
        (None, write, ["write"]),
        (read, write, ["read", "write"]),
        (None, None, []),
        (read, None, ["read"]),
        (None, None, []),
    ):
        ctx.set_fd_handler(fd, io_read, io_write)
        calls.clear()
        ctx.poll(False)
        assert calls == expected


def test_level_triggered(ctx: AioContext, make_pipe: MakePipe) -> None:
    pipe, calls = make_pipe(), 0

    def io_read(_: object) -> None:
        nonlocal calls
        calls += 1
        os.read(pipe.r, 1)

    pipe.feed(b"abc")
    ctx.set_fd_handler(pipe.r, io_read, None)
    for expected in (1, 2, 3):
        assert ctx.poll(False) is True
        assert calls == expected
    assert ctx.poll(False) is False
    pipe.feed(b"d")
    assert ctx.poll(True) is True
    assert calls == 4
    ctx.set_fd_handler(pipe.r, None, None)


def test_hang_up_reaches_the_reader(ctx: AioContext, make_pipe: MakePipe) -> None:
    pipe, got = make_pipe(), []

    def io_read(_: object) -> None:
        got.append(os.read(pipe.r, 10))
        ctx.set_fd_handler(pipe.r, None, None)

    ctx.set_fd_handler(pipe.r, io_read, None)
    pipe.close_w()
    settle(ctx)
    assert got == [b""]


def test_error_reaches_the_writer(ctx: AioContext, make_pipe: MakePipe) -> None:
    pipe, got = make_pipe(), []
    pipe.fill()

    def io_write(_: object) -> None:
        try:
            os.write(pipe.w, b"x")
        except BrokenPipeError:
            got.append("broken")
        ctx.set_fd_handler(pipe.w, None, None)

    ctx.set_fd_handler(pipe.w, None, io_write)
    settle(ctx)
    assert got == []
    pipe.close_r()
    settle(ctx)
    assert got == ["broken"]


def test_error_reaches_both(ctx: AioContext, pair: Pair) -> None:
    here, there = pair
    calls: set[str] = set()
    fd = here.fileno()
    there.close()
    ctx.set_fd_handler(
        fd, lambda _: calls.add("read"), lambda _: calls.add("write"), None
    )
    ctx.poll(False)
    ctx.poll(False)
    assert calls == {"read", "write"}
    ctx.set_fd_handler(fd, None, None)


def test_removing_an_unknown_fd_is_silent(ctx: AioContext, make_pipe: MakePipe) -> None:
    pipe = make_pipe()
    ctx.set_fd_handler(pipe.r, None, None)
    ctx.set_fd_handler(987654, None, None)
    settle(ctx)


def test_a_closed_fd_is_refused(ctx: AioContext, make_pipe: MakePipe) -> None:
    pipe = make_pipe()
    number = pipe.r
    pipe.close_r()
    with pytest.raises(OSError) as caught:
        ctx.set_fd_handler(number, print, None)
    assert caught.value.errno == errno.EBADF
    settle(ctx)


@pytest.mark.parametrize("fd", [-1, -(2**31)])
def test_a_negative_fd_is_refused(ctx: AioContext, fd: int) -> None:
    with pytest.raises((OSError, ValueError)):
        ctx.set_fd_handler(fd, print, None)


@pytest.mark.parametrize("fd", ["0", None, 1.5])
def test_an_fd_must_be_an_integer(ctx: AioContext, fd: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        ctx.set_fd_handler(fd, print, None)


@pytest.mark.parametrize("callbacks", [(3, None), (None, 3), (print, "x")])
def test_handlers_must_be_callable(
    ctx: AioContext, make_pipe: MakePipe, callbacks: tuple[Any, Any]
) -> None:
    pipe = make_pipe()
    with pytest.raises(TypeError):
        ctx.set_fd_handler(pipe.r, *callbacks)
    settle(ctx)


def test_a_regular_file_is_refused_on_every_backend(ctx: AioContext) -> None:
    with tempfile.TemporaryFile() as regular:
        for callbacks in ((print, None), (None, print)):
            with pytest.raises(PermissionError):
                ctx.set_fd_handler(regular.fileno(), *callbacks)
    settle(ctx)


def test_a_failed_registration_keeps_the_old_one(
    ctx: AioContext, make_pipe: MakePipe
) -> None:
    pipe, calls = make_pipe(), []
    pipe.feed()
    ctx.set_fd_handler(pipe.r, lambda _: calls.append(pipe.drain()), None)
    with pytest.raises(TypeError):
        ctx.set_fd_handler(pipe.r, 3, None)  # type: ignore[arg-type]
    settle(ctx)
    assert calls == [b"x"]
    ctx.set_fd_handler(pipe.r, None, None)


def test_an_fd_closed_while_registered_does_not_disturb_the_others(
    ctx: AioContext, make_pipe: MakePipe, errors: list[dict[str, Any]], fdmon: str
) -> None:
    victim, other, served = make_pipe(), make_pipe(), []
    number = victim.r
    victim.feed()
    ctx.set_fd_handler(number, lambda _: victim.drain(), None)
    ctx.set_fd_handler(other.r, lambda _: served.append(other.drain()), None)
    settle(ctx)
    victim.close_r()
    for _ in range(3):
        other.feed()
        settle(ctx)
    assert served == [b"x"] * 3
    # poll tells (POLLNVAL); epoll drops it in silence; a ring still has the file.
    assert len(errors) <= 1
    if fdmon == "poll":
        assert len(errors) == 1
        assert errors[0]["fd"] == number
    ctx.set_fd_handler(number, None, None)
    ctx.set_fd_handler(other.r, None, None)
    settle(ctx)


def test_changing_a_handler_whose_fd_was_closed_raises(
    ctx: AioContext, make_pipe: MakePipe, errors: list[dict[str, Any]]
) -> None:
    pipe = make_pipe()
    ctx.set_fd_handler(pipe.r, print, None)
    settle(ctx)
    number = pipe.r
    pipe.close_r()
    with pytest.raises(OSError) as caught:
        ctx.set_fd_handler(number, print, print)
    assert caught.value.errno == errno.EBADF
    settle(ctx)
    assert len(errors) <= 1
    # The number is free for the next owner.
    new = make_pipe()
    if new.r == number:
        calls: list[bytes] = []
        ctx.set_fd_handler(number, lambda _: calls.append(new.drain()), None)
        new.feed()
        settle(ctx)
        assert calls == [b"x"]
    ctx.set_fd_handler(number, None, None)


def test_an_fd_closed_while_registered_does_not_spin(
    ctx: AioContext,
    busy: Busy,
    make_pipe: MakePipe,
    errors: list[dict[str, Any]],
    later: Later,
) -> None:
    victim = make_pipe()
    ctx.set_fd_handler(victim.r, print, None)
    settle(ctx)
    number = victim.r
    victim.close_r()
    victim.close_w()
    later(0.2, busy.release)
    polls, cpu = 0, time.process_time()
    while busy.n == 0 and polls < 1000:
        ctx.poll(True)
        polls += 1
    assert polls <= 10
    assert time.process_time() - cpu < 0.1
    assert len(errors) <= 1
    ctx.set_fd_handler(number, None, None)


@pytest.mark.parametrize("removed", [True, False], ids=["removed", "forgotten"])
def test_a_reused_number_is_the_new_owners(
    ctx: AioContext, make_pipe: MakePipe, errors: list[dict[str, Any]], removed: bool
) -> None:
    old = make_pipe()
    number = old.r
    ctx.set_fd_handler(number, lambda _: pytest.fail("the old owner's"), None)
    settle(ctx)
    if removed:
        ctx.set_fd_handler(number, None, None)
    # A duplicate keeps the old pipe alive: an epoll set still has it, a ring too.
    keeper = os.dup(number)
    new = make_pipe()
    os.dup2(new.r, number)
    calls: list[str] = []
    ctx.set_fd_handler(number, lambda _: calls.append("new"), None)
    old.feed()
    for _ in range(3):
        ctx.poll(False)
    assert calls == [], "the new owner got the old one's event"
    new.feed()
    while not calls:
        assert ctx.poll(True) is True
    ctx.set_fd_handler(number, None, None)
    calls.clear()
    settle(ctx)
    assert (calls, errors) == ([], [])
    os.close(keeper)


def test_two_numbers_of_one_file(ctx: AioContext, make_pipe: MakePipe) -> None:
    pipe = make_pipe()
    twin = os.dup(pipe.r)
    calls: list[str] = []
    ctx.set_fd_handler(pipe.r, lambda _: calls.append("one"), None)
    ctx.set_fd_handler(twin, lambda _: calls.append("two"), None)
    pipe.feed()
    assert ctx.poll(False) is True
    assert sorted(calls) == ["one", "two"]
    ctx.set_fd_handler(pipe.r, None, None)
    calls.clear()
    ctx.poll(False)
    assert calls == ["two"]
    ctx.set_fd_handler(twin, None, None)
    os.close(twin)


def test_remove_and_add_in_a_handler(ctx: AioContext, make_pipe: MakePipe) -> None:
    pipe, calls = make_pipe(), []

    def first(_: object) -> None:
        calls.append("first")
        ctx.set_fd_handler(pipe.r, None, None)
        ctx.set_fd_handler(pipe.r, second, None)

    def second(_: object) -> None:
        calls.append("second")
        pipe.drain()

    pipe.feed()
    ctx.set_fd_handler(pipe.r, first, None)
    ctx.poll(False)
    assert calls == ["first"], "a handler added in a pass waits for the next"
    settle(ctx)
    assert calls == ["first", "second"]
    ctx.set_fd_handler(pipe.r, None, None)


def test_a_handler_may_register_many(ctx: AioContext, make_pipe: MakePipe) -> None:
    pipes = [make_pipe() for _ in range(100)]
    calls: list[int] = []

    def served(index: int) -> None:
        calls.append(index)
        pipes[index].drain()

    def first(_: object) -> None:
        pipes[0].drain()
        for index, pipe in enumerate(pipes[1:], 1):
            ctx.set_fd_handler(pipe.r, served, None, None, index)
            pipe.feed()

    ctx.set_fd_handler(pipes[0].r, first, None)
    pipes[0].feed()
    settle(ctx)
    assert sorted(calls) == list(range(1, 100))
    for pipe in pipes:
        ctx.set_fd_handler(pipe.r, None, None)


def test_more_descriptors_than_select_can_hold(ctx: AioContext) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2500
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"RLIMIT_NOFILE is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    pipes: list[Pipe] = []
    calls: set[int] = set()

    def io_read(index: int) -> None:
        calls.add(index)
        pipes[index].drain()

    try:
        for index in range(1100):
            pipes.append(Pipe())
            ctx.set_fd_handler(pipes[index].r, io_read, None, None, index)
        assert pipes[-1].r > 1024
        for pipe in pipes:
            pipe.feed()
        settle(ctx)
        assert len(calls) == len(pipes)
        for pipe in pipes:
            ctx.set_fd_handler(pipe.r, None, None)
    finally:
        for pipe in pipes:
            pipe.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    settle(ctx)


def test_pending_tells_of_latched_events_only(
    ctx: AioContext, make_pipe: MakePipe
) -> None:
    pipe = make_pipe()
    pipe.feed()
    ctx.set_fd_handler(pipe.r, lambda _: pipe.drain(), None)
    # No wait has latched anything, and pending() makes no system call.
    assert ctx.pending() is False
    settle(ctx)
    assert ctx.pending() is False
    ctx.set_fd_handler(pipe.r, None, None)


def test_pending_sees_what_the_pass_has_yet_to_dispatch(
    ctx: AioContext, make_pipe: MakePipe
) -> None:
    pipes, seen = [make_pipe(), make_pipe()], []

    def io_read(index: int) -> None:
        pipes[index].drain()
        seen.append(ctx.pending())

    for index, pipe in enumerate(pipes):
        pipe.feed()
        ctx.set_fd_handler(pipe.r, io_read, None, None, index)
    settle(ctx)
    assert seen == [True, False]
    for pipe in pipes:
        ctx.set_fd_handler(pipe.r, None, None)
