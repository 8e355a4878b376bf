"""The clock that micro rows tell what counts, and the marks it leaves for counters.

CPU time and wall time of what it encloses. With marks, the beginning and the end are
also two system calls that nothing else here makes, which is what a tracer or a profiler
outside of this process cuts its record at. It knows nothing of rows or loops.
"""

from __future__ import annotations

import os
import resource
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

BEGIN, END, NEXT = "getsid", "getppid", "getpgid"
"""The system calls at the beginning, at the end, and before a new run."""


def mark_begin() -> None:
    """From here on counts what a tracer sees."""
    os.getsid(0)


def mark_end() -> None:
    """Up to here."""
    os.getppid()


def mark_next() -> None:
    """What follows belongs to the next run."""
    os.getpgid(0)


class Clock:
    """Adds up CPU time (all threads and children) and wall time of what it encloses.

    Args:
        marks: whether to make the calls that tracers cut their record at.
    """

    def __init__(self, *, marks: bool = False) -> None:
        self.cpu_ns = 0
        self.wall_ns = 0
        self.marks = marks

    def __enter__(self) -> None:
        self._children = _children_ns()
        self._wall = time.perf_counter_ns()
        self._cpu = time.process_time_ns()
        if self.marks:
            mark_begin()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.marks:
            mark_end()
        self.cpu_ns += time.process_time_ns() - self._cpu
        self.wall_ns += time.perf_counter_ns() - self._wall
        self.cpu_ns += _children_ns() - self._children


def _children_ns() -> int:
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return int((found.ru_utime + found.ru_stime) * 1e9)
