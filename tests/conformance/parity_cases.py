"""What test_loop_parity.py does on ours and on the stock loop, one function a case.

A case is given a loop of either kind and returns a value or raises; it must not
ask which kind it got.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

Loop = Any  # not AbstractEventLoop: most cases hand it wrong types
Case = Callable[[Loop], object]

CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    CASES[function.__name__.strip("_")] = function
    return function


# --- Wrong types -----------------------------------------------------------------


def _wrong_types() -> Iterator[tuple[str, Case]]:
    async def coroutine() -> None: ...

    coro = coroutine  # a coroutine function is no callback
    calls: dict[str, Case] = {
        "debug_call_soon_None": lambda loop: (
            loop.set_debug(True),
            loop.call_soon(None),
        ),
        "call_soon_nothing": lambda loop: loop.call_soon(),
        "call_later_nothing": lambda loop: loop.call_later(1),
        "call_later_text_delay": lambda loop: loop.call_later("1", print),
        "call_later_None_delay": lambda loop: loop.call_later(None, print),
        "call_at_None": lambda loop: loop.call_at(None, print),
        "run_until_complete_number": lambda loop: loop.run_until_complete(1),
        "run_until_complete_function": lambda loop: loop.run_until_complete(print),
        "create_task_number": lambda loop: loop.create_task(1),
        "set_task_factory_number": lambda loop: loop.set_task_factory(1),
        "set_exception_handler_number": lambda loop: loop.set_exception_handler(1),
        "set_default_executor_number": lambda loop: loop.set_default_executor(1),
        "add_reader_text": lambda loop: loop.add_reader("x", print),
        "add_reader_None": lambda loop: loop.add_reader(None, print),
        "add_writer_float": lambda loop: loop.add_writer(1.5, print),
        "add_reader_negative": lambda loop: loop.add_reader(-1, print),
        "remove_reader_text": lambda loop: loop.remove_reader("x"),
        "remove_reader_negative": lambda loop: loop.remove_reader(-1),
        "remove_reader_unknown": lambda loop: loop.remove_reader(999),
        "remove_writer_unknown": lambda loop: loop.remove_writer(999),
        "signal_text": lambda loop: loop.add_signal_handler("x", print),
        "signal_zero": lambda loop: loop.add_signal_handler(0, print),
        "signal_999": lambda loop: loop.add_signal_handler(999, print),
        "signal_KILL": lambda loop: loop.add_signal_handler(signal.SIGKILL, print),
        "signal_coroutine": lambda loop: loop.add_signal_handler(signal.SIGUSR1, coro),
        "signal_remove_unknown": lambda loop: loop.remove_signal_handler(
            signal.SIGUSR2
        ),
        "signal_remove_text": lambda loop: loop.remove_signal_handler("x"),
        "exception_handler_empty": lambda loop: loop.call_exception_handler({}),
        "debug_call_soon_coroutine": lambda loop: (
            loop.set_debug(True),
            loop.call_soon(coro),
        ),
        "debug_call_later_coroutine": lambda loop: (
            loop.set_debug(True),
            loop.call_later(1, coro),
        ),
        "debug_executor_coroutine": lambda loop: (
            loop.set_debug(True),
            loop.run_in_executor(None, coro),
        ),
        "executor_None": lambda loop: (
            loop.set_debug(True),
            loop.run_in_executor(None, None),
        ),
    }
    yield from calls.items()


CASES.update(_wrong_types())


# --- A loop that is closed, running, or in another thread -------------------------


def _closed(name: str, *args: object) -> Case:
    def run(loop: Loop) -> object:
        loop.close()
        made = getattr(loop, name)(*args)
        if inspect.iscoroutine(made):
            made.close()
            return "coroutine"
        return type(made).__name__

    return run


for _name, *_args in (
    ("call_soon", print),
    ("call_soon_threadsafe", print),
    ("call_later", 1, print),
    ("call_at", 1, print),
    ("run_forever",),
    ("run_in_executor", None, print),
    ("add_reader", 0, print),
    ("add_writer", 1, print),
    ("remove_reader", 0),
    ("remove_writer", 0),
    ("add_signal_handler", signal.SIGUSR1, print),
    ("create_future",),
    ("stop",),
    ("close",),
    ("time",),
    ("is_running",),
    ("is_closed",),
    ("get_debug",),
    ("shutdown_default_executor",),
    ("shutdown_asyncgens",),
):
    CASES[f"closed_{_name}"] = _closed(_name, *_args)


@case
def _closed_create_task(loop: Loop) -> object:
    async def main() -> None: ...

    loop.close()
    coro = main()
    try:
        return loop.create_task(coro)
    finally:
        coro.close()


@case
def _closed_run_until_complete(loop: Loop) -> object:
    async def main() -> None: ...

    loop.close()
    coro = main()
    try:
        return loop.run_until_complete(coro)
    finally:
        coro.close()


def _inside(function: Callable[[Loop], object]) -> Case:
    def run(loop: Loop) -> object:
        async def main() -> object:
            found = function(loop)
            return await found if inspect.isawaitable(found) else found

        return loop.run_until_complete(main())

    return run


CASES["running_run_forever"] = _inside(lambda loop: loop.run_forever())
CASES["running_close"] = _inside(lambda loop: loop.close())


@case
def _running_run_until_complete(loop: Loop) -> object:
    async def main() -> object:
        inner = loop.create_future()
        try:
            return loop.run_until_complete(inner)
        finally:
            inner.cancel()

    return loop.run_until_complete(main())


@case
def _other_loop_running(loop: Loop) -> object:
    other = asyncio.SelectorEventLoop()

    async def main() -> None:
        coro = asyncio.sleep(0)
        try:
            loop.run_until_complete(coro)
        finally:
            coro.close()

    try:
        return other.run_until_complete(main())
    finally:
        other.close()


@case
def _stopped_before_done(loop: Loop) -> object:
    future = loop.create_future()
    loop.call_soon(loop.stop)
    return loop.run_until_complete(future)


@case
def _foreign_future(loop: Loop) -> object:
    other = asyncio.SelectorEventLoop()
    try:
        return loop.run_until_complete(other.create_future())
    finally:
        other.close()


@case
def _debug_call_from_other_thread(loop: Loop) -> object:
    loop.set_debug(True)
    heard: list[str] = []

    def call() -> None:
        for function in (
            lambda: loop.call_soon(print),
            lambda: loop.call_later(1, print),
            lambda: loop.call_at(1, print),
        ):
            try:
                function()
            except RuntimeError as exc:
                heard.append(str(exc))

    async def main() -> None:
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()

    loop.run_until_complete(main())
    return heard


@case
def _run_twice(loop: Loop) -> object:
    return [loop.run_until_complete(asyncio.sleep(0, n)) for n in range(3)]


@case
def _stop_before_run(loop: Loop) -> object:
    seen: list[int] = []
    loop.call_soon(seen.append, 1)
    loop.call_soon(loop.call_soon, seen.append, 2)
    loop.stop()
    loop.run_forever()
    return seen


@case
def _defaults(loop: Loop) -> object:
    return (
        loop.get_debug(),
        loop.slow_callback_duration,
        loop.get_task_factory(),
        loop.get_exception_handler(),
        loop.is_running(),
        loop.is_closed(),
    )


# --- Order and time --------------------------------------------------------------


@case
def _order_of_soon_and_later(loop: Loop) -> object:
    seen: list[str] = []
    loop.call_later(0, seen.append, "later")
    loop.call_soon(seen.append, "soon")
    loop.call_later(-5, seen.append, "negative")
    loop.call_at(0, seen.append, "long ago")
    loop.call_soon(loop.call_soon, seen.append, "next")
    loop.call_later(0.02, loop.stop)
    loop.run_forever()
    return seen


@case
def _cancelled_handles(loop: Loop) -> object:
    seen: list[int] = []
    handles = [
        loop.call_soon(seen.append, 1),
        loop.call_later(0, seen.append, 2),
        loop.call_at(loop.time(), seen.append, 3),
    ]
    for handle in handles:
        handle.cancel()
        handle.cancel()
    loop.run_until_complete(asyncio.sleep(0.01))
    return seen, [handle.cancelled() for handle in handles]


@case
def _time_is_monotonic_float(loop: Loop) -> object:
    first, second = loop.time(), loop.time()
    return type(first), second >= first


@case
def _context_of_handle(loop: Loop) -> object:
    # Ours have it on Python 3.11 as well.
    if not hasattr(asyncio.Handle, "get_context"):
        return "nothing to compare with"
    return hasattr(loop.call_soon(print), "get_context")


# --- fds -------------------------------------------------------------------------


@case
def _add_reader_closed_fd(loop: Loop) -> object:
    read, write = os.pipe()
    os.close(read)
    os.close(write)
    return loop.add_reader(read, print)


@case
def _add_reader_regular_file(loop: Loop) -> object:
    with tempfile.TemporaryFile() as file:
        return loop.add_reader(file, print)


@case
def _add_reader_closed_socket(loop: Loop) -> object:
    sock = socket.socket()
    sock.close()
    return loop.add_reader(sock, print)


@case
def _reader_and_writer_results(loop: Loop) -> object:
    one, two = socket.socketpair()
    with one, two:
        return (
            loop.add_reader(one, print),
            loop.add_writer(one.fileno(), print),
            loop.remove_reader(one),
            loop.remove_reader(one),
            loop.remove_writer(one),
            loop.remove_writer(one.fileno()),
        )


@case
def _fd_of_transport(loop: Loop) -> object:
    one, two = socket.socketpair()
    heard: list[str] = []

    async def main() -> None:
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=one)
        for function in ("add_reader", "add_writer"):
            with contextlib.suppress(StopIteration):
                try:
                    getattr(loop, function)(one.fileno(), print)
                except RuntimeError as exc:
                    heard.append(type(exc).__name__)
        transport.close()
        await asyncio.sleep(0)

    with two:
        loop.run_until_complete(main())
    return heard


def _sock_call(name: str, *args: object) -> Case:
    def run(loop: Loop) -> object:
        one, two = socket.socketpair()
        with one, two:
            loop.set_debug(True)
            return loop.run_until_complete(getattr(loop, name)(one, *args))

    return run


for _name, *_args in (
    ("sock_recv", 1),
    ("sock_recv_into", bytearray(1)),
    ("sock_recvfrom", 1),
    ("sock_recvfrom_into", bytearray(1)),
    ("sock_sendall", b"x"),
    ("sock_sendto", b"x", "/nowhere"),
    ("sock_accept",),
    ("sock_connect", "/nowhere"),
):
    CASES[f"blocking_{_name}"] = _sock_call(_name, *_args)


@case
def _sock_recv_closed(loop: Loop) -> object:
    sock = socket.socket()
    sock.setblocking(False)
    sock.close()
    return loop.run_until_complete(loop.sock_recv(sock, 1))


# --- Connections and servers -----------------------------------------------------


def _wrong_call(name: str, *args: object, **options: object) -> Case:
    def run(loop: Loop) -> object:
        loop.run_until_complete(getattr(loop, name)(*args, **options))
        return "no error"

    return run


_PROTO = asyncio.Protocol
_WRONG: dict[str, tuple[tuple[object, ...], dict[str, object]]] = {
    "create_connection nothing": ((_PROTO,), {}),
    "create_connection hostname": (
        (_PROTO, "127.0.0.1", 1),
        {"server_hostname": "x"},
    ),
    "create_connection ssl no name": ((_PROTO,), {"ssl": True}),
    "create_connection timeout": (
        (_PROTO, "127.0.0.1", 1),
        {"ssl_handshake_timeout": 1},
    ),
    "create_connection shutdown": (
        (_PROTO, "127.0.0.1", 1),
        {"ssl_shutdown_timeout": 1},
    ),
    "create_connection refused": ((_PROTO, "127.0.0.1", 1), {}),
    "create_server nothing": ((_PROTO,), {}),
    "create_server ssl bool": ((_PROTO, "127.0.0.1", 0), {"ssl": True}),
    "create_server timeout": (
        (_PROTO, "127.0.0.1", 0),
        {"ssl_handshake_timeout": 1},
    ),
    "create_unix_connection nothing": ((_PROTO,), {}),
    "create_unix_connection missing": ((_PROTO, "/nowhere/at/all"), {}),
    "create_unix_connection hostname": (
        (_PROTO, "/nowhere"),
        {"server_hostname": "x"},
    ),
    "create_unix_server nothing": ((_PROTO,), {}),
    "create_unix_server ssl bool": ((_PROTO, "/nowhere"), {"ssl": True}),
    "create_unix_server missing": ((_PROTO, "/nowhere/at/all"), {}),
    "create_datagram_endpoint nothing": ((asyncio.DatagramProtocol,), {}),
    "create_datagram_endpoint family": (
        (asyncio.DatagramProtocol,),
        {"local_addr": "x"},
    ),
    "subprocess_shell number": ((asyncio.SubprocessProtocol, 1), {}),
    "subprocess_shell text": (
        (asyncio.SubprocessProtocol, "true"),
        {"universal_newlines": True},
    ),
    "subprocess_exec shell": (
        (asyncio.SubprocessProtocol, "true"),
        {"shell": True},
    ),
    "subprocess_exec bufsize": (
        (asyncio.SubprocessProtocol, "true"),
        {"bufsize": 1},
    ),
    "subprocess_exec missing": ((asyncio.SubprocessProtocol, "/nowhere/at/all"), {}),
    "getaddrinfo bad": (("256.256.256.256", 1), {"flags": socket.AI_NUMERICHOST}),
    "getnameinfo bad": ((("x", "y"),), {}),
}
for _name, (_args, _options) in _WRONG.items():
    CASES[_name] = _wrong_call(_name.partition(" ")[0], *_args, **_options)


@case
def _stream_socket_for_datagrams(loop: Loop) -> object:
    with socket.socket() as sock:
        sock.setblocking(False)
        return loop.run_until_complete(
            loop.create_datagram_endpoint(asyncio.DatagramProtocol, sock=sock)
        )


@case
def _datagram_socket_for_stream(loop: Loop) -> object:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        return loop.run_until_complete(loop.create_connection(_PROTO, sock=sock))


@case
def _server_in_use(loop: Loop) -> object:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        try:
            loop.run_until_complete(loop.create_server(_PROTO, "127.0.0.1", port))
        except OSError as exc:
            return exc.errno == errno.EADDRINUSE, str(exc).replace(str(port), "PORT")
    return "no error"


@case
def _server_life(loop: Loop) -> object:
    async def main() -> object:
        server = await loop.create_server(_PROTO, "127.0.0.1", 0, start_serving=False)
        seen = [server.is_serving(), len(server.sockets), server.get_loop() is loop]
        await server.start_serving()
        seen.append(server.is_serving())
        server.close()
        server.close()
        seen += [server.is_serving(), server.sockets]
        await server.wait_closed()
        return seen

    return loop.run_until_complete(main())


@case
def _transport_life(loop: Loop) -> object:
    one, two = socket.socketpair()

    async def main() -> object:
        transport, protocol = await loop.create_connection(_PROTO, sock=one)
        seen: list[object] = [
            transport.is_closing(),
            transport.is_reading(),
            transport.can_write_eof(),
            transport.get_write_buffer_size(),
            transport.get_write_buffer_limits(),
            transport.get_protocol() is protocol,
            transport.get_extra_info("nothing", "default"),
            transport.get_extra_info("sockname"),
            transport.get_extra_info("peername"),
        ]
        for wrong in ("text", None, 1):
            try:
                transport.write(wrong)
            except TypeError as exc:
                seen.append(str(exc))
        for limits in ({"high": 1, "low": 2}, {"low": -1}):
            try:
                transport.set_write_buffer_limits(**limits)
            except ValueError as exc:
                seen.append(str(exc))
        transport.pause_reading()
        transport.pause_reading()
        seen.append(transport.is_reading())
        transport.resume_reading()
        transport.write_eof()
        try:
            transport.write(b"x")
        except RuntimeError as exc:
            seen.append(str(exc))
        transport.close()
        transport.close()
        seen.append(transport.is_closing())
        await asyncio.sleep(0.01)
        return seen

    with two:
        return loop.run_until_complete(main())
