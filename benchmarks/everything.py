#!/usr/bin/env python3
"""Measures everything that is on the page, one program after the other, and makes it.

    python benchmarks/everything.py                      # about forty minutes
    python benchmarks/everything.py --rounds 2           # a look, in a third of that
    python benchmarks/everything.py --only memory,disk   # the others stay as they are

Results go to benchmarks/results, to be committed with the page. Nothing else should run
on the machine meanwhile. A program that fails does not stop the others.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from loops import LOOPS
from machine import describe, warnings

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build" / "benchmarks" / "everything"
LOOPS_OF_PAGE = ",".join(name for name in LOOPS if name != "aioqemu-poll")
"""`auto` does not pick poll, and time is short."""


@dataclass(frozen=True)
class Step:
    """One program.

    Attributes:
        name: what `--only` calls it, and the file of its results.
        program: in this folder.
        words: for it; `{rounds}` is how many rounds.
        folder: whether `--output` is a folder and not a file.
    """

    name: str
    program: str
    words: tuple[str, ...] = ()
    folder: bool = False

    def command(self, rounds: int) -> list[str]:
        """What is run."""
        words = [word.format(rounds=rounds) for word in self.words]
        output = BUILD if self.folder else self.result
        program = str(HERE / f"{self.program}.py")
        return [sys.executable, program, *words, "--output", str(output)]

    @property
    def result(self) -> Path:
        """Where the program leaves its results."""
        return BUILD / f"{self.name}.json"


STEPS = (
    Step("system_calls", "system_calls"),
    Step("memory", "memory", ("--rounds", "2")),
    Step("applications", "applications", ("--rounds", "{rounds}"), folder=True),
    Step("disk", "disk", ("--rounds", "3")),
    Step(
        "results",
        "run",
        ("--rounds", "{rounds}", "--duration", "0.3", "--loops", LOOPS_OF_PAGE),
        folder=True,
    ),
)


def main() -> int:
    """Run as a script.

    Returns:
        1 if a program left no results, else 0.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of loops (default 5)")
    parser.add_argument("--only", help=f"of {', '.join(step.name for step in STEPS)}")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--no-page", action="store_true", help="leave the page alone")
    args = parser.parse_args()
    chosen = args.only.split(",") if args.only else [step.name for step in STEPS]
    if unknown := set(chosen) - {step.name for step in STEPS}:
        parser.error(f"nothing is called {', '.join(sorted(unknown))}")
    for text in warnings(describe()):
        print(f"mind: {text}", flush=True)
    BUILD.mkdir(parents=True, exist_ok=True)
    args.output.mkdir(parents=True, exist_ok=True)
    told: list[str] = []
    complete = True
    for step in (step for step in STEPS if step.name in chosen):
        step.result.unlink(missing_ok=True)
        print(f"\n=== {step.name}", flush=True)
        began = time.monotonic()
        status = subprocess.call(step.command(args.rounds))
        there = step.result.exists()
        if there:
            shutil.copy(step.result, args.output)
        complete &= there
        state = f"status {status}" if there else f"NO RESULTS, status {status}"
        told.append(f"{step.name:14}{time.monotonic() - began:7.0f} s  {state}")
    print("\n" + "\n".join(told), flush=True)
    if not args.no_page:
        page = [sys.executable, str(HERE / "page.py"), "--results", str(args.output)]
        complete &= subprocess.call(page) == 0
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
