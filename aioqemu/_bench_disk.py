"""``python -m aioqemu bench-disk FILE``: the twin of ``qemu-img bench``.

The same flags with the same meaning, so that the numbers can be laid side by side;
latency percentiles, a progress bar and JSON come on top.  It uses the public API only.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from array import array
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import aioqemu
from aioqemu import block
from aioqemu.params import FDMONS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

_SUFFIXES = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
# cache mode of QEMU -> past the page cache, each write on stable storage, flushes count
CACHES = {
    "none": (True, False, True),
    "off": (True, False, True),
    "directsync": (True, True, True),
    "writeback": (False, False, True),
    "writethrough": (False, True, True),
    "unsafe": (False, False, False),
}
_ENGINES = {"native": "linux_aio"}
_PERCENTILES = (50.0, 99.0, 99.9)


def size(text: str) -> int:
    """Read ``4096``, ``0x1000``, ``4k``, ``1M``, ... (powers of 1024), as QEMU does."""
    number, suffix = text.lower(), ""
    # The last digit of a hexadecimal number is no suffix.
    if number[-1:].isalpha() and not number.startswith("0x"):
        number, suffix = number[:-1], number[-1]
    try:
        value = int(number, 0) * _SUFFIXES[suffix]
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"not a size: {text!r}") from None
    if value < 0:
        raise argparse.ArgumentTypeError(f"negative: {text!r}")
    return value


def positive(text: str) -> int:
    """Read a size of at least 1."""
    value = size(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def byte(text: str) -> int:
    """Read a number from 0 to 255."""
    value = size(text)
    if value > 255:
        raise argparse.ArgumentTypeError(f"not a byte: {text!r}")
    return value


def check(options: argparse.Namespace) -> None:
    """Look at what no flag says alone; the rules are those of ``qemu-img bench``.

    Raises:
        ValueError: the flags do not go together.
    """
    engine = "native" if options.native else options.aio
    if engine in ("native", "linux_aio") and not CACHES[options.cache][0]:
        raise ValueError(f"-i {engine} blocks on the page cache: it needs -t none")
    if not options.flush_interval:
        return
    if not options.write:
        raise ValueError("--flush-interval is for write tests: it needs -w")
    if options.flush_interval < options.depth:
        raise ValueError(
            f"--flush-interval {options.flush_interval} is below the depth "
            f"({options.depth})"
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of ``qemu-img bench``, and ours."""
    add = parser.add_argument
    add("file", help="an image file or block device, or null://")
    add("-c", "--count", type=positive, default=75000, help="requests (75000)")
    add("-d", "--depth", type=positive, default=64, help="requests in flight (64)")
    add("-s", "--size", type=positive, default=4096, help="bytes each (4096)")
    add("-S", "--step", type=size, help="from one offset to the next (the size)")
    add("-o", "--offset", type=size, default=0, help="where to begin (0)")
    add("-w", "--write", action="store_true", help="write instead of read")
    add("-f", "--format", choices=["raw"], default="raw", help="of the image")
    add("-t", "--cache", choices=list(CACHES), default="writeback")
    add("-n", "--native", action="store_true", help="short for -i native")
    add(
        "-i",
        "--aio",
        choices=["auto", "io_uring", "native", "linux_aio", "threads"],
        default="auto",
        help="the engine (auto)",
    )
    add("--pattern", type=byte, default=0, help="the byte that is written (0)")
    add("--flush-interval", type=size, default=0, help="flush after so many requests")
    add("--no-drain", action="store_true", help="flush with requests in flight")
    add("--random", action="store_true", help="offsets at random, not in a row")
    add("--fdmon", choices=FDMONS, default="auto", help="backend of the loop")
    add("-q", "--quiet", action="store_true", help="no progress")
    add("--json", action="store_true", help="print the result as JSON")


@dataclass(slots=True)
class Result:
    """What a run has measured; times in seconds, latencies in microseconds."""

    file: str
    write: bool
    count: int
    depth: int
    size: int
    cache: str
    engine: str
    fdmon: str
    seconds: float
    cpu_seconds: float
    iops: float
    mib_per_second: float
    latency_us: dict[str, float] = field(default_factory=dict)


def offsets(options: argparse.Namespace, length: int) -> Iterator[int]:
    """Where the requests go: in a row, and from the beginning again at the end."""
    n, step = options.size, options.step or options.size
    if options.offset + n > length:
        raise ValueError(
            f"a request of {n} bytes at {options.offset} is beyond the end"
        )
    if options.random:
        for _ in range(options.count):
            yield random.randrange(length // n) * n
        return
    at = options.offset
    for _ in range(options.count):
        yield at
        at = (at + step) % (length - n) if length > n else 0


class Run:
    """One measurement on an open device."""

    def __init__(self, blk: Any, options: argparse.Namespace) -> None:
        self._blk = blk
        self._options = options
        _, self._fua, self._flushes = CACHES[options.cache]
        self._offsets = offsets(options, blk.length)
        self._latencies = array("q")
        self._until_flush = options.flush_interval
        self._pause: asyncio.Event | None = None
        self._running = 0
        self._quiet = asyncio.Event()

    @property
    def done(self) -> int:
        """How many requests are over."""
        return len(self._latencies)

    async def go(self) -> tuple[float, float]:
        """Run all; the wall-clock and the CPU time that it took."""
        depth = min(self._options.depth, self._options.count)
        buffers = [self._blk.alloc(self._options.size) for _ in range(depth)]
        if self._options.write:
            for buffer in buffers:
                buffer[:] = bytes([self._options.pattern]) * len(buffer)
        began, cpu = time.perf_counter(), time.process_time()
        async with asyncio.TaskGroup() as group:
            for buffer in buffers:
                group.create_task(self._worker(buffer))
        return time.perf_counter() - began, time.process_time() - cpu

    async def _worker(self, buffer: memoryview) -> None:
        blk, clock = self._blk, time.perf_counter_ns
        write, fua, note = self._options.write, self._fua, self._latencies.append
        for at in self._offsets:
            began = clock()
            self._running += 1
            if write:
                await blk.pwrite(buffer, at, fua)
            else:
                await blk.pread_into(buffer, at)
            self._running -= 1
            note(clock() - began)
            if self._until_flush:
                await self._flush_if_due()

    async def _flush_if_due(self) -> None:
        if self._pause is not None:
            # Somebody waits until nothing is in flight.
            if self._running == 0:
                self._quiet.set()
            await self._pause.wait()
            return
        self._until_flush -= 1
        if self._until_flush:
            return
        self._until_flush = self._options.flush_interval
        if not self._options.no_drain:
            self._pause, self._quiet = asyncio.Event(), asyncio.Event()
            if self._running:
                await self._quiet.wait()
        try:
            if self._flushes:
                await self._blk.flush()
        finally:
            if self._pause is not None:
                self._pause.set()
                self._pause = None

    def result(self, seconds: float, cpu: float, fdmon: str) -> Result:
        """Work the measured times out."""
        options, ordered = self._options, sorted(self._latencies)
        last = len(ordered) - 1
        latency = {
            f"p{p:g}": ordered[round(last * p / 100)] / 1000 for p in _PERCENTILES
        }
        latency["mean"] = sum(ordered) / len(ordered) / 1000
        latency["max"] = ordered[-1] / 1000
        return Result(
            file=options.file,
            write=options.write,
            count=options.count,
            depth=options.depth,
            size=options.size,
            cache=options.cache,
            engine=self._blk.engine,
            fdmon=fdmon,
            seconds=seconds,
            cpu_seconds=cpu,
            iops=options.count / seconds,
            mib_per_second=options.count * options.size / seconds / (1 << 20),
            latency_us=latency,
        )


@contextlib.asynccontextmanager
async def _progress(total: int, done: Callable[[], int]) -> AsyncIterator[None]:
    """Show how far it is, ten times a second; with rich where it is installed."""
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:

        def update(n: int) -> None:
            print(f"\r{100 * n // total:3d} %", end="", file=sys.stderr, flush=True)

        def finish() -> None:
            print(file=sys.stderr)
    else:
        bar = Progress(console=Console(stderr=True), transient=True)
        task = bar.add_task("requests", total=total)
        bar.start()

        def update(n: int) -> None:
            bar.update(task, completed=n)

        finish = bar.stop

    async def follow() -> None:
        while True:
            update(done())
            await asyncio.sleep(0.1)

    follower = asyncio.ensure_future(follow())
    try:
        yield
    finally:
        follower.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await follower
        update(done())
        finish()


async def measure(options: argparse.Namespace) -> Result:
    """Open the file, run, and give what was measured.

    Raises:
        OSError: a request failed, or the file cannot be opened so.
        ValueError: the requests do not fit into the file.
    """
    direct = CACHES[options.cache][0] and options.file != "null://"
    engine = "native" if options.native else options.aio
    opening = block.open(
        options.file,
        "r+" if options.write else "r",
        engine=_ENGINES.get(engine, engine),
        direct=direct,
        max_in_flight=max(options.depth, 1),
    )
    async with opening as blk:
        run = Run(blk, options)
        shown = not (options.quiet or options.json) and sys.stderr.isatty()
        async with contextlib.AsyncExitStack() as stack:
            if shown:
                bar = _progress(options.count, lambda: run.done)
                await stack.enter_async_context(bar)
            try:
                seconds, cpu = await run.go()
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None
        loop: Any = asyncio.get_running_loop()
        return run.result(seconds, cpu, str(loop.fdmon))


def _describe(options: argparse.Namespace) -> str:
    verb = "write" if options.write else "read"
    return (
        f"Sending {options.count} {verb} requests, {options.size} bytes each, "
        f"{options.depth} in parallel (starting at offset {options.offset}, "
        f"step size {options.step or options.size})"
    )


def _print(result: Result) -> None:
    latency = "  ".join(f"{k} {v:.1f}" for k, v in result.latency_us.items())
    each = result.cpu_seconds / result.count * 1e6
    print(f"Run completed in {result.seconds:.3f} seconds.")
    print(
        f"{result.iops:.0f} requests/s  {result.mib_per_second:.1f} MiB/s  "
        f"{each:.2f} us of CPU each"
    )
    print(f"latency in us: {latency}")
    print(f"engine {result.engine}, loop on {result.fdmon}")


def main(options: argparse.Namespace) -> int:
    """Run the verb; the result is the exit status."""
    try:
        check(options)
        if not (options.quiet or options.json):
            print(_describe(options), flush=True)
        result = aioqemu.run(measure(options), fdmon=options.fdmon)
    except (OSError, ValueError) as exc:
        print(f"bench-disk: {exc}", file=sys.stderr)
        return 1
    if options.json:
        json.dump(asdict(result), sys.stdout, indent=2)
        print()
    else:
        _print(result)
    return 0
