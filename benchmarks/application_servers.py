"""The measured process of an application row: one loop, one library on top of it.

``python application_servers.py --loop NAME --row http-uvicorn --cpu N`` prints one JSON
line with its address and answers commands on standard input: ``sample`` with events,
CPU time and wall time so far, all read at one moment, so that a window cut out by two
samples has the events that its CPU time was spent on; ``start`` and ``stop`` to a row
that drives itself; ``usage`` and ``quit``. The code of a row is the same for every
loop, and nothing here knows which it runs on.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import importlib
import os
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from application_rows import FETCHED, HELLO, LARGE
from loops import make_loop
from servers import BACKLOG, HOST, drain_tasks, say, usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    Ready = Callable[[dict[str, Any]], None]


class Meter:
    """Counts what was served; written by the loop, read by the control thread."""

    def __init__(self) -> None:
        self.events = 0
        self.taken: list[int] = []

    def sample(self) -> dict[str, float]:
        """Tell events and times so far; of latencies (us) those since the last one."""
        found: dict[str, float] = {
            "events": self.events,
            "cpu_ns": time.process_time_ns(),
            "wall_ns": time.perf_counter_ns(),
        }
        taken, self.taken = self.taken, []
        if taken:
            taken.sort()
            found["p50_us"] = taken[len(taken) // 2] / 1000
            found["p99_us"] = taken[len(taken) * 99 // 100] / 1000
        return found


class Program:
    """What a row runs. Subclasses fill in `running`.

    Args:
        meter: counts every request.
        options: of the command line.
    """

    def __init__(self, meter: Meter, options: argparse.Namespace) -> None:
        self.meter = meter
        self.options = options
        self.over = asyncio.Event()
        self.working = asyncio.Event()

    async def run(self, ready: Ready) -> None:
        """Serve from now until `over` is set; tell the address when it can be used."""
        async for address in self.running():
            ready(address)
            await self.over.wait()

    def running(self) -> AsyncIterator[dict[str, Any]]:
        """Set up, yield the address once, take down."""
        raise NotImplementedError


def library(name: str) -> Any:
    """Import what a row needs by name: the types of the others need not be here."""
    return importlib.import_module(name)


def listener() -> tuple[socket.socket, dict[str, Any]]:
    """Bind a socket of its own choice.

    Returns:
        The socket, not yet listening, and its address.
    """
    # With its protocol, as create_server() makes it: asyncio sets TCP_NODELAY by that.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.bind((HOST, 0))
    sock.setblocking(False)
    return sock, {"host": HOST, "port": sock.getsockname()[1]}


class Uvicorn(Program):
    """HTTP by uvicorn with httptools; an ASGI application without a framework."""

    async def running(self) -> AsyncIterator[dict[str, Any]]:
        """Serve."""
        uvicorn = library("uvicorn")

        meter = self.meter
        headers = [
            (b"content-type", b"text/plain"),
            (b"content-length", str(len(HELLO)).encode()),
        ]

        async def hello(scope: Any, receive: Any, send: Any) -> None:
            await send(
                {"type": "http.response.start", "status": 200, "headers": headers}
            )
            await send({"type": "http.response.body", "body": HELLO})
            meter.events += 1

        config = uvicorn.Config(
            hello,
            http="httptools",
            loop="none",
            lifespan="off",
            access_log=False,
            log_level="warning",
            backlog=BACKLOG,
        )
        started = asyncio.Event()

        server = uvicorn.Server(config)
        startup = server.startup

        async def and_tell(*args: Any, **kwargs: Any) -> None:
            await startup(*args, **kwargs)
            started.set()

        server.startup = and_tell
        sock, address = listener()
        task = asyncio.create_task(server.serve(sockets=[sock]))
        waiter = asyncio.create_task(started.wait())
        await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        yield address
        server.should_exit = True
        await task


class Aiohttp(Program):
    """HTTP by aiohttp's server."""

    async def running(self) -> AsyncIterator[dict[str, Any]]:
        """Serve."""
        web = library("aiohttp.web")

        meter = self.meter
        large = bytes(range(256)) * (LARGE // 256)

        async def say_hello(request: Any) -> Any:
            meter.events += 1
            return web.Response(body=HELLO, content_type="text/plain")

        async def say_more(request: Any) -> Any:
            meter.events += 1
            return web.Response(body=large)

        app = web.Application()
        app.router.add_get("/", say_hello)
        app.router.add_get("/large", say_more)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        sock, address = listener()
        await web.SockSite(runner, sock, backlog=BACKLOG).start()
        yield address
        await runner.cleanup()


class Websockets(Program):
    """WebSocket echo by websockets; what comes as bytes goes back as bytes."""

    async def running(self) -> AsyncIterator[dict[str, Any]]:
        """Serve."""
        serve = library("websockets.asyncio.server").serve
        closed = library("websockets.exceptions").ConnectionClosed
        meter = self.meter

        async def echo(connection: Any) -> None:
            try:
                async for message in connection:
                    await connection.send(message)
                    meter.events += 1
            except closed:
                pass  # the driver ends by closing what is under way

        sock, address = listener()
        async with serve(echo, sock=sock, backlog=BACKLOG, compression=None):
            yield address


class Asyncpg(Program):
    """Queries of a database through asyncpg, one at a time on each connection."""

    query = "select 1"
    rows = 1

    async def running(self) -> AsyncIterator[dict[str, Any]]:
        """Connect, query when told to, and close."""
        asyncpg = library("asyncpg")
        where, user = self.options.database, self.options.user
        pairs = [
            await asyncpg.connect(host=where, user=user, database="postgres")
            for _ in range(self.options.connections)
        ]
        tasks = [asyncio.create_task(self._query(pair)) for pair in pairs]
        yield {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for pair in pairs:
            await pair.close()

    async def _query(self, connection: Any) -> None:
        meter, clock = self.meter, time.perf_counter_ns
        try:
            while True:
                await self.working.wait()
                begun = clock()
                found = await connection.fetch(self.query)
                meter.taken.append(clock() - begun)
                if len(found) != self.rows:
                    raise ValueError(f"{len(found)} rows and not {self.rows}")
                meter.events += 1
        except Exception as exc:
            sys.stderr.write(f"{type(exc).__name__}: {exc}\n")
            os._exit(1)  # a query that fails must not look like a slow one


class AsyncpgRows(Asyncpg):
    """The same with many rows of three columns."""

    query = (
        f"select i, i * 2.5::float8, 'row ' || i from generate_series(1, {FETCHED}) i"
    )
    rows = FETCHED


PROGRAMS: dict[str, type[Program]] = {
    "http-uvicorn": Uvicorn,
    "http-aiohttp": Aiohttp,
    "http-aiohttp-64k": Aiohttp,
    "websocket-echo": Websockets,
    "postgres-select": Asyncpg,
    "postgres-rows": AsyncpgRows,
}


def control(loop: asyncio.AbstractEventLoop, program: Program) -> None:
    """Answer commands; runs in a thread that sleeps in read() while it measures."""
    tell = loop.call_soon_threadsafe
    for line in sys.stdin:
        command = line.strip()
        if command == "sample":
            say(program.meter.sample())
        elif command == "start":
            tell(program.working.set)
            say({})
        elif command == "stop":
            tell(program.working.clear)
            say({})
        elif command == "usage":
            say(usage())
        elif command == "quit":
            tell(program.over.set)
            return
    os._exit(0)  # whoever started this process has gone


async def serve(options: argparse.Namespace, loop: asyncio.AbstractEventLoop) -> None:
    """Run the program of the row from its set-up until it is told to quit."""
    program = PROGRAMS[options.row](Meter(), options)

    def ready(address: dict[str, Any]) -> None:
        if options.cpu is not None:
            # only now: starting may use all cores
            os.sched_setaffinity(0, {options.cpu})
        gc.collect()
        thread = threading.Thread(target=control, args=(loop, program), daemon=True)
        thread.start()
        say({"address": address, "pid": os.getpid()})

    await program.run(ready)


def main() -> int:
    """Run the child process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loop", required=True)
    parser.add_argument("--row", required=True, choices=PROGRAMS)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--database", help="directory of the database's socket")
    parser.add_argument("--user", help="of the database")
    parser.add_argument("--cpu", type=int)
    options = parser.parse_args()
    faulthandler.enable()
    loop = make_loop(options.loop)
    asyncio.set_event_loop(loop)
    loop.run_until_complete(serve(options, loop))
    drain_tasks(loop)
    loop.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
