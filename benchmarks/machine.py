"""What the figures were measured on: machine, kernel, Python, command line."""

from __future__ import annotations

import datetime
import os
import platform
import sys
import sysconfig
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent


def cpu_model() -> str:
    """Name of the processor, as the kernel tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "cpu model"):
            return value.strip()
    return platform.machine()


def python_build() -> dict[str, Any]:
    """How this interpreter was built, as far as it matters for speed."""

    def config(name: str) -> str:
        return str(sysconfig.get_config_var(name) or "")

    arguments = config("CONFIG_ARGS")
    flags = " ".join(map(config, ("PY_CORE_CFLAGS", "PY_LDFLAGS_NODIST")))
    # configure always sets both flags; Debian, which builds with the profile, takes
    # the second one and all traces of it out of what it installs
    hidden = bool(config("PGO_PROF_GEN_FLAG")) and not config("PGO_PROF_USE_FLAG")
    optimised = "--enable-optimizations" in arguments or hidden
    return {
        "version": platform.python_version(),
        "implementation": platform.python_implementation(),
        "compiler": platform.python_compiler(),
        "optimised": optimised,
        "lto": "--with-lto" in arguments or "-flto" in flags,
        "debug": bool(sysconfig.get_config_var("Py_DEBUG")),
        "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        "config_args": arguments,
    }


def describe() -> dict[str, Any]:
    """Everything that belongs beside a figure."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
        # Paths as seen from the checkout: where that is is nobody's business.
        "command": [
            Path(sys.argv[0]).name,
            *(word.removeprefix(f"{CHECKOUT}/") for word in sys.argv[1:]),
        ],
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "cores_allowed": sorted(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()),
        "load_at_start": os.getloadavg(),
        "python": python_build(),
    }


def warnings(environment: dict[str, Any]) -> list[str]:
    """Say what makes the figures of this run less telling."""
    found: list[str] = []
    python = environment["python"]
    if not python["optimised"]:
        found.append(
            "this Python was built without profile-guided optimisation, which "
            "flatters native loops against asyncio"
        )
    if python["debug"]:
        found.append("this is a debug build of Python")
    if len(environment["cores_allowed"]) < 2:
        found.append("one core only: server and client share it")
    load = environment["load_at_start"][0]
    if load > 0.7:
        found.append(f"the machine was busy when this started (load {load:.1f})")
    return found
