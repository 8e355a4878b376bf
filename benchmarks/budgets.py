"""What each path may cost: reads `budgets.toml`, where the keys are explained."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path

FILE = Path(__file__).resolve().parent / "budgets.toml"


@dataclass(frozen=True)
class Budget:
    """One path of the table; see the head of `budgets.toml`."""

    path: str
    row: str = ""
    disk: str = ""
    memory: str = ""
    application: str = ""
    counted: str = ""
    calls: float | None = None
    names: tuple[str, ...] = ()
    at_most: bool = False
    tolerance: float = 0.3
    looks: bool = False
    aside: bool = False
    present: dict[str, float] = field(default_factory=dict)
    to: dict[str, float] = field(default_factory=dict)
    measure: str = "cpu"
    note: str = ""
    why: str = ""

    @property
    def has_target(self) -> bool:
        """Whether there is something to reach."""
        return bool(self.to) or self.calls is not None

    @property
    def counted_row(self) -> str:
        """The row of `system_calls.py`."""
        return self.counted or self.row


def budgets() -> list[Budget]:
    """Read the file.

    Raises:
        TypeError: a key that is none.
    """
    with FILE.open("rb") as file:
        entries = tomllib.load(file)["budgets"]
    return [
        Budget(**{**entry, "names": tuple(entry.get("names", ()))}) for entry in entries
    ]
