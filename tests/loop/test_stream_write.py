"""Rules of writing to a stream transport: merging, limits, half close, errors.

That several writes of one callback are one system call is seen from outside, in
the kernel's count of the TCP segments that it sent.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
import sys
from typing import Any

import pytest

from .helpers import (
    Recorder,
    collect_reports,
    connected,
    data_segments_sent,
    eventually,
    is_ours,
    recv_all,
    skip_control,
)

pytestmark = pytest.mark.asyncio
FAMILIES = pytest.mark.parametrize("family", ["tcp", "unix"])
BIG = 4 << 20


async def test_writes_of_one_callback_leave_as_one_segment() -> None:
    loop = asyncio.get_running_loop()
    async with connected() as (transport, _, peer):
        sock = transport.get_extra_info("socket")
        before = data_segments_sent(sock)
        for part in (b"head", b"er", b"body"):
            transport.write(part)
        transport.writelines([b"and", bytearray(b"a"), memoryview(b"tail")])
        await eventually(lambda: data_segments_sent(sock) > before)
        await asyncio.sleep(0)
        assert peer.recv(100) == b"headerbodyandatail"
        if is_ours(loop):
            assert data_segments_sent(sock) - before == 1


async def test_writes_of_data_received_leave_as_one_segment() -> None:
    class Answering(Recorder):
        def data_received(self, data: bytes) -> None:
            for number in range(10):
                self.transport.write(b"%d" % number)

    loop = asyncio.get_running_loop()
    async with connected("tcp", Answering) as (transport, _, peer):
        sock = transport.get_extra_info("socket")
        before = data_segments_sent(sock)
        peer.send(b"?")
        await asyncio.sleep(0.01)
        assert peer.recv(100) == b"0123456789"
        if is_ours(loop):
            assert data_segments_sent(sock) - before == 1


async def test_a_write_is_sent_when_its_callback_returns() -> None:
    loop = asyncio.get_running_loop()
    seen: list[bytes] = []
    async with connected() as (transport, _, peer):
        # The second callback is of the same pass: nothing waits for its end.
        loop.call_soon(transport.write, b"now")
        loop.call_soon(lambda: seen.append(peer.recv(100)))
        await asyncio.sleep(0.005)
        assert seen == [b"now"]


async def test_a_write_from_elsewhere_is_sent_too() -> None:
    async with connected("unix") as (transport, _, peer):
        future = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda _: transport.write(b"callback"))
        future.set_result(None)
        await eventually(lambda: _peek(peer) == b"callback")
        await asyncio.sleep(0)
        transport.write(b" task")
        await eventually(lambda: _peek(peer) == b"callback task")


def _peek(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1 << 16, socket.MSG_PEEK)
    except BlockingIOError:
        return b""


@FAMILIES
async def test_what_does_not_fit_is_sent_in_order(family: str) -> None:
    data = os.urandom(BIG)
    async with connected(family) as (transport, protocol, peer):
        for start in range(0, BIG, 100_000):
            transport.write(data[start : start + 100_000])
        transport.close()
        assert await recv_all(peer) == data
        await protocol.lost
        assert protocol.error is None


@FAMILIES
async def test_close_sends_what_is_pending(family: str) -> None:
    async with connected(family) as (transport, protocol, peer):
        transport.write(bytes(BIG))
        transport.close()
        assert transport.is_closing()
        transport.write(b"too late to matter")
        assert len(await recv_all(peer)) >= BIG
        await protocol.lost


async def test_what_was_written_right_before_an_abort_is_sent() -> None:
    loop = asyncio.get_running_loop()

    class Farewell(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transport.write(b"bye")  # type: ignore[attr-defined]
            transport.abort()  # type: ignore[attr-defined]

    left, right = socket.socketpair()
    right.setblocking(False)
    with right:
        await loop.create_connection(Farewell, sock=left)
        assert await asyncio.wait_for(loop.sock_recv(right, 9), 5) == b"bye"
        assert await asyncio.wait_for(loop.sock_recv(right, 9), 5) == b""


async def test_abort_drops_what_is_pending() -> None:
    async with connected("unix") as (transport, protocol, peer):
        transport.write(bytes(BIG))
        await asyncio.sleep(0)
        transport.abort()
        assert transport.get_write_buffer_size() == 0
        await protocol.lost
        assert protocol.error is None
        received = 0
        try:
            received = len(await recv_all(peer))
        except ConnectionResetError:
            pass
        assert received < BIG


async def test_writers_are_paused_at_high_and_resumed_at_low_water() -> None:
    async with connected("unix") as (transport, protocol, peer):
        transport.set_write_buffer_limits(high=100_000, low=10_000)
        assert transport.get_write_buffer_limits() == (10_000, 100_000)
        while "pause" not in protocol.calls:
            transport.write(bytes(50_000))
            await asyncio.sleep(0)
        assert transport.get_write_buffer_size() > 100_000
        transport.write(bytes(50_000))
        await asyncio.sleep(0)
        assert protocol.calls == ["made", "pause"]
        while "resume" not in protocol.calls:
            assert transport.get_write_buffer_size() > 10_000
            try:
                peer.recv(4096)
            except BlockingIOError:
                await asyncio.sleep(0)
                continue
            await asyncio.sleep(0)
        assert transport.get_write_buffer_size() <= 10_000
        assert protocol.calls == ["made", "pause", "resume"]


async def test_a_large_write_pauses_before_it_returns_to_the_loop() -> None:
    async with connected("unix") as (transport, protocol, peer):
        asyncio.get_running_loop().call_soon(transport.write, bytes(BIG))
        await asyncio.sleep(0)
        assert "pause" in protocol.calls
        assert transport.get_write_buffer_size() > 0
        transport.close()
        assert len(await recv_all(peer)) == BIG


async def test_write_buffer_limits_follow_the_stock_rules() -> None:
    async with connected() as (transport, _, _):
        assert transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)
        transport.set_write_buffer_limits(high=400)
        assert transport.get_write_buffer_limits() == (100, 400)
        transport.set_write_buffer_limits(low=100)
        assert transport.get_write_buffer_limits() == (100, 400)
        transport.set_write_buffer_limits(high=0)
        assert transport.get_write_buffer_limits() == (0, 0)
        for bad in ({"high": 1, "low": 2}, {"high": -1}, {"low": -1}):
            with pytest.raises(ValueError, match=r"high .* must be >= low"):
                transport.set_write_buffer_limits(**bad)


@pytest.mark.parametrize("family", ["tcp", "unix"])
async def test_write_eof_closes_one_half(family: str) -> None:
    async with connected(family) as (transport, protocol, peer):
        assert transport.can_write_eof()
        transport.write(bytes(BIG))
        transport.write_eof()
        transport.write_eof()
        with pytest.raises(RuntimeError, match=r"Cannot call write\(\) after"):
            transport.write(b"x")
        assert len(await recv_all(peer)) == BIG
        peer.send(b"the other half")
        await eventually(lambda: protocol.data == b"the other half")
        assert not transport.is_closing()
        peer.close()
        await protocol.lost


async def test_writelines_after_eof_is_refused() -> None:
    async with connected() as (transport, _, peer):
        transport.write_eof()
        with pytest.raises(RuntimeError, match="after write_eof"):
            transport.writelines([b"x"])
        assert await recv_all(peer) == b""


async def test_a_bytearray_changed_after_write_is_not_sent_changed() -> None:
    skip_control("keeps a view and sends what it finds there later")
    async with connected("unix") as (transport, _, peer):
        # The first fills the socket, so that the rest must wait in the transport.
        transport.write(bytes(BIG))
        data = bytearray(b"a" * 100_000)
        transport.write(data)
        data[:] = b"b" * 100_000
        small = bytearray(b"c" * 10)
        transport.write(memoryview(small))
        small[:] = b"d" * 10
        transport.writelines([tail := bytearray(b"e" * 10)])
        tail[:] = b"f" * 10
        data.clear()
        transport.close()
        received = await recv_all(peer)
        assert received[BIG:] == b"a" * 100_000 + b"c" * 10 + b"e" * 10


async def test_a_small_bytearray_may_change_right_after_write() -> None:
    async with connected("unix") as (transport, _, peer):
        data = bytearray(b"first")
        transport.write(data)
        data[:] = b"other"
        data.extend(b" and longer")
        await eventually(lambda: _peek(peer))
        assert peer.recv(100) == b"first"


async def test_a_view_of_wide_items_is_sent_as_bytes() -> None:
    items = array.array("I", range(1000))
    async with connected("unix") as (transport, _, peer):
        transport.write(memoryview(items))
        transport.write(memoryview(bytes(range(100)))[::1])
        transport.close()
        assert await recv_all(peer) == items.tobytes() + bytes(range(100))


async def test_writelines_sends_the_parts_in_order() -> None:
    async with connected() as (transport, _, peer):
        transport.writelines(b"%d," % number for number in range(100))
        transport.writelines([b"end"])
        transport.close()
        expected = b"".join(b"%d," % number for number in range(100)) + b"end"
        assert await recv_all(peer) == expected


async def test_empty_parts_are_passed_over() -> None:
    skip_control("spins on an empty part")
    async with connected() as (transport, protocol, peer):
        transport.writelines([])
        transport.writelines([b"", b"one", b""])
        transport.writelines([b""])
        transport.write(b"two")
        transport.close()
        await protocol.lost
        assert await recv_all(peer) == b"onetwo"


async def test_more_parts_than_one_system_call_takes_are_sent() -> None:
    async with connected() as (transport, _, peer):
        parts = [b"%d," % number for number in range(2000)]
        transport.writelines(parts)
        for part in parts:
            transport.write(part)
        transport.close()
        assert await recv_all(peer) == b"".join(parts) * 2


@pytest.mark.parametrize("data", ["text", None, 5, [1]])
async def test_what_is_no_buffer_is_refused(data: Any) -> None:
    async with connected() as (transport, _, peer):
        with pytest.raises(TypeError, match="data argument must be a bytes"):
            transport.write(data)
        transport.write(b"")
        transport.write(b"fine")
        transport.close()
        assert await recv_all(peer) == b"fine"


async def test_a_write_after_the_peer_has_gone_loses_the_connection() -> None:
    async with connected("unix") as (transport, protocol, peer):
        protocol.keep_open = True
        peer.close()
        await eventually(lambda: "eof" in protocol.calls)
        for _ in range(3):
            transport.write(b"x")
            await asyncio.sleep(0)
        await protocol.lost
        assert isinstance(protocol.error, BrokenPipeError)
        # Nothing is raised afterwards: the data is dropped, with a warning.
        for _ in range(10):
            transport.write(b"x")


async def test_connection_lost_waits_for_the_callback_that_wrote() -> None:
    class Nested(Recorder):
        inside = False

        def data_received(self, data: bytes) -> None:
            self.inside = True
            for _ in range(5):
                self.transport.write(b"x")
            self.inside = False

        def connection_lost(self, exc: BaseException | None) -> None:
            assert not self.inside
            super().connection_lost(exc)

    async with connected("unix", Nested) as (_, protocol, peer):
        peer.send(b"x")
        peer.close()
        await protocol.lost
        assert protocol.calls == ["made", "lost"] or "eof" in protocol.calls


async def test_a_failing_pause_writing_is_reported_and_the_data_sent() -> None:
    class Broken(Recorder):
        def pause_writing(self) -> None:
            raise ZeroDivisionError

    reports = collect_reports(asyncio.get_running_loop())
    async with connected("unix", Broken) as (transport, _, peer):
        transport.write(bytes(BIG))
        await asyncio.sleep(0)
        transport.close()
        assert len(await recv_all(peer)) == BIG
    assert [report["message"] for report in reports] == [
        "protocol.pause_writing() failed"
    ]


@pytest.mark.loop_errors
async def test_streams_drain_waits_for_the_reader() -> None:
    left, right = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=left)
    right.setblocking(False)
    with right:
        writer.write(bytes(BIG))
        drained = asyncio.ensure_future(writer.drain())
        await asyncio.sleep(0.005)
        assert not drained.done()
        received = 0
        while not drained.done() or received < BIG:
            received += len(_peek(right)) and len(right.recv(1 << 16))
            await asyncio.sleep(0)
        await drained
        right.send(b"line\n")
        assert await reader.readline() == b"line\n"
        writer.close()
        await writer.wait_closed()


async def test_writelines_with_a_bad_item_sends_nothing() -> None:
    if sys.version_info >= (3, 12):
        skip_control("finds it when it sends, and closes the connection")
    async with connected() as (transport, _, peer):
        for bad in ("text", 5, None, object()):
            with pytest.raises(TypeError):
                transport.writelines([b"one", b"x" * 100_000, bad, b"two"])
        transport.writelines([b"good"])
        transport.close()
        assert await recv_all(peer) == b"good"


async def test_writelines_takes_all_that_has_bytes() -> None:
    numbers = array.array("B", [1, 2, 3])
    async with connected() as (transport, _, peer):
        transport.writelines([numbers, memoryview(b"view"), bytearray(b"array")])
        transport.close()
        assert await recv_all(peer) == b"\1\2\3viewarray"


async def test_no_resume_after_an_abort_in_pause_writing() -> None:
    class Aborts(Recorder):
        def pause_writing(self) -> None:
            super().pause_writing()
            self.transport.abort()

    async with connected("unix", Aborts) as (transport, protocol, _):
        transport.write(bytes(BIG))
        await protocol.lost
        assert protocol.calls == ["made", "pause", "lost"]
