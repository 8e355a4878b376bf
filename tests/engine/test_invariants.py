"""The ten invariants of the design, each held by a test of its name.

Counts come from ``loop.stats()`` where the loop counts, from strace where a
system call is claimed.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable

import pytest
from support.guards import native_threads, open_fds
from support.layers import violations
from support.pipes import Pipe
from support.procs import count_syscalls

import aioqemu
from aioqemu import AioContext, EventLoop

MakePipe = Callable[[], Pipe]


def test_invariant_1_one_gil_release_per_pass(
    loop: EventLoop, make_pipe: MakePipe
) -> None:
    pipes = [make_pipe() for _ in range(20)]
    rounds, seen = 50, 0
    loop.call_soon(loop.stop)
    loop.run_forever()

    def io_read(pipe: Pipe) -> None:
        nonlocal seen
        seen += 1
        pipe.drain()
        if seen % len(pipes) == 0:
            if seen == rounds * len(pipes):
                loop.stop()
            else:
                loop.call_later(0.0005, feed)

    def feed() -> None:
        for pipe in pipes:
            pipe.feed()

    for pipe in pipes:
        loop.add_reader(pipe.r, io_read, pipe)
    before = loop.stats()
    feed()
    loop.run_forever()
    after = loop.stats()
    used = {key: after[key] - before[key] for key in ("passes", "waits")}
    releases = after["gil_releases"] - before["gil_releases"]
    assert seen == rounds * len(pipes)
    assert after["fd_events"] - before["fd_events"] >= seen
    assert releases <= used["passes"]
    # A wait that blocks is the one place; the rest of a pass never gives it up.
    assert releases <= used["waits"]
    assert releases <= 4 * rounds
    for pipe in pipes:
        loop.remove_reader(pipe.r)


def test_invariant_2_fifo_among_call_soon_callbacks(loop: EventLoop) -> None:
    ran: list[int] = []

    def outer(number: int) -> None:
        ran.append(number)
        loop.call_soon(ran.append, number + 1000)

    for number in range(1000):
        loop.call_soon(outer, number)
    loop.call_soon(loop.call_soon, loop.stop)
    loop.run_forever()
    assert ran == [*range(1000), *range(1000, 2000)]


def test_invariant_2_fifo_among_threadsafe_callbacks_of_a_thread(
    loop: EventLoop,
) -> None:
    ran: list[int] = []

    def produce() -> None:
        for number in range(2000):
            loop.call_soon_threadsafe(ran.append, number)
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=produce)
    loop.call_soon(thread.start)
    loop.run_forever()
    thread.join()
    assert ran == list(range(2000))


def test_invariant_3_rescheduled_work_runs_in_the_next_pass(loop: EventLoop) -> None:
    passes: dict[str, int] = {}

    def note(name: str) -> None:
        passes[name] = loop.stats()["passes"]

    older = loop.context.bh_new(note, "older bh")

    def outer(_: object) -> None:
        note("outer bh")
        older.schedule()
        newer = loop.context.bh_new(note, "newer bh")
        newer.schedule()
        # From a bottom half the FIFO's snapshot is still to come: same pass.
        loop.call_soon(soon)

    def soon() -> None:
        note("soon")
        loop.call_soon(note, "soon of soon")
        loop.call_later(0.01, loop.stop)

    loop.context.bh_new(outer).schedule()
    loop.run_forever()
    start = passes["outer bh"]
    assert passes["older bh"] == passes["newer bh"] == start + 1
    assert passes["soon"] == start
    assert passes["soon of soon"] == start + 1


def test_invariant_4_a_removed_handler_never_fires_again(
    loop: EventLoop, make_pipe: MakePipe
) -> None:
    pipes = [make_pipe() for _ in range(50)]
    calls: list[int] = []

    def io_read(number: int) -> None:
        calls.append(number)
        for pipe in pipes:
            loop.remove_reader(pipe.r)
            loop.remove_writer(pipe.w)
        loop.call_later(0.02, loop.stop)

    for number, pipe in enumerate(pipes):
        pipe.feed()
        loop.add_reader(pipe.r, io_read, number)
        loop.add_writer(pipe.w, io_read, number)
    loop.run_forever()
    assert len(calls) == 1


def test_invariant_4_holds_when_another_thread_removes(
    ctx: AioContext, make_pipe: MakePipe
) -> None:
    pipe, calls = make_pipe(), 0

    def io_read(_: object) -> None:
        nonlocal calls
        calls += 1

    pipe.feed()
    for _ in range(50):
        ctx.set_fd_handler(pipe.r, io_read, None, lambda _: 1)
        while calls == 0:
            ctx.poll(False)
        ctx.set_fd_handler(pipe.r, None, None)
        calls = 0
        ctx.poll(False)
        assert calls == 0


def test_invariant_5_a_buffer_given_to_the_kernel_outlives_its_completion(
    loop: EventLoop,
) -> None:
    here, there = socket.socketpair()
    here.setblocking(False)
    there.setblocking(False)

    async def main() -> bytes:
        # A receive that was cancelled must not write later.
        target = bytearray(b"." * 16)
        task = loop.create_task(loop.sock_recv_into(here, target))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await loop.sock_sendall(there, b"late")
        await asyncio.sleep(0.01)
        assert target == b"." * 16
        target.extend(b"resizing would raise BufferError while it is lent")
        assert await loop.sock_recv(here, 16) == b"late"
        # A send whose only reference to the data is the request itself.
        size = 4 << 20
        send = loop.create_task(
            loop.sock_sendall(there, bytes(range(256)) * (size // 256))
        )
        received = bytearray()
        while len(received) < size:
            gc.collect(0)
            received += await loop.sock_recv(here, 1 << 18)
        await send
        return bytes(received)

    got = loop.run_until_complete(main())
    assert got == bytes(range(256)) * ((4 << 20) // 256)
    here.close()
    there.close()


def test_invariant_5_a_transport_keeps_what_it_was_given_to_write(
    loop: EventLoop,
) -> None:
    size = 3 << 20

    class Sink(asyncio.Protocol):
        def __init__(self) -> None:
            self.data = bytearray()
            self.done = loop.create_future()

        def data_received(self, data: bytes) -> None:
            self.data += data
            gc.collect(0)

        def connection_lost(self, _: Exception | None) -> None:
            self.done.set_result(None)

    async def main() -> bytearray:
        here, there = socket.socketpair()
        sink = Sink()
        reading, _ = await loop.create_connection(lambda: sink, sock=here)
        writing, _ = await loop.create_connection(asyncio.Protocol, sock=there)
        source = bytearray(b"a" * size)
        writing.write(source)
        source[:] = b"b" * size
        del source
        writing.close()
        await sink.done
        reading.close()
        await asyncio.sleep(0)
        return sink.data

    assert loop.run_until_complete(main()) == b"a" * size


def test_invariant_6_exceptions_never_escape_dispatch(
    loop: EventLoop, make_pipe: MakePipe
) -> None:
    pipe, seen, contexts = make_pipe(), [], []
    loop.set_exception_handler(lambda _, context: contexts.append(context))

    def fails(what: str) -> None:
        seen.append(what)
        raise ValueError(what)

    def io_read() -> None:
        pipe.drain()
        fails("reader")

    pipe.feed()
    loop.add_reader(pipe.r, io_read)
    loop.call_soon(fails, "soon")
    loop.call_later(0, fails, "timer")
    loop.call_soon_threadsafe(fails, "threadsafe")
    loop.context.bh_new(fails, "bh").schedule()
    loop.call_later(0.02, loop.stop)
    loop.run_forever()
    assert sorted(seen) == ["bh", "reader", "soon", "threadsafe", "timer"]
    assert sorted(str(c["exception"]) for c in contexts) == sorted(seen)
    loop.remove_reader(pipe.r)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_invariant_6_interrupts_leave_the_loop_consistent(
    loop: EventLoop, make_pipe: MakePipe, kind: type[BaseException]
) -> None:
    pipe, ran = make_pipe(), []

    def interrupts() -> None:
        raise kind

    def interrupts_bh(_: object) -> None:
        raise kind

    def reader_interrupts() -> None:
        pipe.drain()
        raise kind

    def start_soon() -> None:
        loop.call_soon(interrupts)

    def start_timer() -> None:
        loop.call_later(0, interrupts)

    def start_bh() -> None:
        loop.context.bh_new(interrupts_bh).schedule()

    loop.add_reader(pipe.r, reader_interrupts)
    for start in (start_soon, start_timer, start_bh, pipe.feed):
        ran.clear()
        loop.call_soon(ran.append, 1)
        start()
        loop.call_soon(ran.append, 2)
        with pytest.raises(kind):
            loop.run_forever()
        assert not loop.is_running()
        assert asyncio._get_running_loop() is None
        # Nothing is lost and nothing runs twice.
        loop.call_soon(ran.append, 3)
        loop.call_later(0.005, loop.stop)
        loop.run_forever()
        assert ran == [1, 2, 3]
    loop.remove_reader(pipe.r)


def test_invariant_7_a_registered_fd_is_watched(loop: EventLoop) -> None:
    # The same numbers again and again: a stale registration would be believed.
    for _ in range(30):
        pipe = Pipe()
        fired: set[str] = set()

        def fires(what: str, fired: set[str] = fired) -> None:
            fired.add(what)
            if fired == {"reader", "writer"}:
                loop.stop()

        loop.add_reader(pipe.r, fires, "reader")
        loop.add_writer(pipe.w, fires, "writer")
        loop.call_later(0.001, pipe.feed)
        # One that is not watched would leave the loop to the test's timeout.
        loop.run_forever()
        assert fired == {"reader", "writer"}
        loop.remove_reader(pipe.r)
        loop.remove_writer(pipe.w)
        pipe.close()


def test_invariant_7_or_its_registration_failed_loudly(
    loop: EventLoop, make_pipe: MakePipe
) -> None:
    pipe = make_pipe()
    number = pipe.r
    pipe.close_r()
    with tempfile.TemporaryFile() as regular:
        for fd, kinds in (
            (number, (OSError,)),
            (-1, (OSError, ValueError)),
            (regular.fileno(), (PermissionError,)),
        ):
            with pytest.raises(kinds):
                loop.add_reader(fd, print)
            with pytest.raises(kinds):
                loop.context.set_fd_handler(fd, print, None)
            assert loop.remove_reader(fd) is False if fd >= 0 else True
    loop.call_soon(loop.stop)
    loop.run_forever()


def test_invariant_8_after_close_no_fd_and_no_thread_of_ours(fdmon: str) -> None:
    fds, threads = open_fds(), native_threads()
    for _ in range(20):
        loop = aioqemu.new_event_loop(fdmon=fdmon)

        async def main(loop: asyncio.AbstractEventLoop = loop) -> None:
            await loop.run_in_executor(None, os.getpid)
            server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            transport, _ = await loop.create_connection(
                asyncio.Protocol, "127.0.0.1", port
            )
            await asyncio.sleep(0.001)
            transport.abort()
            server.close()

        loop.run_until_complete(main())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    gc.collect()
    assert open_fds() == fds
    # A joined thread leaves the kernel's list a moment later.
    deadline = time.monotonic() + 2
    while native_threads() != threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert native_threads() == threads


def test_invariant_9_layer_n_imports_only_below_n() -> None:
    assert violations() == []


_PATHS: dict[str, str] = {
    "call_soon chain": """
        def step():
            global left
            left -= 1
            if left:
                loop.call_soon(step)
            else:
                loop.stop()

        def work(count):
            global left
            left = count
            loop.call_soon(step)
            loop.run_forever()
    """,
    "sleep 0": """
        async def main(count):
            for _ in range(count):
                await asyncio.sleep(0)

        def work(count):
            loop.run_until_complete(main(count))
    """,
    "future from callback": """
        async def main(count):
            for _ in range(count):
                future = loop.create_future()
                loop.call_soon(future.set_result, None)
                await future

        def work(count):
            loop.run_until_complete(main(count))
    """,
    "create task await": """
        async def nothing():
            pass

        async def main(count):
            for _ in range(count):
                await loop.create_task(nothing())

        def work(count):
            loop.run_until_complete(main(count))
    """,
    "call later cancel": """
        def work(count):
            for _ in range(count):
                loop.call_later(1000, print).cancel()
            loop.call_soon(loop.stop)
            loop.run_forever()
    """,
    "timeout around step": """
        async def main(count):
            for _ in range(count):
                async with asyncio.timeout(1000):
                    await asyncio.sleep(0)

        def work(count):
            loop.run_until_complete(main(count))
    """,
    "threadsafe own thread": """
        def step():
            global left
            left -= 1
            if left:
                loop.call_soon_threadsafe(step)
            else:
                loop.stop()

        def work(count):
            global left
            left = count
            loop.call_soon(step)
            loop.run_forever()
    """,
    "bottom half chain": """
        def step(_):
            global left
            left -= 1
            if left:
                bh.schedule()
            else:
                loop.stop()

        bh = loop.context.bh_new(step)

        def work(count):
            global left
            left = count
            bh.schedule()
            loop.run_forever()
    """,
    "bottom half, own context": """
        ctx = aioqemu.AioContext(fdmon=sys.argv[1])
        bh = ctx.bh_new(lambda _: None)

        def work(count):
            for _ in range(count):
                bh.schedule()
                ctx.notify()
                assert ctx.poll(True)
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize("path", _PATHS)
def test_invariant_10_no_system_call_where_budgets_say_none(
    fdmon: str, path: str
) -> None:
    count = 5000
    script = textwrap.dedent("""
        import asyncio, gc, os, sys
        import aioqemu

        gc.disable()
        ctx = None
        loop = aioqemu.new_event_loop(fdmon=sys.argv[1])
    """)
    script += textwrap.dedent(_PATHS[path])
    script += textwrap.dedent("""
        work(200)
        count = int(sys.argv[2])
        os.getppid()
        work(count)
        os.getppid()
        loop.close()
        if ctx is not None:
            ctx.close()
    """)
    counts = count_syscalls(script, fdmon, str(count))
    # Memory that grows is not the path's; a look at the fds is allowed at every
    # 50 microseconds or 64 passes, and costs a call on poll and epoll only.
    calls = counts.total() - counts["mmap"] - counts["munmap"] - counts["brk"]
    allowed = 0.01 if fdmon == "io_uring" else 0.2
    assert calls / count <= allowed, dict(counts)
