"""Backends, contexts, loops and the guards that stand around every test.

Options: ``--fdmon NAME`` (repeatable) picks backends, ``--no-control`` leaves stock
asyncio out, ``--require-fdmon`` makes a backend that the kernel refuses an error
instead of a skip. ``AIOQEMU_FDMON`` narrows the choice to one backend. The tests run
against the installed package: the source tree is taken off ``sys.path`` before
anything of it is imported.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

_TESTS = Path(__file__).resolve().parent
_SOURCE = _TESTS.parent
# `python -m pytest` puts the current directory first, where the uncompiled
# package would shadow the installed one.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _SOURCE]
if str(_TESTS) not in sys.path:
    sys.path.insert(0, str(_TESTS))

from support import backends  # noqa: E402
from support.guards import ErrorLog, Snapshot  # noqa: E402
from support.pipes import Pipe  # noqa: E402

if TYPE_CHECKING:
    import aioqemu

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("aioqemu")
    group.addoption(
        "--fdmon",
        action="append",
        choices=backends.FDMONS,
        help="run on this backend only (repeatable; default: all)",
    )
    group.addoption(
        "--no-control",
        action="store_true",
        help="leave out what runs on stock asyncio, as the control of the backends",
    )
    group.addoption(
        "--require-fdmon",
        action="store_true",
        help="a backend that the kernel refuses is an error, not a skip",
    )


def pytest_configure(config: pytest.Config) -> None:
    # In the background of a shell the suite would ignore Ctrl-C, and so would its
    # children; tests send it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line(
        "markers", "loop_errors: the test means to reach the loop's exception log"
    )
    config.addinivalue_line(
        "markers", "leaves_threads: the test means to leave a thread behind"
    )


def pytest_collection_finish() -> None:
    # What collection made stays: the guards collect garbage around every test
    # and need not walk it each time.
    gc.collect()
    gc.freeze()


def _chosen(config: pytest.Config) -> tuple[str, ...]:
    return backends.chosen(config.getoption("--fdmon"))


def _insist(fdmon: str, config: pytest.Config) -> None:
    """Skip, or with ``--require-fdmon`` fail, when the kernel refuses ``fdmon``."""
    reason = backends.refusal(fdmon)
    if reason is None:
        return
    if config.getoption("--require-fdmon"):
        pytest.fail(f"--require-fdmon: {reason}", pytrace=False)
    pytest.skip(reason)


def _controls(config: pytest.Config) -> tuple[str, ...]:
    return () if config.getoption("--no-control") else ("asyncio",)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = _chosen(metafunc.config)
    if "any_loop" in metafunc.fixturenames:
        loops = names + _controls(metafunc.config)
        metafunc.parametrize("any_loop", loops, indirect=True)
    elif "fdmon" in metafunc.fixturenames:
        metafunc.parametrize("fdmon", names, indirect=True)


def _factory(fdmon: str, config: pytest.Config) -> LoopFactory:
    def make() -> asyncio.AbstractEventLoop:
        import aioqemu

        _insist(fdmon, config)
        return aioqemu.new_event_loop(fdmon=fdmon)

    return make


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, LoopFactory]:
    """Run each async test on every backend, and on stock asyncio as control."""
    factories = {f"aioqemu-{name}": _factory(name, config) for name in _chosen(config)}
    marker = item.get_closest_marker("asyncio")
    named = marker.kwargs.get("loop_factories", ()) if marker else ()
    if _controls(config) or "asyncio" in named:
        factories["asyncio"] = asyncio.SelectorEventLoop
    return factories


@pytest.fixture
def fdmon(request: pytest.FixtureRequest) -> str:
    """The name of the backend under test."""
    name: str = request.param
    _insist(name, request.config)
    return name


@pytest.fixture
def ctx(fdmon: str) -> Iterator[aioqemu.AioContext]:
    """A standalone AioContext with the seed's semantics, closed afterwards."""
    import aioqemu

    context = aioqemu.AioContext(fdmon=fdmon)
    yield context
    context.close()


@pytest.fixture
def modern(fdmon: str) -> Iterator[aioqemu.AioContext]:
    """A standalone AioContext with today's semantics, closed afterwards."""
    import aioqemu

    context = aioqemu.AioContext(fdmon=fdmon, semantics="modern")
    yield context
    context.close()


def _finish(loop: asyncio.AbstractEventLoop) -> None:
    if not loop.is_closed():
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


@pytest.fixture
def loop(fdmon: str) -> Iterator[aioqemu.EventLoop]:
    """An aioqemu event loop on the backend under test, closed afterwards."""
    import aioqemu

    made = aioqemu.new_event_loop(fdmon=fdmon)
    yield made
    _finish(made)


@pytest.fixture
def any_loop(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    """The loop of each backend in turn, then the stock loop as control."""
    if request.param == "asyncio":
        made: asyncio.AbstractEventLoop = asyncio.SelectorEventLoop()
    else:
        import aioqemu

        _insist(request.param, request.config)
        made = aioqemu.new_event_loop(fdmon=request.param)
    yield made
    _finish(made)


@pytest.fixture
def make_pipe() -> Iterator[Callable[[], Pipe]]:
    """A factory of non-blocking pipes, closed afterwards."""
    made: list[Pipe] = []

    def make() -> Pipe:
        made.append(Pipe())
        return made[-1]

    yield make
    for pipe in made:
        pipe.close()


@pytest.fixture
def later() -> Iterator[Callable[[float, Callable[[], object]], threading.Thread]]:
    """Run a function in another thread after a delay in seconds."""
    timers: list[threading.Timer] = []

    def start(delay: float, function: Callable[[], object]) -> threading.Thread:
        timer = threading.Timer(delay, function)
        timers.append(timer)
        timer.start()
        return timer

    yield start
    for timer in timers:
        timer.join()


@pytest.fixture(autouse=True)
def guards(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves descriptors, threads or unheard errors behind."""
    errors = ErrorLog()
    logger = logging.getLogger("asyncio")
    logger.addHandler(errors)
    gc.collect(1)  # what there is, is young: the last guard collected the rest
    before = Snapshot()
    pid = os.getpid()
    try:
        yield
    finally:
        logger.removeHandler(errors)
    assert os.getpid() == pid, "a forked child came back into the test runner"
    gc.collect()
    gc.freeze()  # what outlives a test need not be walked after each further one
    keywords = request.node.keywords
    problems = [] if "leaves_threads" in keywords else before.leaks()
    if "loop_errors" not in keywords:
        problems += [f"unexpected error in the log: {text}" for text in errors.records]
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)
