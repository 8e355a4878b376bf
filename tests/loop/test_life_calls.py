"""System calls of a loop that is made, runs callbacks only, and is closed."""

from __future__ import annotations

import pytest
from support.procs import count_syscalls

import aioqemu

# What makes a ring or an epoll set and asks what it can do is paid by who needs it.
ALLOWED = {"poll": 3, "epoll": 7, "io_uring": 3}


@pytest.mark.parametrize("threadsafe", [False, True])
def test_a_loop_that_only_runs_callbacks(fdmon: str, threadsafe: bool) -> None:
    counts = count_syscalls(
        """
        import os, sys
        import aioqemu

        async def nothing():
            pass

        def one():
            loop = aioqemu.new_event_loop(fdmon=sys.argv[1])
            if sys.argv[2] == "True":
                loop.call_soon_threadsafe(int)
            loop.run_until_complete(nothing())
            loop.close()

        one()
        os.getppid()
        one()
        os.getppid()
        """,
        fdmon,
        str(threadsafe),
    )
    calls = counts.total() - counts["mmap"] - counts["munmap"] - counts["brk"]
    assert calls <= ALLOWED[fdmon], dict(counts)


def test_a_loop_is_woken_before_it_has_waited_once(fdmon: str) -> None:
    # What is said before the first wait must not be lost by its being left out.
    loop = aioqemu.new_event_loop(fdmon=fdmon)
    seen: list[int] = []
    loop.call_soon(loop.context.notify)
    loop.call_soon(loop.call_soon_threadsafe, seen.append, 1)
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    loop.close()
    assert seen == [1]
