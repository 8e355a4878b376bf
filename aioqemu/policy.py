"""The event loop policy, for programs that still choose their loop by one.

Policies are deprecated from Python 3.14 on and gone from 3.16, so this file is loaded
only when one of its names is asked for and can be deleted one day. Lead users to
``aioqemu.run()`` and ``loop_factory=`` instead.
"""

from __future__ import annotations

import asyncio
import warnings
from typing import TYPE_CHECKING

from ._runner import new_event_loop

if TYPE_CHECKING:
    from ._loop.loop import EventLoop

# From 3.14 on the very name of the base warns. Whoever sets a policy is warned by
# asyncio.set_event_loop_policy() itself, at the line that can be changed.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    _Base = asyncio.DefaultEventLoopPolicy


class EventLoopPolicy(_Base):
    """A policy whose new loops are aioqemu loops; everything else is asyncio's own."""

    def new_event_loop(self) -> EventLoop:
        """Make a loop, without making it the current one."""
        return new_event_loop()


def install() -> None:
    """Make aioqemu the source of every loop that asyncio makes from here on.

    Sets ``EventLoopPolicy``; from Python 3.14 on that gives a DeprecationWarning.
    """
    asyncio.set_event_loop_policy(EventLoopPolicy())
