"""What the kernel has, for the report of a disk test that does not come back.

Reads /proc alone; knows nothing of loops.
"""

from __future__ import annotations

from pathlib import Path


def kernel_state() -> str:
    """The threads of this process, its io_urings, and how busy the disks are."""
    told: list[str] = []
    for thread in Path("/proc/self/task").iterdir():
        name = _text(thread / "comm")
        told.append(f"thread {thread.name} {name}: {_text(thread / 'stack')}")
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = str(link.readlink())
        except OSError:
            continue  # the one that reads the directory
        if "io_uring" in target:
            told.append(f"{target}: {_text(Path('/proc/self/fdinfo') / link.name)}")
    told.append(f"io pressure: {_text(Path('/proc/pressure/io'))}")
    return "\n".join(told)


def _text(path: Path) -> str:
    try:
        return " ".join(path.read_text().split())[:800]
    except OSError as exc:
        return f"({exc.strerror})"
