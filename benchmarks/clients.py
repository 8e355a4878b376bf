"""The load generators: builds the C client, or falls back to the Python one.

The C client (`client/echo_client.c`) is compiled once into a cache directory that is
named by its source and flags. With OpenSSL's headers it speaks TLS too; without them,
or without a C compiler, `client/py_client.py` drives the stream rows. Which one did
is in every result. `client/bare_server.c`, the server without a loop that loops are
compared with, is compiled in the same way. It knows nothing of loops.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from children import HERE, ChildFailed, call

if TYPE_CHECKING:
    from rows import Row

SOURCE = HERE / "client" / "echo_client.c"
BARE_SOURCE = HERE / "client" / "bare_server.c"
PY_CLIENT = HERE / "client" / "py_client.py"
FLAGS = ("-O2", "-Wall", "-Wextra")
TLS_FLAGS = ("-DWITH_TLS",)
TLS_LIBS = ("-lssl", "-lcrypto")
BARE_LIBS = ("-pthread",)


def cache_dir() -> Path:
    """Make the directory for compiled clients, private to this user.

    Raises:
        PermissionError: somebody else made it.
    """
    path = Path(tempfile.gettempdir()) / f"aioqemu-bench-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        raise PermissionError(f"{path} belongs to another user")
    return path


def compile_client(compiler: str, *, tls: bool) -> Path:
    """Compile the C client, unless it is in the cache.

    Raises:
        ChildFailed: the compiler refused; its first error is the message.
    """
    before = FLAGS + (TLS_FLAGS if tls else ())
    return compile_c(compiler, SOURCE, before, TLS_LIBS if tls else ())


def compile_c(
    compiler: str, source: Path, before: tuple[str, ...], after: tuple[str, ...]
) -> Path:
    """Compile one file, unless it is in the cache.

    Raises:
        ChildFailed: the compiler refused; its first error is the message.
    """
    key = hashlib.sha256(source.read_bytes())
    key.update(repr((compiler, before, after)).encode())
    target = cache_dir() / f"{source.stem}-{key.hexdigest()[:16]}"
    if target.exists():
        return target
    fresh = target.with_name(f"{target.name}.{os.getpid()}")
    done = subprocess.run(
        [compiler, *before, str(source), "-o", str(fresh), *after],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "error" in line]
        raise ChildFailed(errors[0] if errors else f"{compiler} failed")
    fresh.replace(target)  # atomic: another run may be compiling the same
    return target


@dataclass(frozen=True)
class Clients:
    """The load generators found here.

    Attributes:
        plain: the C client, None where it cannot be built.
        tls: the C client with TLS, None where it cannot be built.
        bare: the server without a loop, None where it cannot be built.
        notes: why something is missing.
    """

    plain: Path | None
    tls: Path | None
    bare: Path | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def build(cls) -> Clients:
        """Compile what can be compiled."""
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if compiler is None:
            note = "no C compiler: the Python client drives"
            return cls(None, None, None, (note,))
        notes: list[str] = []
        built: dict[bool, Path | None] = {}
        for tls in (True, False):
            try:
                built[tls] = compile_client(compiler, tls=tls)
            except ChildFailed as exc:
                built[tls] = None
                what = "C client with TLS" if tls else "C client"
                notes.append(f"{what} not built, the Python client drives: {exc}")
        try:
            bare = compile_c(compiler, BARE_SOURCE, FLAGS, BARE_LIBS)
        except ChildFailed as exc:
            bare = None
            notes.append(f"server without a loop not built: {exc}")
        return cls(built[False], built[True], bare, tuple(notes))

    def describe(self) -> dict[str, str]:
        """Say which client drives what."""
        return {
            "tcp, unix": "C" if self.plain else "Python",
            "udp, accept": "C" if self.plain else "none",
            "tls": "C with OpenSSL" if self.tls else "Python ssl",
        }

    def program(self, row: Row) -> list[str]:
        """Choose the client of a row.

        Raises:
            ChildFailed: no client can drive it here.
        """
        chosen = self.tls if row.transport == "tls" else self.plain
        if chosen is not None:
            return [str(chosen)]
        if row.transport == "udp" or row.mode == "accept":
            raise ChildFailed("needs the C client, which could not be built")
        return [sys.executable, str(PY_CLIENT)]

    def drive(
        self,
        row: Row,
        address: dict[str, Any],
        *,
        pid: int,
        cpu: int,
        connections: int,
        size: int,
        warmup: float,
        duration: float,
    ) -> dict[str, Any]:
        """Drive a server and measure it.

        Args:
            address: as the server gave it.
            pid: of the server, whose CPU clock is read.
            cpu: the core of the client.
            warmup: seconds, not counted.
            duration: seconds, counted.

        Raises:
            ChildFailed: the run went wrong.
        """
        options = {
            "transport": row.transport,
            "mode": row.mode,
            "connections": row.connections or connections,
            "size": row.size or size,
            "warmup": warmup,
            "duration": duration,
            "server-pid": pid,
            "cpu": cpu,
            **address,
        }
        command = self.program(row)
        for key, value in options.items():
            command += [f"--{key}", str(value)]
        return call(command, timeout=warmup + duration + 15)
