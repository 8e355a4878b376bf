"""The loops that can be compared, by name, and how each one is made.

Runs in the measured child processes (`make_loop`) and, as a script, as a probe that
says whether a loop works here: ``python loops.py NAME`` prints one JSON object.
It knows nothing of rows, servers or reports. Loops are imported by name only, so that
one that is missing is a fact to report and not an ImportError of the benchmarks.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import platform
import sys
from dataclasses import dataclass, field
from typing import Any

OURS = "aioqemu"


@dataclass(frozen=True)
class LoopSpec:
    """One way to make a loop.

    Attributes:
        name: what `--loops` and the tables call it.
        module: the module to import.
        factory: dotted name in that module.
        options: keyword arguments of the factory.
    """

    name: str
    module: str
    factory: str = "new_event_loop"
    options: dict[str, str] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        """Whether this is a loop of the project under test."""
        return self.module == OURS


LOOPS: dict[str, LoopSpec] = {
    spec.name: spec
    for spec in (
        LoopSpec("asyncio", "asyncio", "SelectorEventLoop"),
        LoopSpec("uvloop", "uvloop"),
        LoopSpec("aioqemu-poll", OURS, options={"fdmon": "poll"}),
        LoopSpec("aioqemu-epoll", OURS, options={"fdmon": "epoll"}),
        LoopSpec("aioqemu-io_uring", OURS, options={"fdmon": "io_uring"}),
    )
}
"""The default set, in the order of the tables."""


def spec_of(name: str) -> LoopSpec:
    """Find a loop by its name, or take ``module:factory`` as a loop of your own.

    Raises:
        ValueError: the name is neither.
    """
    if name in LOOPS:
        return LOOPS[name]
    module, colon, factory = name.partition(":")
    if colon and module and factory:
        return LoopSpec(name, module, factory)
    known = ", ".join(LOOPS)
    raise ValueError(f"no loop {name!r}: one of {known}, or module:factory")


def make_loop(name: str) -> asyncio.AbstractEventLoop:
    """Make a new loop of that name.

    Raises:
        ImportError: its package is not installed.
        OSError: the backend it asks for cannot run here.
        RuntimeError: it was made, but with another backend than the one asked for.
    """
    spec = spec_of(name)
    factory: Any = importlib.import_module(spec.module)
    for part in spec.factory.split("."):
        factory = getattr(factory, part)
    loop: asyncio.AbstractEventLoop = factory(**spec.options)
    wanted = spec.options.get("fdmon")
    running = getattr(loop, "fdmon", wanted)
    if running != wanted and spec.ours:
        loop.close()
        raise RuntimeError(f"asked for {wanted}, runs on {running}")
    return loop


def version_of(spec: LoopSpec) -> str:
    """Say which version of the loop's package is installed."""
    if spec.module == "asyncio":
        return platform.python_version()
    found = getattr(importlib.import_module(spec.module), "__version__", None)
    return str(found) if found is not None else "unknown"


def probe(name: str) -> dict[str, str]:
    """Make the loop, run it once, close it; tell what it is or why it failed.

    Returns:
        ``{"version", "class"}``, or ``{"missing": reason}``.
    """
    try:
        spec = spec_of(name)
        loop = make_loop(name)
        try:
            loop.run_until_complete(asyncio.sleep(0))
            kind = f"{type(loop).__module__}.{type(loop).__qualname__}"
        finally:
            loop.close()
        return {"version": version_of(spec), "class": kind}
    except ModuleNotFoundError as exc:
        return {"missing": f"not installed ({exc})"}
    except Exception as exc:  # a probe reports whatever is wrong
        return {"missing": f"{type(exc).__name__}: {exc}"}


if __name__ == "__main__":
    print(json.dumps(probe(sys.argv[1])))
