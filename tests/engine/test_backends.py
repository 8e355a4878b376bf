"""Choosing a backend: by name, by environment, automatically, when refused."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
from support import backends, seccomp
from support.procs import run_script

import aioqemu
from aioqemu import AioContext, BackendUnavailable


def test_by_name(fdmon: str) -> None:
    ctx = AioContext(fdmon=fdmon)
    assert ctx.fdmon == fdmon
    assert ctx.stats()["fdmon"] == fdmon
    ctx.close()
    loop = aioqemu.new_event_loop(fdmon=fdmon)
    assert loop.fdmon == fdmon
    assert loop.context.fdmon == fdmon
    assert loop.stats()["fdmon"] == fdmon
    loop.close()


@pytest.mark.parametrize("name", [None, "auto"])
def test_auto_takes_the_best_that_works(
    monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    monkeypatch.delenv("AIOQEMU_FDMON", raising=False)
    ctx = AioContext(fdmon=name)
    expected = "epoll" if backends.refusal("io_uring") else "io_uring"
    assert ctx.fdmon == expected
    assert ctx.stats()["fdmon_reason"]
    ctx.close()


def test_environment_decides_for_auto(
    monkeypatch: pytest.MonkeyPatch, fdmon: str
) -> None:
    monkeypatch.setenv("AIOQEMU_FDMON", fdmon)
    for name in (None, "auto"):
        ctx = AioContext(fdmon=name)
        assert ctx.fdmon == fdmon
        ctx.close()
    loop = aioqemu.new_event_loop()
    assert loop.fdmon == fdmon
    loop.close()


def test_an_explicit_name_beats_the_environment(
    monkeypatch: pytest.MonkeyPatch, fdmon: str
) -> None:
    other = "poll" if fdmon != "poll" else "epoll"
    monkeypatch.setenv("AIOQEMU_FDMON", other)
    ctx = AioContext(fdmon=fdmon)
    assert ctx.fdmon == fdmon
    ctx.close()


@pytest.mark.parametrize("value", ["kqueue", "EPOLL", "io-uring"])
def test_nonsense_in_the_environment_fails_loudly(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("AIOQEMU_FDMON", value)
    with pytest.raises(ValueError, match=value):
        AioContext()
    with pytest.raises(ValueError, match=value):
        aioqemu.new_event_loop()


def test_an_empty_environment_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOQEMU_FDMON", "")
    AioContext().close()


def test_a_failed_construction_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The guards look for the descriptors.
    monkeypatch.delenv("AIOQEMU_FDMON", raising=False)
    for options in ({"fdmon": "nonsense"}, {"poll_max_ns": -1}, {"semantics": "x"}):
        with pytest.raises(ValueError, match=r".+"):
            AioContext(**options)
        if "semantics" not in options:
            with pytest.raises(ValueError, match=r".+"):
                aioqemu.new_event_loop(**options)


def test_backend_unavailable_is_an_oserror() -> None:
    assert issubclass(BackendUnavailable, OSError)


_DENIED = """
    import errno, os, sys
    from support import seccomp
    from aioqemu import AioContext, BackendUnavailable

    calls = [int(number) for number in sys.argv[1].split(",")]
    code = int(sys.argv[2])
    try:
        seccomp.deny(tuple(calls), code)
    except OSError as error:
        print("no filter:", error)
        sys.exit(0)
"""
_CALLS = {"all three": "425,426,427", "setup": "425", "enter": "426", "register": "427"}


def _denied(source: str, calls: str, code: int) -> str:
    out = run_script(_DENIED + source, _CALLS[calls], str(code))
    if out.startswith("no filter"):
        pytest.skip(out.strip())
    return out


@pytest.mark.parametrize("calls", _CALLS)
@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS, errno.EACCES])
def test_auto_falls_back_to_epoll_without_a_word(calls: str, code: int) -> None:
    out = _denied(
        """
    import asyncio
    import aioqemu

    ctx = AioContext()
    print(ctx.fdmon)
    assert "io_uring" in ctx.stats()["fdmon_reason"]
    ctx.close()

    async def main():
        await asyncio.sleep(0.001)
        print(asyncio.get_running_loop().fdmon)

    aioqemu.run(main())
        """,
        calls,
        code,
    )
    # A kernel may not need io_uring_register for what is done; then it may be used.
    fine = {"epoll"} if calls != "register" else {"epoll", "io_uring"}
    assert set(out.split()) <= fine


@pytest.mark.parametrize("calls", ["all three", "setup", "enter"])
@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS])
def test_by_name_fails_loudly_with_the_reason(calls: str, code: int) -> None:
    out = _denied(
        """
    import aioqemu

    before = os.listdir("/proc/self/fd")
    for make in (AioContext, aioqemu.new_event_loop):
        try:
            make(fdmon="io_uring")
        except BackendUnavailable as error:
            print(error.errno, error)
    assert os.listdir("/proc/self/fd") == before
    os.environ["AIOQEMU_FDMON"] = "io_uring"
    try:
        AioContext()
    except BackendUnavailable as error:
        print(error.errno, error)
        """,
        calls,
        code,
    )
    lines = out.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert line.startswith(f"{code} ")
        assert "io_uring" in line
        assert "seccomp" in line


def test_what_works_is_not_disturbed_by_a_refused_io_uring() -> None:
    out = _denied(
        """
    for name in ("poll", "epoll"):
        ctx = AioContext(fdmon=name)
        print(ctx.fdmon)
        ctx.close()
        """,
        "all three",
        errno.EPERM,
    )
    assert out.split() == ["poll", "epoll"]


def test_the_notifier_is_a_pipe_where_there_is_no_eventfd(fdmon: str) -> None:
    if seccomp.EVENTFD is None:
        pytest.skip("the number of eventfd2 is not known here")
    out = run_script(
        """
        import errno, sys, threading
        from support import seccomp
        import aioqemu

        try:
            seccomp.deny((seccomp.EVENTFD,), errno.ENOSYS)
        except OSError as error:
            print("no filter:", error)
            sys.exit(0)
        e = aioqemu.EventNotifier(True)
        assert e.test_and_clear() and not e.test_and_clear()
        for _ in range(100_000):
            e.set()
        assert e.test_and_clear() and not e.test_and_clear()
        e.close()
        loop = aioqemu.new_event_loop(fdmon=sys.argv[1])
        threading.Timer(0.05, loop.call_soon_threadsafe, (loop.stop,)).start()
        loop.run_forever()
        loop.close()
        print("ok")
        """,
        fdmon,
    )
    if out.startswith("no filter"):
        pytest.skip(out.strip())
    assert out == "ok\n"


def test_out_of_descriptors(fdmon: str) -> None:
    out = run_script(
        """
        import errno, os, resource, sys
        import aioqemu

        aioqemu.AioContext(fdmon=sys.argv[1]).close()
        aioqemu.new_event_loop(fdmon=sys.argv[1]).close()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        for makes in (aioqemu.AioContext, aioqemu.new_event_loop):
            for spare in range(0, 3):
                before = sorted(os.listdir("/proc/self/fd"))
                used = len(before) - 1
                resource.setrlimit(resource.RLIMIT_NOFILE, (used + spare, hard))
                try:
                    made = makes(fdmon=sys.argv[1])
                except OSError as error:
                    assert error.errno in (errno.EMFILE, errno.ENOMEM), error
                    print(spare, "refused")
                else:
                    # A ring is made when polling starts.
                    made.close()
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                assert sorted(os.listdir("/proc/self/fd")) == before
        """,
        fdmon,
    )
    assert "0 refused" in out


def test_info_command_says_which_backend_runs_and_why(fdmon: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "aioqemu", "info"],
        capture_output=True,
        text=True,
        env={**os.environ, "AIOQEMU_FDMON": fdmon},
        cwd="/",
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert fdmon in done.stdout
