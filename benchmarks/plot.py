"""Draws results: one PNG, the ratio to the reference for every row and loop."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from results import Results, RowResult, cpu_us

if TYPE_CHECKING:
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
}
SPARE_COLOURS = ("#9334e6", "#12858d", "#e8710a", "#5f6368")
HEIGHT = 0.8


def save_plot(results: Results, path: Path) -> None:
    """Write the picture.

    Servers and micro rows have a panel each. A bar is the CPU time of the reference
    divided by the loop's: to the right of the line at 1 is faster. Whiskers are the
    rounds' extremes; a row that failed says so.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    groups = [
        (title, rows)
        for group, title in (("server", "Servers"), ("micro", "Micro rows"))
        if (rows := [row for row in results.rows if row.group == group])
    ]
    loops = [name for name in results.measured if name != results.reference]
    loops = loops or results.measured
    tall = max(len(rows) for _, rows in groups) * (0.13 * len(loops) + 0.16)
    figure, axes = plt.subplots(
        1,
        len(groups),
        figsize=(9 * len(groups), max(3.0, tall) + 1.6),
        squeeze=False,
        layout="constrained",
    )
    for axis, (title, rows) in zip(axes[0], groups, strict=True):
        _panel(axis, results, title, rows, loops)
    env = results.environment
    python = env["python"]
    built = "optimised" if python["optimised"] else "not optimised"
    figure.suptitle(
        f"CPU time per event against {results.reference}\n"
        f"{env['cpu']}, {env['cores']} cores, Linux {env['kernel']}, "
        f"Python {python['version']} ({built}), {env['date'][:10]}\n"
        "beside a bar: the ratio of the medians, and the loop's CPU time per event; "
        f"whiskers: lowest and highest round{_missing(results)}",
        fontsize=10,
    )
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(loops))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _missing(results: Results) -> str:
    """Name the loops that are not in the picture, on a line of their own."""
    names = [name for name in results.loops if name not in results.measured]
    return f"\nnot measured: {', '.join(names)}" if names else ""


def _panel(
    axis: Any, results: Results, title: str, rows: list[RowResult], loops: list[str]
) -> None:
    thick = HEIGHT / len(loops)
    spare = iter(SPARE_COLOURS * len(loops))
    lowest, highest = 0.8, 1.25
    for index, loop in enumerate(loops):
        colour = COLOURS.get(loop) or next(spare)
        places, medians, below, above = [], [], [], []
        for line, row in enumerate(rows):
            place = line - HEIGHT / 2 + thick * (index + 0.5)
            if loop not in row.cells:
                continue
            ratio = row.cpu_ratio(loop, results.reference)
            if ratio is None:
                _label(axis, 1.0, place, _without_ratio(results, row, loop), "#d93025")
                continue
            places.append(place)
            medians.append(ratio.median)
            below.append(ratio.median - ratio.low)
            above.append(ratio.high - ratio.median)
            lowest, highest = min(lowest, ratio.low), max(highest, ratio.high)
            text = f"{ratio.median:.2f}   {row.cells[loop].spread(cpu_us).median:.2f}"
            _label(axis, max(ratio.high, 1.0), place, text + " us", "#444444")
        axis.barh(
            places,
            [value - 1 for value in medians],
            height=thick * 0.92,
            left=1,
            color=colour,
            label=loop,
            xerr=(below, above) if places else None,
            error_kw={"elinewidth": 0.8, "ecolor": "#202124"},
        )
    axis.axvline(1, color="#202124", linewidth=1)
    axis.set_xscale("log", base=2)
    axis.set_xlim(lowest / 1.1, highest * 1.45)
    first = math.floor(math.log2(lowest))
    ticks = [2.0**power for power in range(first, math.ceil(math.log2(highest)) + 1)]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_yticks(range(len(rows)), [row.title for row in rows], fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(axis="x", linewidth=0.4, alpha=0.6)
    axis.set_axisbelow(True)
    axis.set_title(
        f"{title}: {results.reference} CPU / loop CPU (right: faster)", fontsize=10
    )
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _without_ratio(results: Results, row: RowResult, loop: str) -> str:
    """Say why there is no bar."""
    cell = row.cells[loop]
    if not cell.good:
        return f"{loop}: failed"
    return f"{loop}: {cell.spread(cpu_us).median:.2f} us; {results.reference} failed"


def _label(axis: Any, x: float, y: float, text: str, colour: str) -> None:
    axis.annotate(
        text,
        (x, y),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=6,
        color=colour,
    )
