"""One pass of the loop: its order, what it costs, how seldom it looks at the fds.

The design's order is completions, bottom halves, ready fd handlers, due timers, and
then the FIFO of ``call_soon`` with its snapshot taken last.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.pipes import Pipe

    from aioqemu import EventLoop

MAX_PASSES_BETWEEN_LOOKS = 64


@pytest.mark.parametrize("queued", [False, True], ids=["nothing queued", "queued"])
def test_order_of_one_pass(
    loop: EventLoop, make_pipe: Callable[[], Pipe], queued: bool
) -> None:
    pipe, ran = make_pipe(), []

    def note(what: str) -> None:
        ran.append((what, loop.stats()["passes"]))

    def bottom_half(_: object) -> None:
        note("bottom half")
        loop.call_soon(note, "soon of bottom half")

    def handler() -> None:
        pipe.drain()
        note("fd handler")
        loop.call_soon(note, "soon of fd handler")

    def engine_timer(_: object) -> None:
        note("engine timer")
        loop.call_soon(note, "soon of engine timer")

    timer = loop.context.timer_new(engine_timer)

    def prepare(_: object) -> None:
        # Runs in the timers' turn: of all this nothing can run before the next pass.
        loop.context.bh_new(bottom_half).schedule()
        pipe.feed()
        timer.mod(0)
        loop.call_later(0.02, loop.stop)
        # Longer than the loop may go without a look at the fds.
        time.sleep(0.001)
        if queued:
            # Two steps: the first is run at the end of the pass that goes on now.
            loop.call_soon(loop.call_soon, note, "queued")

    loop.add_reader(pipe.r, handler)
    loop.context.timer_new(prepare).mod(0)
    loop.run_forever()
    loop.remove_reader(pipe.r)
    names = [what for what, _ in ran]
    numbers = dict(ran)
    assert names[:3] == ["bottom half", "fd handler", "engine timer"]
    followers = [name for name in names[3:] if name != "queued"]
    assert followers == [
        "soon of bottom half",
        "soon of fd handler",
        "soon of engine timer",
    ]
    # One wait and one pass a message: the snapshot of the FIFO is taken last.
    assert len({numbers[name] for name in names if name != "queued"}) == 1
    if queued:
        assert names[3] == "queued", "what was queued before comes first in the FIFO"
        assert numbers["queued"] == numbers["bottom half"]


def test_call_soon_runs_before_a_call_later_of_zero(loop: EventLoop) -> None:
    ran: list[str] = []
    loop.call_soon(ran.append, "a")
    loop.call_later(0, ran.append, "b")
    loop.call_soon(ran.append, "c")
    loop.call_later(0.005, loop.stop)
    loop.run_forever()
    assert sorted(ran) == ["a", "b", "c"]
    assert ran.index("a") < ran.index("b")
    assert ran.index("a") < ran.index("c")


def test_due_timers_run_in_deadline_order(loop: EventLoop) -> None:
    ran: list[int] = []
    now = loop.time()
    for number in (5, 1, 4, 2, 3):
        loop.call_at(now + number * 1e-4, ran.append, number)
    loop.call_at(now, ran.append, 0)
    loop.call_later(0.01, loop.stop)
    time.sleep(0.002)
    loop.run_forever()
    assert ran == [0, 1, 2, 3, 4, 5]


def test_a_message_costs_one_wait(
    loop: EventLoop, make_pipe: Callable[[], Pipe]
) -> None:
    # What a handler passes to call_soon runs without another wait in between.
    there, back = make_pipe(), make_pipe()
    rounds, served = 200, 0

    def io_read() -> None:
        loop.call_soon(answer, there.drain())

    def answer(data: bytes) -> None:
        nonlocal served
        served += 1
        back.feed(data)

    def got_back() -> None:
        back.drain()
        if served < rounds:
            there.feed()
        else:
            loop.stop()

    loop.add_reader(there.r, io_read)
    loop.add_reader(back.r, got_back)
    before = loop.stats()
    there.feed()
    loop.run_forever()
    after = loop.stats()
    loop.remove_reader(there.r)
    loop.remove_reader(back.r)
    # Two fd events a round, hence at most two waits; a third would be the extra one.
    assert after["waits"] - before["waits"] <= 2 * rounds + 20
    assert after["passes"] - before["passes"] <= 2 * rounds + 20


@pytest.mark.parametrize("chain", ["call_soon", "bottom half"])
def test_a_busy_loop_looks_at_the_fds_within_64_passes(
    loop: EventLoop, make_pipe: Callable[[], Pipe], chain: str
) -> None:
    pipe, latencies = make_pipe(), []
    fed_at, steps = -1, 0

    def step(_: object = None) -> None:
        nonlocal fed_at, steps
        if len(latencies) == 100:
            loop.stop()
            return
        steps += 1
        if fed_at < 0 and steps % 7 == 0:
            fed_at = loop.stats()["passes"]
            os.write(pipe.w, b"x")
        again()

    def io_read() -> None:
        nonlocal fed_at
        pipe.drain()
        latencies.append(loop.stats()["passes"] - fed_at)
        fed_at = -1

    bh = loop.context.bh_new(step)

    def again() -> None:
        if chain == "call_soon":
            loop.call_soon(step)
        else:
            bh.schedule()

    loop.add_reader(pipe.r, io_read)
    again()
    loop.run_forever()
    loop.remove_reader(pipe.r)
    assert max(latencies) <= MAX_PASSES_BETWEEN_LOOKS + 1


def test_a_slow_busy_loop_looks_at_the_fds_by_time(
    loop: EventLoop, make_pipe: Callable[[], Pipe]
) -> None:
    # Passes of 1 ms: each is longer than 50 microseconds, so each looks.
    pipe, latencies, fed_at = make_pipe(), [], -1

    def step() -> None:
        nonlocal fed_at
        if len(latencies) == 20:
            loop.stop()
            return
        time.sleep(0.001)
        if fed_at < 0:
            fed_at = loop.stats()["passes"]
            pipe.feed()
        loop.call_soon(step)

    def io_read() -> None:
        nonlocal fed_at
        pipe.drain()
        latencies.append(loop.stats()["passes"] - fed_at)
        fed_at = -1

    loop.add_reader(pipe.r, io_read)
    loop.call_soon(step)
    loop.run_forever()
    loop.remove_reader(pipe.r)
    assert max(latencies) <= 2


def test_timers_are_served_while_callbacks_keep_coming(loop: EventLoop) -> None:
    late: list[float] = []

    def spin() -> None:
        if len(late) < 20:
            loop.call_soon(spin)

    def due(deadline: float) -> None:
        late.append(loop.time() - deadline)
        if len(late) == 20:
            loop.stop()
        else:
            arm()

    def arm() -> None:
        deadline = loop.time() + 0.001
        loop.call_at(deadline, due, deadline)

    loop.call_soon(spin)
    arm()
    loop.run_forever()
    assert min(late) >= 0
    assert sorted(late)[10] < 0.05


def test_an_idle_loop_does_not_wake_up(loop: EventLoop) -> None:
    loop.call_later(0.2, loop.stop)
    before = loop.stats()["passes"]
    cpu = time.process_time()
    loop.run_forever()
    assert loop.stats()["passes"] - before <= 4
    assert time.process_time() - cpu < 0.1
