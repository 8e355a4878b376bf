"""Interpreters, and a virtual environment with the built package for each.

Standard library only: this is what sets everything else up.  An environment is
remade when its interpreter changes, its dependencies are installed when the
groups of pyproject.toml ask for more, and the package is rebuilt when the content
of a source changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENVS = ROOT / ".venv"
BUILD = ROOT / "build"

Words = Sequence[str | Path]

# What the built package is made of, relative to the root.
_BUILT_FROM = (
    "aioqemu/**/*",
    "meson.*",
    "pyproject.toml",
    "LICENSE",
    "README.md",
    "tools/list_sources.py",
)
# Set by a shell, these would make an environment see another one's packages.
_UNWANTED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSAFEPATH")
_PROBE = """
import importlib.util, json, os, platform, sys, sysconfig
def found(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False
print(json.dumps({
    "path": os.path.realpath(getattr(sys, "_base_executable", sys.executable)),
    "version": "%d.%d" % sys.version_info[:2],
    "full_version": sys.version,
    "usable": platform.python_implementation() == "CPython"
        and not sysconfig.get_config_var("Py_GIL_DISABLED"),
    "has_headers": os.path.exists(
        os.path.join(sysconfig.get_path("include"), "Python.h")),
    "has_asyncio_tests": found("test.test_asyncio"),
}))
"""


class Failure(Exception):
    """Something that was run did not succeed; the message says what."""


def command_output(
    words: Words, variables: dict[str, str] | None = None, *, merge: bool = False
) -> str:
    """Run a command quietly and return its output (`merge`: its errors as well)."""
    command = [str(word) for word in words]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merge else subprocess.PIPE,
            text=True,
            check=False,
            env=variables,
        )
    except OSError as error:
        raise Failure(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise Failure(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr or ''}")
    return done.stdout


@dataclass(frozen=True)
class Interpreter:
    """A CPython that the package can be built for."""

    path: str
    version: str
    full_version: str
    usable: bool
    has_headers: bool
    has_asyncio_tests: bool

    @classmethod
    def probe(cls, path: Path) -> Interpreter | None:
        """Ask `path` what it is; None if it does not run."""
        try:
            done = subprocess.run(
                [path, "-I", "-c", _PROBE],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=30,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None  # pyenv's shims are there for versions that are switched off
        return cls(**json.loads(done.stdout))


def this_interpreter() -> Interpreter:
    """Return the interpreter that runs this program (its base, in an environment)."""
    found = Interpreter.probe(Path(sys.executable))
    if found is None or not found.usable:
        raise Failure(f"{sys.executable} is not a CPython with a GIL")
    if not found.has_headers:
        raise Failure(
            f"{found.path} has no Python.h: install its headers "
            "(python3-dev on Debian and Ubuntu)"
        )
    return found


def _candidates(version: str) -> Iterator[Path]:
    name = f"python{version}"
    for folder in os.get_exec_path():
        yield Path(folder) / name
    if pyenv := shutil.which("pyenv"):
        root = Path(command_output([pyenv, "root"]).strip())
        yield from sorted(root.glob(f"versions/{version}*/bin/{name}"), reverse=True)
    yield BUILD / f"python-{version}" / "usr" / "bin" / name


def find_interpreter(version: str) -> Interpreter | None:
    """Find a CPython `version`, rather one that brings asyncio's own tests."""
    best: Interpreter | None = None
    for path in _candidates(version):
        found = Interpreter.probe(path) if path.exists() else None
        if found is None or found.version != version:
            continue
        if found.usable and found.has_headers:
            if found.has_asyncio_tests:
                return found
            best = best or found
    return best


def dependencies(groups: Iterable[str]) -> list[str]:
    """Return the requirements of dependency groups, nested groups included."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    wanted: set[str] = set()
    pending = list(groups)
    while pending:
        for entry in table[pending.pop()]:
            if isinstance(entry, dict):
                pending.append(entry["include-group"])
            else:
                wanted.add(entry)
    return sorted(wanted)


def _source_digest() -> str:
    digest = hashlib.sha256()
    for pattern in _BUILT_FROM:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(ROOT)}\0".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


class Environment:
    """A virtual environment of one interpreter with one build of the package."""

    def __init__(
        self, interpreter: Interpreter, variant: str = "", setup: Sequence[str] = ()
    ) -> None:
        name = f"{interpreter.version}-{variant}" if variant else interpreter.version
        self.interpreter = interpreter
        self.folder = VENVS / name
        self.build_folder = BUILD / name
        self.python = self.folder / "bin" / "python"
        self._setup = list(setup)
        self._stamp_file = self.folder / "aioqemu-dev.json"

    def variables(self, extra: dict[str, str] | None = None) -> dict[str, str]:
        """Return the process environment of everything that runs in here."""
        variables = {k: v for k, v in os.environ.items() if k not in _UNWANTED}
        variables |= {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{variables.get('PATH', '')}",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
        }
        return variables | (extra or {})

    def _stamp(self) -> dict[str, object]:
        if not self._stamp_file.exists():
            return {}
        stamp: dict[str, object] = json.loads(self._stamp_file.read_text())
        return stamp

    def _write_stamp(self, **entries: object) -> None:
        self._stamp_file.write_text(json.dumps(self._stamp() | entries, indent=1))

    def require(self, *groups: str) -> None:
        """Make the environment and install what the dependency groups name."""
        if self._stamp().get("interpreter") != asdict(self.interpreter):
            shutil.rmtree(self.folder, ignore_errors=True)
            shutil.rmtree(self.build_folder, ignore_errors=True)
            print(f"making {self.folder.relative_to(ROOT)}", flush=True)
            words: Words = [
                self.interpreter.path,
                "-m",
                "venv",
                "--without-pip",
                self.folder,
            ]
            command_output(words, self.variables())
            self._write_stamp(interpreter=asdict(self.interpreter))
        wanted = dependencies(groups)
        present = self._stamp().get("dependencies", [])
        if isinstance(present, list) and set(wanted) <= set(present):
            return
        print(f"installing the groups {', '.join(groups)}", flush=True)
        self._pip("install", "--upgrade", *wanted)
        known = present if isinstance(present, list) else []
        self._write_stamp(dependencies=sorted({*known, *wanted}))

    def offer(self, *groups: str) -> list[tuple[str, str]]:
        """Install what the groups name, one by one, as far as it installs here.

        Returns:
            What does not, with the last thing that pip said of it.
        """
        refused: list[tuple[str, str]] = []
        for requirement in dependencies(groups):
            present = self._stamp().get("dependencies", [])
            known = present if isinstance(present, list) else []
            if requirement in known:
                continue
            try:
                self._pip("install", requirement)
            except Failure as failure:
                refused.append((requirement, str(failure).strip().splitlines()[-1]))
            else:
                self._write_stamp(dependencies=sorted({*known, requirement}))
        return refused

    def _pip(self, *words: str | Path) -> str:
        pip: Words = [_pip_python(), "-m", "pip", "--python", self.python]
        return command_output([*pip, *words], self.variables(), merge=True)

    def install(self) -> str:
        """Build and install the package if a source changed; return a remark."""
        BUILD.mkdir(exist_ok=True)
        digest = _source_digest()
        if self._stamp().get("installed") == [digest, *self._setup]:
            return "up to date"
        print("building", flush=True)
        log = BUILD / f"{self.build_folder.name}.log"
        try:
            output = self._pip(
                "install",
                "--verbose",
                "--no-deps",
                "--no-build-isolation",
                "--force-reinstall",
                f"-Cbuild-dir={self.build_folder}",
                *(f"-Csetup-args={word}" for word in self._setup),
                ROOT,
            )
        except Failure as failure:
            log.write_text(str(failure))
            print("\n".join(str(failure).splitlines()[-80:]))
            raise Failure(f"the build failed, all of it is in {log}") from failure
        log.write_text(output)
        self._write_stamp(installed=[digest, *self._setup])
        warnings = sum("warning:" in line for line in output.splitlines())
        return f"{warnings} compiler warnings, see {log.relative_to(ROOT)}"

    def call(self, words: Words, extra: dict[str, str] | None = None) -> int:
        """Run a command in the terminal and return its exit code."""
        command = [str(word) for word in words]
        return subprocess.call(command, cwd=ROOT, env=self.variables(extra))

    def checked(self, words: Words, *, folder: Path = ROOT) -> str:
        """Run a command in the terminal; a non-zero exit is a Failure."""
        command = [str(word) for word in words]
        code = subprocess.call(command, cwd=folder, env=self.variables())
        if code:
            raise Failure(f"exit code {code}")
        return ""

    def stream(self, words: Words, extra: dict[str, str]) -> str:
        """Run a command, show its output as it comes, return the last line."""
        last = ""
        with subprocess.Popen(
            [str(word) for word in words],
            cwd=ROOT,
            env=self.variables(extra),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                last = line.rstrip("\n") or last
        if process.returncode:
            raise Failure(f"{last}\n(exit code {process.returncode})")
        return last


def _pip_python() -> Path:
    """Return the Python of an environment with a current pip, made when missing.

    One pip serves all environments: interpreters may come without one.
    """
    folder = VENVS / "pip"
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        try:
            command_output([this_interpreter().path, "-m", "venv", folder])
        except Failure as failure:
            raise Failure(
                "this Python cannot make virtual environments "
                f"(python3-venv on Debian and Ubuntu):\n{failure}"
            ) from failure
        command_output([python, "-m", "pip", "install", "--quiet", "--upgrade", "pip"])
        (folder / "done").touch()
    return python
