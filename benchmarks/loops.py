"""The loops that can be compared, by name, and how each one is made.

Runs in the measured child processes (`make_loop`) and, as a script, as a probe that
says whether a loop works here: ``python loops.py NAME`` prints one JSON object.
It knows nothing of rows, servers or reports. Loops are imported by name only, so that
one that is missing is a fact to report and not an ImportError of the benchmarks.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import json
import platform
import sys
from dataclasses import dataclass, field, replace
from typing import Any

OURS = "aioqemu"
POLLING = "+polling"
"""Behind a name: the loop polls before it waits, if it can."""
POLL_MAX_NS = 100_000


@dataclass(frozen=True)
class LoopSpec:
    """One way to make a loop.

    Attributes:
        name: what `--loops` and the tables call it.
        module: the module to import.
        factory: dotted name in that module.
        options: keyword arguments of the factory.
        over: module and factory of the loop that the factory is to change.
        groups: of rows in which it differs from other loops; empty is all.
        extra: whether it is measured in full runs only, and may fail rows.
    """

    name: str
    module: str
    factory: str = "new_event_loop"
    options: dict[str, Any] = field(default_factory=dict)
    over: str = ""
    groups: tuple[str, ...] = ()
    extra: bool = False

    def runs(self, group: str) -> bool:
        """Whether rows of this group are measured on it."""
        return not self.groups or group in self.groups

    @property
    def ours(self) -> bool:
        """Whether this is a loop of the project under test."""
        return self.module == OURS


LOOPS: dict[str, LoopSpec] = {
    spec.name: spec
    for spec in (
        LoopSpec("asyncio", "asyncio", "SelectorEventLoop"),
        LoopSpec("uvloop", "uvloop"),
        LoopSpec(
            "uvloop+aiofastnet",
            "aiofastnet",
            "loop_factory",
            over="uvloop:new_event_loop",
            groups=("server",),
            extra=True,
        ),
        LoopSpec("rloop", "rloop", extra=True),
        LoopSpec("zuvloop", "zuvloop", extra=True),
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
    if name.endswith(POLLING):
        spec = spec_of(name.removesuffix(POLLING))
        options = {**spec.options, "poll_max_ns": POLL_MAX_NS} if spec.ours else {}
        return replace(spec, options=options)
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
    factory = _factory(spec.module, spec.factory)
    if spec.over:
        factory = factory(_factory(*spec.over.split(":")))
    loop: asyncio.AbstractEventLoop = factory(**spec.options)
    wanted = spec.options.get("fdmon")
    running = getattr(loop, "fdmon", wanted)
    if running != wanted and spec.ours:
        loop.close()
        raise RuntimeError(f"asked for {wanted}, runs on {running}")
    return loop


def _factory(module: str, name: str) -> Any:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def version_of(spec: LoopSpec) -> str:
    """Say which version of the loop's package is installed."""
    if spec.module == "asyncio":
        return platform.python_version()
    try:
        return importlib.metadata.version(spec.module)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


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
