"""Child processes that speak JSON lines, and the machine they run on.

Every process that the benchmarks start is started here: without a shell, in a session
of its own (Ctrl-C reaches only the parent, which then ends them in order), with the
environment cleaned of what would distort a measurement. It knows nothing of rows.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

HERE = Path(__file__).resolve().parent
DISTORTING = (
    "AIOQEMU_FDMON",
    "PYTHONASYNCIODEBUG",
    "PYTHONDEVMODE",
    "PYTHONMALLOC",
    "PYTHONTRACEMALLOC",
    "PYTHONPROFILEIMPORTTIME",
)


class ChildFailed(Exception):
    """A child process died, hung or said something that cannot be right."""


def environment() -> dict[str, str]:
    """The environment of a child."""
    return {key: val for key, val in os.environ.items() if key not in DISTORTING}


def python(script: str, *args: str) -> list[str]:
    """The command that runs one of our scripts with this interpreter."""
    return [sys.executable, str(HERE / script), *args]


class Child:
    """A process that prints JSON lines and takes commands on standard input.

    Args:
        command: the program and its arguments.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._stderr = tempfile.TemporaryFile()
        self._pending = b""
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment(),
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def send(self, line: str) -> None:
        """Send one command.

        Raises:
            ChildFailed: the child is gone.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except OSError as exc:
            raise ChildFailed(self.why()) from exc

    def receive(self, timeout: float) -> dict[str, Any]:
        """Read one JSON line.

        Args:
            timeout: seconds.

        Raises:
            ChildFailed: none came, with what the child wrote to standard error.
        """
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        end = time.monotonic() + timeout
        while b"\n" not in self._pending:
            left = end - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                raise ChildFailed(f"no answer within {timeout:g} s")
            data = os.read(fd, 65536)
            if not data:
                raise ChildFailed(self.why())
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return _decode(line)

    def why(self) -> str:
        """Say how the child ended: its last words and its exit status."""
        try:
            code = self._process.wait(2)
        except subprocess.TimeoutExpired:
            return "closed its output but is still running"
        return describe(code, self._last_words())

    def close(self, *, quit_command: str | None = None, timeout: float = 5) -> str:
        """End the child, in order if it lets us, and by force if not.

        Returns:
            An empty string, or what was wrong with the way it ended.
        """
        trouble = ""
        if self._process.poll() is None and quit_command is not None:
            with contextlib.suppress(ChildFailed):
                self.send(quit_command)
        else:
            self._close_stdin()
        try:
            code = self._process.wait(timeout)
            if code != 0:
                trouble = describe(code, self._last_words())
        except subprocess.TimeoutExpired:
            trouble = f"did not end within {timeout:g} s and was killed"
            self._process.kill()
            self._process.wait()
        self._close_stdin()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._stderr.close()
        return trouble

    def kill(self) -> None:
        """End the child by force; it may have ended already."""
        if not self._stderr.closed:
            self._process.kill()
            self.close()

    def _close_stdin(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def _last_words(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read()[-20_000:].decode(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()


def call(command: Sequence[str], timeout: float) -> dict[str, Any]:
    """Run a program that prints one JSON object and ends.

    Raises:
        ChildFailed: it did not, or the object has the key "error".
    """
    with Child(command) as child:
        found = child.receive(timeout)
        if "error" in found:
            raise ChildFailed(str(found["error"]))
        child.close(timeout=timeout)
    return found


def describe(code: int, words: str) -> str:
    """Put an exit status and the last words of a process into one line."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        fatal = [line for line in lines if line.startswith("Fatal Python error")]
        return f"killed by {name}" + (f" ({fatal[0]})" if fatal else "")
    return lines[-1].rstrip(":") if lines else f"exited with status {code}"


def _decode(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as exc:
        raise ChildFailed(f"not JSON: {line[:200]!r}") from exc
    if not isinstance(found, dict):
        raise ChildFailed(f"not an object: {line[:200]!r}")
    return found
