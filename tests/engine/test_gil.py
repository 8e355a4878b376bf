"""Waiting beside a thread that computes: the GIL is kept, but never for long."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections import deque
from typing import TYPE_CHECKING, Self

import pytest

import aioqemu
from aioqemu import AioContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.pipes import Pipe

TRIPS = 100
# A process that sends back each byte; a slow machine may take its time for it.
ECHO = """\
import socket, sys
with socket.socket(fileno=int(sys.argv[1])) as sock:
    while data := sock.recv(1):
        sock.send(data)
"""
LONG = 20_000_000


class Computing:
    """A thread that computes in Python until it is told to stop."""

    def __init__(self) -> None:
        self.progress = 0
        self.then: Callable[[], object] | None = None  # called after 20 ms or so
        self._stop = False
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop:
            sum(range(1000))
            self.progress += 1
            if self.then is not None:
                sum(range(2_000_000))
                self.then()
                self.then = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop = True
        self._thread.join()


@pytest.fixture
def peer() -> Iterator[socket.socket]:
    """A socket whose other end is a process that echoes."""
    ours, theirs = socket.socketpair()
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", ECHO, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    ours.setblocking(False)
    yield ours
    ours.close()
    assert child.wait(10) == 0


def trips(ctx: AioContext, peer: socket.socket) -> dict[str, int]:
    """Send a byte to and fro a hundred times; what that added to the statistics."""
    left = TRIPS

    def io_read(_opaque: object) -> None:
        nonlocal left
        assert peer.recv(1) == b"x"
        left -= 1
        if left:
            peer.send(b"x")

    ctx.set_fd_handler(peer.fileno(), io_read, None)
    peer.send(b"x")
    ctx.poll(True)  # the child is there
    before = ctx.stats()
    while left:
        ctx.poll(True)
    after = ctx.stats()
    ctx.set_fd_handler(peer.fileno(), None, None)
    return {name: after[name] - before[name] for name in ("gil_holds", "gil_releases")}


def test_an_answer_does_not_wait_for_the_gil(fdmon: str, peer: socket.socket) -> None:
    ctx = AioContext(fdmon, "modern", hold_gil_ns=LONG)
    with Computing() as thread:
        added = trips(ctx, peer)
        assert thread.progress > 0
    ctx.close()
    assert added["gil_holds"] > TRIPS // 2
    assert added["gil_releases"] < TRIPS // 2


def test_it_can_be_switched_off(fdmon: str, peer: socket.socket) -> None:
    ctx = AioContext(fdmon, "modern", hold_gil_ns=0)
    with Computing():
        added = trips(ctx, peer)
    ctx.close()
    assert added["gil_holds"] == 0
    assert added["gil_releases"] >= TRIPS - 2


def test_nothing_is_kept_where_nobody_else_computes(
    fdmon: str, peer: socket.socket
) -> None:
    ctx = AioContext(fdmon, "modern", hold_gil_ns=LONG)
    added = trips(ctx, peer)
    ctx.close()
    assert added["gil_releases"] > TRIPS // 2


def test_the_other_thread_gets_its_turn(
    fdmon: str, make_pipe: Callable[[], Pipe]
) -> None:
    """Also beside callbacks that run no bytecode, which would give the GIL away."""
    loop = aioqemu.new_event_loop(fdmon=fdmon, hold_gil_ns=LONG)
    pipe = make_pipe()
    pipe.feed()

    def tick() -> None:
        if loop.stats()["gil_holds"] == 0:
            loop.call_later(0.001, tick)
            return
        loop.add_reader(pipe.r, deque[int](maxlen=1).append, 1)  # never emptied
        thread.then = lambda: loop.call_soon_threadsafe(loop.stop)

    with Computing() as thread:
        loop.call_soon(tick)
        loop.run_forever()
    loop.remove_reader(pipe.r)
    loop.close()


def test_a_look_with_the_gil_ends_at_the_next_timer(
    fdmon: str, peer: socket.socket
) -> None:
    """However long it may take: 50 timers of 2 ms do not wait for it."""
    loop = aioqemu.new_event_loop(fdmon=fdmon, hold_gil_ns=10_000_000_000)
    late: list[float] = []

    def tick(due: float) -> None:
        late.append(loop.time() - due)
        if len(late) == 50:
            loop.stop()
        else:
            due = loop.time() + 0.002
            loop.call_at(due, tick, due)

    loop.add_reader(peer, lambda: None)
    loop.call_soon(tick, loop.time())
    with Computing():
        loop.run_forever()
    loop.remove_reader(peer)
    loop.close()
    assert sorted(late)[25] < 1
