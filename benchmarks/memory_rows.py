"""What a loop keeps in memory without a connection: timers, tasks, ready callbacks.

``python memory_rows.py ROW --loop NAME --few N --many N`` prints one JSON object:
how many `bytes` the anonymous memory of this process grows by from the first number of
objects to the second. It knows loops by name only; `resident` is for others as well.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
from typing import TYPE_CHECKING, Any

from loops import make_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

HOUR = 3600.0


def resident(pid: int | str = "self") -> int:
    """Bytes of memory that belong to a process and to no file: heaps, arenas, stacks.

    Raises:
        OSError: there is no such process, or the kernel does not tell.
    """
    with open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            if line.startswith("Anonymous:"):
                return int(line.split()[1]) * 1024
    raise OSError("the kernel does not say how much memory is anonymous")


def _nothing() -> None:
    """Never called, or without effect."""


def settled() -> int:
    """What is left when garbage has gone."""
    gc.collect()
    return resident()


async def timer(few: int, many: int) -> int:
    """Timers of the coming hours; nobody keeps their handles."""
    loop = asyncio.get_running_loop()

    def make(first: int, last: int) -> None:
        for number in range(first, last):
            loop.call_later(HOUR + number * 0.001, _nothing)

    make(0, few)
    before = settled()
    make(few, many)
    return settled() - before


async def handle(few: int, many: int) -> int:
    """Callbacks that are to run in the next pass."""
    loop = asyncio.get_running_loop()
    for _ in range(few):
        loop.call_soon(_nothing)
    before = settled()
    for _ in range(many - few):
        loop.call_soon(_nothing)
    return settled() - before


async def _tasks(
    make: Callable[[], Coroutine[Any, Any, None]], few: int, many: int
) -> int:
    """Tasks that have run up to where they wait; only the loop knows them."""
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[None] | None] = [None] * many  # the list is not counted
    tasks[:few] = [loop.create_task(make()) for _ in range(few)]
    await asyncio.sleep(0)
    before = settled()
    for number in range(few, many):
        tasks[number] = loop.create_task(make())
    await asyncio.sleep(0)  # all of them are where they wait, and so is this one
    grown = settled() - before
    for task in tasks:
        if task is not None:
            task.cancel()
    await asyncio.wait([task for task in tasks if task is not None])
    return grown


async def task(few: int, many: int) -> int:
    """Tasks that sleep for an hour."""
    return await _tasks(lambda: asyncio.sleep(HOUR), few, many)


async def _switching() -> None:
    while True:  # noqa: ASYNC110 - the step itself is what is looked at
        await asyncio.sleep(0)


async def switch(few: int, many: int) -> int:
    """Tasks that yield all the time: each has its next step in the queue."""
    return await _tasks(_switching, few, many)


ROWS: dict[str, Callable[[int, int], Coroutine[Any, Any, int]]] = {
    function.__name__: function for function in (timer, task, switch, handle)
}


def main() -> int:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("row", choices=ROWS)
    parser.add_argument("--loop", required=True)
    parser.add_argument("--few", type=int, default=1000)
    parser.add_argument("--many", type=int, default=51_000)
    args = parser.parse_args()
    loop = make_loop(args.loop)
    asyncio.set_event_loop(loop)
    grown = loop.run_until_complete(ROWS[args.row](args.few, args.many))
    print(json.dumps({"events": args.many - args.few, "bytes": grown}))
    return 0  # what is pending goes with the process


if __name__ == "__main__":
    sys.exit(main())
