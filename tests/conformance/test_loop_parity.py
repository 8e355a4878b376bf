"""Small behaviours, done on ours and on the stock loop, with the results compared.

A case returns a value or raises; both loops must give the same, down to the text
of the error. What only a user of asyncio's public API can see is compared here,
and nothing of how either loop works.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from .kinds import CONTROL, KINDS, VERSION, Kind
from .parity_cases import CASES, Case, Loop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

OURS = [kind for kind in KINDS if not kind.is_control]
on_ours = pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.name)


def _plain(text: str) -> str:
    """Take out of a message what differs from loop to loop and run to run."""
    text = re.sub(r"<[^<>]*EventLoop[^<>]*>", "<loop>", text)
    # How an argument is missed is told by Python or by Cython, not by the loop.
    text = re.sub(r"^.*(missing|takes at least) \d .*argument.*$", "<arity>", text)
    text = re.sub(r"0x[0-9a-f]+", "0x", text)
    return re.sub(r"\bfd[ =]?\d+|\b\d+ is used by", "<fd>", text)


def _outcome(kind: Kind, case: Case) -> tuple[object, ...]:
    loop = kind.new_loop()
    try:
        with kind.installed(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result: tuple[object, ...] = ("returned", case(loop))
            except Exception as exc:
                result = ("raised", type(exc), _plain(str(exc)))
    finally:
        if not loop.is_closed():
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()
        asyncio.set_event_loop(None)
    heard = sorted({(w.category.__name__, _plain(str(w.message))) for w in caught})
    return (*result, heard)


# --- The comparisons -------------------------------------------------------------


# The stock loop's own answer to each case, found once.
_STOCK: dict[str, tuple[object, ...]] = {}


@on_ours
@pytest.mark.parametrize("name", CASES)
def test_same_outcome_as_the_stock_loop(kind: Kind, name: str) -> None:
    if name not in _STOCK:
        _STOCK[name] = _outcome(CONTROL, CASES[name])
    assert _outcome(kind, CASES[name]) == _STOCK[name]


METHODS = sorted(
    name
    for name, value in vars(asyncio.AbstractEventLoop).items()
    if not name.startswith("_") and callable(value)
)


def _parameters(function: Callable[..., Any]) -> list[tuple[str, object, object]]:
    return [
        (p.name, p.kind, p.default)
        for p in inspect.signature(function).parameters.values()
    ]


@on_ours
@pytest.mark.parametrize("name", METHODS)
def test_same_signature_as_the_stock_loop(kind: Kind, name: str) -> None:
    ours, stock = kind.new_loop(), CONTROL.new_loop()
    try:
        expected = _parameters(getattr(stock, name))
        assert _parameters(getattr(ours, name)) == expected
    finally:
        ours.close()
        stock.close()


@on_ours
def test_no_method_of_the_abstract_loop_is_missing(kind: Kind) -> None:
    loop = kind.new_loop()
    loop.close()
    stock = asyncio.SelectorEventLoop
    missing = [
        name
        for name in METHODS
        if getattr(type(loop), name, None) is getattr(asyncio.AbstractEventLoop, name)
        and getattr(stock, name) is not getattr(asyncio.AbstractEventLoop, name)
    ]
    assert missing == []


def _run(kind: Kind, main: Callable[[Loop], Awaitable[None]]) -> None:
    loop = kind.new_loop()
    try:
        loop.run_until_complete(main(loop))
    finally:
        loop.close()


everywhere = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


@everywhere
def test_loop_and_handles_are_instances_of_asyncios(kind: Kind) -> None:
    async def main(loop: Loop) -> None:
        assert isinstance(loop, asyncio.AbstractEventLoop)
        soon, later = loop.call_soon(print), loop.call_later(60, print)
        soon.cancel()
        later.cancel()
        assert isinstance(soon, asyncio.Handle)
        assert not isinstance(soon, asyncio.TimerHandle)
        assert isinstance(later, asyncio.TimerHandle)
        assert isinstance(later, asyncio.Handle)

    _run(kind, main)


@everywhere
def test_server_and_stream_are_instances_of_asyncios(kind: Kind) -> None:
    async def main(loop: Loop) -> None:
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        assert isinstance(server, asyncio.AbstractServer)
        (sock,) = server.sockets
        assert isinstance(sock, asyncio.trsock.TransportSocket)
        transport, _ = await loop.create_connection(
            asyncio.Protocol, *sock.getsockname()
        )
        assert isinstance(transport, asyncio.Transport)
        inner = transport.get_extra_info("socket")
        assert isinstance(inner, asyncio.trsock.TransportSocket)
        transport.close()
        server.close()
        await asyncio.sleep(0.01)

    _run(kind, main)


@everywhere
def test_datagrams_and_pipes_are_instances_of_asyncios(kind: Kind) -> None:
    async def main(loop: Loop) -> None:
        datagrams, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
        )
        if VERSION >= (3, 12):  # before, the stock one was none either
            assert isinstance(datagrams, asyncio.DatagramTransport)
        inner = datagrams.get_extra_info("socket")
        assert isinstance(inner, asyncio.trsock.TransportSocket)
        datagrams.close()
        ends = [os.fdopen(fd, mode) for fd, mode in zip(os.pipe(), "rw", strict=True)]
        reader, _ = await loop.connect_read_pipe(asyncio.Protocol, ends[0])
        writer, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, ends[1])
        assert isinstance(reader, asyncio.ReadTransport)
        assert isinstance(writer, asyncio.WriteTransport)
        writer.close()
        reader.close()
        await asyncio.sleep(0.01)

    _run(kind, main)


@everywhere
def test_process_transport_is_an_instance_of_asyncios(kind: Kind) -> None:
    async def main(loop: Loop) -> None:
        exited = loop.create_future()

        class Protocol(asyncio.SubprocessProtocol):
            def process_exited(self) -> None:
                exited.set_result(None)

        with kind.installed():
            transport, _ = await loop.subprocess_exec(Protocol, "true")
            assert isinstance(transport, asyncio.SubprocessTransport)
            await exited
            assert transport.get_returncode() == 0
            transport.close()
            await asyncio.sleep(0.01)

    _run(kind, main)
