"""How TLS connections end: farewells, errors, limits of time, leaks, misuse."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import ssl
import weakref
from typing import Any

import pytest
from support.procs import count_syscalls, run_script

from .helpers import (
    NEW_LOOP,
    Recorder,
    collect_reports,
    eventually,
    kind_of,
    skip_control,
    socket_pair,
)
from .tls_peer import Contexts, Peer, tls_connected

pytestmark = pytest.mark.asyncio


async def test_the_peers_farewell_ends_it(versioned: Contexts) -> None:
    async with tls_connected(versioned) as (transport, protocol, peer):
        await peer.send_raw(peer.encrypt(b"last words") + peer.farewell())
        await protocol.lost
        assert protocol.calls == ["made", "data", "eof", "lost"]
        assert protocol.data == b"last words"
        assert protocol.error is None
        assert transport.is_closing()
        # Our farewell is the answer.
        assert await peer.fill()
        peer.tls.unwrap()


async def test_an_end_of_file_without_farewell_ends_it(versioned: Contexts) -> None:
    async with tls_connected(versioned) as (_transport, protocol, peer):
        await peer.send(b"bye")
        peer.sock.close()
        await protocol.lost
        assert protocol.calls == ["made", "data", "eof", "lost"]
        assert protocol.error is None


async def test_an_end_of_file_waits_for_a_paused_program(contexts: Contexts) -> None:
    async with tls_connected(contexts) as (transport, protocol, peer):
        transport.pause_reading()
        await peer.send(b"unread")
        peer.sock.close()
        await asyncio.sleep(0.02)
        assert protocol.calls == ["made"]
        transport.resume_reading()
        await protocol.lost
        assert protocol.data == b"unread"
        assert protocol.calls == ["made", "data", "eof", "lost"]


async def test_close_says_farewell_and_waits_for_the_answer(
    versioned: Contexts,
) -> None:
    async with tls_connected(versioned) as (transport, protocol, peer):
        transport.write(b"something")
        transport.close()
        assert transport.is_closing()
        transport.write(b"too late")
        assert await peer.recv(100) == b"something"
        await asyncio.sleep(0.01)
        assert not protocol.lost.done()
        await peer.send_raw(peer.farewell())
        await protocol.lost
        assert protocol.error is None
        assert not await peer.fill()


async def test_close_in_connection_made(contexts: Contexts) -> None:
    class Closing(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.write(b"hello and goodbye")
            self.transport.close()

    async with tls_connected(contexts, Closing) as (_, protocol, peer):
        assert await peer.recv(100) == b"hello and goodbye"
        await peer.send_raw(peer.farewell())
        await protocol.lost
        assert protocol.error is None


async def test_a_farewell_that_is_not_answered_times_out(contexts: Contexts) -> None:
    async with tls_connected(contexts, ssl_shutdown_timeout=0.03) as (
        transport,
        protocol,
        _,
    ):
        transport.close()
        await protocol.lost
        assert isinstance(protocol.error, TimeoutError)
        assert str(protocol.error) == "SSL shutdown timed out"


async def test_a_peer_that_reads_nothing_does_not_keep_it_open(
    contexts: Contexts,
) -> None:
    skip_control("waits for it for ever before 3.14")
    async with tls_connected(contexts, ssl_shutdown_timeout=0.05) as (
        transport,
        protocol,
        peer,
    ):
        transport.write(bytes(8 << 20))
        await peer.send_raw(peer.farewell())
        await protocol.lost
        assert isinstance(protocol.error, TimeoutError)


async def test_close_loses_nothing_while_the_peer_sends(contexts: Contexts) -> None:
    """What was written goes out though data comes in that nobody wants."""
    skip_control("drops what it has not sent")
    data = os.urandom(4 << 20)
    async with tls_connected(contexts) as (transport, protocol, peer):
        transport.write(data)
        transport.close()
        await peer.send(b"more and more")
        assert await peer.recv(len(data)) == data
        await protocol.lost
        assert protocol.error is None


async def test_close_of_a_paused_connection_ends_soon(contexts: Contexts) -> None:
    skip_control("makes an error of what was not read")
    async with tls_connected(contexts) as (transport, protocol, peer):
        transport.pause_reading()
        for _ in range(5):
            await peer.send(bytes(50_000))
        await eventually(lambda: transport.get_read_buffer_size() > 250_000)
        transport.write(b"enough")
        transport.close()
        await asyncio.wait_for(protocol.lost, 1)
        assert protocol.error is None
        assert protocol.data == b""
        assert await peer.recv(6) == b"enough"


@pytest.mark.parametrize("what", ["abort", "close", "pause and abort"])
async def test_ending_in_data_received(contexts: Contexts, what: str) -> None:
    class Ending(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.write(b"sent")
            if "pause" in what:
                self.transport.pause_reading()
            getattr(self.transport, what.split()[-1])()
            self.transport.write(b"not sent")

    async with tls_connected(contexts, Ending) as (transport, protocol, peer):
        await peer.send(b"one", b"two", b"three")
        assert await peer.recv(100) == b"sent"
        if what == "close":
            await peer.send_raw(peer.farewell())
        await protocol.lost
        eof = ["eof"] if what == "close" else []
        assert protocol.calls == ["made", "data", *eof, "lost"]
        assert protocol.data == b"onetwothree"
        assert protocol.error is None
        assert transport.is_closing()


async def test_abort_in_pause_writing(contexts: Contexts) -> None:
    class Aborting(Recorder):
        def pause_writing(self) -> None:
            super().pause_writing()
            self.transport.abort()

    skip_control("does not pause for one write")
    async with tls_connected(contexts, Aborting) as (transport, protocol, _):
        transport.write(bytes(8 << 20))
        transport.write(b"more")
        await protocol.lost
        assert protocol.calls == ["made", "pause", "lost"]


@pytest.mark.loop_errors
@pytest.mark.parametrize("where", ["data_received", "eof_received"])
async def test_an_exception_of_the_protocol_ends_it(
    contexts: Contexts, where: str
) -> None:
    class Failing(Recorder):
        pass

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    setattr(Failing, where, fail)
    reports = collect_reports(asyncio.get_running_loop())
    async with tls_connected(contexts, Failing) as (_, protocol, peer):
        await peer.send_raw(peer.encrypt(b"x") + peer.farewell())
        await protocol.lost
        assert isinstance(protocol.error, ZeroDivisionError)
    assert [type(report["exception"]) for report in reports] == [ZeroDivisionError]
    assert reports[0]["message"] == (
        "Fatal error on SSL protocol"
        if where == "data_received"
        else "Error calling eof_received()"
    )


@pytest.mark.loop_errors
async def test_an_exception_in_connection_made_ends_it(contexts: Contexts) -> None:
    class Failing(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            raise ZeroDivisionError

    reports = collect_reports(asyncio.get_running_loop())
    mine, other = socket_pair()
    with other:
        peer = Peer(other, contexts[0])
        shaking = asyncio.ensure_future(peer.handshake())
        with pytest.raises(ZeroDivisionError):
            await asyncio.get_running_loop().create_connection(
                Failing, sock=mine, ssl=contexts[1], server_hostname="localhost"
            )
        with contextlib.suppress(AssertionError, ConnectionError):
            await shaking
    assert [type(report["exception"]) for report in reports] == [ZeroDivisionError]


@pytest.mark.parametrize("noise", [b"\x17\x03\x03\x00\x20" + bytes(32), bytes(40)])
async def test_noise_in_the_stream_is_an_error(
    contexts: Contexts, noise: bytes
) -> None:
    async with tls_connected(contexts) as (_, protocol, peer):
        await peer.send(b"good")
        await eventually(lambda: protocol.data == b"good")
        await peer.send_raw(noise)
        await protocol.lost
        assert isinstance(protocol.error, ssl.SSLError)
        assert protocol.calls == ["made", "data", "lost"]


async def test_what_came_before_noise_is_delivered(contexts: Contexts) -> None:
    skip_control("drops it")
    async with tls_connected(contexts) as (_, protocol, peer):
        noise = b"\x17\x03\x03\x00\x20" + bytes(32)
        await peer.send_raw(peer.encrypt(b"good", b"too") + noise)
        await protocol.lost
        assert protocol.data == b"goodtoo"
        assert isinstance(protocol.error, ssl.SSLError)
        # And the peer is told what it was.
        with pytest.raises(ssl.SSLError, match=r"(?i)bad.record.mac"):
            await peer.recv(1)


async def test_the_peer_is_told_why_a_handshake_failed(contexts: Contexts) -> None:
    skip_control("hangs up without a word")
    mine, other = socket_pair()
    with other:
        peer = Peer(other, contexts[0])
        shaking = asyncio.ensure_future(peer.handshake())
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.get_running_loop().create_connection(
                Recorder,
                sock=mine,
                ssl=ssl.create_default_context(),
                server_hostname="localhost",
            )
        with pytest.raises(ssl.SSLError, match=r"(?i)unknown.ca"):
            await shaking


async def test_a_name_to_check_is_asked_for(contexts: Contexts) -> None:
    skip_control("checks no name before 3.14")
    loop = asyncio.get_running_loop()
    left, right = socket_pair()
    with right:
        transport, protocol = await loop.create_connection(Recorder, sock=left)
        with pytest.raises(ValueError, match="check_hostname requires"):
            await loop.start_tls(transport, protocol, contexts[1])
        transport.abort()
        await protocol.lost


async def test_a_handshake_may_be_cancelled(contexts: Contexts) -> None:
    left, right = socket_pair()
    with right:
        connecting = asyncio.ensure_future(
            asyncio.get_running_loop().create_connection(
                Recorder, sock=left, ssl=contexts[1], server_hostname="localhost"
            )
        )
        await asyncio.sleep(0.01)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        await asyncio.sleep(0.01)
        assert left.fileno() == -1


async def test_an_end_of_file_in_the_handshake_is_an_error(contexts: Contexts) -> None:
    left, right = socket_pair()
    right.close()
    with pytest.raises(ConnectionResetError):
        await asyncio.get_running_loop().create_connection(
            Recorder, sock=left, ssl=contexts[1], server_hostname="localhost"
        )


@pytest.mark.parametrize("bad", [0, -1.5])
async def test_time_outs_must_be_positive(contexts: Contexts, bad: float) -> None:
    for name in ("ssl_handshake_timeout", "ssl_shutdown_timeout"):
        left, right = socket_pair()
        with left, right:
            with pytest.raises(ValueError, match=f"{name} should be a positive"):
                await asyncio.get_running_loop().create_connection(
                    Recorder,
                    sock=left,
                    ssl=contexts[1],
                    server_hostname="localhost",
                    **{name: bad},
                )


async def test_a_closed_transport_can_be_asked_anything(contexts: Contexts) -> None:
    skip_control("forgets its protocol when it is closed twice")
    async with tls_connected(contexts) as (transport, protocol, _):
        transport.abort()
        await protocol.lost
        for _ in range(8):
            transport.write(b"x")
        transport.writelines([b"x", b"y"])
        transport.close()
        transport.abort()
        transport.pause_reading()
        transport.resume_reading()
        transport.set_write_buffer_limits(10)
        transport.set_read_buffer_limits(10, 5)
        transport.set_protocol(protocol)
        transport._force_close(OSError())
        tls = transport._ssl_protocol
        tls.pause_writing()
        tls.resume_writing()
        assert tls.eof_received() is None
        tls.data_received(b"\x17\x03\x03\x00\x01x")
        assert transport.get_write_buffer_size() == 0
        assert transport.get_read_buffer_size() >= 0
        assert transport.get_extra_info("socket", 1) == 1
        assert transport.get_extra_info("ssl_object")
        assert transport.is_closing()
        assert not transport.can_write_eof()
        repr(transport)
        await asyncio.sleep(0.01)
        assert protocol.calls == ["made", "lost"]


async def test_only_the_loop_makes_them(contexts: Contexts) -> None:
    skip_control("has other classes")
    async with tls_connected(contexts) as (transport, _, _):
        for cls in (type(transport), type(transport._ssl_protocol)):
            with pytest.raises(TypeError):
                cls()
            with pytest.raises(TypeError):
                cls.__new__(cls)
            with pytest.raises(TypeError):
                type("Sub", (cls,), {})()
            with pytest.raises(TypeError):
                cls.connection_lost(object(), None) if hasattr(
                    cls, "connection_lost"
                ) else cls.write(object(), b"")


async def test_a_closed_connection_leaves_no_cycle(versioned: Contexts) -> None:
    """Everything goes when it is dropped, without the collector."""
    skip_control("leaves some before 3.13")
    gc.collect()
    gc.disable()
    try:
        async with tls_connected(versioned) as (transport, protocol, peer):
            await peer.send(b"x")
            await eventually(protocol.data.__len__)  # a closure would keep it
            transport.write(b"y")
            tls = weakref.ref(transport._ssl_protocol)
            lower = weakref.ref(transport._ssl_protocol._transport)
            await peer.send_raw(peer.farewell())
            await protocol.lost
            await asyncio.sleep(0.01)
            assert lower() is None
            protocol.transport = None
            del transport, protocol
        assert tls() is None
    finally:
        gc.enable()


async def test_a_failed_handshake_leaves_no_cycle() -> None:
    loop = asyncio.get_running_loop()
    skip_control("leaves some before 3.14")

    async def fail() -> None:
        left, right = socket_pair()
        with right:
            right.send(b"HTTP/1.1 400 This is no TLS\r\n\r\n")
            with pytest.raises(ssl.SSLError):
                await loop.create_connection(
                    Recorder,
                    sock=left,
                    ssl=ssl.create_default_context(),
                    server_hostname="localhost",
                )
            await asyncio.sleep(0.01)

    def living() -> int:
        return sum(
            type(x).__name__ in ("SSLTransport", "TlsProtocol")
            for x in gc.get_objects()
        )

    gc.collect()
    gc.disable()
    try:
        before = living()
        await fail()
        assert living() == before
    finally:
        gc.enable()


class Wild(asyncio.BufferedProtocol):
    """A protocol that does anything to its transport at any moment."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.buffer = bytearray(dice.choice([1, 100, 5000]))
        self.calls: list[str] = []
        self.transport: Any = None

    def act(self, call: str) -> None:
        self.calls.append(call)
        transport, dice = self.transport, self.dice
        loop = asyncio.get_running_loop()
        for _ in range(dice.randrange(3)):
            match dice.randrange(16):
                case 0:
                    transport.close()
                case 1 if dice.random() < 0.3:
                    transport.abort()
                case 2:
                    transport.pause_reading()
                    loop.call_soon(transport.resume_reading)
                case 3:
                    transport.resume_reading()
                case 4:
                    twin = Plain if type(self) is Wild else Wild
                    other = twin(dice)
                    other.transport, other.calls = transport, self.calls
                    transport.set_protocol(other)
                case 5:
                    transport.set_write_buffer_limits(dice.randrange(2000))
                case 6:
                    transport.set_read_buffer_limits(dice.randrange(2000))
                case 7:
                    transport.get_write_buffer_size()
                case 8:
                    transport._ssl_protocol.pause_writing()
                    transport._ssl_protocol.resume_writing()
                case 9 if dice.random() < 0.2:
                    raise ZeroDivisionError
                case 10:
                    transport.write(bytes(dice.randrange(300_000)))
                case _:
                    transport.write(bytes(dice.randrange(1, 3000)))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.transport.write(b"begin")
        self.act("made")

    def get_buffer(self, sizehint: int) -> memoryview:
        self.act("buffer")
        return memoryview(self.buffer)

    def buffer_updated(self, nbytes: int) -> None:
        self.act("data")

    def eof_received(self) -> None:
        self.act("eof")

    def pause_writing(self) -> None:
        self.act("pause")

    def resume_writing(self) -> None:
        self.act("resume")

    def connection_lost(self, exc: BaseException | None) -> None:
        self.calls.append("lost")
        self.act("after")


class Plain(asyncio.Protocol):
    """The same without a buffer."""

    __init__ = Wild.__init__
    act = Wild.act
    connection_made = Wild.connection_made
    eof_received = Wild.eof_received
    pause_writing = Wild.pause_writing
    resume_writing = Wild.resume_writing
    connection_lost = Wild.connection_lost

    def data_received(self, data: bytes) -> None:
        self.act("data")


@pytest.mark.loop_errors
@pytest.mark.parametrize("seed", range(4))
async def test_anything_at_any_moment(versioned: Contexts, seed: int) -> None:
    skip_control("forgets its protocol when it is closed twice")
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)
    dice = random.Random(seed)
    made: list[Any] = []

    def factory() -> Any:
        made.append(dice.choice([Wild, Plain])(dice))
        return made[-1]

    server = await loop.create_server(
        factory, "127.0.0.1", 0, ssl=versioned[0], ssl_shutdown_timeout=0.1
    )
    address = server.sockets[0].getsockname()
    for _ in range(15):
        with contextlib.suppress(ZeroDivisionError, ConnectionError):
            await loop.create_connection(
                factory,
                *address,
                ssl=versioned[1],
                server_hostname="localhost",
                ssl_shutdown_timeout=0.1,
            )
    await asyncio.sleep(0.1)
    for protocol in made:
        if protocol.transport is not None:
            protocol.transport.abort()
    server.close()
    await eventually(
        lambda: all("lost" in p.calls for p in made if p.transport is not None)
    )
    assert all(p.calls.count("lost") <= 1 for p in made)


CONTEXTS = """
import gc, ssl, trustme, warnings
authority = trustme.CA()
server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
authority.issue_cert("localhost").configure_cert(server)
client = ssl.create_default_context()
authority.configure_trust(client)
loop = new_loop()
async def connect(protocol=asyncio.Protocol):
    made.append(await loop.create_connection(
        protocol, *address, ssl=client, server_hostname="localhost"))
made, served = [], []
class Server(asyncio.Protocol):
    def connection_made(self, transport):
        served.append(transport)
listening = loop.run_until_complete(
    loop.create_server(Server, "127.0.0.1", 0, ssl=server))
address = listening.sockets[0].getsockname()
"""

DROPPED = """
loop.run_until_complete(connect())
while not served:
    loop.run_until_complete(asyncio.sleep(0.001))
listening.close()
loop.close()
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    del made[:], served[:], loop, listening
    gc.collect()
print(sum(str(w.message).startswith("unclosed transport <SSLTransport") for w in seen))
"""

MEMORY = """
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4
async def many(n):
    for _ in range(n):
        await connect()
loop.run_until_complete(many(50))
gc.collect()
before = resident()
loop.run_until_complete(many(150))
gc.collect()
print((resident() - before) / 300)      # both ends are here
import os
os._exit(0) if sys.stdout.flush() is None else None
"""


MESSAGES = """
import os
class Ping(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.left = transport, 0
    def data_received(self, data):
        self.left -= 1
        if self.left > 0:
            self.transport.write(data)
        else:
            loop.stop()
def pong(self, data):
    self.server.write(data)
def begin(self, transport):
    self.server = transport
Server.data_received, Server.connection_made = pong, begin
loop.run_until_complete(connect(Ping))
transport, ping = made[0]
def run(messages):
    ping.left = messages
    transport.write(bytes(1000))
    loop.run_forever()
run(20)
os.getppid()
run(1000)
os.getppid()
sys.stdout.flush()
os._exit(0)
"""


def _start() -> str:
    return NEW_LOOP + CONTEXTS


async def test_a_dropped_connection_is_told_of() -> None:
    skip_control("says it in other words")
    kind = kind_of(asyncio.get_running_loop())
    assert run_script(_start() + DROPPED, kind, options=()) == "2\n"


async def test_an_idle_connection_is_small() -> None:
    skip_control("has a buffer of 256 KiB for each")
    if "asan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("the sanitizer keeps what was freed")
    kind = kind_of(asyncio.get_running_loop())
    # KiB; what OpenSSL keeps of a session is more than 25 of it.
    assert float(run_script(_start() + MEMORY, kind)) < 45


@pytest.mark.slow
async def test_system_calls_of_a_message() -> None:
    """A wait, a receive and a send, as without TLS; both ends are counted here."""
    skip_control("maps memory for each message")
    kind = kind_of(asyncio.get_running_loop())
    counts = count_syscalls(_start() + MESSAGES, kind)
    assert counts["recvfrom"] <= 2010
    assert counts["sendto"] == 2000
    # Slowed down by tracing, the loop also looks at the fds for the time gone by.
    rest = counts.total() - counts["recvfrom"] - counts["sendto"]
    assert rest <= 2.2 * 2000, dict(counts)
    assert counts["mmap"] + counts["munmap"] + counts["mremap"] < 20, dict(counts)
