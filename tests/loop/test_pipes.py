"""Rules of read and write pipe transports, on pipes, sockets and terminals."""

from __future__ import annotations

import asyncio
import os
import pty
import socket
import tempfile
import tty
from typing import Any, BinaryIO

import pytest

from .helpers import Recorder, eventually

pytestmark = pytest.mark.asyncio


def _pipe() -> tuple[BinaryIO, BinaryIO]:
    reader, writer = os.pipe()
    return os.fdopen(reader, "rb", 0), os.fdopen(writer, "wb", 0)


async def _read_pipe(pipe: Any) -> tuple[Any, Recorder]:
    return await asyncio.get_running_loop().connect_read_pipe(Recorder, pipe)


async def _write_pipe(pipe: Any) -> tuple[Any, Recorder]:
    return await asyncio.get_running_loop().connect_write_pipe(Recorder, pipe)


async def test_a_read_pipe_gets_data_and_end() -> None:
    reader, writer = _pipe()
    transport, protocol = await _read_pipe(reader)
    writer.write(b"one")
    await eventually(lambda: protocol.data == b"one")
    writer.close()
    await protocol.lost
    assert protocol.calls == ["made", "data", "eof", "lost"]
    assert transport.is_closing()
    assert reader.closed


async def test_a_read_pipe_can_pause() -> None:
    reader, writer = _pipe()
    transport, protocol = await _read_pipe(reader)
    assert transport.is_reading() if hasattr(transport, "is_reading") else True
    transport.pause_reading()
    writer.write(b"x")
    await asyncio.sleep(0.005)
    assert protocol.data == b""
    transport.resume_reading()
    await eventually(lambda: protocol.data == b"x")
    transport.close()
    await protocol.lost
    writer.close()


async def test_a_write_pipe_sends_in_order() -> None:
    reader, writer = _pipe()
    transport, protocol = await _write_pipe(writer)
    data = os.urandom(500_000)
    os.set_blocking(reader.fileno(), False)
    for start in range(0, len(data), 10_000):
        transport.write(data[start : start + 10_000])
    transport.write_eof()
    received = bytearray()
    while (chunk := reader.read(1 << 16)) != b"":
        received += chunk or b""
        await asyncio.sleep(0)
    assert received == data
    await protocol.lost
    assert protocol.calls[0] == "made"
    assert "pause" in protocol.calls
    assert "resume" in protocol.calls
    assert writer.closed
    reader.close()


async def test_a_write_pipe_sees_its_reader_go() -> None:
    reader, writer = _pipe()
    transport, protocol = await _write_pipe(writer)
    transport.write(b"x")
    await asyncio.sleep(0)
    reader.close()
    await asyncio.wait_for(protocol.lost, 5)
    assert transport.is_closing()
    assert protocol.calls.count("lost") == 1


async def test_a_write_pipe_copies_what_may_change() -> None:
    reader, writer = _pipe()
    os.set_blocking(reader.fileno(), False)
    transport, protocol = await _write_pipe(writer)
    transport.write(bytes(200_000))
    data = bytearray(b"a" * 1000)
    transport.write(data)
    data[:] = b"b" * 1000
    transport.close()
    received = bytearray()
    while (chunk := reader.read(1 << 16)) != b"":
        received += chunk or b""
        await asyncio.sleep(0)
    assert received[200_000:] == b"a" * 1000
    await protocol.lost
    reader.close()


async def test_a_pipe_is_closed_once() -> None:
    # A second close would hit whoever has the number by then.
    reader, writer = _pipe()
    transport, protocol = await _read_pipe(reader)
    number = reader.fileno()
    transport.close()
    await protocol.lost
    left, right = socket.socketpair()
    taken = number in (left.fileno(), right.fileno())
    if not taken:
        os.dup2(left.fileno(), number)
    transport.close()
    reader.close()
    del transport, protocol, reader
    await asyncio.sleep(0)
    os.fstat(number)
    if not taken:
        os.close(number)
    left.close()
    right.close()
    writer.close()


async def test_a_socket_and_a_terminal_are_pipes_too() -> None:
    left, right = socket.socketpair()
    transport, protocol = await _read_pipe(left)
    right.send(b"socket")
    await eventually(lambda: protocol.data == b"socket")
    transport.close()
    await protocol.lost
    right.close()

    leader, follower = pty.openpty()
    tty.setraw(leader)
    tty.setraw(follower)
    transport, protocol = await _read_pipe(os.fdopen(follower, "rb", 0))
    os.write(leader, b"terminal")
    await eventually(lambda: protocol.data == b"terminal")
    transport.close()
    await protocol.lost
    os.close(leader)


async def test_a_regular_file_is_no_pipe() -> None:
    with tempfile.TemporaryFile() as file:
        with pytest.raises(ValueError, match="Pipe transport is"):
            await _read_pipe(file)
        with pytest.raises(ValueError, match="Pipe transport is only for"):
            await _write_pipe(file)


async def test_extra_info_and_class_of_pipes() -> None:
    reader, writer = _pipe()
    first, one = await _read_pipe(reader)
    second, two = await _write_pipe(writer)
    assert first.get_extra_info("pipe") is reader
    assert second.get_extra_info("pipe") is writer
    assert isinstance(first, asyncio.ReadTransport)
    assert isinstance(second, asyncio.WriteTransport)
    assert second.can_write_eof()
    assert second.get_write_buffer_size() == 0
    assert f"fd={reader.fileno()}" in repr(first)
    assert f"fd={writer.fileno()}" in repr(second)
    second.abort()
    await two.lost
    await one.lost
