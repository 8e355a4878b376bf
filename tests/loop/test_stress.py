"""Stress: everything is cancelled, descriptors are closed behind the loop's back.

Each runs in a process of its own, since what it looks for are crashes, double
closes and spinning; a checker owns numbers that were just given back and sees
whether anybody else touches them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.procs import run_script

from .helpers import NEW_LOOP, kind_of

if TYPE_CHECKING:
    import asyncio

CHECKER = """
import contextlib, logging, os, random, socket, time
logging.disable()
chance = random.Random(7)
reports = []

class Owner:
    # Takes free numbers for pipes of its own and later sees whether they are whole.
    def __init__(self):
        self.held = []
    def take(self, count=3):
        for _ in range(count):
            fd = os.open("/dev/null", os.O_RDONLY)
            self.held.append((fd, os.fstat(fd)[:3]))
    def check(self):
        for fd, identity in self.held:
            assert os.fstat(fd)[:3] == identity, f"fd {fd} is another's now"
    def give_back(self):
        self.check()
        for fd, _ in self.held:
            os.close(fd)
        self.held.clear()

def open_fds():
    return set(os.listdir("/proc/self/fd"))

loop = new_loop()
loop.set_exception_handler(lambda _, context: reports.append(context))
"""

CANCEL = (
    CHECKER
    + """
owner = Owner()

async def quiet(task):
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, OSError, ConnectionError):
        result = await task
        for item in result if isinstance(result, tuple) else ():
            if isinstance(item, socket.socket):
                item.close()
            elif hasattr(item, "abort"):
                item.abort()
            elif isinstance(item, asyncio.StreamWriter):
                item.transport.abort()

def steps():
    # How far an operation comes before it is cancelled.
    return chance.choice((0, 1, 1, 2, 3, 5))

async def attempt(coroutine):
    task = asyncio.ensure_future(coroutine)
    for _ in range(steps()):
        await asyncio.sleep(0)
    if chance.random() < 0.2:
        await asyncio.sleep(0.001)
    owner.take(1)
    await quiet(task)
    owner.take(2)
    for _ in range(2):
        await asyncio.sleep(0)
    owner.check()
    if len(owner.held) > 60:
        owner.give_back()

async def main():
    async def serve(reader, writer):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(100):
                writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)

    async def connected_sock(action):
        sock = socket.socket()
        sock.setblocking(False)
        with sock:
            await loop.sock_connect(sock, address)
            await action(sock)

    async def given_sock():
        sock = socket.create_connection(address)
        sock.setblocking(False)
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=sock)
        transport.abort()

    async def pipe():
        reader, writer = os.pipe()
        os.close(writer)
        file = os.fdopen(reader, "rb", 0)
        try:
            transport, _ = await loop.connect_read_pipe(asyncio.Protocol, file)
            transport.close()
        except BaseException:
            file.close()
            raise

    async def child():
        process = await asyncio.create_subprocess_exec(
            "cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        await process.communicate(b"x")

    async def datagrams():
        transport, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=("127.0.0.1", 9)
        )
        transport.close()

    async def short_server():
        short = await asyncio.start_server(serve, "127.0.0.1", 0)
        try:
            await short.serve_forever()
        finally:
            short.close()

    kinds = [
        lambda: asyncio.open_connection(*address),
        lambda: connected_sock(lambda sock: loop.sock_recv(sock, 10)),
        lambda: connected_sock(lambda sock: loop.sock_sendall(sock, bytes(9 << 20))),
        lambda: loop.sock_accept(listener),
        given_sock,
        pipe,
        datagrams,
        short_server,
        lambda: loop.getaddrinfo("localhost", 80),
        lambda: loop.run_in_executor(None, time.sleep, 0.001),
    ]
    for _ in range(ROUNDS):
        await attempt(chance.choice(kinds)())
    for _ in range(ROUNDS // 40):
        await attempt(child())
    # The loop still works.
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"fine")
    assert await reader.readexactly(4) == b"fine"
    writer.close()
    await writer.wait_closed()
    owner.give_back()
    listener.close()
    server.close()
    await asyncio.sleep(0.02)

before = open_fds()
loop.run_until_complete(main())
loop.run_until_complete(loop.shutdown_default_executor())
loop.close()
import gc
gc.collect()
left = open_fds() - before
assert not left, left
print("ok")
"""
)

CLOSED_BEHIND = (
    CHECKER
    + """
# A number is never free for long: /dev/null is put in its place, so that a later
# close by its rightful owner hits nobody else.
null = os.open("/dev/null", os.O_RDWR)

def strike(fd, really=False):
    if really:
        os.close(fd)
    else:
        os.dup2(null, fd)

async def main():
    async def serve(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(100):
                writer.write(data)
                await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    steady_reader, steady_writer = await asyncio.open_connection(*address)

    async def steady(tag):
        steady_writer.write(tag)
        assert await asyncio.wait_for(steady_reader.readexactly(len(tag)), 5) == tag

    for number in range(ROUNDS):
        kind = number % 5
        if kind == 0:  # a connection's socket, while it reads
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"x")
            await reader.readexactly(1)
            strike(writer.get_extra_info("socket").fileno())
            writer.write(b"y")
            await asyncio.sleep(0)
            writer.transport.abort()
        elif kind == 1:  # a registered fd, closed for good
            left, right = socket.socketpair()
            loop.add_reader(left, lambda sock=left: sock.recv(10))
            loop.add_writer(left, lambda: None)
            await asyncio.sleep(0)
            strike(left.detach(), really=True)
            right.close()
            await asyncio.sleep(0)
        elif kind == 2:  # a socket that a task waits for
            left, right = socket.socketpair()
            left.setblocking(False)
            task = asyncio.ensure_future(loop.sock_recv(left, 10))
            await asyncio.sleep(0)
            strike(left.detach(), really=True)
            right.close()
            await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await task
        elif kind == 3:  # a connection with data pending
            left, right = socket.socketpair()
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=left)
            transport.write(bytes(4 << 20))
            strike(left.fileno())
            await asyncio.sleep(0)
            transport.abort()
            right.close()
        else:  # a pipe transport
            rfd, wfd = os.pipe()
            transport, _ = await loop.connect_read_pipe(
                asyncio.Protocol, os.fdopen(rfd, "rb", 0)
            )
            strike(rfd)
            await asyncio.sleep(0)
            transport.close()
            os.close(wfd)
        await steady(b"%d" % number)
    started = time.process_time()
    await asyncio.sleep(0.2)
    spent = time.process_time() - started
    assert spent < 0.15, f"the loop spins: {spent}"
    steady_writer.close()
    await steady_writer.wait_closed()
    server.close()
    await asyncio.sleep(0.02)

loop.run_until_complete(main())
loop.close()
os.close(null)
print("ok")
"""
)


def _run(loop: asyncio.AbstractEventLoop, script: str, rounds: int) -> None:
    out = run_script(
        NEW_LOOP + f"ROUNDS = {rounds}\n" + script,
        kind_of(loop),
        options=("-W", "ignore", "-X", "faulthandler"),
    )
    assert out == "ok\n"


@pytest.mark.slow
def test_everything_can_be_cancelled_and_numbers_stay_their_owners(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    _run(any_loop, CANCEL, 400)


@pytest.mark.slow
def test_descriptors_closed_behind_the_loop_harm_nobody_else(
    loop: asyncio.AbstractEventLoop,
) -> None:
    _run(loop, CLOSED_BEHIND, 60)


@pytest.mark.slow
def test_a_number_freed_by_a_cancelled_connect_is_not_closed_again(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    # The shape of a known data leak: connect, cancel, reuse of the number, and
    # then a second close that hits the new owner.
    script = (
        CHECKER
        + """
owner = Owner()

async def main():
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    for number in range(ROUNDS):
        task = asyncio.ensure_future(
            loop.create_connection(asyncio.Protocol, host, port)
        )
        for _ in range(number % 6):
            await asyncio.sleep(0)
        task.cancel()
        owner.take(2)
        with contextlib.suppress(asyncio.CancelledError):
            transport, _ = await task
            transport.abort()
        owner.take(2)
        for _ in range(3):
            await asyncio.sleep(0)
        owner.give_back()
    server.close()
    await asyncio.sleep(0.02)

before = open_fds()
loop.run_until_complete(main())
loop.close()
import gc; gc.collect()
assert not open_fds() - before
print("ok")
"""
    )
    _run(any_loop, script, 300)
