"""The micro rows: one function each.

A row drives a loop that is given to it through public asyncio API; nothing here knows
which loop it is, how often it runs or who asks. `micro.py` is the program around it.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from functools import partial

import pyperformance_rows
from clock import Clock
from counted_rows import COUNTED
from loops import make_loop

Loop = asyncio.AbstractEventLoop


def _nothing() -> None:
    """Do nothing, for one event."""


async def _nothing_async() -> None:
    """Do nothing, in a coroutine."""


def call_soon_chain(loop: Loop, count: int, clock: Clock) -> None:
    """Each callback schedules the next: one callback a pass."""
    left = count

    def step() -> None:
        nonlocal left
        left -= 1
        if left:
            loop.call_soon(step)
        else:
            loop.stop()

    loop.call_soon(step)
    with clock:
        loop.run_forever()


def call_soon_1000(loop: Loop, count: int, clock: Clock) -> None:
    """A thousand callbacks are ready in each pass."""
    left = count

    def refill() -> None:
        nonlocal left
        batch = min(1000, left)
        left -= batch
        for _ in range(batch - 1):
            loop.call_soon(_nothing)
        loop.call_soon(refill if left else loop.stop)

    loop.call_soon(refill)
    with clock:
        loop.run_forever()


def sleep_0(loop: Loop, count: int, clock: Clock) -> None:
    """A task that yields to the loop again and again."""

    async def main() -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    with clock:
        loop.run_until_complete(main())


def future_from_callback(loop: Loop, count: int, clock: Clock) -> None:
    """A callback sets the future that a task awaits."""

    async def main() -> None:
        for _ in range(count):
            future = loop.create_future()
            loop.call_soon(future.set_result, None)
            await future

    with clock:
        loop.run_until_complete(main())


def create_task(loop: Loop, count: int, clock: Clock) -> None:
    """A task that does nothing is made and awaited."""

    async def main() -> None:
        for _ in range(count):
            await loop.create_task(_nothing_async())

    with clock:
        loop.run_until_complete(main())


def call_later_cancel(loop: Loop, count: int, clock: Clock) -> None:
    """Timers are made and cancelled while 100,000 others are pending."""

    async def main() -> None:
        pending = [loop.call_later(3600 + i * 0.001, _nothing) for i in range(100_000)]
        left = count
        with clock:
            while left > 0:
                for _ in range(min(1000, left)):
                    loop.call_later(60, _nothing).cancel()
                left -= 1000
                await asyncio.sleep(0)  # lets the loop forget the cancelled ones
        for handle in pending:
            handle.cancel()
        await asyncio.sleep(0)

    loop.run_until_complete(main())


def timeout_around_step(loop: Loop, count: int, clock: Clock) -> None:
    """One step of a task inside asyncio.timeout()."""

    async def main() -> None:
        for _ in range(count):
            async with asyncio.timeout(60):
                await asyncio.sleep(0)

    with clock:
        loop.run_until_complete(main())


def timers_fire(loop: Loop, count: int, clock: Clock) -> None:
    """Timers that are all due fire; making them is not counted."""
    left = count

    def fired() -> None:
        nonlocal left
        left -= 1
        if not left:
            loop.stop()

    start = loop.time()
    for i in range(count):
        # a multiplicative step scatters the deadlines over 10 ms
        loop.call_at(start + (i * 7919 % count) * (0.01 / count), fired)
    time.sleep(max(0.0, start + 0.02 - loop.time()))
    with clock:
        loop.run_forever()


def threadsafe_own(loop: Loop, count: int, clock: Clock) -> None:
    """call_soon_threadsafe from the loop's own thread, in a chain."""
    left = count

    def step() -> None:
        nonlocal left
        left -= 1
        if left:
            loop.call_soon_threadsafe(step)
        else:
            loop.stop()

    loop.call_soon(step)
    with clock:
        loop.run_forever()


def threadsafe_other(loop: Loop, count: int, clock: Clock) -> None:
    """Another thread posts callbacks as fast as it can."""

    def post() -> None:
        for _ in range(count - 1):
            loop.call_soon_threadsafe(_nothing)
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=post)
    with clock:
        loop.call_soon(thread.start)
        loop.run_forever()
        thread.join()


def run_in_executor(loop: Loop, count: int, clock: Clock) -> None:
    """A function that does nothing goes through the default executor."""

    async def main() -> None:
        await loop.run_in_executor(None, _nothing)  # the first makes the thread
        with clock:
            for _ in range(count):
                await loop.run_in_executor(None, _nothing)

    loop.run_until_complete(main())


def add_reader(loop: Loop, count: int, clock: Clock) -> None:
    """A callback on an fd that stays readable: one call a pass."""
    left = count

    def ready() -> None:
        nonlocal left
        left -= 1
        if not left:
            loop.stop()

    fd = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        loop.add_reader(fd, ready)
        with clock:
            loop.run_forever()
        loop.remove_reader(fd)
    finally:
        os.close(fd)


def sock_recv_ready(loop: Loop, count: int, clock: Clock) -> None:
    """sock_recv where the data is there already."""

    async def main() -> None:
        left = count
        while left > 0:
            batch = min(4096, left)
            left -= batch
            ours.send(b"x" * batch)
            with clock:
                for _ in range(batch):
                    await loop.sock_recv(theirs, 1)

    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        loop.run_until_complete(main())


def sock_recv_wait(loop: Loop, count: int, clock: Clock) -> None:
    """sock_recv which must wait; the data is sent from a callback."""

    async def main() -> None:
        for _ in range(count):
            loop.call_soon(ours.send, b"x")
            await loop.sock_recv(theirs, 1)

    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        with clock:
            loop.run_until_complete(main())


class _Storm:
    """Connections that are to be accepted and closed, and the future of the last."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.waiting = 0
        self.done = loop.create_future()

    def expect(self, connections: int) -> None:
        """Begin anew."""
        self.waiting = connections
        self.done = self.loop.create_future()

    def one_over(self) -> None:
        """Count a connection that is closed."""
        self.waiting -= 1
        if not self.waiting:
            self.done.set_result(None)


class _Closer(asyncio.Protocol):
    """Closes its connection at once."""

    def __init__(self, storm: _Storm) -> None:
        self.storm = storm

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close."""
        transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count."""
        self.storm.one_over()


def accept_storm(loop: Loop, count: int, clock: Clock) -> None:
    """Connections that wait in the backlog, 500 at once, are accepted and closed."""

    async def main() -> None:
        storm = _Storm(loop)
        server = await loop.create_server(
            partial(_Closer, storm), sock=listener, backlog=1024
        )
        left = count
        while left > 0:
            batch = min(500, left)
            left -= batch
            storm.expect(batch)
            peers = [socket.create_connection(address) for _ in range(batch)]
            with clock:
                await storm.done
            for peer in peers:
                peer.close()
        server.close()
        await server.wait_closed()

    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    address = listener.getsockname()
    loop.run_until_complete(main())


def run_nothing(loop: Loop, count: int, clock: Clock) -> None:
    """run_until_complete of a coroutine that does nothing."""
    with clock:
        for _ in range(count):
            loop.run_until_complete(_nothing_async())


def loop_make_close(
    loop: Loop, count: int, clock: Clock, *, make: Callable[[], Loop]
) -> None:
    """A loop is made, runs nothing and is closed. `loop` itself is not used."""
    with clock:
        for _ in range(count):
            fresh = make()
            fresh.run_until_complete(_nothing_async())
            fresh.close()


def spawn_wait(loop: Loop, count: int, clock: Clock) -> None:
    """A child process is started and waited for; its own cost is in the figure."""
    program = shutil.which("true")
    if program is None:
        raise FileNotFoundError("no program 'true' to start")

    async def main() -> None:
        for _ in range(count):
            process = await asyncio.create_subprocess_exec(program)
            if await process.wait() != 0:
                raise ChildProcessError(f"{program} failed")

    with clock:
        loop.run_until_complete(main())


def spawn_wait_1gib(loop: Loop, count: int, clock: Clock) -> None:
    """The same from a process that has a GiB of memory in use, which fork() copies."""
    resident = bytearray(b"x") * (1 << 30)
    spawn_wait(loop, count, clock)
    del resident


def pipe_read(loop: Loop, count: int, clock: Clock) -> None:
    """64 KiB of what a child process writes to its standard output, `count` times."""
    program = shutil.which("head")
    if program is None:
        raise FileNotFoundError("no program 'head' to read from")
    size = count << 16

    async def main() -> None:
        process = await asyncio.create_subprocess_exec(
            program, "-c", str(size), "/dev/zero", stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        left = size
        while left and (data := await process.stdout.read(1 << 16)):
            left -= len(data)
        if await process.wait() != 0 or left:
            raise ChildProcessError(f"{program} failed, {left} bytes missing")

    with clock:
        loop.run_until_complete(main())


Micro = Callable[[Loop, int, Clock], None]
MICRO: dict[str, Micro] = {
    function.__name__: function
    for function in (
        call_soon_chain,
        call_soon_1000,
        sleep_0,
        future_from_callback,
        create_task,
        call_later_cancel,
        timeout_around_step,
        timers_fire,
        threadsafe_own,
        threadsafe_other,
        run_in_executor,
        add_reader,
        sock_recv_ready,
        sock_recv_wait,
        accept_storm,
        run_nothing,
        spawn_wait,
        spawn_wait_1gib,
        pipe_read,
    )
}


def micro_of(row: str, loop_name: str) -> Micro:
    """Find the function of a row."""
    if row.startswith(pyperformance_rows.PREFIX):
        return partial(pyperformance_rows.run, row)
    if row == loop_make_close.__name__:
        return partial(loop_make_close, make=partial(make_loop, loop_name))
    return MICRO.get(row) or COUNTED[row]
