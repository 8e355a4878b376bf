#!/usr/bin/env python3
"""Everything a developer runs, with nothing set up beforehand.

    python3 dev.py bench --quick     build, install, measure against the peers
    python3 dev.py test              the whole suite, on every Python found here
    python3 dev.py --help            the other verbs

Needs Python 3.11 or newer with its headers, and a C compiler.  Each interpreter
gets a virtual environment of its own under .venv and a build directory under
build; both are kept, and a second run redoes only what a change asks for.  What
is tested and measured is always the installed package: the folder of the sources
is kept off sys.path (-P).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tools.environments import (
    BUILD,
    ROOT,
    VENVS,
    Environment,
    Failure,
    Interpreter,
    command_output,
    find_interpreter,
    this_interpreter,
)
from tools.steps import Steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

IN_CI = os.environ.get("CI", "").lower() in {"1", "true"}
# CI must have run on the first four; a stranger's machine has what it has.
REQUIRED = ("3.11", "3.12", "3.13", "3.14")
VERSIONS = (*REQUIRED, "3.15")
BACKENDS = ("poll", "epoll", "io_uring")
OWN_TESTS = ("tests/engine", "tests/block", "tests/loop")
# CPython's tests that are about tasks and futures more than about a loop.
LOOP_FREE = tuple(
    f"tests/conformance/test_cpython_{name}.py"
    for name in (
        "eager_task_factory",
        "free_threading",
        "futures",
        "futures2",
        "graph",
        "locks",
        "queues",
        "staggered",
        "taskgroups",
        "tasks",
        "threads",
        "timeouts",
        "waitfor",
    )
)
FAST = "not slow and not integration"


def pytest(
    environment: Environment,
    arguments: Sequence[str],
    *,
    parallel: bool = True,
    extra: dict[str, str] | None = None,
) -> str:
    """Run pytest on the installed package and return its last summary line."""
    words: list[str | Path] = [environment.python, "-P", "-m", "pytest"]
    words += ["-n2", "--dist=worksteal"] if parallel else []
    # A shared machine may stall a test that waits for milliseconds: CI tries it again,
    # and its summary counts every such rerun.
    words += ["--require-fdmon", "--reruns=1", "--reruns-delay=1"] if IN_CI else []
    words += ["--color=yes"] if sys.stdout.isatty() else []
    return environment.stream([*words, *arguments], extra or {})


def others(main: Interpreter, fetch: bool) -> Iterator[tuple[str, Interpreter | None]]:
    """Yield the further versions of Python, with None for one that is not here."""
    for version in VERSIONS:
        if version == main.version:
            continue
        found = find_interpreter(version)
        if found is None and fetch and version == "3.14":
            print("fetching Python 3.14 ...", flush=True)
            tool = ROOT / "tools" / "fetch_python.py"
            words: list[str | Path] = [
                sys.executable,
                tool,
                version,
                BUILD / "python-3.14",
            ]
            try:
                found = Interpreter.probe(Path(command_output(words).strip()))
            except Failure as failure:
                print(failure, flush=True)
        yield version, found


def test(options: argparse.Namespace, rest: list[str]) -> int:
    """Run the whole suite as CI does, on this interpreter and all others found."""
    steps = Steps()
    main = this_interpreter()
    fetch = IN_CI or options.fetch
    for version, interpreter in others(main, fetch):
        name = f"tests on Python {version}"
        if interpreter is None:
            required = fetch and version in REQUIRED
            steps.note(name, "no such interpreter here, not run", failed=required)
            continue
        if not interpreter.has_asyncio_tests:
            steps.note(
                f"conformance on Python {version}",
                "this interpreter comes without test.test_asyncio, not run",
                failed=fetch and version in REQUIRED,
            )
        # Compiles in half the time; the main interpreter tests what is released.
        setup = ("-Doptimization=1",) if IN_CI else ()
        environment = Environment(interpreter, setup=setup)
        if steps.run(f"build for Python {version}", prepare(environment, "test")):
            everywhere(steps, environment, rest)

    environment = Environment(main)
    label = f"Python {main.version}"
    groups = ("test", "integration", "bench")
    if not steps.run(f"build for {label}", prepare(environment, *groups)):
        steps.table()
        return 1
    # What the environment chooses is for loops that are made without a name, and debug
    # mode for all; the whole suite, below, runs everything on each backend.
    debugged = default_backend(environment)
    for name in BACKENDS:
        extra = {"AIOQEMU_FDMON": name}
        if name == debugged:
            extra["PYTHONASYNCIODEBUG"] = "1"
        words = ["--no-control", "-m", FAST]
        if name == debugged:
            words += [f"--ignore={path}" for path in LOOP_FREE]
        else:
            words += ["tests/loop", "tests/meta"]
        words += rest
        given = " ".join(f"{key}={value}" for key, value in extra.items())
        steps.run(
            f"tests with {given}", partial(pytest, environment, words, extra=extra)
        )
    steps.run(f"whole suite on {label}", partial(pytest, environment, rest))
    steps.table()
    return steps.exit_code


def everywhere(steps: Steps, environment: Environment, rest: Sequence[str]) -> None:
    """Run what every interpreter has to pass.

    CPython's tests of loops run on each backend. The project's own and what is about
    tasks run on the default backend: they have less to do with the interpreter, and the
    main one runs all on each backend, and on the control. Those of the engine and of
    disks have nothing to do with asyncio: CI runs them on the oldest and the newest,
    and there alone CPython's tests on each backend.
    """
    label = f"Python {environment.interpreter.version}"
    loops = ["tests/conformance", *(f"--ignore={path}" for path in LOOP_FREE)]
    between = IN_CI and environment.interpreter.version in REQUIRED[:-1]
    default = ["--fdmon", default_backend(environment)]
    loops += ["--no-control", *(default if between else ()), *rest]
    steps.run(f"conformance on {label}", partial(pytest, environment, loops))
    own = [*default, "--no-control", "-m", FAST]
    own += [*(["tests/loop"] if between else OWN_TESTS), *LOOP_FREE, *rest]
    steps.run(f"tests on {label}", partial(pytest, environment, own))


def quick(_options: argparse.Namespace, rest: list[str]) -> int:
    """Run the fast tests on the default backend and this interpreter."""
    environment = Environment(this_interpreter())
    prepare(environment, "test")()
    selection = rest or ["-m", FAST]
    pytest(environment, ["--fdmon", default_backend(environment), *selection])
    return 0


def default_backend(environment: Environment) -> str:
    """Ask the installed package which backend `auto` gives here."""
    code = "import aioqemu; loop = aioqemu.new_event_loop(); print(loop.fdmon)"
    return command_output(
        [environment.python, "-P", "-W", "ignore", "-c", code],
        environment.variables(),
    ).strip()


def measuring(program: str, rest: Sequence[str], *groups: str) -> int:
    """Run one of the programs in benchmarks on the installed package.

    What it is measured beside takes part where it installs: not every peer has a wheel
    for every Python.
    """
    environment = Environment(this_interpreter())
    prepare(environment, "bench")()
    offered = ["peers"] if program in WITH_PEERS and "--quick" not in rest else []
    for name, reason in environment.offer(*groups, *offered):
        print(f"{name} does not install here: {reason}", flush=True)
    return environment.call([environment.python, f"benchmarks/{program}.py", *rest])


def bench(_options: argparse.Namespace, rest: list[str]) -> int:
    """Measure aioqemu beside asyncio and uvloop; arguments go to run.py."""
    return measuring("run", rest)


def disk(_options: argparse.Namespace, rest: list[str]) -> int:
    """Measure block requests beside file libraries, fio and qemu-img."""
    return measuring("disk", rest, "disk")


def applications(_options: argparse.Namespace, rest: list[str]) -> int:
    """Measure HTTP, WebSocket and PostgreSQL libraries on each loop."""
    return measuring("applications", rest, "applications")


def memory(_options: argparse.Namespace, rest: list[str]) -> int:
    """Measure the memory of connections, timers and tasks."""
    return measuring("memory", rest)


def calls(_options: argparse.Namespace, rest: list[str]) -> int:
    """Count the system calls of an event on each loop, with strace."""
    return measuring("system_calls", rest)


def instructions(_options: argparse.Namespace, rest: list[str]) -> int:
    """Count instructions with callgrind against the baseline (--record: make it)."""
    return measuring("instructions", rest)


def page(_options: argparse.Namespace, rest: list[str]) -> int:
    """Make docs/benchmarks.md from the committed results (--check: compare)."""
    return measuring("page", rest)


def everything(_options: argparse.Namespace, rest: list[str]) -> int:
    """Measure all that is on the page, for forty minutes, and make it."""
    return measuring("everything", rest, "disk", "applications")


def build(_options: argparse.Namespace, _rest: list[str]) -> int:
    """Build and install into this interpreter's environment."""
    environment = Environment(this_interpreter())
    prepare(environment)()
    print(environment.python)
    return 0


def prepare(environment: Environment, *groups: str) -> Callable[[], str]:
    """Return a step that makes the environment, builds and installs."""

    def step() -> str:
        environment.require("build", *groups)
        return environment.install()

    return step


def lint(_options: argparse.Namespace, _rest: list[str]) -> int:
    """Check form: ruff, cython-lint, codespell."""
    steps = Steps()
    environment = Environment(this_interpreter())
    environment.require("lint")
    commands: dict[str, list[str]] = {
        "ruff check": ["ruff", "check", "."],
        "ruff format": ["ruff", "format", "--check", "."],
        "cython-lint": ["cython-lint", "aioqemu"],
        "codespell": ["codespell", "."],
    }
    for name, command in commands.items():
        steps.run(name, partial(environment.checked, command))
    steps.table()
    return steps.exit_code


def types(_options: argparse.Namespace, _rest: list[str]) -> int:
    """Check types: mypy strict, and the stubs against the compiled modules."""
    steps = Steps()
    environment = Environment(this_interpreter())
    prepare(environment, "type", "bench")()
    steps.run("mypy", partial(environment.checked, ["mypy"]))
    modules = [
        ".".join(stub.relative_to(ROOT).with_suffix("").parts)
        for stub in sorted((ROOT / "aioqemu").rglob("*.pyi"))
        if stub.with_suffix(".pyx").exists()
    ]
    allowed = ROOT / "tests" / "typing" / "stubtest.txt"
    stubtest: list[str | Path] = [environment.python, "-m", "mypy.stubtest", *modules]
    stubtest += ["--mypy-config-file", ROOT / "pyproject.toml"]
    stubtest += ["--allowlist", allowed] if allowed.exists() else []
    # From a folder without sources, so that the installed stubs are compared.
    steps.run("stubtest", partial(environment.checked, stubtest, folder=BUILD))
    steps.table()
    return steps.exit_code


def asan(_options: argparse.Namespace, rest: list[str]) -> int:
    """Run the engine and loop tests under Address- and UndefinedBehaviorSanitizer."""
    environment = Environment(
        this_interpreter(),
        "asan",
        (
            "-Db_sanitize=address,undefined",
            "-Db_lundef=false",
            "-Doptimization=1",  # compiles in half the time, and traces are clearer
            "-Ddebug=true",
            "-Dchecks=true",
            "-Dline_directives=true",
        ),
    )
    prepare(environment, "test")()
    libraries = [
        command_output(["cc", f"-print-file-name={name}"]).strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    extra = {
        # The interpreter itself is not instrumented, so the run-time library has
        # to be there before it; its own leaks at exit are not our business.
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONMALLOC": "malloc",
    }
    # The descriptors are not captured: a report is written to one by a process that
    # ends there and then.
    words = ["--capture=sys", "--timeout=240", "--no-control"]
    if IN_CI:
        # Time is short there, and poll has the least that could go wrong.
        words += ["--fdmon=epoll", "--fdmon=io_uring"]
    words += rest or [*OWN_TESTS, "-m", FAST]
    pytest(environment, words, extra=extra)
    return 0


def docs(_options: argparse.Namespace, _rest: list[str]) -> int:
    """Build the documentation; warnings and dead references are errors."""
    environment = Environment(this_interpreter())
    prepare(environment, "docs")()
    target = BUILD / "docs"
    return environment.call(["sphinx-build", "-W", "-n", "-q", "docs", target])


def clean(options: argparse.Namespace, _rest: list[str]) -> int:
    """Remove builds and environments (fetched interpreters only with --all)."""
    shutil.rmtree(VENVS, ignore_errors=True)
    for entry in BUILD.iterdir() if BUILD.exists() else ():
        if entry.name.startswith("python-") and not options.all:
            continue
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return 0


WITH_PEERS = ("run", "applications", "memory", "system_calls", "everything")
MEASURING = {  # --help and all else goes to the program behind
    "bench": bench,
    "disk": disk,
    "applications": applications,
    "memory": memory,
    "calls": calls,
    "instructions": instructions,
    "page": page,
    "everything": everything,
}
VERBS = {
    **MEASURING,
    "test": test,
    "quick": quick,
    "lint": lint,
    "type": types,
    "asan": asan,
    "docs": docs,
    "build": build,
    "clean": clean,
}


def main() -> int:
    """Read the command line and run one verb."""
    parser = argparse.ArgumentParser(
        description="Build, test and measure aioqemu.",
        epilog="Further arguments go to pytest, or to the programs in benchmarks.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, function in VERBS.items():
        line = (function.__doc__ or "").splitlines()[0]
        verb = verbs.add_parser(name, help=line, add_help=name not in MEASURING)
        if name == "test":
            verb.add_argument(
                "--fetch",
                action="store_true",
                help="fetch Python 3.14 if it is not here; missing ones are errors",
            )
        if name == "clean":
            verb.add_argument("--all", action="store_true")
    options, rest = parser.parse_known_args()
    if rest and rest[0] == "--":
        del rest[0]
    if rest and options.verb not in {*MEASURING, "test", "quick", "asan"}:
        parser.error(f"{options.verb} takes no further arguments: {' '.join(rest)}")
    try:
        return VERBS[options.verb](options, rest)
    except Failure as failure:
        print(f"dev.py: {failure}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, subprocess.TimeoutExpired) as stop:
        print(f"dev.py: stopped ({type(stop).__name__})", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
