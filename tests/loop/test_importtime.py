"""`import aioqemu` takes less than 1.3 times what `import asyncio` takes."""

from __future__ import annotations

import statistics
import subprocess
import sys

import pytest

RUNS = 7
LIMIT = 1.3


def _import_us(module: str) -> int:
    """Cumulative microseconds of one import in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-P", "-X", "importtime", "-c", f"import {module}"],
        capture_output=True,
        text=True,
        check=True,
    )
    for line in done.stderr.splitlines():
        # "import time:   self [us] | cumulative | imported package"
        _, _, fields = line.partition("import time:")
        columns = [field.strip() for field in fields.split("|")]
        if len(columns) == 3 and columns[2] == module:
            return int(columns[1])
    raise AssertionError(f"no time for {module}:\n{done.stderr}")


@pytest.mark.slow
def test_importing_takes_little_more_than_asyncio() -> None:
    # Taken in turns, so that a change of the machine's pace meets both.
    pairs = [(_import_us("asyncio"), _import_us("aioqemu")) for _ in range(RUNS)]
    stock = statistics.median(pair[0] for pair in pairs)
    ours = statistics.median(pair[1] for pair in pairs)
    best = min(pair[1] for pair in pairs) / min(pair[0] for pair in pairs)
    assert min(ours / stock, best) < LIMIT, pairs


def test_importing_leaves_the_heavy_parts_alone() -> None:
    script = """
import sys
import asyncio
before = set(sys.modules)
import aioqemu
heavy = {"http", "email", "urllib", "unittest", "inspect", "typing", "dataclasses"}
print(sorted(m for m in set(sys.modules) - before if m.partition(".")[0] in heavy))
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
