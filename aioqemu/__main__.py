"""``python -m aioqemu info`` and ``bench-disk``: what runs here, how fast disks are.

For people and bug reports; it knows the public API and asks the loop's own stats.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
from typing import Any

import aioqemu
from aioqemu import _bench_disk
from aioqemu.params import FDMONS, wanted_fdmon


def _try_backend(name: str) -> dict[str, Any]:
    """Run a loop on a backend and return what it says of itself."""
    try:
        loop = aioqemu.new_event_loop(fdmon=name)
    except OSError as exc:
        return {"runs": False, "reason": str(exc)}
    try:
        # The ring is made where the loop runs.
        loop.run_until_complete(asyncio.sleep(0))
        stats = loop.stats()
    finally:
        loop.close()
    return {
        "runs": True,
        "fdmon": stats.get("fdmon"),
        "reason": stats.get("fdmon_reason"),
        "info": stats.get("fdmon_info") or {},
    }


def collect() -> dict[str, Any]:
    """Gather what ``info`` prints, as plain data."""
    kernel = os.uname()
    return {
        "aioqemu": aioqemu.__version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "kernel": f"{kernel.sysname} {kernel.release} {kernel.machine}",
        "AIOQEMU_FDMON": os.environ.get("AIOQEMU_FDMON"),
        "default": _try_backend(wanted_fdmon()),
        "backends": {name: _try_backend(name) for name in FDMONS if name != "auto"},
    }


def _print_backend(name: str, found: dict[str, Any]) -> None:
    state = "runs" if found["runs"] else "does not run"
    print(f"  {name:<9} {state}: {found['reason']}")
    for key, value in found.get("info", {}).items():
        text = " ".join(map(str, value)) if isinstance(value, list) else value
        print(f"  {'':<9}   {key}: {text}")


def _print_info(data: dict[str, Any]) -> None:
    for key in ("aioqemu", "python", "kernel"):
        print(f"{key:<9} {data[key]}")
    if data["AIOQEMU_FDMON"]:
        print(f"AIOQEMU_FDMON={data['AIOQEMU_FDMON']}")
    default = data["default"]
    print(f"default   {default.get('fdmon', 'none')} ({default['reason']})")
    print("backends")
    for name, found in data["backends"].items():
        _print_backend(name, found)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the result is the exit status."""
    parser = argparse.ArgumentParser(prog="python -m aioqemu", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    info = commands.add_parser("info", help="show the engine, the kernel, the versions")
    info.add_argument("--json", action="store_true", help="print JSON")
    bench = commands.add_parser("bench-disk", help="measure a disk, as qemu-img bench")
    _bench_disk.add_arguments(bench)
    options = parser.parse_args(arguments)
    if options.command == "bench-disk":
        return _bench_disk.main(options)
    try:
        data = collect()
    except ValueError as exc:  # AIOQEMU_FDMON names no backend
        parser.error(str(exc))
    if options.json:
        json.dump(data, sys.stdout, indent=2)
        print()
    else:
        _print_info(data)
    return 0 if data["default"]["runs"] else 1


if __name__ == "__main__":
    sys.exit(main())
