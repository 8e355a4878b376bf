"""A private PostgreSQL for one run: made in a temporary directory, gone afterwards.

It listens on a Unix socket in that directory only, runs as an unprivileged user, as
it insists on, and ends when whoever started it does. It knows nothing of rows.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from application_clients import ends_with_its_parent
from children import ChildFailed, environment

if TYPE_CHECKING:
    from types import TracebackType

PROGRAMS = ("initdb", "postgres", "pg_isready")
ELSEWHERE = Path("/usr/lib/postgresql")
"""Where Debian has them, by version and not on the path."""
USERS = ("postgres", "nobody")
NAME = "bench"
TIMEOUT = 60.0


def find_programs() -> Path | None:
    """Find the directory that has the programs of PostgreSQL; the newest of several."""
    found = shutil.which(PROGRAMS[0])
    places = [Path(found).resolve().parent] if found else []
    versions = ELSEWHERE.glob("*/bin")
    places += sorted(versions, key=version_of, reverse=True)
    for place in places:
        if all((place / program).exists() for program in PROGRAMS):
            return place
    return None


def version_of(place: Path) -> tuple[int, ...]:
    """The version in a path, for sorting."""
    return tuple(map(int, re.findall(r"\d+", place.parent.name)))


def unprivileged() -> str | None:
    """Name the user to run it as: None is this one, who is not root.

    Raises:
        ChildFailed: this is root, and there is no other user.
    """
    if os.getuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    for name in USERS:
        if name in known:
            return name
    raise ChildFailed(f"PostgreSQL does not run as root, and none of {USERS} is here")


class Database:
    """A cluster that runs while this is open.

    Args:
        programs: directory of its programs.
        cpu: the core to run on.

    Attributes:
        directory: where its socket is.
        user: whom it knows.

    Raises:
        ChildFailed: it could not be made, or does not answer.
    """

    def __init__(self, programs: Path, cpu: int) -> None:
        self.user = NAME
        self._programs = programs
        self._owner = unprivileged()
        self._directory = tempfile.TemporaryDirectory(prefix="aioqemu-pg-")
        self.directory = self._directory.name
        if self._owner is not None:
            shutil.chown(self.directory, self._owner)
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._make()
            self._start(cpu)
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        options = ["-D", f"{self.directory}/data", "-U", NAME, "-A", "trust"]
        options += ["-E", "UTF8", "--locale", "C", "--no-sync"]
        done = subprocess.run(
            [self._programs / "initdb", *options],
            cwd=self.directory,
            env=environment(),
            user=self._owner,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        if done.returncode != 0:
            raise ChildFailed(f"initdb: {(done.stderr or done.stdout).strip()[-300:]}")

    def _start(self, cpu: int) -> None:
        signal_at_end = ends_with_its_parent(signal.SIGQUIT)

        def before() -> None:
            signal_at_end()
            os.sched_setaffinity(0, {cpu})

        log = Path(self.directory) / "log"
        options = ["-D", f"{self.directory}/data", "-k", self.directory]
        options += ["-c", "listen_addresses=", "-c", "fsync=off"]
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [self._programs / "postgres", *options],
                cwd=self.directory,
                env=environment(),
                user=self._owner,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=before,
            )
        end = time.monotonic() + TIMEOUT
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                raise ChildFailed(f"postgres: {log.read_text()[-300:].strip()}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        asked = subprocess.run(
            [self._programs / "pg_isready", "-q", "-h", self.directory],
            timeout=TIMEOUT,
            check=False,
        )
        return asked.returncode == 0

    def close(self) -> None:
        """End it, and remove what it wrote."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGQUIT)  # what it holds is of no use to anybody
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._directory.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
