"""The private parts of asyncio, and one of threading, that the loop uses.

Nothing else in aioqemu may import a name that they do not document; other modules
take it from this one.  So this page is the whole list of what a new Python
can break, and a missing name fails at import with one clear message.
Knows nothing of the loop, of sockets or of the engine.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

try:
    # The switches and limits that users patch to tune the stock loop (TLS time-outs,
    # accept retry delay, buffer sizes) and the _SendfileMode that transports carry.
    from asyncio import constants, coroutines, events

    # What Task, current_task() and run() ask to find the running loop.
    from asyncio.events import _get_running_loop, _set_running_loop

    # Names and stacks of callbacks, so that debug reports read as the stock ones.
    from asyncio.format_helpers import (
        _format_callback_source as format_callback_source,
    )
    from asyncio.format_helpers import extract_stack

    # What a call in a thread raised, as its awaiter sees it; it changes with versions.
    from asyncio.futures import (  # type: ignore[attr-defined]
        _convert_future_exc as convert_future_exc,
    )

    # Setting the result of a waiter that its task may have cancelled meanwhile.
    from asyncio.futures import (  # type: ignore[attr-defined]
        _set_result_unless_cancelled,
    )

    # The logger "asyncio", under which programs expect and filter loop messages.
    from asyncio.log import logger

    # asyncio.subprocess, sendfile() and third parties look for it among the bases.
    from asyncio.transports import _FlowControlMixin

    # The socket that get_extra_info("socket") and Server.sockets hand out.
    from asyncio.trsock import TransportSocket

    # PYTHONASYNCIODEBUG and -X dev, read as the stock loop reads them.  It is not in
    # the stubs of every type checker.
    from asyncio.coroutines import (  # type: ignore[attr-defined]  # isort: skip
        _is_debug_mode as is_debug_mode,
    )

    # Where concurrent.futures has its threads joined, before the interpreter's own.
    from threading import (  # type: ignore[attr-defined]  # isort: skip
        _register_atexit as register_threading_atexit,
    )

    # Asked, not used: when Process.wait() ends differs between patch releases.
    from asyncio.base_subprocess import (  # isort: skip
        BaseSubprocessTransport,
    )
except ImportError as exc:  # pragma: no cover - only on a Python not yet known
    raise ImportError(
        f"aioqemu needs a private part of asyncio that Python "
        f"{sys.version.split()[0]} does not have: {exc}",
        name=exc.name,
        path=exc.path,
    ) from exc

# What counts as a coroutine function when callbacks are checked.  The public name is
# deprecated from 3.14 on, where asyncio itself uses the underscored one.
iscoroutinefunction: Callable[[object], bool] = (
    getattr(coroutines, "_iscoroutinefunction", None) or coroutines.iscoroutinefunction
)

SendfileMode = constants._SendfileMode
"""How a transport can send files: UNSUPPORTED, TRY_NATIVE or FALLBACK."""

__all__ = [
    "BaseSubprocessTransport",
    "SendfileMode",
    "TransportSocket",
    "_FlowControlMixin",
    "_get_running_loop",
    "_set_result_unless_cancelled",
    "_set_running_loop",
    "constants",
    "convert_future_exc",
    "events",
    "extract_stack",
    "format_callback_source",
    "is_debug_mode",
    "iscoroutinefunction",
    "logger",
    "register_threading_atexit",
]
