"""Rules of datagrams that go out and come in many at once.

What the kernel was handed as one message is seen by a plain socket that has asked for
it uncut (UDP_GRO).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
import sys
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .helpers import collect_reports, eventually, is_ours, one_pass, skip_control

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104
SO_NO_CHECK = 11
IPV6_MTU = 24
# Before Python 3.13 empty datagrams were not sent.
EMPTY = [b""] if sys.version_info >= (3, 13) else []
FAMILIES = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]


class Notes(asyncio.DatagramProtocol):
    """Keeps what arrives and what goes wrong; `on_error` is called with each error."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.errors: list[Exception] = []
        self.calls: list[str] = []
        self.on_error: Callable[[], None] = lambda: None
        self.lost = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.received.append(data)

    def error_received(self, exc: Exception) -> None:
        self.errors.append(exc)
        self.on_error()

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost.set_result(exc)


async def _endpoint(**options: Any) -> tuple[Any, Notes]:
    loop = asyncio.get_running_loop()
    return await loop.create_datagram_endpoint(Notes, **options)


@contextlib.contextmanager
def _listener(family: int = socket.AF_INET, host: str = "127.0.0.1") -> Iterator[Any]:
    """A plain socket that keeps a few megabytes."""
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.bind((host, 0))
        sock.setblocking(False)
        yield sock


def _uncut(sock: socket.socket) -> None:
    try:
        sock.setsockopt(SOL_UDP, UDP_GRO, 1)
    except OSError:
        pytest.skip("the kernel does not coalesce datagrams")


def _all_of(sock: socket.socket) -> list[bytes]:
    """What waits in the socket, as the kernel hands it over."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(sock.recv(1 << 16))
    return found


async def _shut(transport: Any) -> None:
    transport.close()
    for _ in range(3):
        await asyncio.sleep(0)


# -- sending ---------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize("family, host", FAMILIES)
@pytest.mark.parametrize("connected", [False, True])
async def test_equal_datagrams_of_a_callback_leave_as_one_message(
    family: int, host: str, connected: bool
) -> None:
    skip_control("sends each by itself")
    with _listener(family, host) as sock:
        _uncut(sock)
        to = sock.getsockname()
        where = {"remote_addr": to[:2]} if connected else {"local_addr": (host, 0)}
        transport, notes = await _endpoint(**where)
        for number in range(5):
            transport.sendto(b"%d" % number * 100, None if connected else to)
        transport.sendto(b"short", None if connected else to)
        transport.sendto(b"", None if connected else to)
        assert _all_of(sock) == [b"0" * 100]  # the first at once
        await asyncio.sleep(0)
        merged = b"".join(b"%d" % number * 100 for number in range(1, 5))
        assert _all_of(sock) == [merged + b"short", *EMPTY]
        assert notes.errors == []
        await _shut(transport)


@pytest.mark.asyncio
async def test_a_plain_receiver_gets_them_as_they_were_sent() -> None:
    sizes = [100, 100, 100, 40, 0, 0, 100, 1200, 1200, 1300, 1300, 1, 1, 9000, 9000, 0]
    sent = [bytes([number]) * size for number, size in enumerate(sizes)]
    with _listener() as sock:
        transport, _ = await _endpoint(remote_addr=sock.getsockname())
        for data in sent:
            transport.sendto(data)
        await asyncio.sleep(0)
        assert _all_of(sock) == [data for data in sent if data or EMPTY]
        await _shut(transport)


@pytest.mark.asyncio
async def test_no_more_than_64_datagrams_and_64_kib_are_one_message() -> None:
    skip_control("sends each by itself")
    with _listener() as sock:
        _uncut(sock)
        transport, notes = await _endpoint(remote_addr=sock.getsockname())
        for _ in range(150):
            transport.sendto(b"x" * 10)
        for _ in range(20):
            transport.sendto(b"y" * 9000)
        await asyncio.sleep(0)
        found = [len(message) for message in _all_of(sock)]
        assert sum(found) == 1500 + 20 * 9000
        assert max(found) <= 65507
        assert max(size for size in found if size % 9000) <= 64 * 10
        assert len(found) < 15
        assert notes.errors == []
        await _shut(transport)


@pytest.mark.asyncio
async def test_what_is_kept_in_a_callback_is_bounded() -> None:
    skip_control("keeps nothing")
    with _listener() as sock:
        transport, _ = await _endpoint(remote_addr=sock.getsockname())
        for _ in range(200):
            transport.sendto(b"x")
        assert len(_all_of(sock)) > 200 - 64
        for _ in range(10):
            transport.sendto(b"x" * 30_000)
        assert sum(map(len, _all_of(sock))) > 10 * 30_000 - 64 * 1024
        await _shut(transport)


class Away:
    """Several receivers, one of them without a name of numbers."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.socks = [stack.enter_context(_listener()) for _ in range(3)]
        self.names = [sock.getsockname() for sock in self.socks]
        self.names[2] = ("localhost", self.names[2][1])


BURSTS = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 0, 1, 1, 2]),
        st.sampled_from([0, 1, 50, 100, 100, 100, 1200, 1472, 1473, 20_000]),
        st.sampled_from([True, *[False] * 20]),  # the callback ends
    ),
    max_size=120,
)


# Python's random does not keep what hypothesis registers.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:It looks like .register_random.")
def test_each_receiver_gets_its_own_in_order(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    with contextlib.ExitStack() as stack:
        away = Away(stack)

        async def send(burst: list[tuple[int, int, bool]]) -> None:
            sent: list[list[bytes]] = [[], [], []]
            got: list[list[bytes]] = [[], [], []]

            def collect() -> None:
                for sock, found in zip(away.socks, got, strict=True):
                    found += _all_of(sock)

            transport, notes = await _endpoint(local_addr=("127.0.0.1", 0))
            for number, (who, size, ends) in enumerate(burst):
                data = bytes([number]) * size
                transport.sendto(bytearray(data), away.names[who])
                if data or EMPTY:
                    sent[who].append(data)
                if ends or sum(len(data) for data in sent[who]) > 200_000:
                    await asyncio.sleep(0)
                    collect()
            transport.close()
            collect()
            await notes.lost
            assert notes.errors == []
            assert got == sent

        @settings(
            max_examples=50,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(burst=BURSTS)
        def check(burst: list[tuple[int, int, bool]]) -> None:
            any_loop.run_until_complete(send(burst))

        check()


@pytest.mark.asyncio
async def test_memory_that_changes_later_is_sent_as_it_was() -> None:
    with _listener() as sock:
        transport, _ = await _endpoint(remote_addr=sock.getsockname())
        memory = bytearray(b"0123456789")
        for _ in range(3):
            transport.sendto(memory)
            transport.sendto(memoryview(memory)[:5])
        memory[:] = b"xxxxxxxxxx"
        await asyncio.sleep(0)
        assert _all_of(sock) == [b"0123456789", b"01234"] * 3
        await _shut(transport)


@pytest.mark.asyncio
@pytest.mark.parametrize("size", [100, 1400])
async def test_what_the_kernel_refuses_to_cut_is_sent_singly(size: int) -> None:
    # Without checksums it refuses all, on a narrow path what does not fit.
    narrow = size > 1280
    family, host = FAMILIES[narrow]
    with _listener(family, host) as sock:
        _uncut(sock)
        transport, notes = await _endpoint(remote_addr=sock.getsockname()[:2])
        own = transport.get_extra_info("socket")
        if narrow:
            own.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU, 1280)
        else:
            own.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
        for _ in range(3):
            sent = [bytes([number]) * size for number in range(10)]
            for data in sent:
                transport.sendto(data)
            await asyncio.sleep(0)
            assert _all_of(sock) == sent
        for number in range(5):
            transport.sendto(bytes([number]) * 50)
        await asyncio.sleep(0)
        found = _all_of(sock)
        assert b"".join(found) == b"".join(bytes([n]) * 50 for n in range(5))
        if narrow and is_ours(asyncio.get_running_loop()):
            assert len(found) == 2  # these do fit
        assert notes.errors == []
        await _shut(transport)


@pytest.mark.asyncio
async def test_a_socket_that_cuts_by_itself_is_left_alone() -> None:
    with _listener() as sock:
        transport, _ = await _endpoint(remote_addr=sock.getsockname())
        own = transport.get_extra_info("socket")
        try:
            own.setsockopt(SOL_UDP, UDP_SEGMENT, 10)
        except OSError:
            pytest.skip("the kernel does not cut datagrams")
        for _ in range(4):
            transport.sendto(b"a" * 10 + b"b" * 10)
        await asyncio.sleep(0)
        assert _all_of(sock) == [b"a" * 10, b"b" * 10] * 4
        await _shut(transport)


# -- errors ----------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize("equal", [False, True])
async def test_a_pending_error_costs_one_datagram(equal: bool) -> None:
    skip_control("meets the error at another datagram")
    with _listener() as sock:
        address = sock.getsockname()
        transport, notes = await _endpoint(remote_addr=address)
    transport.sendto(b"nobody there")  # leaves the error behind
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        sock.setblocking(False)
        sent = [b"%d" % number * (2 if equal else number) for number in range(1, 9)]
        for data in sent:
            transport.sendto(data)
        await asyncio.sleep(0)
        assert _all_of(sock) == sent[1:]
    assert [type(exc) for exc in notes.errors] == [ConnectionRefusedError]
    await _shut(transport)


@pytest.mark.asyncio
async def test_one_that_is_too_large_does_not_stop_the_others() -> None:
    with _listener() as sock:
        transport, notes = await _endpoint(remote_addr=sock.getsockname())
        sent = [b"a" * 10, b"b" * 10, b"c" * 10, bytes(70_000), b"d" * 10, b"e" * 10]
        for data in sent:
            transport.sendto(data)
        await asyncio.sleep(0)
        assert _all_of(sock) == [data for data in sent if len(data) == 10]
        assert [exc.errno for exc in notes.errors] == [errno.EMSGSIZE]  # type: ignore[attr-defined]
        await _shut(transport)


@pytest.mark.asyncio
async def test_an_address_that_is_refused_does_not_stop_the_others() -> None:
    with _listener() as sock:
        to = sock.getsockname()
        transport, notes = await _endpoint(local_addr=("127.0.0.1", 0))
        for number in range(10):
            transport.sendto(b"%d" % number, to if number % 3 else ("127.0.0.1", 0))
        await asyncio.sleep(0)
        assert _all_of(sock) == [b"%d" % number for number in range(10) if number % 3]
        assert [exc.errno for exc in notes.errors] == [errno.EINVAL] * 4  # type: ignore[attr-defined]
        await _shut(transport)


async def _with_a_bad_one(sock: socket.socket, do: str) -> tuple[Any, Notes]:
    """Send five, of which the third fails, and have error_received do something."""
    to = sock.getsockname()
    transport, notes = await _endpoint(local_addr=("127.0.0.1", 0))
    notes.on_error = {
        "abort": transport.abort,
        "close": transport.close,
        "send": lambda: transport.sendto(b"instead", to),
    }[do]
    for size in (1, 2, 3, 4, 5):
        transport.sendto(bytes(size), to if size != 3 else ("127.0.0.1", 0))
    return transport, notes


@pytest.mark.asyncio
async def test_error_received_may_abort() -> None:
    skip_control("goes on to send when it is aborted, without a peer")
    with _listener() as sock:
        transport, notes = await _with_a_bad_one(sock, "abort")
        await notes.lost
        assert [len(data) for data in _all_of(sock)] == [1, 2]
        assert len(notes.errors) == 1
        assert transport.get_write_buffer_size() == 0


@pytest.mark.asyncio
async def test_error_received_may_close() -> None:
    with _listener() as sock:
        _, notes = await _with_a_bad_one(sock, "close")
        await notes.lost
        assert [len(data) for data in _all_of(sock)] == [1, 2, 4, 5]
        assert len(notes.errors) == 1


@pytest.mark.asyncio
async def test_error_received_may_send() -> None:
    with _listener() as sock:
        transport, notes = await _with_a_bad_one(sock, "send")
        await asyncio.sleep(0)
        found = [len(data) for data in _all_of(sock)]
        assert [size for size in found if size != 7] == [1, 2, 4, 5]
        assert found.count(7) == len(notes.errors) == 1
        await _shut(transport)


@pytest.mark.asyncio
async def test_error_received_that_tries_again_for_ever_ends() -> None:
    skip_control("lets the error out of sendto()")
    reports = collect_reports(asyncio.get_running_loop())
    with _listener() as sock:
        transport, notes = await _endpoint(remote_addr=sock.getsockname())
        notes.on_error = lambda: transport.sendto(bytes(70_000))
        for size in (1, 70_000, 70_000, 2):
            transport.sendto(bytes(size))
        await asyncio.sleep(0)
        assert [len(data) for data in _all_of(sock)] == [1, 2]
        assert any(isinstance(one["exception"], RecursionError) for one in reports)
        await _shut(transport)


def test_an_interrupt_leaves_the_loop_and_the_rest_is_sent_later(
    loop: asyncio.AbstractEventLoop,
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with _listener() as sock:
        to = sock.getsockname()
        transport, notes = loop.run_until_complete(
            _endpoint(local_addr=("127.0.0.1", 0))
        )
        notes.on_error = interrupt

        def burst() -> None:
            for size in (1, 2, 3, 4, 5):
                transport.sendto(bytes(size), to if size != 3 else ("127.0.0.1", 0))

        loop.call_soon(burst)
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(asyncio.sleep(0))
        assert [len(data) for data in _all_of(sock)] == [1, 2, 4, 5]
        loop.run_until_complete(_shut(transport))


# -- life ------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_close_sends_what_is_kept() -> None:
    with _listener() as sock:
        transport, notes = await _endpoint(remote_addr=sock.getsockname())
        for number in range(5):
            transport.sendto(b"%d" % number)
        transport.close()
        assert _all_of(sock) == [b"0", b"1", b"2", b"3", b"4"]
        assert await notes.lost is None


@pytest.mark.asyncio
async def test_abort_drops_what_is_kept() -> None:
    skip_control("keeps nothing")
    with _listener() as sock:
        transport, notes = await _endpoint(remote_addr=sock.getsockname())
        for number in range(5):
            transport.sendto(b"%d" % number)
        transport.abort()
        await notes.lost
        assert _all_of(sock) == [b"0"]


@pytest.mark.asyncio
async def test_nothing_is_buffered_while_the_socket_takes_it() -> None:
    with _listener() as sock:
        transport, notes = await _endpoint(remote_addr=sock.getsockname())
        transport.set_write_buffer_limits(high=10)
        for number in range(5):
            transport.sendto(b"%d" % number * 10)
        transport.set_write_buffer_limits(high=5)
        assert transport.get_write_buffer_size() == 0
        assert len(_all_of(sock)) == 5
        assert notes.calls == []
        await _shut(transport)


def test_outside_of_callbacks_nothing_is_kept(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    with _listener() as sock:
        transport, _ = any_loop.run_until_complete(
            _endpoint(remote_addr=sock.getsockname())
        )
        for number in range(5):
            transport.sendto(b"%d" % number)
        assert _all_of(sock) == [b"0", b"1", b"2", b"3", b"4"]
        any_loop.run_until_complete(_shut(transport))


@pytest.mark.asyncio
async def test_a_full_socket_gets_the_rest_in_order(tmp_path: Path) -> None:
    path = str(tmp_path / "peer")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.bind(path)
        peer.setblocking(False)
        transport, notes = await _endpoint(remote_addr=path, family=socket.AF_UNIX)
        for number in range(300):
            transport.sendto(b"%04d" % number + bytes(1000))
        await asyncio.sleep(0)
        assert notes.calls == ["pause"]
        assert transport.get_write_buffer_size() > 64 * 1024
        transport.close()  # sends it all the same
        found: list[int] = []
        while not notes.lost.done():
            found += [int(data[:4]) for data in _all_of(peer)]
            await asyncio.sleep(0.001)
        found += [int(data[:4]) for data in _all_of(peer)]
        assert found == list(range(300))


@pytest.mark.asyncio
async def test_a_child_does_not_send_what_its_parent_keeps() -> None:
    skip_control("keeps nothing")
    with _listener() as sock:
        transport, _ = await _endpoint(remote_addr=sock.getsockname())
        transport.sendto(b"0")
        transport.sendto(b"1")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            try:
                transport.sendto(b"child")
                transport.get_write_buffer_size()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)  # noqa: ASYNC222
        assert _all_of(sock) == [b"0", b"child"]
        await asyncio.sleep(0)
        assert _all_of(sock) == [b"1"]
        await _shut(transport)


def test_a_child_that_goes_on_with_the_loop_sends_only_its_own(
    loop: asyncio.AbstractEventLoop,
) -> None:
    pids: list[int] = []
    with _listener() as sock:
        transport, _ = loop.run_until_complete(
            _endpoint(remote_addr=sock.getsockname())
        )
        transport.pause_reading()  # so that nothing watches the socket

        def burst(*burst: bytes) -> None:
            for data in burst:
                transport.sendto(data)
            if not pids:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", DeprecationWarning)
                    pids.append(os.fork())

        loop.call_soon(burst, b"0", b"1")
        try:
            one_pass(loop)
            if pids == [0]:
                loop.call_soon(burst, b"2", b"3")
                one_pass(loop)
        finally:
            if pids == [0]:
                os._exit(0)
        os.waitpid(pids[0], 0)
        assert sorted(_all_of(sock)) == [b"0", b"1", b"2", b"3"]
        loop.run_until_complete(_shut(transport))


@pytest.mark.asyncio
async def test_a_socket_that_is_closed_underneath_ends_the_transport() -> None:
    skip_control("cannot know")
    with _listener() as sock:
        transport, notes = await _endpoint(remote_addr=sock.getsockname())
        transport.sendto(b"0")
        transport.sendto(b"1")
        transport._sock.close()
        exc = await notes.lost
        assert isinstance(exc, OSError)
        assert exc.errno == errno.EBADF
        assert _all_of(sock) == [b"0"]


# -- receiving -------------------------------------------------------------------------


def _send_merged(sock: socket.socket, pieces: list[bytes]) -> None:
    """Hand the kernel equal datagrams as one message."""
    size = struct.pack("H", len(pieces[0]))
    try:
        sock.sendmsg(pieces, [(SOL_UDP, UDP_SEGMENT, size)])
    except OSError:
        pytest.skip("the kernel does not cut datagrams")


def _coalesces(transport: Any) -> bool:
    # Not by the socket: who asks for it gets one that does not.
    with socket.socket(fileno=os.dup(transport._sock_fd)) as same:
        return bool(same.getsockopt(SOL_UDP, UDP_GRO))


async def _burst(transport: Any, notes: Notes, sender: socket.socket) -> None:
    """Have 40 datagrams wait at once."""
    for _ in range(40):
        sender.send(b"x")
    await eventually(lambda: len(notes.received) == 40)
    notes.received.clear()


@pytest.mark.asyncio
@pytest.mark.parametrize("family, host", FAMILIES)
async def test_after_a_burst_datagrams_may_come_together(
    family: int, host: str
) -> None:
    transport, notes = await _endpoint(local_addr=(host, 0))
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.connect(transport.get_extra_info("sockname"))
        if is_ours(asyncio.get_running_loop()):
            assert not _coalesces(transport)
            await _burst(transport, notes, sender)
            assert _coalesces(transport)
        sent: list[bytes] = []
        for merged in (
            [b"a" * 10, b"b" * 10, b"c" * 10],
            [b""],
            [b"d" * 1000] * 60 + [b"e"],
            [b"f" * 20],
            [b"g"] * 50,
        ):
            if len(merged) > 1:
                _send_merged(sender, merged)
            else:
                sender.send(merged[0])
            sent += merged
        await eventually(lambda: len(notes.received) == len(sent))
        assert notes.received == sent
    await _shut(transport)


@pytest.mark.asyncio
async def test_a_pause_stops_what_came_together() -> None:
    transport, notes = await _endpoint(local_addr=("127.0.0.1", 0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(transport.get_extra_info("sockname"))
        await _burst(transport, notes, sender)
        if is_ours(asyncio.get_running_loop()):
            keep = notes.datagram_received

            def receive(data: bytes, addr: Any) -> None:
                keep(data, addr)
                transport.pause_reading()

            notes.datagram_received = receive  # type: ignore[method-assign]
            transport.set_protocol(notes)
            _send_merged(sender, [b"a", b"b", b"c"])
            await eventually(lambda: notes.received)
            for _ in range(3):
                await asyncio.sleep(0)
            assert notes.received == [b"a"]
            transport.resume_reading()
            await eventually(lambda: len(notes.received) == 2)
            transport.close()
            await notes.lost
            assert notes.received == [b"a", b"b"]
        else:
            await _shut(transport)


@pytest.mark.asyncio
async def test_a_socket_of_somebody_else_is_not_told_to_coalesce() -> None:
    skip_control("coalesces nothing")
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    transport, notes = await _endpoint(sock=sock)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(transport.get_extra_info("sockname"))
        await _burst(transport, notes, sender)
        assert not _coalesces(transport)
    await _shut(transport)


@pytest.mark.asyncio
async def test_one_whose_socket_was_asked_for_is_not_told_to_coalesce() -> None:
    skip_control("coalesces nothing")
    transport, notes = await _endpoint(local_addr=("127.0.0.1", 0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(transport.get_extra_info("sockname"))
        transport.get_extra_info("socket")
        await _burst(transport, notes, sender)
        assert not _coalesces(transport)
    await _shut(transport)


@pytest.mark.asyncio
async def test_asking_for_the_socket_later_does_no_harm() -> None:
    transport, notes = await _endpoint(local_addr=("127.0.0.1", 0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.connect(transport.get_extra_info("sockname"))
        await _burst(transport, notes, sender)
        _send_merged(sender, [b"a", b"b"])
        transport.get_extra_info("socket")
        _send_merged(sender, [b"c", b"d"])
        await eventually(lambda: len(notes.received) == 4)
        assert notes.received == [b"a", b"b", b"c", b"d"]
    await _shut(transport)
