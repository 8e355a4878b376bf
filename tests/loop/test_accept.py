"""Rules of what an accepted connection knows of itself, asked early or late."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from .helpers import NEW_LOOP, Recorder, eventually, kind_of, skip_control

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

FAMILIES = pytest.mark.parametrize("family", ["ipv4", "ipv6", "unix", "abstract"])


class _Accepted(Recorder):
    made: list[_Accepted]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.made.append(self)


@contextlib.asynccontextmanager
async def _accepted(
    family: str, folder: Path
) -> AsyncIterator[tuple[_Accepted, socket.socket, Any]]:
    """An accepted connection, its peer and the address that was listened on."""
    loop = asyncio.get_running_loop()
    made: list[_Accepted] = []
    factory = type("_Accepted", (_Accepted,), {"made": made})
    if family.startswith("ipv"):
        host = "127.0.0.1" if family == "ipv4" else "::1"
        server = await loop.create_server(factory, host, 0)
    else:
        name = str(folder / "socket")
        path = name if family == "unix" else f"\0{name}"
        server = await loop.create_unix_server(factory, path)
    listener = server.sockets[0]
    address = listener.getsockname()
    with socket.socket(listener.family, socket.SOCK_STREAM) as peer:
        peer.connect(address)
        await eventually(lambda: made)
        server.close()
        yield made[0], peer, address
    await made[0].lost
    await asyncio.sleep(0)


@FAMILIES
@pytest.mark.asyncio
async def test_the_socket_of_an_accepted_connection(
    family: str, tmp_path: Path
) -> None:
    async with _accepted(family, tmp_path) as (protocol, peer, address):
        sock = protocol.transport.get_extra_info("socket")
        assert sock.family == peer.family
        assert sock.type == socket.SOCK_STREAM
        assert sock.gettimeout() == 0
        assert not os.get_inheritable(sock.fileno())
        assert not os.get_blocking(sock.fileno())
        assert sock.getsockname() == address
        assert protocol.transport.get_extra_info("socket") is sock
        if family.startswith("ipv"):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        peer.send(b"data")
        await eventually(lambda: protocol.data)
        protocol.transport.write(b"answer")
        protocol.transport.close()
        await protocol.lost
    assert sock.fileno() == -1


@FAMILIES
@pytest.mark.asyncio
async def test_addresses_are_known_after_the_end(family: str, tmp_path: Path) -> None:
    async with _accepted(family, tmp_path) as (protocol, peer, address):
        name = peer.getsockname()
    assert protocol.transport.get_extra_info("peername") == name
    assert protocol.transport.get_extra_info("sockname") == address


@pytest.mark.asyncio
async def test_users_may_hang_things_on_a_transport(tmp_path: Path) -> None:
    async with _accepted("ipv4", tmp_path) as (protocol, _peer, _):
        transport: Any = protocol.transport
        with pytest.raises(AttributeError):
            _ = transport.of_mine
        transport.of_mine = [transport]
        assert transport.of_mine == [transport]
        assert transport.__dict__["of_mine"] is transport.of_mine
        transport.__dict__["more"] = 1
        assert transport.more == 1
        del transport.of_mine


@pytest.mark.asyncio
async def test_an_accepted_connection_can_be_half_closed(tmp_path: Path) -> None:
    async with _accepted("unix", tmp_path) as (protocol, peer, _):
        protocol.transport.write(b"all")
        protocol.transport.write_eof()
        await eventually(lambda: peer.recv(10, socket.MSG_PEEK) == b"all")
        assert peer.recv(10) == b"all"
        assert peer.recv(10) == b""
        peer.send(b"the other half")
        await eventually(lambda: protocol.data == b"the other half")


@pytest.mark.asyncio
async def test_a_factory_that_fails_leaves_no_fd() -> None:
    skip_control("leaves it to the collector")
    loop = asyncio.get_running_loop()
    reports: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: reports.append(context))

    def factory() -> asyncio.Protocol:
        raise ZeroDivisionError

    server = await loop.create_server(factory, "127.0.0.1", 0)
    before = len(os.listdir("/proc/self/fd"))
    with socket.create_connection(server.sockets[0].getsockname()) as peer:
        await eventually(lambda: reports)
        assert isinstance(reports[0]["exception"], ZeroDivisionError)
        assert peer.recv(1) == b""
    assert len(os.listdir("/proc/self/fd")) == before
    server.close()
    await server.wait_closed()


STORM = """
import socket
loop = new_loop()
count = 0

class Closes(asyncio.Protocol):
    def connection_made(self, transport):
        transport.close()
    def connection_lost(self, exc):
        global count
        count += 1
        if count == 200:
            done.set_result(None)

listener = socket.create_server(("127.0.0.1", 0), backlog=512)
done = loop.create_future()
address = listener.getsockname()
peers = [socket.create_connection(address) for _ in range(200)]

async def main():
    server = await loop.create_server(Closes, sock=listener, backlog=512)
    await done
    server.close()

loop.run_until_complete(main())
loop.close()
for peer in peers:
    peer.close()
print("ok")
"""


ONE_BY_ONE = """
import asyncio
import socket
import threading
loop = new_loop()

class Closes(asyncio.Protocol):
    def connection_made(self, transport):
        transport.close()

def connect(address):
    for _ in range(200):
        with socket.create_connection(address) as peer:
            while peer.recv(1):
                pass
    loop.call_soon_threadsafe(done.set_result, None)

async def main():
    server = await loop.create_server(Closes, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    thread = threading.Thread(target=connect, args=(address,))
    thread.start()
    await done
    server.close()
    thread.join()

done = loop.create_future()
loop.run_until_complete(main())
loop.close()
print("ok")
"""


def _calls(loop: Any, program: str, calls: str, trace: Path) -> int:
    """How often the program, started anew, makes one of these system calls."""
    words = ["strace", "-f", "-c", "-e", f"trace={calls}", "-o", trace]
    words += [sys.executable, "-P", "-c", NEW_LOOP + program, kind_of(loop)]
    # Debug mode shows more, and asks for it.
    env = {key: text for key, text in os.environ.items() if "ASYNCIO" not in key}
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=env)
    if "not permitted" in done.stderr:
        pytest.skip("may not trace")
    assert done.stdout == "ok\n", done.stderr
    return sum(
        int(line.split()[3])
        for line in trace.read_text().splitlines()
        if line.split() and line.split()[-1] in calls.split(",")
    )


NEEDS_STRACE = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


@NEEDS_STRACE
def test_system_calls_of_an_accepted_connection(loop: Any, tmp_path: Path) -> None:
    # Two beyond the close: it is accepted, and asked for its name before it goes.
    calls = "accept4,accept,fcntl,ioctl,getsockname,getpeername,setsockopt,getsockopt"
    assert _calls(loop, STORM, calls, tmp_path / "trace") < 3 * 200


@NEEDS_STRACE
def test_where_connections_come_one_by_one_few_looks_find_none(
    loop: Any, tmp_path: Path
) -> None:
    assert _calls(loop, ONE_BY_ONE, "accept4,accept", tmp_path / "trace") < 1.25 * 200
