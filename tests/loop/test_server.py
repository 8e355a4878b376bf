"""Rules of listening: options, many connections, closing, EMFILE.

A server that cannot accept because the process has no descriptor left must
pause, say so once, and go on when there is one again.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from typing import Any

import pytest
from support.procs import run_script

from .helpers import NEW_LOOP, Recorder, eventually, free_port, kind_of, shut

HOST = "127.0.0.1"


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1000):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def _talk(port: int) -> bytes:
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(b"ping")
    answer = await reader.readexactly(4)
    writer.close()
    await writer.wait_closed()
    return answer


def _port(server: asyncio.Server) -> int:
    return int(server.sockets[0].getsockname()[1])


@pytest.mark.asyncio
async def test_many_clients_are_served_at_once() -> None:
    server = await asyncio.start_server(_echo, HOST, 0, backlog=256)
    answers = await asyncio.gather(*(_talk(_port(server)) for _ in range(150)))
    assert answers == [b"ping"] * 150
    await shut(server)


@pytest.mark.asyncio
async def test_connections_made_before_the_accept_are_all_taken() -> None:
    loop = asyncio.get_running_loop()
    made: list[Recorder] = []

    def factory() -> Recorder:
        made.append(Recorder())
        return made[-1]

    server = await loop.create_server(factory, HOST, 0, backlog=100)
    clients = [socket.create_connection((HOST, _port(server))) for _ in range(60)]
    await eventually(lambda: len(made) == 60 and made[-1].transport)
    names = {protocol.transport.get_extra_info("peername") for protocol in made}
    assert names == {client.getsockname() for client in clients}
    for client in clients:
        client.close()
    await asyncio.gather(*(protocol.lost for protocol in made))
    await shut(server)


@pytest.mark.asyncio
async def test_a_client_that_left_before_the_accept_harms_nobody() -> None:
    server = await asyncio.start_server(_echo, HOST, 0)
    for _ in range(10):
        with socket.create_connection((HOST, _port(server))) as client:
            client.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0" + b"\0\0\0\0"
            )
    assert await _talk(_port(server)) == b"ping"
    await shut(server)


@pytest.mark.asyncio
async def test_a_server_tells_its_state() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Recorder, HOST, 0, start_serving=False)
    assert isinstance(server, asyncio.AbstractServer)
    assert not server.is_serving()
    assert server.get_loop() is loop
    assert type(server.sockets[0]).__name__ == "TransportSocket"
    await server.start_serving()
    await server.start_serving()
    assert server.is_serving()
    server.close()
    assert not server.is_serving()
    assert server.sockets == ()
    server.close()
    await server.wait_closed()


@pytest.mark.asyncio
async def test_serve_forever_ends_with_its_task() -> None:
    async with await asyncio.start_server(_echo, HOST, 0) as server:
        task = asyncio.create_task(server.serve_forever())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="is already being awaited on"):
            await server.serve_forever()
        assert await _talk(_port(server)) == b"ping"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not server.is_serving()


@pytest.mark.asyncio
async def test_a_port_that_is_taken_is_refused() -> None:
    server = await asyncio.start_server(_echo, HOST, 0)
    with pytest.raises(OSError, match="error while attempting to bind") as caught:
        await asyncio.start_server(_echo, HOST, _port(server))
    assert caught.value.errno == errno.EADDRINUSE
    await shut(server)


@pytest.mark.asyncio
async def test_one_server_listens_on_several_hosts() -> None:
    server = await asyncio.start_server(_echo, [HOST, "::1"], 0)
    families = {sock.family for sock in server.sockets}
    assert families == {socket.AF_INET, socket.AF_INET6}
    for sock in server.sockets:
        host, port = sock.getsockname()[:2]
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        writer.close()
        await writer.wait_closed()
    await shut(server)


@pytest.mark.asyncio
async def test_reuse_port_lets_two_servers_share() -> None:
    first = await asyncio.start_server(_echo, HOST, 0, reuse_port=True)
    second = await asyncio.start_server(_echo, HOST, _port(first), reuse_port=True)
    answers = await asyncio.gather(*(_talk(_port(first)) for _ in range(10)))
    assert answers == [b"ping"] * 10
    await shut(first)
    await shut(second)


@pytest.mark.asyncio
async def test_a_socket_given_is_listened_on() -> None:
    sock = socket.socket()
    sock.bind((HOST, 0))
    port = sock.getsockname()[1]
    server = await asyncio.start_server(_echo, sock=sock)
    assert await _talk(port) == b"ping"
    await shut(server)
    assert sock.fileno() == -1


@pytest.mark.asyncio
async def test_impossible_arguments_are_refused() -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(ValueError, match="Neither host/port nor sock"):
        await loop.create_server(Recorder)
    with socket.socket() as sock:
        with pytest.raises(ValueError, match="can not be specified at the same time"):
            await loop.create_server(Recorder, HOST, 0, sock=sock)
    with pytest.raises(TypeError, match="ssl argument must be an SSLContext"):
        await loop.create_server(Recorder, HOST, 0, ssl=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ssl_handshake_timeout is only meaningful"):
        await loop.create_server(Recorder, HOST, 0, ssl_handshake_timeout=1)


@pytest.mark.asyncio
@pytest.mark.skipif(sys.version_info < (3, 13), reason="close_clients is of 3.13")
async def test_close_clients_closes_each_connection() -> None:
    loop = asyncio.get_running_loop()
    made: list[Recorder] = []

    def factory() -> Recorder:
        made.append(Recorder())
        return made[-1]

    server = await loop.create_server(factory, HOST, 0)
    clients = [socket.create_connection((HOST, _port(server))) for _ in range(5)]
    await eventually(lambda: len(made) == 5 and made[-1].transport)
    server.close()
    server.close_clients()
    await asyncio.wait_for(server.wait_closed(), 5)
    assert [protocol.calls for protocol in made] == [["made", "lost"]] * 5
    for client in clients:
        assert client.recv(1) == b""
        client.close()


@pytest.mark.asyncio
@pytest.mark.skipif(sys.version_info < (3, 13), reason="abort_clients is of 3.13")
async def test_abort_clients_does_not_wait_for_what_is_pending() -> None:
    loop = asyncio.get_running_loop()
    made: list[Recorder] = []

    class Flooding(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            made.append(self)
            self.transport.write(bytes(8 << 20))

    server = await loop.create_server(Flooding, HOST, 0)
    client = socket.create_connection((HOST, _port(server)))
    await eventually(lambda: made)
    server.close()
    server.close_clients()
    await asyncio.sleep(0.005)
    assert "lost" not in made[0].calls
    server.abort_clients()
    await asyncio.wait_for(server.wait_closed(), 5)
    assert made[0].calls.count("lost") == 1
    client.close()


@pytest.mark.asyncio
@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="wait_closed waits for connections since 3.12"
)
async def test_wait_closed_waits_for_the_last_connection() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Recorder, HOST, 0)
    client = socket.create_connection((HOST, _port(server)))
    await asyncio.sleep(0.01)
    server.close()
    waiting = asyncio.create_task(server.wait_closed())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    client.close()
    await asyncio.wait_for(waiting, 5)


@pytest.mark.asyncio
async def test_an_accepted_connection_outlives_a_closed_listener() -> None:
    server = await asyncio.start_server(_echo, HOST, 0)
    reader, writer = await asyncio.open_connection(HOST, _port(server))
    writer.write(b"a")
    assert await reader.readexactly(1) == b"a"
    server.close()
    writer.write(b"b")
    assert await reader.readexactly(1) == b"b"
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(HOST, writer.get_extra_info("peername")[1])
    writer.close()
    await writer.wait_closed()
    await shut(server)


@pytest.mark.asyncio
async def test_connecting_tries_the_next_address() -> None:
    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(_echo, HOST, 0)
    port = _port(server)

    async def both(*_args: object, **_options: object) -> list[object]:
        stream = (socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [
            (socket.AF_INET6, *stream, ("::1", port, 0, 0)),
            (socket.AF_INET, *stream, (HOST, port)),
        ]

    original = loop.getaddrinfo
    loop.getaddrinfo = both  # type: ignore[method-assign, assignment]
    try:
        for delay in (None, 0.01):
            transport, protocol = await loop.create_connection(
                Recorder, "two-addresses", port, happy_eyeballs_delay=delay
            )
            assert transport.get_extra_info("peername") == (HOST, port)
            transport.close()
            await protocol.lost
    finally:
        loop.getaddrinfo = original  # type: ignore[method-assign]
    await shut(server)


@pytest.mark.asyncio
@pytest.mark.skipif(sys.version_info < (3, 12), reason="all_errors is of 3.12")
async def test_all_errors_are_told_when_asked_for() -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(ExceptionGroup) as caught:
        await loop.create_connection(Recorder, HOST, free_port(), all_errors=True)
    assert all(isinstance(e, OSError) for e in caught.value.exceptions)


@pytest.mark.asyncio
async def test_local_addr_is_bound() -> None:
    server = await asyncio.start_server(_echo, HOST, 0)
    port = free_port()
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_connection(
        Recorder, HOST, _port(server), local_addr=(HOST, port)
    )
    assert transport.get_extra_info("sockname") == (HOST, port)
    transport.close()
    await protocol.lost
    await shut(server)


@pytest.mark.slow
def test_accept_pauses_without_descriptors_and_retries(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    script = (
        NEW_LOOP
        + """
import os, resource, socket, time

reports = []
loop = new_loop()
loop.set_exception_handler(lambda _, context: reports.append(context))

async def echo(reader, writer):
    writer.write(await reader.read(10))
    writer.close()
    await writer.wait_closed()

async def main():
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
    spare = []
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    try:
        while True:
            spare.append(os.dup(0))
    except OSError:
        pass
    started = time.process_time()
    await asyncio.sleep(0.3)
    spent = time.process_time() - started
    assert spent < 0.15, spent
    # Once for the pause; the stock loop says it once for each of the backlog.
    assert len(reports) == 1 or (sys.argv[1] == "asyncio" and reports), len(reports)
    assert "out of system resource" in reports[0]["message"]
    assert reports[0]["exception"].errno == 24
    for fd in spare:
        os.close(fd)
    # A second after the pause the listener is tried again by itself.
    for number, client in enumerate(clients):
        client.send(b"%d" % number)
        client.setblocking(False)
        assert await asyncio.wait_for(loop.sock_recv(client, 10), 5) == b"%d" % number
        client.close()
    server.close()
    await server.wait_closed()
    print("ok")

loop.run_until_complete(main())
loop.close()
"""
    )
    assert run_script(script, kind_of(any_loop)) == "ok\n"


@pytest.mark.asyncio
async def test_a_connection_that_is_closed_knows_its_socket() -> None:
    loop = asyncio.get_running_loop()
    transports: list[asyncio.Transport] = []

    class Served(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            transports.append(transport)

    server = await loop.create_server(Served, "127.0.0.1", 0)
    with socket.create_connection(server.sockets[0].getsockname()):
        await eventually(lambda: transports)
        transports[0].abort()
        await asyncio.sleep(0.001)
        known = transports[0].get_extra_info("socket")
        assert known.fileno() == -1
        assert known.family == socket.AF_INET
        assert transports[0].get_extra_info("socket") is known
    await shut(server)
