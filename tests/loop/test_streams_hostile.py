"""Streams in hostile hands: wrong objects, wrong moments, code that bites back."""

from __future__ import annotations

import asyncio
import gc
import math
import sys
import weakref
from typing import Any
from unittest import mock

import pytest

from aioqemu import streams
from aioqemu._loop.reader import Reading
from aioqemu._loop.writer import Draining

from .helpers import Recorder, collect_reports, eventually, new_like, socket_pair

pytestmark = pytest.mark.asyncio


def new_reader(**options: Any) -> streams.StreamReader:
    return streams.StreamReader(loop=asyncio.get_running_loop(), **options)


async def _end(transport: Any) -> None:
    transport.abort()
    for _ in range(3):
        await asyncio.sleep(0)


# -- objects that are not what they should be ------------------------------------------


async def test_objects_that_nobody_initialised_raise() -> None:
    reader = streams.StreamReader.__new__(streams.StreamReader)
    assert "StreamReader" in repr(reader)
    assert reader.exception() is None
    reader.feed_data(b"data")
    assert await reader.read(2) == b"da"
    for call in (reader.readexactly, reader.readexactly):
        with pytest.raises(AttributeError):  # it has no loop to wait on
            await call(100)
    protocol = streams.StreamReaderProtocol.__new__(streams.StreamReaderProtocol)
    protocol.data_received(b"data")
    protocol.eof_received()
    protocol.connection_lost(None)
    with pytest.raises(ConnectionResetError):
        await protocol._drain_helper()
    with pytest.raises(AttributeError):
        protocol._closed  # noqa: B018
    writer = streams.StreamWriter.__new__(streams.StreamWriter)
    for name in ("close", "is_closing", "can_write_eof", "write_eof"):
        with pytest.raises(AttributeError):
            getattr(writer, name)()
    with pytest.raises(AttributeError):
        await writer.drain()
    del writer
    gc.collect()


async def test_a_wrong_self_is_refused() -> None:
    reader = new_reader()
    for cls, name in (
        (streams.StreamReader, "read"),
        (streams.StreamReader, "feed_eof"),
        (streams.StreamReaderProtocol, "resume_writing"),
        (streams.StreamWriter, "drain"),
    ):
        for wrong in (object(), None, cls, 5 if cls is type(reader) else reader):
            with pytest.raises(TypeError):
                getattr(cls, name)(wrong)
    for kind in (Reading, Draining):
        with pytest.raises(TypeError):
            kind()
        with pytest.raises(TypeError):
            kind.__new__(kind)
        with pytest.raises(TypeError):
            type("Sub", (kind,), {})


async def test_arguments_of_the_wrong_kind() -> None:
    reader = new_reader()
    for wrong in ("text", 5, None, [1, 2]):
        with pytest.raises(TypeError):
            reader.feed_data(wrong)  # type: ignore[arg-type]
    reader.feed_data(memoryview(bytearray(b"abc")))
    with pytest.raises(TypeError):
        await reader.read(1.5)  # type: ignore[arg-type]
    assert await reader.read(1 << 100) == b"abc"
    with pytest.raises(ValueError, match="less than zero"):
        await reader.readexactly(-(1 << 100))
    for limit in (0, -1):
        with pytest.raises(ValueError, match="imit"):
            new_reader(limit=limit)
    assert new_reader(limit=math.inf)._limit == sys.maxsize
    assert new_reader(limit=1 << 100)._limit == sys.maxsize


# -- awaitables by hand ----------------------------------------------------------------


async def test_a_read_driven_by_hand() -> None:
    reader = new_reader()
    read = reader.read(10)
    future = read.send(None)
    assert future is reader._waiter
    assert future._asyncio_future_blocking
    with pytest.raises(RuntimeError, match="wasn't used with future"):
        read.send(None)
    assert reader._waiter is None
    with pytest.raises(RuntimeError, match="already awaited"):
        read.send(None)
    with pytest.raises(RuntimeError, match="already awaited"):
        read.throw(ValueError())

    read = reader.readline()
    iter(read).__next__()
    with pytest.raises(ZeroDivisionError):
        read.throw(ZeroDivisionError, None, None)
    assert reader._waiter is None

    read = reader.readline()
    read.send(None)
    read.close()
    read.close()
    assert reader._waiter is None
    reader.feed_data(b"x")
    with pytest.raises(StopIteration) as end:
        reader.read(1).send(None)
    assert end.value.value == b"x"
    unborn = reader.read(1)
    with pytest.raises(KeyError):
        unborn.throw(KeyError("k"))
    with pytest.raises(RuntimeError, match="StopIteration"):
        reader.read(1).throw(StopIteration(1))


async def test_an_exception_that_is_a_stop_iteration_ends_no_read() -> None:
    reader = new_reader()
    reader.set_exception(StopIteration("value"))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="StopIteration"):
        await reader.read(1)


async def test_a_read_that_dies_waiting_leaves_the_reader_usable() -> None:
    reader = new_reader()
    read = reader.read(1)
    read.send(None)
    del read
    gc.collect()
    reader.feed_data(b"ab")  # wakes nobody
    assert await reader.read(5) == b"ab"


async def test_readers_and_reads_in_a_cycle_are_collected() -> None:
    reader = new_reader()
    reader.own = reader  # type: ignore[attr-defined]
    read = reader.read(1)
    read.send(None)
    reader.read_of_it = read  # type: ignore[attr-defined]
    alive = weakref.ref(reader)
    del reader, read
    gc.collect()
    assert alive() is None


async def test_a_waiter_of_somebody_else() -> None:
    reader = new_reader()
    future = asyncio.get_running_loop().create_future()
    reader._waiter = future
    with pytest.raises(RuntimeError, match="already waiting"):
        await reader.read(1)
    reader.feed_data(b"x")
    assert future.done()
    assert reader._waiter is None
    reader._waiter = future  # done already: asyncio's reader raises too
    with pytest.raises(asyncio.InvalidStateError):
        reader.feed_data(b"y")
    assert await reader.read(5) == b"xy"


# -- wrong moments ---------------------------------------------------------------------


async def test_data_after_the_end() -> None:
    reader = new_reader()
    reader.feed_data(b"last")
    reader.feed_eof()
    reader.feed_eof()
    with pytest.raises(AssertionError):
        reader.feed_data(b"more")
    assert await reader.read() == b"last"
    assert await reader.read() == b""
    with pytest.raises(asyncio.IncompleteReadError):
        await reader.readexactly(1)


async def test_somebody_takes_the_data_between_waking_and_reading() -> None:
    reader = new_reader()
    tasks = [asyncio.create_task(reader.read(10))]
    await asyncio.sleep(0)
    reader.feed_data(b"data")
    read = reader.read(10)
    with pytest.raises(StopIteration):
        read.send(None)
    await asyncio.sleep(0)
    assert not tasks[0].done()  # nothing is there, and it is not the end
    reader.feed_data(b"more")
    assert await tasks[0] == b"more"


async def test_an_exception_while_it_waits_and_after_a_cancel() -> None:
    reader = new_reader()
    tasks = [asyncio.create_task(reader.readline())]
    await asyncio.sleep(0)
    reader.set_exception(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await tasks[0]
    reader = new_reader()
    tasks = [asyncio.create_task(reader.readline())]
    await asyncio.sleep(0)
    tasks[0].cancel()
    reader.set_exception(ZeroDivisionError())
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    assert reader._waiter is None


async def test_one_drain_of_several_is_cancelled() -> None:
    protocol = streams.StreamReaderProtocol(None, loop=asyncio.get_running_loop())
    protocol.pause_writing()
    drains = [asyncio.create_task(protocol._drain_helper()) for _ in range(3)]
    await asyncio.sleep(0)
    drains[1].cancel()
    await asyncio.sleep(0)
    protocol.resume_writing()
    results = await asyncio.gather(*drains, return_exceptions=True)
    assert [type(result) for result in results] == [
        type(None),
        asyncio.CancelledError,
        type(None),
    ]
    for wrong in (protocol.resume_writing,):
        with pytest.raises(AssertionError):
            wrong()


async def test_a_read_of_another_loop_is_refused() -> None:
    other = new_like(asyncio.get_running_loop())
    try:
        reader = streams.StreamReader(loop=other)
        with pytest.raises(RuntimeError, match="different loop"):
            await reader.read(1)
        assert reader._waiter is None
        reader.feed_data(b"x")
        assert await reader.read(1) == b"x"
    finally:
        other.close()


async def test_the_protocol_is_changed_in_the_middle() -> None:
    mine, peer = socket_pair()
    with peer:
        reader, writer = await streams.open_connection(sock=mine)
        transport = writer.transport
        ours = transport.get_protocol()
        peer.send(b"one")
        assert await reader.readexactly(3) == b"one"
        recorder = Recorder()
        recorder.calls.append("made")
        transport.set_protocol(recorder)
        peer.send(b"two")
        await eventually(lambda: recorder.data == b"two")
        transport.set_protocol(ours)
        peer.send(b"three")
        assert await reader.readexactly(5) == b"three"
        await _end(transport)


# -- code that bites back --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["native", "stock"])
@pytest.mark.parametrize("what", ["abort", "close", "set_protocol", "raise", "nothing"])
async def test_pausing_does_something_else(kind: str, what: str) -> None:
    loop = asyncio.get_running_loop()
    reports = collect_reports(loop)
    module: Any = streams if kind == "native" else asyncio
    mine, peer = socket_pair()

    class Proxy:
        """What the reader believes to be the transport."""

        def pause_reading(self) -> None:
            if what == "raise":
                raise ZeroDivisionError
            if what == "set_protocol":
                transport.set_protocol(Recorder())
            elif what == "nothing":
                raise NotImplementedError
            else:
                getattr(transport, what)()

        def resume_reading(self) -> None:
            pass

    with peer:
        reader, writer = await module.open_connection(sock=mine, limit=2)
        transport = writer.transport
        reader._transport = Proxy()
        peer.send(bytes(1000))
        await eventually(lambda: len(reader._buffer) == 1000)
        for _ in range(3):
            await asyncio.sleep(0)
        assert bool(reports) is (what == "raise")
        if what == "nothing":
            assert reader._transport is None
        if what == "raise":
            with pytest.raises(ZeroDivisionError):
                await reader.readexactly(1000)
        else:
            assert await reader.readexactly(1000) == bytes(1000)
            await _end(transport)


@pytest.mark.parametrize("kind", ["native", "stock"])
async def test_the_reader_dies_while_connected(kind: str) -> None:
    loop = asyncio.get_running_loop()
    module: Any = streams if kind == "native" else asyncio
    mine, peer = socket_pair()
    with peer:
        reader = module.StreamReader(loop=loop)
        protocol = module.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.create_connection(lambda: protocol, sock=mine)
        peer.send(b"one")
        assert await reader.readexactly(3) == b"one"
        del reader
        gc.collect()
        assert protocol._stream_reader is None
        peer.send(b"two")
        await asyncio.sleep(0.01)
        assert not transport.is_closing()
        await _end(transport)


async def test_a_patched_method_of_asyncio_s_reader_is_called() -> None:
    seen = []
    original = asyncio.StreamReader.feed_data

    def feed_data(self: asyncio.StreamReader, data: Any) -> None:
        seen.append(data)
        original(self, data)

    with mock.patch.object(asyncio.StreamReader, "feed_data", feed_data):
        mine, peer = socket_pair()
        with peer:
            reader, writer = await asyncio.open_connection(sock=mine)
            peer.send(b"data")
            assert await reader.readexactly(4) == b"data"
            assert seen == [b"data"]
            await _end(writer.transport)


async def test_asyncio_s_reader_is_paused_and_resumed() -> None:
    mine, peer = socket_pair()
    with peer:
        reader: Any
        reader, writer = await asyncio.open_connection(sock=mine, limit=100)
        reading = asyncio.create_task(reader.readexactly(3))
        await asyncio.sleep(0)
        reading.cancel()
        peer.send(bytes(1000))
        await eventually(lambda: reader._paused)
        assert not writer.transport.is_reading()
        assert await reader.readexactly(950) == bytes(950)
        assert writer.transport.is_reading()
        peer.close()
        assert await reader.read() == bytes(50)
        await _end(writer.transport)


async def test_a_writer_that_is_dropped_warns_and_closes() -> None:
    mine, peer = socket_pair()
    with peer:
        _reader, writer = await streams.open_connection(sock=mine)
        with pytest.warns(ResourceWarning, match="unclosed <StreamWriter"):
            del writer
        await asyncio.sleep(0.01)
        assert peer.recv(1) == b""


async def test_transports_whose_methods_raise() -> None:
    loop = asyncio.get_running_loop()
    transport = mock.Mock()
    transport.is_closing.return_value = False
    transport.write.side_effect = ZeroDivisionError
    protocol = streams.StreamReaderProtocol(None, loop=loop)
    writer = streams.StreamWriter(transport, protocol, None, loop)
    with pytest.raises(ZeroDivisionError):
        writer.write(b"x")
    await writer.drain()
    transport.is_closing.side_effect = KeyError
    with pytest.raises(KeyError):
        await writer.drain()
    transport.is_closing.side_effect = None
    transport.is_closing.return_value = True
    await writer.drain()
    protocol.connection_lost(OSError("gone"))
    with pytest.raises(ConnectionResetError):
        await writer.drain()
    with pytest.raises(OSError, match="gone"):
        await writer.wait_closed()
