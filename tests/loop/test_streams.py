"""Rules of `aioqemu.streams`, on every backend and on the stock loop.

CPython's own tests of streams run on these classes in tests/conformance; here is what
those do not ask: equality with asyncio's reader under random use, coroutines that are
none, real connections, and TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import random
import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from aioqemu import streams

from .helpers import collect_reports, eventually, is_ours, shut, socket_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = pytest.mark.asyncio
HOST = "127.0.0.1"


def new_reader(**options: Any) -> streams.StreamReader:
    return streams.StreamReader(loop=asyncio.get_running_loop(), **options)


async def echo(reader: streams.StreamReader, writer: streams.StreamWriter) -> None:
    """Write back what comes."""
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except (ConnectionError, ssl.SSLError):
        pass
    finally:
        writer.close()


@contextlib.asynccontextmanager
async def serving(
    callback: Callable[..., Any] = echo, **options: Any
) -> AsyncIterator[tuple[streams.StreamReader, streams.StreamWriter]]:
    """A client of a server with `callback`, both with our streams."""
    server_ssl, client_ssl = options.pop("contexts", (None, None))
    server = await streams.start_server(callback, HOST, 0, ssl=server_ssl, **options)
    address = server.sockets[0].getsockname()
    reader, writer = await streams.open_connection(*address, ssl=client_ssl)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        await shut(server)


# -- connections -----------------------------------------------------------------------


async def test_an_echo_comes_back() -> None:
    async with serving() as (reader, writer):
        for size in (1, 1000, 1 << 16, 3_000_000):
            data = random.randbytes(size)
            writer.write(data)
            received, _ = await asyncio.gather(reader.readexactly(size), writer.drain())
            assert received == data


async def test_over_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    server = await streams.start_unix_server(echo, path)
    reader, writer = await streams.open_unix_connection(path)
    writer.writelines([b"one\n", bytearray(b"two\n"), b"three"])
    writer.write_eof()
    assert [line async for line in reader] == [b"one\n", b"two\n", b"three"]
    assert reader.at_eof()
    writer.close()
    await writer.wait_closed()
    await shut(server)


async def test_a_callback_may_be_a_plain_function() -> None:
    def serve(_reader: streams.StreamReader, writer: streams.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    async with serving(serve) as (reader, _writer):
        assert await reader.read() == b"hello"


@pytest.mark.parametrize("kind", ["coroutine", "function"])
async def test_what_a_callback_raises_is_reported_and_closes(kind: str) -> None:
    reports = collect_reports(asyncio.get_running_loop())

    async def coroutine(_reader: Any, _writer: Any) -> None:
        raise ZeroDivisionError

    def function(_reader: Any, _writer: Any) -> None:
        raise ZeroDivisionError

    async with serving(locals()[kind]) as (reader, _writer):
        assert await reader.read() == b""
    assert [type(report["exception"]) for report in reports] == [ZeroDivisionError]
    assert "client_connected_cb" in reports[0]["message"]


async def test_a_reader_that_is_not_read_stops_the_peer() -> None:
    async def flood(_reader: Any, writer: streams.StreamWriter) -> None:
        data = bytes(1 << 16)
        for _ in range(400):
            writer.write(data)
            await writer.drain()
        writer.close()

    async with serving(flood) as (reader, _writer):
        await eventually(lambda: reader._paused)
        held = len(reader._buffer)
        await asyncio.sleep(0.05)
        assert len(reader._buffer) == held < 1 << 20
        got = 0
        while data := await reader.read(100_000):
            got += len(data)
        assert got == 400 << 16


async def test_drain_waits_for_a_peer_that_does_not_read() -> None:
    mine, peer = socket_pair()
    with peer:
        _reader, writer = await streams.open_connection(sock=mine)
        writer.write(bytes(8 << 20))
        waiting = asyncio.create_task(writer.drain())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        assert "drain" in repr(waiting)
        while not waiting.done():
            with contextlib.suppress(BlockingIOError):
                peer.recv(1 << 20)
            await asyncio.sleep(0)
        await waiting
        writer.transport.abort()
        await writer.wait_closed()


async def test_the_end_of_a_connection_ends_reads_and_drains() -> None:
    mine, peer = socket_pair()
    reader, writer = await streams.open_connection(sock=mine)
    writer.write(bytes(8 << 20))
    waiting = [
        asyncio.create_task(call) for call in (writer.drain(), reader.readexactly(10))
    ]
    await asyncio.sleep(0.01)
    peer.close()  # with bytes that it has not read: a reset
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, ConnectionError) for result in results)
    with pytest.raises(ConnectionError):
        await writer.wait_closed()
    with pytest.raises(ConnectionError):
        await writer.drain()
    with pytest.raises(ConnectionError):
        await reader.read()


# -- TLS -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's context that trust each other."""
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(HOST).configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


async def test_over_tls(contexts: Any) -> None:
    async with serving(contexts=contexts) as (reader, writer):
        data = random.randbytes(500_000)
        writer.write(data)
        assert await reader.readexactly(len(data)) == data
        assert writer.get_extra_info("sslcontext") is not None


@pytest.mark.parametrize("early", [False, True], ids=["in time", "hello came early"])
async def test_start_tls(contexts: Any, early: bool) -> None:
    ready = asyncio.Event()

    async def serve(reader: streams.StreamReader, writer: streams.StreamWriter) -> None:
        if early:
            await eventually(lambda: reader._buffer)
        else:
            assert await reader.readline() == b"starttls\n"
            writer.write(b"go\n")
            await writer.drain()
        await writer.start_tls(contexts[0])
        ready.set()
        await echo(reader, writer)

    async with serving(serve) as (reader, writer):
        if not early:
            writer.write(b"starttls\n")
            assert await reader.readline() == b"go\n"
        await writer.start_tls(contexts[1], server_hostname=HOST)
        writer.write(b"secret")
        assert await reader.readexactly(6) == b"secret"
        assert ready.is_set()
        assert writer.transport is reader._transport


# -- reading, beside asyncio's reader --------------------------------------------------


async def _outcome(awaitable: Any) -> Any:
    """What an awaitable gives or raises; "waits" if it would wait."""
    task = asyncio.ensure_future(awaitable)
    for _ in range(3):
        await asyncio.sleep(0)
    if not task.done():
        task.cancel()
        await asyncio.wait([task])
        return "waits"
    if (exc := task.exception()) is None:
        return task.result()
    facts = [getattr(exc, name, None) for name in ("partial", "expected", "consumed")]
    return [type(exc), *facts]


def _step(rng: random.Random) -> tuple[str, tuple[Any, ...]]:
    """One random use of a reader: a method and its arguments."""
    name = rng.choice(
        ["feed_data"] * 4 + ["read", "readexactly", "readline", "readuntil"] * 2
    )
    if name == "feed_data":
        size = rng.choice((0, 1, 3, 10, 40))
        return name, (bytes(rng.choices(b"ab\r\n", (10, 10, 2, 2), k=size)),)
    if name in {"read", "readexactly"}:
        return name, (rng.choice((0, 1, 2, 5, 30, 100)),)
    if name == "readuntil":
        return name, (rng.choice((b"\n", b"\r\n", b"ab", b"aab\n")),)
    return name, ()


@pytest.mark.parametrize("seed", range(40))
async def test_random_use_gives_what_asyncio_gives(seed: int) -> None:
    rng = random.Random(seed)
    limit = rng.choice((1, 5, 20, 1000))
    loop = asyncio.get_running_loop()
    readers: list[Any] = [
        streams.StreamReader(limit, loop),
        asyncio.StreamReader(limit, loop),
    ]
    for _ in range(60):
        name, args = _step(rng)
        results = []
        for reader in readers:
            result = getattr(reader, name)(*args)
            results.append(result if result is None else await _outcome(result))
        assert results[0] == results[1], (name, args)
        assert readers[0]._buffer == readers[1]._buffer, (name, args)
    for reader in readers:
        reader.feed_eof()
    for _ in range(20):
        name, args = _step(rng)
        if name != "feed_data":
            results = [await _outcome(getattr(r, name)(*args)) for r in readers]
            assert results[0] == results[1], (name, args)
            assert readers[0].at_eof() == readers[1].at_eof()


async def test_several_separators_on_every_python() -> None:
    reader = new_reader()
    reader.feed_data(b"one\r\ntwo\nthree")
    assert await reader.readuntil((b"\n", b"\r\n")) == b"one\r\n"
    assert await reader.readuntil((b"\n", b"wo")) == b"two"
    assert await reader.readuntil((b"\n", bytearray(b"never"))) == b"\n"
    rest = asyncio.create_task(reader.readuntil((b"ee!", b"x")))
    await asyncio.sleep(0)
    reader.feed_data(b"!")
    assert await rest == b"three!"
    for wrong in ((), (b"",), b""):
        with pytest.raises(ValueError, match="eparator"):
            await reader.readuntil(wrong)
    with pytest.raises(TypeError):
        await reader.readuntil("text")  # type: ignore[arg-type]


async def test_a_chunk_is_handed_over_and_not_copied() -> None:
    reader = new_reader()
    chunk = random.randbytes(5000)
    for read in (reader.read(10_000), reader.readexactly(5000), reader.read(5000)):
        reader.feed_data(chunk)
        assert await read is chunk


async def test_many_chunks_make_one_block() -> None:
    reader = new_reader(limit=1 << 30)
    chunks = [random.randbytes(random.randrange(1, 3000)) for _ in range(500)]
    reading = asyncio.create_task(reader.readexactly(sum(map(len, chunks))))
    for number, chunk in enumerate(chunks):
        reader.feed_data(chunk)
        if number % 50 == 0:
            await asyncio.sleep(0)
    assert await reading == b"".join(chunks)
    reader.feed_data(b"abc")
    reader.feed_data(b"def")
    kept = reader._buffer
    assert await reader.read(2) == b"ab"
    reader.feed_data(b"g" * 5000)
    assert await reader.read(100_000) == b"cdef" + b"g" * 5000
    assert kept == b"abcdef"


# -- coroutines that are none ----------------------------------------------------------


async def test_asyncio_takes_a_read_for_a_coroutine() -> None:
    reader = new_reader()
    loop = asyncio.get_running_loop()
    for run in (
        asyncio.create_task,
        lambda read: asyncio.wait_for(read, 5),
        asyncio.ensure_future,
        lambda read: asyncio.gather(read),
        lambda read: loop.create_task(read),
    ):
        read = reader.readline()
        assert asyncio.iscoroutine(read)
        assert inspect.isawaitable(read)
        running = asyncio.ensure_future(run(read))
        await asyncio.sleep(0)
        reader.feed_data(b"line\n")
        assert await running in (b"line\n", [b"line\n"])
    async with asyncio.TaskGroup() as group:
        task = group.create_task(reader.read(4), name="four")
        reader.feed_data(b"four")
    assert task.result() == b"four"


async def test_nothing_happens_before_it_is_awaited() -> None:
    reader = new_reader()
    reader.feed_data(b"data")
    given_up = reader.read(2)
    del given_up
    late = reader.read(2)
    assert await reader.read(2) == b"da"
    assert await late == b"ta"
    with pytest.raises(RuntimeError, match="already awaited"):
        await late


async def test_a_cancelled_read_takes_nothing() -> None:
    reader = new_reader()
    task = asyncio.create_task(reader.readexactly(4))
    await asyncio.sleep(0)
    reader.feed_data(b"data")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.wait_for(reader.readexactly(4), 5) == b"data"
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.001)
    assert reader._waiter is None


async def test_two_reads_at_once_are_refused() -> None:
    reader = new_reader()
    first = asyncio.create_task(reader.read(1))
    await asyncio.sleep(0)
    for call in (reader.read, reader.readline, lambda: reader.readexactly(2)):
        with pytest.raises(RuntimeError, match="already waiting"):
            await call()
    reader.feed_data(b"x")
    assert await first == b"x"


# -- what is made of asyncio's parts ---------------------------------------------------


async def test_with_asyncio_s_protocol_and_the_other_way_round() -> None:
    loop = asyncio.get_running_loop()
    for reader_type, protocol_type, writer_type in (
        (streams.StreamReader, asyncio.StreamReaderProtocol, streams.StreamWriter),
        (asyncio.StreamReader, streams.StreamReaderProtocol, asyncio.StreamWriter),
        (asyncio.StreamReader, asyncio.StreamReaderProtocol, streams.StreamWriter),
    ):
        mine, peer = socket_pair("unix")
        with peer:
            reader: Any = reader_type(loop=loop)
            protocol: Any = protocol_type(reader, loop=loop)
            transport, _ = await loop.create_connection(lambda p=protocol: p, sock=mine)
            writer: Any = writer_type(transport, protocol, reader, loop)
            writer.write(b"ping")
            await writer.drain()
            await eventually(lambda p=peer: _try_recv(p) == b"ping")
            peer.send(b"pong")
            assert await reader.readexactly(4) == b"pong"
            writer.close()
            await writer.wait_closed()


def _try_recv(sock: Any) -> bytes:
    with contextlib.suppress(BlockingIOError):
        return bytes(sock.recv(100))
    return b""


async def test_a_subclass_is_called() -> None:
    seen = []

    class Reader(streams.StreamReader):
        def feed_data(self, data: Any) -> None:
            seen.append(data)
            super().feed_data(data)

    class Protocol(streams.StreamReaderProtocol):
        def data_received(self, data: bytes) -> None:
            super().data_received(data.upper())

    loop = asyncio.get_running_loop()
    mine, peer = socket_pair()
    with peer:
        reader = Reader(loop=loop)
        transport, _ = await loop.create_connection(
            lambda: Protocol(reader, loop=loop), sock=mine
        )
        peer.send(b"data")
        assert await reader.readexactly(4) == b"DATA"
        assert seen == [b"DATA"]
        transport.abort()
        await reader.read()


async def test_a_reader_s_own_feed_data_is_called() -> None:
    mine, peer = socket_pair()
    with peer:
        reader, writer = await streams.open_connection(sock=mine)
        seen: list[bytes] = []
        reader.feed_data = seen.append  # type: ignore[method-assign, assignment]
        peer.send(b"data")
        await eventually(lambda: seen == [b"data"])
        del reader.feed_data
        peer.send(b"more")
        assert await reader.readexactly(4) == b"more"
        writer.close()
        await writer.wait_closed()


async def test_isinstance_of_the_protocol() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(streams.StreamReaderProtocol(None, loop=loop), asyncio.Protocol)
    assert is_ours(loop) or isinstance(loop, asyncio.SelectorEventLoop)


@pytest.mark.parametrize("what", ["read", "drain"])
async def test_what_is_awaited_already_refuses_the_second_and_goes_on(
    what: str,
) -> None:
    loop = asyncio.get_running_loop()
    left, right = socket_pair("tcp")
    left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    reader, writer = await streams.open_connection(sock=left)
    size = 4_000_000
    if what == "drain":
        writer.write(bytes(size))
    waits: Any = reader.read(5) if what == "read" else writer.drain()

    async def wait() -> Any:
        return await waits

    first = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    second = asyncio.ensure_future(wait())
    with pytest.raises(RuntimeError, match="awaited already"):
        await second
    assert not first.done()
    if what == "read":
        right.send(b"hello")
        assert await asyncio.wait_for(first, 5) == b"hello"
    else:
        right.setblocking(True)

        def take() -> None:
            left_over = size
            while left_over:
                left_over -= len(right.recv(1 << 20))

        await loop.run_in_executor(None, take)
        assert await asyncio.wait_for(first, 5) is None
    writer.transport.abort()
    right.close()
    await asyncio.sleep(0)
