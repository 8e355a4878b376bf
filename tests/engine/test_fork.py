"""After fork: the child may find everything refused; the parent notices nothing."""

from __future__ import annotations

import sys

import pytest
from support.procs import run_script

_PARENT = """
    import asyncio, gc, os, signal, sys, warnings
    import aioqemu
    from aioqemu import qemu_aio

    fdmon, kind = sys.argv[1:3]
    loop = aioqemu.new_event_loop(fdmon=fdmon)
    r, w = os.pipe()
    os.set_blocking(r, False)
    got = []
    loop.add_reader(r, lambda: got.append(os.read(r, 100)))
    loop.call_later(0.15, loop.stop)
    bh = loop.context.bh_new(lambda _: got.append("bh"))
    loop.call_soon(got.append, "first")
    e = aioqemu.EventNotifier()
    ctx = aioqemu.AioContext(fdmon=fdmon)
    ctx.set_event_notifier(e, lambda n: got.append(n.test_and_clear()), lambda n: 1)
    while ctx.poll(False):
        pass

    def attempt(use):
        try:
            use()
        except (RuntimeError, OSError) as error:
            return error

    def child():
        if kind == "uses":
            uses = [
                lambda: loop.call_soon_threadsafe(print),
                lambda: loop.call_soon(print),
                lambda: loop.add_reader(w, print),
                lambda: loop.remove_reader(r),
                bh.schedule,
                loop.context.notify,
                lambda: ctx.set_event_notifier(e, None, None),
                lambda: ctx.poll(False),
                ctx.fileno,
                ctx.dispatch,
                ctx.flush,
                bh.delete,
            ]
            for use in uses:
                attempt(use)
        elif kind == "closes":
            attempt(ctx.close)
            if not loop.is_running():
                attempt(loop.close)
        elif kind == "drops":
            globals().pop("ctx")
            globals().pop("loop")
            globals().pop("bh")
            gc.collect()
        elif kind == "own loop":
            if not loop.is_running():
                mine = aioqemu.new_event_loop(fdmon=fdmon)
                mine.call_later(0.01, mine.stop)
                mine.run_forever()
                mine.close()

    def forks():
        pid = os.fork()
        if pid == 0:
            try:
                child()
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
            if kind == "exits":
                sys.exit(0)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert status == 0, status
        os.write(w, b"data")
        bh.schedule()

"""


@pytest.mark.parametrize("when", ["before the run", "inside a callback"])
@pytest.mark.parametrize("kind", ["uses", "closes", "drops", "own loop", "exits"])
def test_the_parent_goes_on(fdmon: str, kind: str, when: str) -> None:
    start = "forks()" if when == "before the run" else "loop.call_soon(forks)"
    out = run_script(
        _PARENT
        + f"""
    {start}
    loop.run_forever()
    assert sorted(map(str, got)) == ["b'data'", "bh", "first"], got
    got.clear()
    assert ctx.poll(False) is False
    e.set()
    assert ctx.poll(True) is True
    assert got == [True], got
    ctx.set_event_notifier(e, None, None)
    ctx.close()
    e.close()
    loop.remove_reader(r)
    loop.close()
    print("ok")
        """,
        fdmon,
        kind,
        options=("-W", "ignore"),
    )
    assert out.splitlines()[-1] == "ok"


def test_use_in_the_child_is_refused_not_undefined(fdmon: str) -> None:
    out = run_script(
        """
        import os, sys
        import aioqemu

        ctx = aioqemu.AioContext(fdmon=sys.argv[1])
        ctx.poll(False)
        bh = ctx.bh_new(print)
        pid = os.fork()
        if pid == 0:
            for use in (ctx.poll, ctx.notify, bh.schedule, ctx.dispatch):
                try:
                    use()
                except RuntimeError as error:
                    print("refused")
                else:
                    print("allowed")
            ctx.close()
            sys.stdout.flush()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        ctx.close()
        """,
        fdmon,
        options=("-W", "ignore"),
    )
    assert set(out.split()) <= {"refused", "allowed"}
    assert out.count("\n") == 4


def test_a_forked_child_can_run_a_loop_of_its_own(fdmon: str) -> None:
    out = run_script(
        """
        import asyncio, os, sys
        import aioqemu

        async def main():
            await asyncio.sleep(0.01)
            return os.getpid()

        assert aioqemu.run(main(), fdmon=sys.argv[1]) == os.getpid()
        pid = os.fork()
        if pid == 0:
            assert aioqemu.run(main(), fdmon=sys.argv[1]) == os.getpid()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert aioqemu.run(main(), fdmon=sys.argv[1]) == os.getpid()
        print("ok")
        """,
        fdmon,
        options=("-W", "ignore"),
    )
    assert out == "ok\n"


def test_multiprocessing_fork(fdmon: str) -> None:
    out = run_script(
        """
        import asyncio, multiprocessing, sys
        import aioqemu

        def work(number):
            return number * 2

        async def main():
            loop = asyncio.get_running_loop()
            context = multiprocessing.get_context("fork")
            with context.Pool(2) as pool:
                future = loop.create_future()
                pool.map_async(
                    work,
                    range(5),
                    callback=lambda r: loop.call_soon_threadsafe(future.set_result, r),
                )
                return await future

        if __name__ == "__main__":
            print(aioqemu.run(main(), fdmon=sys.argv[1]))
        """,
        fdmon,
        options=("-W", "ignore"),
    )
    assert out == "[0, 2, 4, 6, 8]\n"


_SLEEPER = """
    import os, sys, threading, time, warnings
    import aioqemu

    warnings.simplefilter("ignore", DeprecationWarning)     # of a fork beside threads
    fdmon, kind = sys.argv[1:3]
    os.environ["AIOQEMU_FDMON"] = fdmon
    ctx = aioqemu.AioContext(fdmon=fdmon)
    r, w = os.pipe()
    seen = []
    ctx.set_fd_handler(r, lambda _: seen.append(os.read(r, 1)), None, lambda _: True)

    def forks():
        time.sleep(0.1)      # until the parent sleeps
        pid = os.fork()
        if pid == 0:
            try:
                ctx.close()
            except BaseException as error:
                print(repr(error))
                os._exit(1)
            os._exit(0)
        print("child", os.waitpid(pid, 0)[1])
        os.write(w, b"x")

    thread = threading.Thread(target=forks)
    thread.start()
    while not seen:
        ctx.poll(True)
    thread.join()
    ctx.close()
"""


def test_a_child_forked_while_the_parent_sleeps_may_close(fdmon: str) -> None:
    assert run_script(_SLEEPER, fdmon, "").split("\n")[0] == "child 0"


_HANDLER = """
    import ctypes, operator, os, signal, sys
    import aioqemu
    from functools import partial

    fdmon, kind = sys.argv[1:3]
    ctx = aioqemu.AioContext(fdmon=fdmon, semantics="modern")
    raise_signal = getattr(ctypes.PyDLL(None), "raise")
    r, w = os.pipe()
    ctx.set_fd_handler(r, lambda _: os.read(r, 1), None)
    for _ in range(3):
        ctx.poll(False)
    parent = os.getpid()

    def handler(*_):
        if kind == "closes":
            ctx.close()
        elif os.fork():
            print("child", os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
            os.write(w, b"x")

    signal.signal(signal.SIGUSR1, handler)
    steps = [partial(raise_signal, int(signal.SIGUSR1)), partial(ctx.poll, True)]
    try:
        list(map(operator.call, steps))      # no bytecode between the two
    except RuntimeError as error:
        print(error)
    if os.getpid() != parent:
        os._exit(7)
    if kind == "closes":
        print(ctx.closed)
"""


@pytest.mark.skipif(sys.version_info < (3, 12), reason="signals are seen earlier there")
@pytest.mark.parametrize(
    "kind, said",
    [
        ("closes", ["True"]),
        ("forks", ["the AioContext belongs to the parent process", "child 7"]),
    ],
)
def test_a_signal_handler_before_the_sleep(
    fdmon: str, kind: str, said: list[str]
) -> None:
    found = run_script(_HANDLER, fdmon, kind).splitlines()
    assert [line for line in found if line] == said
