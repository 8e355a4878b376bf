"""Cancelling, closing, collecting, forking: who owns the memory, and until when."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from support.procs import run_script
from support.seccomp import IO_URING_ENTER, IO_URING_REGISTER, IO_URING_SETUP

import aioqemu
from aioqemu import block
from aioqemu._block.request import Engine, Kind
from aioqemu._block.service import Op
from aioqemu._loop import blockdev
from aioqemu.qemu_aio import AIOPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from aioqemu.block import BlockRequest


@pytest.fixture
def fifo(disk: Path) -> Path:
    """Opening it blocks until somebody opens the other end."""
    path = disk / "fifo"
    os.mkfifo(path)
    return path


def kept(fd: int, buffer: Any) -> BlockRequest:
    """A read of an empty pipe that the ring keeps; the fd level would refuse it."""
    served = blockdev.service()
    return served.rw(Op.READ, fd, [buffer], 0, 0, Engine.URING, kind=Kind.RET_INT)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe; on the ring, reading it waits for data."""
    r, w = os.pipe()
    yield r, w
    os.close(r)
    os.close(w)


@pytest.fixture(params=["io_uring"])
def uring(request: pytest.FixtureRequest) -> Iterator[aioqemu.EventLoop]:
    """A loop with a ring."""
    try:
        loop = aioqemu.new_event_loop(fdmon="io_uring")
    except aioqemu.BackendUnavailable as exc:
        pytest.skip(str(exc))
    yield loop
    if not loop.is_closed():
        loop.close()


def test_a_cancelled_read_returns_when_the_kernel_is_done(
    uring: aioqemu.EventLoop, pipe: tuple[int, int]
) -> None:
    async def main() -> None:
        buffer = bytearray(100)
        request = kept(pipe[0], buffer)
        await asyncio.sleep(0.01)
        with pytest.raises(BufferError):
            buffer.extend(b"x")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(request, 0.01)
        assert request.cancelled()
        buffer.extend(b"free again")
        os.write(pipe[1], b"for nobody")
        await asyncio.sleep(0.01)
        assert bytes(buffer[:100]) == bytes(100)
        assert os.read(pipe[0], 100) == b"for nobody"

    uring.run_until_complete(main())


def test_cancelled_at_once(uring: aioqemu.EventLoop, pipe: tuple[int, int]) -> None:
    async def main() -> None:
        for _ in range(50):
            request = kept(pipe[0], bytearray(10))
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
        waiting = [kept(pipe[0], bytearray(10)) for _ in range(600)]
        for request in waiting:
            request.cancel()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(r, asyncio.CancelledError) for r in results)

    uring.run_until_complete(main())


def test_a_collected_request_keeps_its_buffer(
    uring: aioqemu.EventLoop, pipe: tuple[int, int]
) -> None:
    class Buffer(bytearray):
        pass

    async def main() -> None:
        buffer = Buffer(100)
        ref = weakref.ref(buffer)
        kept(pipe[0], buffer)
        del buffer
        await asyncio.sleep(0.01)
        gc.collect()
        there = ref()
        assert there is not None
        os.write(pipe[1], b"data")
        await asyncio.sleep(0.01)
        assert there[:4] == b"data"
        del there
        gc.collect()
        assert ref() is None

    uring.run_until_complete(main())


@pytest.mark.loop_errors  # the task that is left pending
def test_closing_with_requests_in_flight(
    uring: aioqemu.EventLoop, pipe: tuple[int, int], image: Path
) -> None:
    buffers = [bytearray(100) for _ in range(300)]
    told: list[int] = []

    async def main() -> list[Any]:
        made = [kept(pipe[0], b) for b in buffers]
        async with block.null(latency=60.0) as blk:
            made += [blk.pread(10, 0) for _ in range(200)]
            made.append(
                blk.aio_preadv(0, bytearray(5), 0, lambda _, ret: told.append(ret))
            )
            asyncio.get_running_loop().stop()
            await asyncio.sleep(0)
        return made

    task = uring.create_task(main())
    uring.run_forever()
    task.cancel()
    uring.close()
    for b in buffers:
        b.extend(b"nobody holds it")
    assert told == [-errno.ECANCELED]
    with pytest.raises((asyncio.CancelledError, asyncio.InvalidStateError)):
        task.result()
    del task
    gc.collect()


def test_closing_ends_the_threads(loop: aioqemu.EventLoop, image: Path) -> None:
    async def main() -> list[Any]:
        blk = await block.open(image, "r+", engine="threads")
        requests: list[Any] = [blk.pwrite(b"x" * 4096, 4096 * i) for i in range(100)]
        requests += [blk.flush() for _ in range(100)]
        return [requests, blk]

    requests, blk = loop.run_until_complete(main())
    assert blk.ctx.closed is False
    loop.close()
    assert all(r.done() for r in requests)
    os.close(blk.detach())


def test_a_context_that_is_dropped(disk: Path, image: Path, fdmon: str) -> None:
    ctx = aioqemu.AioContext(fdmon=fdmon)
    ref = weakref.ref(ctx)
    blk = block.open(image, direct=True, context=ctx).now()
    blk.aio_preadv(0, bytearray(4096))  # in flight, and holds the device
    held = [ctx]
    del blk, ctx
    with pytest.warns(ResourceWarning) as caught:
        _drop(held)
    assert ref() is None
    told = {str(w.message).split()[1] for w in caught}
    assert told == {"<AioContext", "block"}


def _drop(held: list[Any]) -> None:
    held.clear()
    gc.collect()


def test_a_device_that_is_dropped(run: Any, image: Path) -> None:
    async def main() -> int:
        blk = await block.open(image)
        number = blk.fileno()
        held = [blk]
        del blk
        with pytest.warns(ResourceWarning, match=r"unclosed block device .*image"):
            _drop(held)
        return number

    number = run(main())
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(number)


def test_a_loop_that_changes_threads(uring: aioqemu.EventLoop, image: Path) -> None:
    async def main() -> bytes:
        async with block.open(image, direct=True) as blk:
            data: bytes = await blk.pread(8, 4096)
            return data

    got: list[bytes] = []
    for _ in range(2):
        thread = threading.Thread(
            target=lambda: got.append(uring.run_until_complete(main()))
        )
        thread.start()
        thread.join()
    got.append(uring.run_until_complete(main()))
    assert got == [(512).to_bytes(8, "big")] * 3


def test_what_the_kernel_never_gives_back_is_never_freed(
    uring: aioqemu.EventLoop, pipe: tuple[int, int]
) -> None:
    buffer = bytearray(10)
    requests = []

    async def leave() -> None:
        requests.append(kept(pipe[0], buffer))
        await asyncio.sleep(0.01)

    # The ring is the thread's, and only it could cancel.
    thread = threading.Thread(target=uring.run_until_complete, args=[leave()])
    thread.start()
    thread.join()
    with pytest.warns(ResourceWarning, match="memory of a read of 10 bytes"):
        uring.close()
    assert requests[0].done()
    requests.clear()
    gc.collect()
    with pytest.raises(BufferError):
        buffer.extend(b"the kernel may still write here")


def test_a_request_made_before_the_loop_runs(
    loop: aioqemu.EventLoop, image: Path
) -> None:
    fd = os.open(image, os.O_RDONLY)

    async def main() -> Any:
        return block.openat(image, os.O_RDONLY)

    request = loop.run_until_complete(main())
    other = loop.run_until_complete(request)
    os.close(other)
    os.close(fd)


def test_a_cancelled_open_leaves_no_fd(run: Any, fifo: Path) -> None:
    async def main() -> None:
        before = set(os.listdir("/proc/self/fd"))
        request = block.openat(fifo, os.O_RDONLY)
        await asyncio.sleep(0.01)
        if not request.cancel():  # the ring opens it without waiting for a writer
            os.close(await request)
            return
        await asyncio.sleep(0.01)
        if not request.done():  # a thread is in it, and cannot be told
            os.close(os.open(fifo, os.O_RDWR | os.O_NONBLOCK))
        with pytest.raises(asyncio.CancelledError):
            await request
        await asyncio.sleep(0.01)
        extra = set(os.listdir("/proc/self/fd")) - before
        # The folder that is listed is among them, and closed since.
        assert not [fd for fd in extra if _leads_to(fd, "fifo")]

    run(main())


def _leads_to(fd: str, name: str) -> bool:
    try:
        return name in os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return False


def test_fork_with_requests_in_flight(fdmon: str, image: Path) -> None:
    out = run_script(
        """
        import asyncio, os, sys, aioqemu
        from aioqemu import block

        async def main():
            blk = await block.open(sys.argv[1], "r+", engine="threads")
            requests = [blk.pread(4096, 4096 * i) for i in range(64)]
            pid = os.fork()
            if pid == 0:
                try:
                    blk.pread(10, 0)
                except RuntimeError:
                    os._exit(7)
                os._exit(1)
            data = await asyncio.gather(*requests)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
            await blk.close()
            print(sum(map(len, data)))

        aioqemu.run(main(), fdmon=sys.argv[2])
        """,
        str(image),
        fdmon,
        options=("-W", "error", "-W", "ignore::DeprecationWarning"),
    )
    assert out == f"{64 * 4096}\n"


@pytest.mark.parametrize("denied", [IO_URING_SETUP, IO_URING_ENTER, IO_URING_REGISTER])
def test_io_uring_refused(denied: int, image: Path) -> None:
    out = run_script(
        """
        import asyncio, sys, aioqemu
        from support import seccomp
        seccomp.deny((int(sys.argv[2]),), 1)
        from aioqemu import block

        async def main():
            probe = block.probe()
            assert probe["auto"]["buffered"] == "threads", probe
            async with block.open(sys.argv[1], "r+") as blk:
                assert blk.engine == "threads"
                await blk.pwrite(b"hello", 5)
                await blk.flush()
                assert await blk.pread(5, 5) == b"hello"
            try:
                await block.open(sys.argv[1], engine="io_uring")
            except aioqemu.BackendUnavailable as exc:
                print("refused")

        aioqemu.run(main())
        """,
        str(image),
        str(denied),
    )
    assert out == "refused\n"


@pytest.mark.skipif(
    "asan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer pads allocations"
)
def test_ten_thousand_in_flight_are_small(fdmon: str) -> None:
    out = run_script(
        """
        import asyncio, sys, aioqemu, os
        from aioqemu import block

        def rss():
            with open("/proc/self/statm") as f:
                return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        async def main():
            async with block.null(latency=1.0, max_in_flight=20000) as blk:
                first = blk.aio_preadv(0, bytearray(1))
                buffer = bytearray(1)
                before = rss()
                requests = [blk.aio_preadv(0, buffer) for _ in range(10000)]
                print((rss() - before) // 10000)
                for r in requests:
                    r.cancel_async()
                first.cancel_async()

        aioqemu.run(main(), fdmon=sys.argv[1])
        """,
        fdmon,
    )
    assert int(out) < 1024


@pytest.mark.skipif(
    "asan" in os.environ.get("LD_PRELOAD", ""),
    reason="the sanitizer keeps what was freed",
)
@pytest.mark.parametrize("direct", ["direct"], indirect=True)
def test_what_waits_for_its_turn_takes_no_memory(
    fdmon: str, image: Path, engine: str, direct: bool
) -> None:
    """Aligned memory to bounce through is taken when the engine gets the request."""
    out = run_script(
        """
        import asyncio, sys, aioqemu, os
        from aioqemu import block

        def rss():
            with open("/proc/self/statm") as f:
                return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        async def main():
            path, engine = sys.argv[2:]
            async with block.open(
                path, "r+", direct=True, engine=engine, max_in_flight=4
            ) as blk:
                data = memoryview(bytes(1 << 20) + b"x")[1:]     # aligned nowhere
                before = rss()
                async with blk.drained():
                    requests = [blk.pwrite(data, 0) for _ in range(100)]
                    grown = rss() - before
                assert await asyncio.gather(*requests) == [1 << 20] * 100
                assert await blk.pread(2, (1 << 20) - 2) == bytes(1) + b"x"
                print(grown >> 20, rss() - before >> 20)

        aioqemu.run(main(), fdmon=sys.argv[1])
        """,
        fdmon,
        str(image),
        engine,
    )
    waiting, after = map(int, out.split())
    assert waiting < 4
    assert after < 64, "some of it, which malloc keeps, and not that of all requests"


def test_a_ring_that_is_full(uring: aioqemu.EventLoop, image: Path) -> None:
    async def main() -> None:
        async with block.open(image, direct=True, max_in_flight=5000) as blk:
            data = await asyncio.gather(*(blk.pread(8, 8 * i) for i in range(3000)))
            assert data == [i.to_bytes(8, "big") for i in range(3000)]

    started = time.monotonic()
    uring.run_until_complete(main())
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("outer", ["poll", "epoll"])
def test_a_private_ring_that_is_refused_half_way(outer: str, image: Path) -> None:
    out = run_script(
        """
        import asyncio, sys, aioqemu
        from aioqemu import block
        from support import seccomp

        async def main():
            async with block.open(sys.argv[1], "r+", engine="io_uring") as blk:
                data = await blk.pread(512, 512)
                seccomp.deny((int(sys.argv[3]),), 1)
                writes = [blk.pwrite(data, 4096 * i) for i in range(100)]
                assert await asyncio.gather(*writes) == [512] * 100
                await blk.flush()
                print(blk._service.stats()["requests"]["threads"] >= 101)

        aioqemu.run(main(), fdmon=sys.argv[2])
        """,
        str(image),
        outer,
        str(IO_URING_ENTER),
    )
    assert out == "True\n"
    data = image.read_bytes()
    assert all(data[4096 * i :][:512] == data[:512] for i in range(100))


def test_a_private_ring_changes_threads(image: Path) -> None:
    loop = aioqemu.new_event_loop(fdmon="epoll")

    async def main() -> bytes:
        async with block.open(image, direct=True) as blk:
            data: bytes = await blk.pread(8, 4096)
            return data

    got: list[bytes] = []
    for _ in range(2):
        thread = threading.Thread(
            target=lambda: got.append(loop.run_until_complete(main()))
        )
        thread.start()
        thread.join()
    got.append(loop.run_until_complete(main()))
    loop.close()
    assert got == [(512).to_bytes(8, "big")] * 3


@pytest.mark.parametrize("outer", ["poll", "epoll"])
def test_a_private_ring_that_fails_with_requests_in_the_kernel(
    outer: str, image: Path
) -> None:
    """They end, and what was acknowledged is there; the device goes on with threads."""
    out = run_script(
        """
        import asyncio, os, sys, aioqemu
        from aioqemu import block
        from support import seccomp

        async def main():
            # Reads of an empty pipe stay with the kernel.
            read_end, write_end = os.pipe()
            async with block.open(sys.argv[1], "r+", engine="io_uring") as blk:
                ring = blk._service
                stuck = [ring.rw(0, read_end, [bytearray(1)], 0, 0, 1) for _ in "123"]
                await blk.pread_into(blk.alloc(512), 0)
                ring.flush()
                seccomp.deny((int(sys.argv[3]),), 1)
                assert await blk.pwrite(b"x" * 512, 0) == 512
                found = await asyncio.gather(*stuck, return_exceptions=True)
                assert [e.errno for e in found] == [5] * 3, found
                assert all("io_uring failed" in str(e) for e in found)
                await blk.flush()
                try:
                    await block.open(sys.argv[1], engine="io_uring")
                except aioqemu.BackendUnavailable:
                    print("over")

        aioqemu.run(main(), fdmon=sys.argv[2])
        """,
        str(image),
        outer,
        str(IO_URING_ENTER),
    )
    assert out == "over\n"
    assert image.read_bytes()[:512] == b"x" * 512


def test_a_thread_that_never_comes_back_is_left_behind(tmp_path: Path) -> None:
    """Closing takes its five seconds, says what is leaked, and returns."""
    os.mkfifo(tmp_path / "fifo")
    out = run_script(
        """
        import asyncio, os, sys, time, warnings, aioqemu
        from aioqemu._block.service import service_of

        loop = aioqemu.new_event_loop()
        service = service_of(loop.context)

        async def main():
            path = os.fsencode(sys.argv[1])
            service.control(7, -100, 2, path=path, flags=os.O_RDONLY)
            await service.control(2, os.open("/", os.O_RDONLY), 2)

        loop.run_until_complete(main())
        began = time.monotonic()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loop.close()
        assert 4 < time.monotonic() - began < 20
        print(["leaked" in str(w.message) for w in caught])
        # It comes back after all, to a pool that nobody has any more.
        os.close(os.open(sys.argv[1], os.O_WRONLY))
        time.sleep(0.2)
        """,
        str(tmp_path / "fifo"),
        options=("-W", "error"),
    )
    assert out == "[True]\n"


@pytest.mark.parametrize("count", [200, 300, 20_000])
def test_a_chain_of_requests_is_freed(count: int, image: Path) -> None:
    """Each holds the one before it, and the free list has room for some."""

    async def main() -> None:
        async with block.open(image, max_in_flight=512) as blk:
            buffer = bytearray(8)
            head = None
            for _ in range(count):
                head = blk.aio_preadv(0, buffer, 0, lambda opaque, ret: None, head)
                if blk.in_flight > 400:
                    await head
            await head
            await blk.flush()
            del head
            assert await blk.pread(8, 8) == (1).to_bytes(8, "big")

    aioqemu.run(main())


def test_what_was_not_made_by_its_maker_does_not_crash() -> None:
    """Each is refused: they have nothing that could serve them."""
    from aioqemu._block.request import BlockRequest
    from aioqemu._block.service import BlockService

    device: Any = block.BlockDevice.__new__(block.BlockDevice)
    loop = aioqemu.new_event_loop()
    calls: list[Callable[[], object]] = [
        BlockRequest,
        lambda: AIOPool(None, BlockRequest).get(loop.context, None, None),
        lambda: BlockService.__new__(BlockService),
        lambda: device.ctx,
        lambda: device.in_flight,
        lambda: device.pwrite(b"x", 0),
        lambda: device.pread(1, 0),
        lambda: device.pread_into(bytearray(1), 0),
        lambda: device.aio_preadv(0, bytearray(1)),
        lambda: BlockRequest.__new__(BlockRequest).cancel(),
        lambda: BlockRequest.__new__(BlockRequest).cancel_async(),
    ]
    for call in calls:
        with pytest.raises((TypeError, RuntimeError, AttributeError)):
            call()
    repr(BlockRequest.__new__(BlockRequest))
    assert device.closed
    loop.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="root's own limit counts for nothing")
@pytest.mark.parametrize("engine", ["io_uring", "threads"])
def test_no_more_threads_may_be_made(engine: str, image: Path, disk: Path) -> None:
    """Of the kernel's for the ring neither; what it gives back is done all the same."""
    out = run_script(
        """
        import asyncio, os, resource, sys, aioqemu
        import aioqemu._loop.loop
        from aioqemu import block

        fd = os.open(sys.argv[1], os.O_RDWR)
        os.setgid(65534)
        os.setuid(65534)
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))

        async def main():
            writes = [block.pwrite(fd, b"x" * 100, 100 * i) for i in range(100)]
            assert await asyncio.gather(*writes) == [100] * 100
            await block.fsync(fd)
            print(await block.pread(fd, 100, 9900) == b"x" * 100)

        aioqemu.run(main(), fdmon=sys.argv[2])
        """,
        str(image),
        "io_uring" if engine == "io_uring" else "epoll",
    )
    assert out == "True\n"


@pytest.mark.parametrize("engine", ["io_uring", "threads"])
def test_an_open_that_is_cancelled_at_any_moment_leaves_no_fd(
    engine: str, run: Any, image: Path
) -> None:
    def fds() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def main() -> None:
        async with block.open(image, engine=engine):
            pass
        before = fds()
        for passes in range(30):
            task = asyncio.ensure_future(block.open(image, engine=engine)._open())
            for _ in range(passes):
                await asyncio.sleep(0)
            task.cancel()
            try:
                blk = await task
            except asyncio.CancelledError:
                continue
            await blk.close()
        for _ in range(10):
            task = asyncio.ensure_future(block.open(image, engine=engine)._open())
            await asyncio.sleep(0)
            request: Any = task._fut_waiter  # type: ignore[attr-defined]
            request.add_done_callback(lambda _, task=task: task.cancel())
            with contextlib.suppress(asyncio.CancelledError):
                await (await task).close()
        assert fds() == before

    run(main())


def test_many_waiting_requests_are_cancelled_in_reasonable_time(image: Path) -> None:
    async def main() -> None:
        async with block.open(image, max_in_flight=1) as blk, blk.drained():
            waiting = [blk.pread(8, 0) for _ in range(10_000)]
            began = time.process_time()
            for request in reversed(waiting):
                request.cancel()
            assert time.process_time() - began < 0.5

    aioqemu.run(main())


@pytest.mark.parametrize("engine", ["io_uring", "threads"])
def test_an_open_whose_coroutine_is_dropped_leaves_no_fd(
    engine: str, run: Any, image: Path
) -> None:
    async def main() -> None:
        async with block.open(image, engine=engine):
            pass
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            opening = block.open(image, engine=engine)._open()
            opening.send(None)
            opening.close()
        async with block.open(image, engine=engine) as blk:
            await blk.pread(8, 0)
        await asyncio.sleep(0.2)
        assert blockdev.service().in_flight == 0
        assert len(os.listdir("/proc/self/fd")) == before

    run(main())
