"""Rules of Unix stream connections and servers: paths, abstract names, sockets."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import sys
from typing import TYPE_CHECKING

import pytest

from .helpers import Recorder, eventually, shut

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.asyncio


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1000):
        writer.write(data)
    writer.close()


async def _talk(path: str | bytes | Path) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)  # type: ignore[arg-type]
    writer.write(b"ping")
    answer = await reader.readexactly(4)
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize("kind", ["str", "path"])
async def test_an_echo_over_a_path(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "socket"
    server = await asyncio.start_unix_server(
        _echo, str(path) if kind == "str" else path
    )
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert await _talk(str(path) if kind == "str" else path) == b"ping"
    await shut(server)


@pytest.mark.parametrize("kind", ["str", "bytes"])
async def test_an_echo_over_an_abstract_name(kind: str) -> None:
    name: str | bytes = f"\0aioqemu-test-{os.getpid()}"
    if kind == "bytes":
        name = os.fsencode(name)
    server = await asyncio.start_unix_server(_echo, name)  # type: ignore[arg-type]
    assert await _talk(name) == b"ping"
    await shut(server)


async def test_a_stale_socket_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    server = await asyncio.start_unix_server(_echo, path)
    assert await _talk(path) == b"ping"
    await shut(server)


async def test_a_path_that_is_taken_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("not a socket")
    with pytest.raises(OSError, match="is already in use"):
        await asyncio.start_unix_server(_echo, path)
    assert path.read_text() == "not a socket"


async def test_no_server_means_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await asyncio.open_unix_connection(tmp_path / "nothing")  # type: ignore[arg-type]


async def test_the_socket_file_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    server = await asyncio.start_unix_server(_echo, path)
    await shut(server)
    # Python 3.13 began to remove it.
    assert path.exists() is (sys.version_info < (3, 13))


@pytest.mark.skipif(sys.version_info < (3, 13), reason="cleanup_socket is of 3.13")
async def test_the_socket_file_stays_when_asked(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    path = tmp_path / "socket"
    server = await loop.create_unix_server(Recorder, path, cleanup_socket=False)
    await shut(server)
    assert path.exists()


@pytest.mark.skipif(sys.version_info < (3, 13), reason="the removal is of 3.13")
async def test_a_socket_file_of_another_server_stays(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    server = await asyncio.start_unix_server(_echo, path)
    path.unlink()
    path.write_text("another's")
    await shut(server)
    assert path.read_text() == "another's"


async def test_peer_names_and_credentials(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    path = str(tmp_path / "socket")
    accepted: list[Recorder] = []

    def factory() -> Recorder:
        accepted.append(Recorder())
        return accepted[-1]

    server = await loop.create_unix_server(factory, path)
    transport, protocol = await loop.create_unix_connection(Recorder, path)
    await eventually(lambda: accepted and accepted[0].transport)
    assert transport.get_extra_info("peername") == path
    assert accepted[0].transport.get_extra_info("sockname") == path
    assert accepted[0].transport.get_extra_info("peername") == ""
    sock = transport.get_extra_info("socket")
    cred = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    assert int.from_bytes(cred[:4], sys.byteorder) == os.getpid()
    transport.close()
    await protocol.lost
    await accepted[0].lost
    await shut(server)


async def test_impossible_arguments_are_refused(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(ValueError, match="no path and sock were specified"):
        await loop.create_unix_connection(Recorder)
    with pytest.raises(ValueError, match="path was not specified, and no sock"):
        await loop.create_unix_server(Recorder)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        with pytest.raises(
            ValueError, match="A UNIX Domain Stream Socket was expected"
        ):
            await loop.create_unix_connection(Recorder, sock=sock)
        with pytest.raises(ValueError, match="can not be specified at the same time"):
            await loop.create_unix_server(Recorder, tmp_path / "x", sock=sock)
    with pytest.raises(ValueError, match="server_hostname is only meaningful with ssl"):
        await loop.create_unix_connection(
            Recorder, str(tmp_path / "x"), server_hostname="h"
        )


async def test_connect_accepted_socket_takes_a_unix_socket() -> None:
    loop = asyncio.get_running_loop()
    left, right = socket.socketpair()
    right.setblocking(False)
    with right:
        transport, protocol = await loop.connect_accepted_socket(Recorder, left)
        right.send(b"data")
        await eventually(lambda: protocol.data == b"data")
        transport.close()
        await protocol.lost
