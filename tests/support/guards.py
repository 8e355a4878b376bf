"""What a test must leave as it found it: descriptors, threads, signals, the error log.

Knows ``/proc`` and the standard library only, so that the guards judge the
package from outside.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from pathlib import Path

_GRACE_S = 3.0


def open_fds() -> dict[int, str]:
    """Return every descriptor of this process with what it points to."""
    found: dict[int, str] = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the descriptor of the listing itself
    return found


def native_threads() -> set[int]:
    """Return the kernel ids of this process's threads.

    The kernel's own io_uring workers are listed among them and are left out:
    they belong to a ring, and end some time after it is closed.
    """
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            name = (task / "comm").read_text()
        except OSError:
            continue  # it ended between the listing and the reading
        if not name.startswith("iou-"):
            found.add(int(task.name))
    return found


def signal_handlers() -> dict[str, object]:
    """Return what is done about each signal, and which are blocked in this thread."""
    found: dict[str, object] = {
        number.name: signal.getsignal(number) for number in signal.Signals
    }
    found["the mask"] = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return found


class ErrorLog(logging.Handler):
    """Collects what asyncio's logger was given at level ERROR.

    The default exception handler of every loop writes there, so a record means
    that some callback failed and nobody was told.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(self.format(record))


class Snapshot:
    """The state of the process before a test."""

    def __init__(self) -> None:
        self.fds = open_fds()
        self.threads = set(threading.enumerate())
        self.natives = native_threads()
        self.signals = signal_handlers()

    def leaks(self) -> list[str]:
        """Return one line for each thing that differs now.

        Threads and what dies with them get a grace period: an executor that was
        told not to wait, and the interpreter, need a moment to take one down.
        """
        deadline = time.monotonic() + _GRACE_S
        while found := self._differences():
            if time.monotonic() > deadline:
                return found
            time.sleep(0.01)
        return []

    def _differences(self) -> list[str]:
        now = open_fds()
        lines = [
            f"fd {fd} -> {target} was left open"
            for fd, target in sorted(now.items())
            if self.fds.get(fd) != target
        ]
        lines += [
            f"fd {fd} -> {target} was closed behind its owner's back"
            for fd, target in sorted(self.fds.items())
            if fd not in now
        ]
        lines += [
            f"thread {thread.name!r} still runs"
            for thread in threading.enumerate()
            if thread not in self.threads
        ]
        lines += [
            f"native thread {tid} still runs"
            for tid in sorted(native_threads() - self.natives)
        ]
        lines += [
            f"{name} is {handler}, was {self.signals.get(name)}"
            for name, handler in signal_handlers().items()
            if self.signals.get(name) != handler
        ]
        return lines
