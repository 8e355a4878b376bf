"""What a program should not do to a loop, and what it must not cost then."""

from __future__ import annotations

import asyncio
import math
import socket
from typing import Any

import pytest
from support.procs import run_script

import aioqemu

from .helpers import recv_all


@pytest.fixture
def loop(fdmon: str) -> Any:
    made = aioqemu.new_event_loop(fdmon=fdmon)
    yield made
    made.close()


@pytest.mark.parametrize("when", [-1e300, -math.inf, -9e9])
def test_a_time_far_below_zero_is_due_at_once(loop: Any, when: float) -> None:
    loop.call_at(when, loop.stop)
    loop.call_later(5, pytest.fail, "slept")
    loop.run_forever()


@pytest.mark.parametrize("fd", [10**8, 2**31 - 1])
def test_add_reader_of_a_wild_number_is_refused(loop: Any, fd: int) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        loop.add_reader(fd, print)


def test_transports_without_a_loop_cannot_be_made(loop: Any) -> None:
    left, right = socket.socketpair()
    transport, _ = loop.run_until_complete(
        loop.create_connection(asyncio.Protocol, sock=left)
    )
    kind = type(transport)
    with pytest.raises(TypeError):
        kind.__new__(kind)
    transport.abort()
    loop.run_until_complete(asyncio.sleep(0))
    right.close()


def test_a_loop_that_was_not_initialised_is_closed() -> None:
    class Lazy(aioqemu.EventLoop):
        def __init__(self) -> None:
            pass

    lazy = Lazy()
    assert lazy.is_closed()
    for name in ("_run", "_enter_run", "run_forever"):
        with pytest.raises(RuntimeError, match="closed"):
            getattr(lazy, name)()
    lazy.close()


def test_datagrams_behind_an_interrupt_are_delivered_when_the_loop_runs_again(
    loop: Any,
) -> None:
    class Interrupted(asyncio.DatagramProtocol):
        got = 0

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.got += 1
            if self.got == 2:
                raise KeyboardInterrupt

    transport, protocol = loop.run_until_complete(
        loop.create_datagram_endpoint(Interrupted, local_addr=("127.0.0.1", 0))
    )
    with socket.socket(type=socket.SOCK_DGRAM) as peer:
        for _ in range(10):
            peer.sendto(b"x", transport.get_extra_info("sockname"))
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    loop.call_later(0.05, loop.stop)
    loop.run_forever()
    assert protocol.got == 10
    transport.close()
    loop.run_until_complete(asyncio.sleep(0))


def test_what_resume_writing_writes_while_closing_is_sent(loop: Any) -> None:
    class Last(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport
            transport.set_write_buffer_limits(0, 0)

        def resume_writing(self) -> None:
            self.transport.write(b"last")

    async def main() -> bytes:
        left, right = socket.socketpair()
        right.setblocking(False)
        with right:
            transport, _ = await loop.create_connection(Last, sock=left)
            transport.write(bytes(300_000))
            transport.close()
            return await recv_all(right)

    assert loop.run_until_complete(main()) == bytes(300_000) + b"last"


def test_a_nested_poll_sends_first_what_the_callback_wrote(loop: Any) -> None:
    left, right = socket.socketpair()
    transport, _ = loop.run_until_complete(
        loop.create_connection(asyncio.Protocol, sock=left)
    )
    right.setblocking(False)

    def ask() -> None:
        transport.write(b"question")
        loop.context.poll(False)
        assert right.recv(100) == b"question"
        loop.stop()

    loop.call_soon(ask)
    loop.run_forever()
    transport.abort()
    loop.run_until_complete(asyncio.sleep(0))
    right.close()


FORK = """
import asyncio, os, socket, sys
import aioqemu

async def main():
    left, right = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_connection(
        asyncio.Protocol, sock=left)
    transport.write(b"parent's")
    pid = os.fork()
    if pid == 0:
        transport.write(b"child's")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)    # a task that nobody awaits
        sys.exit(3)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    await asyncio.sleep(0.01)
    print(code, right.recv(100).decode())
    transport.abort()
    right.close()

aioqemu.run(main(), fdmon=sys.argv[1])
"""


def test_a_forked_child_sends_nothing_of_the_parents_and_may_exit(
    fdmon: str,
) -> None:
    quiet = ("-W", "ignore")  # the child closes nothing
    assert run_script(FORK, fdmon, options=quiet).split() == ["3", "parent's"]


AWAIT_IN_CHILD = """
import asyncio, os, socket, sys
import aioqemu

async def main():
    left, right = socket.socketpair()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=left)
    # Python 3.14's own task finds no running loop in the child, which is reported.
    loop.set_exception_handler(lambda loop, report: None)
    pid = os.fork()
    if pid == 0:
        transport.pause_reading()
        transport.resume_reading()
        await asyncio.sleep(0.01)
        os._exit(5)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    transport.abort()
    right.close()

pid = os.getpid()
try:
    aioqemu.run(main(), fdmon=sys.argv[1])
except RuntimeError as exc:
    os._exit(4 if os.getpid() != pid and "parent" in str(exc) else 1)
"""


def test_a_forked_child_that_goes_on_awaiting_gets_an_error(fdmon: str) -> None:
    assert run_script(AWAIT_IN_CHILD, fdmon).split() == ["4"]
