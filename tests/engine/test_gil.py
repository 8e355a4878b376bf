"""Waiting beside a thread that computes: the GIL is kept, but never for long."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Self

import pytest

import aioqemu
from aioqemu import AioContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.pipes import Pipe

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


class Trips:
    """Bytes that go to the peer and back, one after the other."""

    def __init__(self, ctx: AioContext, peer: socket.socket) -> None:
        self._ctx = ctx
        self._peer = peer
        self._answered = 0
        ctx.set_fd_handler(peer.fileno(), self._io_read, None)
        self.make(1)  # the child is there

    def _io_read(self, _opaque: object) -> None:
        assert self._peer.recv(1) == b"x"
        self._answered += 1

    def make(self, trips: int) -> dict[str, int]:
        """Make some; tell what that added to the statistics."""
        before = self._ctx.stats()
        for _ in range(trips):
            answered = self._answered
            self._peer.send(b"x")
            while self._answered == answered:
                self._ctx.poll(True)
        after = self._ctx.stats()
        return {
            name: after[name] - before[name] for name in ("gil_holds", "gil_releases")
        }

    def close(self) -> None:
        self._ctx.set_fd_handler(self._peer.fileno(), None, None)
        self._ctx.close()


def test_an_answer_does_not_wait_for_the_gil(fdmon: str, peer: socket.socket) -> None:
    """Sooner or later: on a busy machine the thread may not be there to take it."""
    trips = Trips(AioContext(fdmon, "modern", hold_gil_ns=LONG), peer)
    with Computing() as thread:
        added = trips.make(5)
        while added["gil_holds"] < 5 or added["gil_releases"]:
            added = trips.make(5)
        assert thread.progress > 0
    trips.close()


def test_it_can_be_switched_off(fdmon: str, peer: socket.socket) -> None:
    trips = Trips(AioContext(fdmon, "modern", hold_gil_ns=0), peer)
    with Computing():
        added = trips.make(50)
    trips.close()
    assert added["gil_holds"] == 0
    assert added["gil_releases"] >= 50


def test_nothing_is_kept_where_nobody_else_computes(
    fdmon: str, peer: socket.socket
) -> None:
    trips = Trips(AioContext(fdmon, "modern", hold_gil_ns=LONG), peer)
    added = trips.make(50)
    while added["gil_holds"]:  # a busy machine looks like such a thread
        added = trips.make(50)
    trips.close()
    assert added["gil_releases"] > 0


@pytest.mark.parametrize("hold_gil_ns", [0, LONG])
def test_what_is_there_already_is_found_with_the_gil(
    fdmon: str, hold_gil_ns: int
) -> None:
    ctx = AioContext(fdmon, "modern", hold_gil_ns=hold_gil_ns)
    fd = os.eventfd(1, os.EFD_NONBLOCK)
    ctx.set_fd_handler(fd, lambda _opaque: None, None)
    before = ctx.stats()["gil_releases"]
    for _ in range(200):
        ctx.poll(True)
    released = ctx.stats()["gil_releases"] - before
    ctx.set_fd_handler(fd, None, None)
    os.close(fd)
    ctx.close()
    if hold_gil_ns:
        # But for finding out, and, on a very slow machine, every 20 ms.
        assert released < 100
    else:
        assert released >= 199  # the first has a registration to hear of


def test_even_so_it_is_let_go_in_time(fdmon: str) -> None:
    ctx = AioContext(fdmon, "modern", hold_gil_ns=1000)
    fd = os.eventfd(1, os.EFD_NONBLOCK)
    ctx.set_fd_handler(fd, lambda _opaque: None, None)
    for _ in range(50):
        ctx.poll(True)
    before = ctx.stats()["gil_releases"]
    until = time.perf_counter_ns() + 1_000_000
    while time.perf_counter_ns() < until:
        ctx.poll(True)
    released = ctx.stats()["gil_releases"] - before
    ctx.set_fd_handler(fd, None, None)
    os.close(fd)
    ctx.close()
    assert released > 10


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
    assert thread.then is None  # it was its turn that ended the run
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
