"""In which context the callbacks of a connection run: its own, and no other's."""

from __future__ import annotations

import asyncio
import contextvars
import socket
from typing import TYPE_CHECKING, Any

import pytest

from .helpers import eventually, fill, recv_all, shut, skip_control, socket_pair

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.asyncio

WHO: contextvars.ContextVar[str] = contextvars.ContextVar("WHO", default="nobody")


@pytest.mark.parametrize("family", ["tcp", "unix"])
@pytest.mark.parametrize("debug", [False, True])
async def test_what_a_factory_sets_is_for_its_connection_alone(
    family: str, debug: bool, tmp_path: Path
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(debug)
    before: list[str] = []
    seen: list[str] = []

    class Server(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            seen.append(WHO.get())

        def data_received(self, data: bytes) -> None:
            seen.append(WHO.get())

    def factory() -> asyncio.Protocol:
        before.append(WHO.get())
        WHO.set(f"connection {len(before)}")
        return Server()

    server: Any
    if family == "tcp":
        server = await loop.create_server(factory, "127.0.0.1", 0)
        clients = [socket.socket() for _ in range(3)]
    else:
        server = await loop.create_unix_server(factory, str(tmp_path / "server"))
        clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    # All at once, which is one batch.
    for client in clients:
        client.connect(server.sockets[0].getsockname())
    await eventually(lambda: len(seen) == 3)
    assert before == ["nobody"] * 3
    for client in clients:
        client.send(b"x")
        await asyncio.sleep(0)
    await eventually(lambda: len(seen) == 6)
    names = [f"connection {n}" for n in (1, 2, 3)]
    assert sorted(seen[:3]) == sorted(seen[3:]) == names
    assert WHO.get() == "nobody"
    for client in clients:
        client.close()
    await shut(server)


@pytest.mark.parametrize("size", [10, 1_000_000])
async def test_flow_control_runs_in_the_context_of_the_transport(size: int) -> None:
    skip_control("runs it in that of whoever wrote")
    loop = asyncio.get_running_loop()
    seen: list[tuple[str, str]] = []

    class Writer(asyncio.Protocol):
        def pause_writing(self) -> None:
            seen.append(("pause", WHO.get()))

        def resume_writing(self) -> None:
            seen.append(("resume", WHO.get()))

    left, right = socket_pair("tcp")
    WHO.set("connection")
    transport, _ = await loop.create_connection(Writer, sock=left)
    WHO.set("writer")
    transport.set_write_buffer_limits(0)
    fill(left)
    transport.write(bytes(size))
    await eventually(lambda: seen)
    transport.write_eof()
    await recv_all(right)
    await eventually(lambda: len(seen) == 2)
    assert seen == [("pause", "connection"), ("resume", "connection")]
    assert WHO.get() == "writer"
    transport.close()
    right.close()
    await asyncio.sleep(0)
