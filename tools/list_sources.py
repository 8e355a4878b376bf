"""Print the sources of a folder, sorted, one a line, for meson.build.

Meson has no wildcard on purpose: a build that does not see a new file is not
run again for it.  Here every build configures anew (dev.py, pip), so what is in
the tree is what is built and installed, and no list has to be kept by hand.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def sources(folder: Path, endings: tuple[str, ...], recursive: bool) -> Iterator[str]:
    """Yield the paths of matching files, relative to `folder`."""
    for path in folder.rglob("*") if recursive else folder.iterdir():
        relative = path.relative_to(folder)
        hidden = any(part.startswith((".", "__pycache__")) for part in relative.parts)
        if path.is_file() and path.name.endswith(endings) and not hidden:
            yield relative.as_posix()


def main() -> None:
    """Read the command line and print the list."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("endings", nargs="+")
    parser.add_argument("--recursive", action="store_true")
    options = parser.parse_args()
    found = sources(options.folder, tuple(options.endings), options.recursive)
    print("\n".join(sorted(found)))


if __name__ == "__main__":
    main()
