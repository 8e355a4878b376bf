"""Scripts in processes of their own: for forks, seccomp, exits, system calls.

A script sees the installed package only: it runs with ``-P`` in a directory
that is not the source tree.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from pathlib import Path

import pytest

_HELPERS = str(Path(__file__).resolve().parent.parent)
TIMEOUT_S = 50.0
# Python 3.11 asks for its pid whenever it looks for the running loop. That is not the
# loop's doing, and must not be slowed down by tracing either: a pass would last so
# long that the loop looks at the fds for the time that went by.
_STRACE_OPTIONS = ("-f", "-qq", "--seccomp-bpf", "-e", "trace=!getpid")


def _environment(extra: dict[str, str] | None) -> dict[str, str]:
    env = dict(os.environ)
    env.pop("AIOQEMU_FDMON", None)
    # The scripts count system calls and passes; debug mode has its own costs.
    env.pop("PYTHONASYNCIODEBUG", None)
    env["PYTHONPATH"] = _HELPERS
    env.update(extra or {})
    return env


def run_script(
    source: str,
    *args: str,
    env: dict[str, str] | None = None,
    prefix: tuple[str, ...] = (),
    options: tuple[str, ...] = ("-W", "error"),
) -> str:
    """Run Python source in a new interpreter and return what it printed.

    Args:
        source: The program; common indentation is removed.
        args: Its ``sys.argv[1:]``.
        env: Variables on top of the present environment.
        prefix: A command to run the interpreter under.
        options: Options of the interpreter.

    Raises:
        AssertionError: When it exits with anything but 0 or writes to stderr.
    """
    command = [*prefix, sys.executable, "-P", *options]
    command += ["-c", textwrap.dedent(source), *args]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=folder,
            env=_environment(env),
            timeout=TIMEOUT_S,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, ""), (
        f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    )
    return done.stdout


@functools.cache
def strace_refusal() -> str | None:
    """Return why system calls cannot be counted here, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    probe = subprocess.run(
        ["strace", *_STRACE_OPTIONS, "-o", os.devnull, "true"],
        capture_output=True,
        check=False,
    )
    if probe.returncode != 0:
        return f"strace is refused: {probe.stderr.decode().strip()}"
    return None


def count_syscalls(source: str, *args: str) -> Counter[str]:
    """Run a script under strace and count the calls of all its threads.

    Only calls between a ``getppid`` and the next one are counted: the script
    marks what it wants measured by calling ``os.getppid()`` around it.
    """
    if (reason := strace_refusal()) is not None:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "strace")
        run_script(
            source,
            *args,
            prefix=("strace", *_STRACE_OPTIONS, "-o", str(log)),
        )
        lines = log.read_text(errors="replace").splitlines()
    counts: Counter[str] = Counter()
    measuring = False
    for line in lines:
        match = re.match(r"\d+\s+(\w+)\(", line)
        if match is None:
            continue  # the second half of an interrupted line, a signal, an exit
        if match[1] == "getppid":
            measuring = not measuring
        elif measuring:
            counts[match[1]] += 1
    return counts
