"""The asyncio benchmarks of pyperformance, as micro rows on a loop of our choice.

The package is taken as it is installed; nothing of it is copied. Its scripts hand a
coroutine function to a `pyperf.Runner`, which would run it in processes of its own with
`asyncio.run`. Here a stand-in takes it instead, and it runs on the loop that is given,
under the clock of the other rows: one event is one run of the whole benchmark. It knows
no rows and no loops.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

    from clock import Clock

PACKAGE = "pyperformance"
PREFIX = "pp_"
"""Before the names of rows, which then are pyperformance's own."""
SCRIPTS: dict[str, tuple[str, ...]] = {
    "async_generators": ("async_generators",),
    "async_tree_none": ("async_tree", "none"),
    "async_tree_none_tg": ("async_tree", "none", "--task-groups"),
    "async_tree_io": ("async_tree", "io"),
    "async_tree_memoization": ("async_tree", "memoization"),
    "async_tree_cpu_io_mixed": ("async_tree", "cpu_io_mixed"),
    "asyncio_tcp": ("asyncio_tcp",),
    "asyncio_tcp_ssl": ("asyncio_tcp", "--ssl"),
    "asyncio_websockets": ("asyncio_websockets",),
}
"""The folder of each benchmark without `bm_`, and what its script is given."""


class _Runner:
    """Stands in for `pyperf.Runner`: keeps what it is to run."""

    def __init__(self, **_options: Any) -> None:
        self.argparser = argparse.ArgumentParser()
        self.metadata: dict[str, Any] = {}

    def parse_args(self) -> argparse.Namespace:
        """Read the command line, which the caller of the script has set."""
        return self.argparser.parse_args()

    def bench_async_func(
        self,
        _name: str,
        function: Callable[..., Coroutine[Any, Any, Any]],
        *args: Any,
        **_options: Any,
    ) -> None:
        """Keep it."""
        _found.append(lambda: function(*args))


_found: list[Callable[[], Coroutine[Any, Any, Any]]] = []


def workload(name: str) -> Callable[[], Coroutine[Any, Any, Any]]:
    """Read one of the scripts as if it were run.

    Returns:
        What makes the coroutine of one run.

    Raises:
        ImportError: pyperformance, or something that the benchmark needs, is missing.
        LookupError: this version of it has no such benchmark, or it measures otherwise.
    """
    folder, *arguments = SCRIPTS[name]
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {PACKAGE!r}")
    data = Path(spec.origin).parent / "data-files" / "benchmarks"
    script = data / f"bm_{folder}" / "run_benchmark.py"
    if not script.exists():
        raise LookupError(f"this pyperformance has no {folder}")
    pyperf: Any = importlib.import_module("pyperf")
    kept = pyperf.Runner, sys.argv
    pyperf.Runner, sys.argv = _Runner, [str(script), *arguments]
    _found.clear()
    try:
        names = {"__name__": "__main__", "__file__": str(script)}
        exec(compile(script.read_text(), script, "exec"), names)
    finally:
        pyperf.Runner, sys.argv = kept
    if not _found:
        raise LookupError(f"{folder} measures nothing that is asynchronous")
    return _found[0]


def run(name: str, loop: asyncio.AbstractEventLoop, count: int, clock: Clock) -> None:
    """Run a benchmark so often on a loop."""
    make = workload(name.removeprefix(PREFIX))
    for _ in range(count):
        with clock:
            loop.run_until_complete(make())
