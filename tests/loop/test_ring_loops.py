"""Rules of loops that end, or move, while io_uring receives for their streams."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import TYPE_CHECKING, Any

import pytest

from .helpers import Recorder, eventually, is_ours, new_like, one_pass, socket_pair

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def loop(any_loop: asyncio.AbstractEventLoop) -> Iterator[Any]:
    """A loop on a ring that may receive."""
    if not is_ours(any_loop) or any_loop.fdmon != "io_uring":  # type: ignore[attr-defined]
        pytest.skip("about io_uring")
    made: Any = new_like(any_loop)
    try:
        yield made
    finally:
        made.close()


def test_a_loop_that_moves_to_another_thread_loses_nothing(loop: Any) -> None:
    mine, peer = socket_pair()
    others = [socket_pair() for _ in range(4)]

    async def begin() -> tuple[Any, Any]:
        for other, _ in others:
            await loop.create_connection(Recorder, sock=other)
        return await loop.create_connection(Recorder, sock=mine)

    async def some(word: bytes) -> None:
        for _ in range(20):
            for _, other in others:
                other.send(word)
            peer.send(word)
            await asyncio.sleep(0.001)

    async def wait(length: int) -> None:
        await eventually(lambda: len(protocol.data) >= length)

    try:
        transport, protocol = loop.run_until_complete(begin())
        loop.run_until_complete(some(b"a"))
        assert loop.stats()["fdmon_info"]["received"] > 0
        peer.send(b"between ")
        one_pass(loop)
        peer.send(b"threads ")
        thread = threading.Thread(target=loop.run_until_complete, args=[some(b"b")])
        thread.start()
        thread.join()
        peer.send(b"home ")
        loop.run_until_complete(some(b"c"))
        loop.run_until_complete(wait(81))
        expected = b"a" * 20 + b"between threads " + b"b" * 20 + b"home " + b"c" * 20
        assert protocol.data == expected
        peer.send(b"never seen")
        transport.abort()
        for _, other in others:
            other.close()
        one_pass(loop)
        loop.run_until_complete(asyncio.sleep(0.01))
    finally:
        peer.close()


def test_a_loop_that_closes_with_requests_in_flight(loop: Any) -> None:
    mine, peer = socket_pair()
    others = [socket_pair() for _ in range(4)]

    async def main() -> None:
        _, protocol = await loop.create_connection(Recorder, sock=mine)
        for other, _ in others:
            await loop.create_connection(Recorder, sock=other)
        for _ in range(20):
            for _, other in others:
                other.send(b"small")
            peer.send(b"small")
            await asyncio.sleep(0.001)
        assert loop.stats()["fdmon_info"]["received"] > 0
        protocol.transport.pause_reading()
        peer.send(b"held or not")
        await asyncio.sleep(0.001)

    def end() -> None:
        loop.run_until_complete(main())
        peer.send(b"never seen")
        loop.close()
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed transport"):
        end()
    for _, other in (*others, (None, peer)):
        other.close()
