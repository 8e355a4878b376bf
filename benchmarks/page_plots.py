"""The plots of the page: horizontal bars, one SVG a file of results.

Each says in its metadata which results it was made of, so that one that is old can be
told without drawing it again. It knows nothing of budgets or Markdown; matplotlib is
imported only when something is drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from results import Measure, Results, RowResult, measures_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

COLOURS = {
    "asyncio": "#9aa0a6",
    "uvloop": "#f29900",
    "uvloop+aiofastnet": "#b06000",
    "rloop": "#d93025",
    "zuvloop": "#188038",
    "aioqemu-poll": "#a8c7fa",
    "aioqemu-epoll": "#4285f4",
    "aioqemu-io_uring": "#0b3d91",
    "aioqemu:threads": "#a8c7fa",
    "aioqemu:linux_aio": "#4285f4",
    "aioqemu:io_uring": "#0b3d91",
    "aioqemu:null": "#4285f4",
    "fio": "#202124",
}
SPARE = ("#9334e6", "#12858d", "#e8710a", "#5f6368", "#c5221f", "#80868b")
THICK = 0.8
"""Share of a row that is bars."""


@dataclass(frozen=True)
class Plot:
    """A picture of the page.

    Attributes:
        name: of its file, without the ending.
        source: which file of results it is made of.
        sentence: what it shows.
        title: what stands above it.
        ratios: whether the bars are ratios to the reference, or the figures.
        chosen: which rows are in it.
    """

    name: str
    source: str
    sentence: str
    title: str
    ratios: bool = True
    chosen: Callable[[RowResult], bool] = lambda row: True

    def file(self, folder: Path) -> Path:
        """Where it is."""
        return folder / f"{self.name}.svg"

    def rows(self, results: Results) -> list[RowResult]:
        """What is in it."""
        return [row for row in results.rows if self.chosen(row)]


PLOTS = (
    Plot(
        "servers",
        "results",
        "Servers: CPU time that uvloop takes for a message, divided by that of each "
        "loop; a bar to the right of the line is faster than uvloop.",
        "servers: CPU time of uvloop / of the loop",
        chosen=lambda row: row.group == "server",
    ),
    Plot(
        "micro",
        "results",
        "The same for what needs no client: callbacks, tasks, timers, threads, "
        "processes.",
        "without a client: CPU time of uvloop / of the loop",
        chosen=lambda row: row.group == "micro",
    ),
    Plot(
        "applications",
        "applications",
        "The same for applications, whose own code is most of what they cost.",
        "applications: CPU time of uvloop / of the loop",
    ),
    Plot(
        "memory",
        "memory",
        "Memory: what uvloop takes for each, divided by what the loop takes; to the "
        "right of the line is less than uvloop.",
        "memory: of uvloop / of the loop",
    ),
    Plot(
        "disk",
        "disk",
        "Block requests: thousands of transfers a second, on a logarithmic scale.",
        "thousands of transfers a second",
        ratios=False,
    ),
)


def digest_in(path: Path) -> str:
    """Of which results a picture was made, an empty string if it does not say."""
    _, found, rest = path.read_text().partition("made of results ")
    return rest.partition("<")[0].strip() if found else ""


def draw(plot: Plot, results: Results, digest: str, path: Path) -> None:
    """Draw one picture, the same bytes each time for one version of matplotlib."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "aioqemu"
    mpl.rcParams["svg.fonttype"] = "none"  # letters stay letters, and the file small
    from matplotlib import pyplot as plt

    rows = plot.rows(results)
    names = [
        name
        for name in results.loops
        if not (plot.ratios and name == results.reference)
        and any(_value(plot, results, row, name) for row in rows)
    ]
    height = 1.4 + len(rows) * (0.11 * len(names) + 0.12)
    figure, axis = plt.subplots(figsize=(9, height), layout="constrained")
    _bars(axis, plot, results, rows, names)
    axis.set_yticks(range(len(rows)), [row.title for row in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_title(plot.title, fontsize=10)
    axis.grid(axis="x", linewidth=0.4, alpha=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(5, len(labels)),
        fontsize=8,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"Date": None, "Creator": None, "Description": f"made of results {digest}"}
    figure.savefig(path, metadata=about)
    plt.close(figure)


def _value(plot: Plot, results: Results, row: RowResult, name: str) -> float | None:
    """The length of a bar; None where there is no figure."""
    if name not in row.cells or not row.cells[name].good:
        return None
    if plot.ratios:
        ratio = row.ratio(name, results.reference)
        return None if ratio is None else ratio.median
    main: Measure = measures_of(row.group)[0]
    return row.cells[name].spread(main.of).median / 1000


def _bars(
    axis: Any,
    plot: Plot,
    results: Results,
    rows: Sequence[RowResult],
    names: Sequence[str],
) -> None:
    thick = THICK / max(1, len(names))
    spare = iter(SPARE * len(names))
    left = 1.0 if plot.ratios else 0.0
    seen: list[float] = []
    for index, name in enumerate(names):
        places: list[float] = []
        values: list[float] = []
        for line, row in enumerate(rows):
            value = _value(plot, results, row, name)
            if value is not None:
                places.append(line - THICK / 2 + thick * (index + 0.5))
                values.append(value)
        colour = COLOURS.get(name) or next(spare)
        widths = [value - left for value in values]
        axis.barh(places, widths, thick * 0.92, left=left, color=colour, label=name)
        for place, value in zip(places, values, strict=True):
            axis.annotate(
                f"{value:.3g}",
                (max(value, left), place),
                xytext=(2, 0),
                textcoords="offset points",
                va="center",
                fontsize=5,
            )
        seen += values
    axis.set_xscale("log", base=2 if plot.ratios else 10)
    if plot.ratios:
        axis.axvline(1, color="#202124", linewidth=1)
        low = math.floor(math.log2(min(0.8, *seen)))
        high = math.ceil(math.log2(max(1.25, *seen)))
        ticks = [2.0**power for power in range(low, high + 1)]
        axis.set_xlim(ticks[0], ticks[-1] * 1.2)
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
    else:
        axis.set_xlim(min(seen) / 1.5, max(seen) * 1.6)
