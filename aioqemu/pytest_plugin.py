"""pytest plugin: runs a suite's async tests on aioqemu, if it is asked to.

Off, it adds two options and a marker and nothing else, and loads no native module.
On, it answers pytest-asyncio's ``pytest_asyncio_loop_factories`` after the user's own
conftest. That hook may not be present without an answer (pytest-asyncio then refuses
every async test), so the object that has it is registered only when switched on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from . import testing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .testing import LoopFactory

_MODES = ("off", "on", "both")
_HOOK = "pytest_asyncio_loop_factories"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, which the ini file may give too."""
    group = parser.getgroup("aioqemu", "aioqemu event loop")
    group.addoption(
        "--aioqemu",
        nargs="?",
        const="on",
        choices=_MODES,
        help="run async tests on aioqemu: off (default), on, or both (asyncio as well)",
    )
    group.addoption(
        "--aioqemu-engines",
        metavar="LIST",
        help="backends to run them on, comma-separated: "
        f"auto (default), {', '.join(testing.ENGINES)}",
    )
    parser.addini("aioqemu", "as --aioqemu", default="off")
    parser.addini("aioqemu_engines", "as --aioqemu-engines", default="auto")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker and, when switched on, the answer to pytest-asyncio."""
    config.addinivalue_line(
        "markers",
        "aioqemu(engines=None, requires=()): run this test on these backends only; "
        "skip it where a required one cannot run.",
    )
    mode = config.getoption("--aioqemu") or config.getini("aioqemu")
    if mode not in _MODES:
        raise pytest.UsageError(f"aioqemu must be one of {', '.join(_MODES)}: {mode!r}")
    if mode == "off":
        return
    if config.pluginmanager.hasplugin("asyncio") and not hasattr(config.hook, _HOOK):
        raise pytest.UsageError("--aioqemu needs pytest-asyncio 1.4 or later")
    given = config.getoption("--aioqemu-engines") or config.getini("aioqemu_engines")
    engines = [name.strip() for name in given.split(",") if name.strip()]
    unknown = set(engines) - {"auto", *testing.ENGINES}
    if unknown or not engines:
        raise pytest.UsageError(
            f"--aioqemu-engines: choose from auto, {', '.join(testing.ENGINES)}; "
            f"not {given!r}"
        )
    config.pluginmanager.register(
        _SwitchedOn(engines, control=mode == "both"), "aioqemu-switched-on"
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose required backends cannot run here, with the reason."""
    for mark in item.iter_markers("aioqemu"):
        for engine in mark.kwargs.get("requires", ()):
            reason = testing.refusal(engine)
            if reason is not None:
                pytest.skip(f"needs {engine}: {reason}")


class _SwitchedOn:
    """What the plugin adds when it is on."""

    def __init__(self, engines: list[str], *, control: bool) -> None:
        self._engines = engines
        self._control = control

    def pytest_report_header(self) -> list[str]:
        lines = []
        for engine in self._engines:
            reason = testing.refusal(engine)
            state = "runs here" if reason is None else f"cannot run: {reason}"
            lines.append(f"aioqemu {engine}: {state}")
        return lines

    @pytest.hookimpl(optionalhook=True, trylast=True)
    def pytest_asyncio_loop_factories(
        self, config: pytest.Config, item: pytest.Item
    ) -> Mapping[str, LoopFactory]:
        mark = item.get_closest_marker("aioqemu")
        engines = (mark.kwargs.get("engines") if mark else None) or self._engines
        return testing.loop_factories(engines, control=self._control)
