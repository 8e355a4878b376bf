"""What is called for received data, however a protocol comes by it."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any

import pytest

from aioqemu import streams

from .helpers import eventually, skip_control, socket_pair

if TYPE_CHECKING:
    from collections.abc import Callable


class Plain(asyncio.Protocol):
    """Keeps what comes, by a method of its class."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        """Keep it."""
        self.seen.append(data)


def by_method() -> tuple[Any, list[bytes]]:
    protocol = Plain()
    return protocol, protocol.seen


def by_attribute() -> tuple[Any, list[bytes]]:
    protocol = Plain()
    seen: list[bytes] = []
    protocol.data_received = seen.append  # type: ignore[method-assign]
    return protocol, seen


def by_partial() -> tuple[Any, list[bytes]]:
    protocol = Plain()
    seen: list[bytes] = []
    protocol.data_received = functools.partial(  # type: ignore[method-assign]
        list.append, seen
    )
    return protocol, seen


def by_static_method() -> tuple[Any, list[bytes]]:
    seen: list[bytes] = []

    class Static(asyncio.Protocol):
        @staticmethod
        def data_received(data: bytes) -> None:
            seen.append(data)

    return Static(), seen


def by_class_method() -> tuple[Any, list[bytes]]:
    seen: list[bytes] = []

    class OfClass(asyncio.Protocol):
        @classmethod
        def data_received(cls, data: bytes) -> None:
            assert cls is OfClass
            seen.append(data)

    return OfClass(), seen


def by_another_object() -> tuple[Any, list[bytes]]:
    other = Plain()
    protocol = Plain()
    protocol.data_received = other.data_received  # type: ignore[method-assign]
    return protocol, other.seen


def by_getattr() -> tuple[Any, list[bytes]]:
    other = Plain()

    class Proxy:
        def __getattr__(self, name: str) -> Any:
            return getattr(other, name)

    return Proxy(), other.seen


def by_callable_object() -> tuple[Any, list[bytes]]:
    seen: list[bytes] = []

    class Call:
        def __call__(self, data: bytes) -> None:
            seen.append(data)

    class WithObject(asyncio.Protocol):
        data_received = Call()  # type: ignore[assignment]

    return WithObject(), seen


@pytest.mark.parametrize(
    "make",
    [
        by_method,
        by_attribute,
        by_partial,
        by_static_method,
        by_class_method,
        by_another_object,
        by_getattr,
        by_callable_object,
    ],
)
@pytest.mark.asyncio
async def test_data_is_received(make: Callable[[], tuple[Any, list[bytes]]]) -> None:
    loop = asyncio.get_running_loop()
    protocol, seen = make()
    left, right = socket_pair("tcp")
    with right:
        transport, _ = await loop.create_connection(lambda: protocol, sock=left)
        right.send(b"one")
        await eventually(lambda: seen == [b"one"])
        transport.set_protocol(Plain())
        transport.set_protocol(protocol)
        right.send(b"two")
        await eventually(lambda: seen == [b"one", b"two"])
        transport.close()
        await asyncio.sleep(0.01)


class Buffered(asyncio.BufferedProtocol):
    """Keeps what comes; may leave to another when a buffer is asked for."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.buffer = bytearray(100)
        self.successor: Buffered | None = None
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        self.transport = transport

    def get_buffer(self, _sizehint: int) -> bytearray:
        """Give the buffer."""
        if self.successor is not None:
            self.transport.set_protocol(self.successor)
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Keep what is in it."""
        self.seen.append(bytes(self.buffer[:nbytes]))


@pytest.mark.asyncio
async def test_a_buffer_of_one_protocol_is_not_told_to_another() -> None:
    """Both are of one class: what is called is the same function."""
    skip_control("receives into the buffer nevertheless")
    loop = asyncio.get_running_loop()
    first, second = Buffered(), Buffered()
    left, right = socket_pair("tcp")
    with right:
        transport, _ = await loop.create_connection(lambda: first, sock=left)
        right.send(b"one")
        await eventually(lambda: first.seen == [b"one"])
        first.successor = second
        right.send(b"two")
        await eventually(lambda: first.seen + second.seen == [b"one", b"two"])
        assert second.seen == [b"two"]
        transport.close()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("mixed", ["get_buffer", "buffer_updated"])
@pytest.mark.asyncio
async def test_one_of_two_may_be_an_attribute(mixed: str) -> None:
    loop = asyncio.get_running_loop()
    protocol = Buffered()
    original = getattr(protocol, mixed)
    setattr(protocol, mixed, lambda size: original(size))
    left, right = socket_pair("tcp")
    with right:
        transport, _ = await loop.create_connection(lambda: protocol, sock=left)
        right.send(b"one")
        await eventually(lambda: protocol.seen == [b"one"])
        transport.close()
        await asyncio.sleep(0.01)


@pytest.mark.asyncio
async def test_a_method_that_connection_made_gives_the_protocol_counts() -> None:
    loop = asyncio.get_running_loop()
    protocol = Plain()
    given: list[bytes] = []

    def made(_transport: object) -> None:
        protocol.data_received = given.append  # type: ignore[method-assign]

    protocol.connection_made = made  # type: ignore[method-assign]
    left, right = socket_pair("tcp")
    with right:
        transport, _ = await loop.create_connection(lambda: protocol, sock=left)
        right.send(b"one")
        await eventually(lambda: given == [b"one"])
        assert protocol.seen == []
        transport.abort()
        await asyncio.sleep(0)


@pytest.mark.parametrize("drops", ["the protocol", "its method"])
@pytest.mark.asyncio
async def test_what_goes_with_a_protocol_may_set_another(drops: str) -> None:
    # The last to set one wins, with all that belongs to it.
    loop = asyncio.get_running_loop()
    last = Plain()
    transports: list[Any] = []

    class Method:
        def __call__(self, data: bytes) -> None:
            raise AssertionError("not the one any more")

        def __del__(self) -> None:
            transports[0].set_protocol(last)

    class First(asyncio.Protocol):
        def __init__(self) -> None:
            if drops == "its method":
                self.data_received = Method()  # type: ignore[method-assign]

        def __del__(self) -> None:
            if drops == "the protocol":
                transports[0].set_protocol(last)

    left, right = socket_pair("tcp")
    with right:
        transports.append((await loop.create_connection(First, sock=left))[0])
        reader = streams.StreamReader()
        transports[0].set_protocol(streams.StreamReaderProtocol(reader))
        assert transports[0].get_protocol() is last
        right.send(b"one")
        await eventually(lambda: last.seen == [b"one"])
        transports[0].abort()
        await asyncio.sleep(0)
