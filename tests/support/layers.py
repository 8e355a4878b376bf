"""Reads the imports of the source tree and judges them by the layer rule.

Imports point down only: the public modules, then ``_loop``, ``_block``,
``_engine``, ``_sys``. The two lower layers that have code know nothing of
asyncio. Lines are read as text, not executed: Cython sources have no parser in
the standard library.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = Path(__file__).resolve().parents[2] / "aioqemu"
"""The package in the source tree (never what is imported)."""

LAYERS = ("_sys", "_engine", "_block", "_loop", "")
"""The layers from the bottom; the empty name is the public face."""

FORBIDDEN = {
    "_sys": {"asyncio", "socket", "logging"},
    "_engine": {"asyncio", "socket", "logging"},
    "_block": {"asyncio", "socket", "logging"},
}
"""Top-level modules that a layer must not know."""

_ENDINGS = {".py", ".pyx", ".pxd", ".pyi", ".pxi"}
_FROM = re.compile(r"^\s*from\s+(?P<module>\.*[\w.]*)\s+c?import\s+(?P<names>.+)")
_PLAIN = re.compile(r"^\s*c?import\s+(?P<modules>[\w.][\w.,\s]*)")
_INCLUDE = re.compile(r"""^\s*include\s+['"]""")
_ASYNC = re.compile(r"^\s*async\s+(def|for|with)\b|\bawait\s")


@dataclass(frozen=True)
class Line:
    """One logical line of a source file, comments and strings removed."""

    path: Path
    number: int
    text: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(SOURCE.parent)}:{self.number}: {self.text}"


def files() -> list[Path]:
    """Return every Python and Cython source of the package."""
    return sorted(path for path in SOURCE.rglob("*") if path.suffix in _ENDINGS)


def _without_strings(text: str) -> str:
    """Blank docstrings and strings, keeping line breaks.

    The one string that matters, the operand of ``include``, is only blanked
    inside, so that the statement stays recognisable.
    """

    def blank(match: re.Match[str]) -> str:
        quote = match["quote"]
        return quote + "\n" * match[0].count("\n") + quote

    string = re.compile(
        r"#[^\n]*|(?P<quote>\"\"\"|'''|\"|')(?:\\.|(?!(?P=quote)).)*?(?P=quote)",
        re.DOTALL,
    )
    return string.sub(lambda m: "" if m[0].startswith("#") else blank(m), text)


def lines(path: Path) -> Iterator[Line]:
    """Yield logical lines: parenthesised and continued ones joined."""
    pending, start, depth = "", 0, 0
    text = _without_strings(path.read_text(encoding="utf-8"))
    for number, raw in enumerate(text.splitlines(), 1):
        start = start if pending else number
        depth += raw.count("(") - raw.count(")")
        continued = raw.endswith("\\")
        pending += " " + raw.rstrip("\\") if pending else raw.rstrip("\\")
        if depth > 0 or continued:
            continue
        if pending.strip():
            for statement in pending.split(";"):
                yield Line(path, start, statement)
        pending, depth = "", 0


def imported(line: Line) -> list[str]:
    """Return the absolute names that an import line names, most specific form."""
    if match := _FROM.match(line.text):
        module = _absolute(line.path, match["module"])
        names = re.sub(r"[()]", " ", match["names"]).split(",")
        plain = [name.split()[0] for name in names if name.split()]
        return [f"{module}.{name}" for name in plain if name != "*"] or [module]
    if match := _PLAIN.match(line.text):
        return [name.split()[0] for name in match["modules"].split(",") if name.split()]
    return []


def _absolute(path: Path, module: str) -> str:
    level = len(module) - len(module.lstrip("."))
    if not level:
        return module
    package = path.relative_to(SOURCE.parent).parts[:-1]
    base = package[: len(package) - level + 1]
    return ".".join([*base, *filter(None, [module.lstrip(".")])])


def layer_of(path: Path) -> str:
    """Return the layer that a file belongs to."""
    parts = path.relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 and parts[0] in LAYERS else ""


def layer_of_name(name: str) -> str | None:
    """Return the layer of an imported name, None when it is not ours."""
    parts = name.split(".")
    if parts[0] != "aioqemu":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in LAYERS else ""


def layer_violations() -> list[str]:
    """Return the lines that import from a layer above their own."""
    found: list[str] = []
    for path in files():
        own = LAYERS.index(layer_of(path))
        for line in lines(path):
            for name in imported(line):
                other = layer_of_name(name)
                if other is not None and LAYERS.index(other) > own:
                    found.append(f"{line} (imports up, from {name})")
    return found


def forbidden_violations() -> list[str]:
    """Return the lines by which a lower layer learns of asyncio and the like."""
    return [
        f"{line} ({name} is not for this layer)"
        for path in files()
        for line in lines(path)
        for name in imported(line)
        if name.split(".")[0] in FORBIDDEN.get(layer_of(path), set())
    ]


def include_violations() -> list[str]:
    """Return textual includes, and files that exist only to be included."""
    found = [str(path) for path in files() if path.suffix == ".pxi"]
    for path in files():
        if path.suffix in {".pyx", ".pxd"}:
            found += [str(line) for line in lines(path) if _INCLUDE.match(line.text)]
    return found


def async_violations() -> list[str]:
    """Return ``async``/``await`` in compiled sources."""
    return [
        str(line)
        for path in files()
        if path.suffix in {".pyx", ".pxd"}
        for line in lines(path)
        if _ASYNC.search(line.text)
    ]


def violations() -> list[str]:
    """Return every breach of the layer rule."""
    return [
        *layer_violations(),
        *forbidden_violations(),
        *include_violations(),
        *async_violations(),
    ]
