"""A database-like binary protocol: typed frames, pipelining, cursors, cancelling.

Written as asyncpg is: a Protocol subclass that parses a buffer, futures that are
set from data_received, writes that are collected and sent with writelines. With
a PostgreSQL server at hand asyncpg itself is run too.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import pwd
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.integration, pytest.mark.asyncio]
HEADER = struct.Struct("!cI")


def _frame(kind: bytes, payload: bytes) -> bytes:
    return HEADER.pack(kind, len(payload)) + payload


class Frames(asyncio.Protocol):
    """Cuts what arrives into frames; knows nothing of their meaning."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.writable = asyncio.Event()
        self.writable.set()
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Hand out every frame that is complete."""
        self.buffer += data
        while len(self.buffer) >= HEADER.size:
            kind, length = HEADER.unpack_from(self.buffer)
            end = HEADER.size + length
            if len(self.buffer) < end:
                return
            payload = bytes(self.buffer[HEADER.size : end])
            del self.buffer[:end]
            self.frame_received(kind, payload)

    def frame_received(self, kind: bytes, payload: bytes) -> None:
        """Take one frame."""
        raise NotImplementedError

    def pause_writing(self) -> None:
        """Make writers wait."""
        self.writable.clear()

    def resume_writing(self) -> None:
        """Let writers go on."""
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits for the end."""
        self.closed.set_result(exc)


class Server(Frames):
    """Keeps one table: P(ut), G(et), S(can everything), X (an error)."""

    def __init__(self, table: dict[bytes, bytes]) -> None:
        super().__init__()
        self.table = table
        self.tasks: set[asyncio.Task[None]] = set()

    def frame_received(self, kind: bytes, payload: bytes) -> None:
        """Answer at once, except for a scan."""
        if kind == b"P":
            key, _, value = payload.partition(b"=")
            self.table[key] = value
            self.transport.write(_frame(b"C", b""))
        elif kind == b"G":
            self.transport.writelines(
                [_frame(b"D", self.table.get(payload, b"")), _frame(b"C", b"")]
            )
        elif kind == b"S":
            task = asyncio.ensure_future(self.scan())
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        else:
            self.transport.write(_frame(b"E", b"unknown command"))

    async def scan(self) -> None:
        """Send every row, as fast as the client takes them."""
        for key, value in sorted(self.table.items()):
            await self.writable.wait()
            self.transport.write(_frame(b"D", key + b"=" + value))
        self.transport.write(_frame(b"C", b""))


class Client(Frames):
    """Sends commands in a pipeline; the answers come in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: collections.deque[asyncio.Future[list[bytes]]]
        self.waiting = collections.deque()
        self.rows: list[bytes] = []

    def frame_received(self, kind: bytes, payload: bytes) -> None:
        """Collect rows; give them to who asked first."""
        if kind == b"D":
            self.rows.append(payload)
            return
        rows, self.rows = self.rows, []
        future = self.waiting.popleft()
        if future.cancelled():
            return
        if kind == b"E":
            future.set_exception(ValueError(payload.decode()))
        else:
            future.set_result(rows)

    async def ask(self, kind: bytes, payload: bytes = b"") -> list[bytes]:
        """Send one command and wait for its answer."""
        await self.writable.wait()
        future = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        self.transport.write(_frame(kind, payload))
        return await future


@contextlib.asynccontextmanager
async def _session(table: dict[bytes, bytes]) -> Any:
    loop = asyncio.get_running_loop()
    servers: list[Server] = []

    def factory() -> Server:
        servers.append(Server(table))
        return servers[-1]

    listener = await loop.create_server(factory, "127.0.0.1", 0)
    host, port = listener.sockets[0].getsockname()
    _, client = await loop.create_connection(Client, host, port)
    yield client
    client.transport.close()
    await client.closed
    await asyncio.gather(*(server.closed for server in servers))
    listener.close()
    await listener.wait_closed()


async def test_a_pipeline_is_answered_in_order() -> None:
    async with _session({}) as client:
        puts = (client.ask(b"P", b"%d=value %d" % (n, n)) for n in range(500))
        assert await asyncio.gather(*puts) == [[]] * 500
        gets = (client.ask(b"G", b"%d" % n) for n in range(500))
        answers = await asyncio.gather(*gets)
        assert answers == [[b"value %d" % n] for n in range(500)]


async def test_a_large_scan_is_paced_by_the_reader() -> None:
    table = {b"%06d" % n: os.urandom(1000) for n in range(3000)}
    async with _session(table) as client:
        client.transport.pause_reading()
        asking = asyncio.ensure_future(client.ask(b"S"))
        await asyncio.sleep(0.01)
        client.transport.resume_reading()
        rows = await asking
        assert rows == [key + b"=" + value for key, value in sorted(table.items())]


async def test_an_error_and_a_cancelled_command_keep_the_order() -> None:
    async with _session({b"k": b"v"}) as client:
        with pytest.raises(ValueError, match="unknown command"):
            await client.ask(b"X")
        task = asyncio.ensure_future(client.ask(b"G", b"k"))
        await asyncio.sleep(0)
        task.cancel()
        assert await client.ask(b"G", b"k") == [b"v"]


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The socket folder of a PostgreSQL server made for this module."""
    pytest.importorskip("asyncpg")
    if shutil.which("postgres") is None or shutil.which("initdb") is None:
        pytest.skip("no PostgreSQL server is installed")
    # The server refuses to run as root.
    user: str | None = None
    if os.getuid() == 0:
        known = {entry.pw_name for entry in pwd.getpwall()}
        user = next((name for name in ("postgres", "nobody") if name in known), None)
        if user is None:
            pytest.skip("no user to run PostgreSQL as")
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    process = None
    try:
        if user is not None:
            shutil.chown(folder, user)
        log = subprocess.DEVNULL
        common: dict[str, Any] = {"user": user, "cwd": folder, "stdout": log}
        options = ["--auth=trust", "--no-sync", "--username=tester", "--locale=C"]
        subprocess.run(
            ["initdb", "-D", folder / "data", *options],
            check=True,
            stderr=log,
            timeout=60,
            **common,
        )
        process = subprocess.Popen(
            ["postgres", "-D", folder / "data", "-k", folder, "-h", "", "-F"],
            stderr=log,
            **common,
        )
        yield str(folder)
    finally:
        if process is not None:
            process.terminate()
            process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


async def _postgres_session(folder: str) -> Any:
    import asyncpg

    for _ in range(200):
        try:
            return await asyncpg.connect(
                host=folder, user="tester", database="postgres", timeout=5
            )
        except (OSError, asyncpg.CannotConnectNowError):
            await asyncio.sleep(0.05)
    pytest.fail("PostgreSQL did not start")


@pytest.mark.slow
async def test_asyncpg_talks_to_postgresql(postgres: str) -> None:
    connection = await _postgres_session(postgres)
    await connection.execute("CREATE TEMP TABLE t (id int PRIMARY KEY, data bytea)")
    rows = [(number, os.urandom(500)) for number in range(500)]
    await connection.executemany("INSERT INTO t VALUES ($1, $2)", rows)
    found = await connection.fetch("SELECT id, data FROM t ORDER BY id")
    assert [tuple(row) for row in found] == rows
    async with connection.transaction():
        cursor = [row["id"] async for row in connection.cursor("SELECT id FROM t")]
    assert sorted(cursor) == list(range(500))
    with pytest.raises(asyncio.TimeoutError):
        await connection.execute("SELECT pg_sleep(30)", timeout=0.05)
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


@pytest.mark.slow
async def test_an_asyncpg_pool_serves_many_tasks(postgres: str) -> None:
    import asyncpg

    await (await _postgres_session(postgres)).close()
    async with asyncpg.create_pool(
        host=postgres, user="tester", database="postgres", min_size=2, max_size=5
    ) as pool:
        values = await asyncio.gather(
            *(pool.fetchval("SELECT $1::int * 2", n) for n in range(100))
        )
    assert values == [n * 2 for n in range(100)]
