"""Rules of TLS: streams, start_tls, time limits, unclean ends, odd contexts.

The certificates come from trustme. Only Python's `ssl` is asked for on both
sides, so that what is tested is the way the loop carries it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import sys
from typing import Any

import pytest

from .helpers import Recorder, eventually, recv_all, shut

pytestmark = pytest.mark.asyncio
HOST = "127.0.0.1"


Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()
    except (ConnectionError, ssl.SSLError):
        writer.close()


async def _server(context: ssl.SSLContext, **options: Any) -> tuple[Any, int]:
    server = await asyncio.start_server(_echo, HOST, 0, ssl=context, **options)
    return server, server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
async def test_an_echo_over_tls(contexts: Contexts, version: str) -> None:
    server, port = await _server(contexts[0])
    client = ssl.create_default_context()
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    client.maximum_version = client.minimum_version = ssl.TLSVersion[version]
    reader, writer = await asyncio.open_connection(HOST, port, ssl=client)
    for size in (1, 100, 16384, 16385, 200_000):
        data = os.urandom(size)
        writer.write(data)
        assert await reader.readexactly(size) == data
    assert writer.get_extra_info("ssl_object").version() == version.replace("_", ".")
    assert writer.get_extra_info("cipher")
    assert writer.get_extra_info("sslcontext") is client
    assert writer.get_extra_info("peername") == (HOST, port)
    assert isinstance(writer.transport, asyncio.Transport)
    assert not writer.can_write_eof()
    writer.close()
    await writer.wait_closed()
    await shut(server)


async def test_the_certificate_is_checked(contexts: Contexts) -> None:
    server, port = await _server(contexts[0])
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    with pytest.raises(ssl.SSLCertVerificationError):
        await asyncio.open_connection(HOST, port, ssl=ssl.create_default_context())
    with pytest.raises(ssl.SSLCertVerificationError):
        await asyncio.open_connection(
            HOST, port, ssl=contexts[1], server_hostname="other.example"
        )
    reader, writer = await asyncio.open_connection(
        HOST, port, ssl=contexts[1], server_hostname="localhost"
    )
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    assert writer.get_extra_info("peercert")
    writer.close()
    await writer.wait_closed()
    await shut(server)


async def test_many_connections_at_once(contexts: Contexts) -> None:
    server, port = await _server(contexts[0])

    async def talk(number: int) -> bytes:
        reader, writer = await asyncio.open_connection(HOST, port, ssl=contexts[1])
        writer.write(b"%d\n" % number)
        answer = await reader.readline()
        writer.close()
        await writer.wait_closed()
        return answer

    answers = await asyncio.gather(*(talk(number) for number in range(20)))
    assert answers == [b"%d\n" % number for number in range(20)]
    await shut(server)


async def test_start_tls_upgrades_both_sides(contexts: Contexts) -> None:
    loop = asyncio.get_running_loop()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go\n")
        await writer.start_tls(contexts[0])
        await _echo(reader, writer)

    server = await asyncio.start_server(serve, HOST, 0)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(b"STARTTLS\n")
    assert await reader.readline() == b"go\n"
    await writer.start_tls(contexts[1], server_hostname="localhost")
    assert writer.get_extra_info("ssl_object") is not None
    data = os.urandom(100_000)
    writer.write(data)
    assert await reader.readexactly(len(data)) == data
    writer.close()
    await writer.wait_closed()
    await shut(server)
    with pytest.raises(TypeError, match="sslcontext is expected to be"):
        await loop.start_tls(writer.transport, Recorder(), None)  # type: ignore[arg-type]


async def test_tls_within_tls(contexts: Contexts) -> None:
    served = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"again\n"
        await writer.start_tls(contexts[0])
        await _echo(reader, writer)
        served.set()

    server = await asyncio.start_server(serve, HOST, 0, ssl=contexts[0])
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection(HOST, port, ssl=contexts[1])
    writer.write(b"again\n")
    await writer.start_tls(contexts[1], server_hostname="localhost")
    writer.write(b"inner")
    assert await reader.readexactly(5) == b"inner"
    writer.close()
    await writer.wait_closed()
    await asyncio.wait_for(served.wait(), 5)
    await shut(server)


async def test_a_silent_peer_ends_the_handshake(contexts: Contexts) -> None:
    with socket.create_server((HOST, 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(ConnectionAbortedError, match="SSL handshake is taking"):
            await asyncio.open_connection(
                HOST, port, ssl=contexts[1], ssl_handshake_timeout=0.05
            )


async def test_a_silent_client_is_dropped_by_the_server(contexts: Contexts) -> None:
    reports: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reports.append(context))
    server, port = await _server(contexts[0], ssl_handshake_timeout=0.05)
    with socket.create_connection((HOST, port)) as client:
        client.setblocking(False)
        assert await asyncio.wait_for(recv_all(client), 5) == b""
    await shut(server)


async def test_what_is_no_tls_fails_the_handshake(contexts: Contexts) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)
    server, port = await _server(contexts[0])
    with socket.create_connection((HOST, port)) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        client.setblocking(False)
        try:
            await asyncio.wait_for(recv_all(client), 5)
        except ConnectionResetError:
            pass
    # The server goes on.
    reader, writer = await asyncio.open_connection(HOST, port, ssl=contexts[1])
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    writer.close()
    await writer.wait_closed()
    await shut(server)


async def test_cancelling_the_handshake_leaves_nothing(contexts: Contexts) -> None:
    with socket.create_server((HOST, 0)) as silent:
        port = silent.getsockname()[1]
        task = asyncio.create_task(asyncio.open_connection(HOST, port, ssl=contexts[1]))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.01)


async def test_an_unclean_end_is_an_end(contexts: Contexts) -> None:
    # A peer that closes its socket without a close_notify.
    loop = asyncio.get_running_loop()
    left, right = socket.socketpair()
    right.settimeout(5)

    def peer() -> None:
        with contexts[0].wrap_socket(right, server_side=True) as tls:
            tls.sendall(b"bye")
            os.close(tls.detach())

    done = loop.run_in_executor(None, peer)
    transport, protocol = await loop.create_connection(
        Recorder, sock=left, ssl=contexts[1], server_hostname="localhost"
    )
    await done
    await protocol.lost
    assert protocol.data == b"bye"
    assert protocol.calls.count("lost") == 1
    assert transport.is_closing()


async def test_close_sends_what_is_pending(contexts: Contexts) -> None:
    received: list[bytes] = []
    ended = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read(-1))
        writer.close()
        ended.set_result(None)

    server = await asyncio.start_server(serve, HOST, 0, ssl=contexts[0])
    port = server.sockets[0].getsockname()[1]
    _, writer = await asyncio.open_connection(HOST, port, ssl=contexts[1])
    data = os.urandom(1 << 20)
    writer.write(data)
    writer.close()
    await asyncio.wait_for(ended, 10)
    await writer.wait_closed()
    assert received == [data]
    await shut(server)


async def test_pausing_holds_tls_data_back(contexts: Contexts) -> None:
    server, port = await _server(contexts[0])
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_connection(
        Recorder, HOST, port, ssl=contexts[1]
    )
    transport.pause_reading()
    assert not transport.is_reading()
    transport.write(b"echo")
    await asyncio.sleep(0.02)
    assert protocol.data == b""
    transport.resume_reading()
    await eventually(lambda: protocol.data == b"echo")
    transport.close()
    await protocol.lost
    await shut(server)


async def test_a_shutdown_that_is_not_answered_is_cut_off(contexts: Contexts) -> None:
    loop = asyncio.get_running_loop()
    left, right = socket.socketpair()
    right.settimeout(5)

    def shake() -> ssl.SSLSocket:
        return contexts[0].wrap_socket(right, server_side=True)

    shaken = loop.run_in_executor(None, shake)
    transport, protocol = await loop.create_connection(
        Recorder,
        sock=left,
        ssl=contexts[1],
        server_hostname="localhost",
        ssl_shutdown_timeout=0.05,
    )
    peer = await shaken
    transport.close()
    await asyncio.wait_for(protocol.lost, 5)
    assert protocol.calls == ["made", "lost"]
    peer.close()


async def test_arguments_without_their_meaning_are_refused(contexts: Contexts) -> None:
    loop = asyncio.get_running_loop()
    left, right = socket.socketpair()
    with left, right:
        with pytest.raises(ValueError, match="server_hostname is only meaningful"):
            await loop.create_connection(Recorder, sock=left, server_hostname="h")
        with pytest.raises(ValueError, match="ssl_handshake_timeout is only"):
            await loop.create_connection(Recorder, sock=left, ssl_handshake_timeout=1)
        with pytest.raises(ValueError, match="ssl_shutdown_timeout is only"):
            await loop.create_connection(Recorder, sock=left, ssl_shutdown_timeout=1)
        with pytest.raises(ValueError, match="You must set server_hostname"):
            await loop.create_connection(Recorder, sock=left, ssl=contexts[1])


async def test_tls_over_a_unix_socket(contexts: Contexts, tmp_path: Any) -> None:
    path = str(tmp_path / "tls")
    server = await asyncio.start_unix_server(_echo, path, ssl=contexts[0])
    reader, writer = await asyncio.open_unix_connection(
        path, ssl=contexts[1], server_hostname="localhost"
    )
    writer.write(b"unix")
    assert await reader.readexactly(4) == b"unix"
    writer.close()
    await writer.wait_closed()
    await shut(server)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="abort_clients is of 3.13")
async def test_abort_clients_ends_tls_connections(contexts: Contexts) -> None:
    server, port = await _server(contexts[0])
    reader, writer = await asyncio.open_connection(HOST, port, ssl=contexts[1])
    writer.write(b"x")
    await reader.readexactly(1)
    server.close()
    server.abort_clients()
    await asyncio.wait_for(server.wait_closed(), 5)
    try:
        assert await reader.read(1) == b""
    except ConnectionError:
        pass
    writer.close()
    try:
        await writer.wait_closed()
    except ConnectionError:
        pass
