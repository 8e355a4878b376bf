"""Named steps of a longer run: all of them run, each gets a line with its time.

The table comes after the last step, and below it once more the closing line of
the last test run, where people and CI look for it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tools.environments import Failure

if TYPE_CHECKING:
    from collections.abc import Callable


class Steps:
    """Run steps one after another and remember how each went."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._closing = ""
        self._failed = False

    def run(self, name: str, step: Callable[[], str]) -> bool:
        """Run `step`; what it returns is shown in its line of the table."""
        print(f"\n=== {name}", flush=True)
        began = time.monotonic()
        try:
            remark = step()
            passed = True
        except Failure as failure:
            remark = str(failure)
            passed = False
            print(f"{name}: {failure}", flush=True)
        self._add("ok" if passed else "FAILED", name, remark, time.monotonic() - began)
        if remark.startswith("=") or "\x1b[" in remark:
            self._closing = remark.splitlines()[0]  # pytest's own
        return passed

    def note(self, name: str, remark: str, *, failed: bool) -> None:
        """Record a step that could not run."""
        print(f"\n=== {name}: {remark}", flush=True)
        self._add("FAILED" if failed else "not run", name, remark, 0.0)

    def _add(self, state: str, name: str, remark: str, seconds: float) -> None:
        self._failed |= state == "FAILED"
        remark = remark.splitlines()[0].strip("= ") if remark else ""
        self._lines.append(f"{state:8}{seconds:7.1f} s  {name:34}{remark}".rstrip())

    def table(self) -> None:
        """Print a line for each step, then the last test run's closing line."""
        print("\n" + "\n".join(self._lines))
        if self._closing:
            print(self._closing)

    @property
    def exit_code(self) -> int:
        """1 if any step failed."""
        return int(self._failed)
