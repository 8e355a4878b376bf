"""A transport may outlive its loop: what it is asked then harms nobody."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from typing import Any

import pytest

from .helpers import socket_pair

CALLS: list[tuple[str, tuple[Any, ...]]] = [
    ("pause_reading", ()),
    ("resume_reading", ()),
    ("write", (b"x",)),
    ("write_eof", ()),
    ("set_protocol", (asyncio.Protocol(),)),
    ("is_reading", ()),
    ("get_extra_info", ("peername",)),
    ("abort", ()),
    ("close", ()),
]


@pytest.mark.parametrize("order", [CALLS, CALLS[::-1]], ids=["forth", "back"])
def test_its_methods_raise_at_most(
    loop: Any, order: list[tuple[str, tuple[Any, ...]]]
) -> None:
    left, right = socket_pair("tcp")
    with right:
        transport, _ = loop.run_until_complete(
            loop.create_connection(asyncio.Protocol, sock=left)
        )
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        for name, args in order:
            with contextlib.suppress(RuntimeError):
                getattr(transport, name)(*args)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            left.close()
            del transport, _


def test_resuming_says_that_it_is_closed(loop: Any) -> None:
    left, right = socket_pair("tcp")
    with right:
        transport, _ = loop.run_until_complete(
            loop.create_connection(asyncio.Protocol, sock=left)
        )
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        transport.pause_reading()
        with pytest.raises(RuntimeError, match="closed"):
            transport.resume_reading()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            left.close()
            del transport, _
