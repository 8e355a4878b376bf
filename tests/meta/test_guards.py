"""The guards that stand around every test notice what they are there for."""

from __future__ import annotations

import logging
import os
import threading

import pytest
from support import guards
from support.guards import ErrorLog, Snapshot


@pytest.fixture(autouse=True)
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "_GRACE_S", 0.0)


def test_nothing_is_reported_when_nothing_changed() -> None:
    assert Snapshot().leaks() == []


def test_an_open_descriptor_is_reported() -> None:
    before = Snapshot()
    r, w = os.pipe()
    leaks = before.leaks()
    os.close(r)
    os.close(w)
    assert len(leaks) == 2
    assert f"fd {r} ->" in leaks[0]
    assert before.leaks() == []


def test_a_reused_number_is_reported() -> None:
    r, w = os.pipe()
    before = Snapshot()
    os.close(r)
    again, other = os.pipe()
    leaks = before.leaks()
    for fd in (again, other, w):
        os.close(fd)
    assert again == r
    assert any(f"fd {r} ->" in line for line in leaks)


def test_a_stolen_descriptor_is_reported() -> None:
    r, w = os.pipe()
    before = Snapshot()
    os.close(r)
    os.close(w)
    assert len(before.leaks()) == 2
    assert "behind its owner's back" in before.leaks()[0]


def test_a_running_thread_is_reported() -> None:
    before = Snapshot()
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="left over")
    thread.start()
    leaks = before.leaks()
    stop.set()
    thread.join()
    assert any("left over" in line for line in leaks)
    assert any("native thread" in line for line in leaks)


def test_an_unheard_error_is_reported() -> None:
    log = ErrorLog()
    logger = logging.getLogger("aioqemu.tests.guards")
    logger.propagate = False
    logger.addHandler(log)
    logger.warning("no error")
    logger.error("an error")
    logger.removeHandler(log)
    assert log.records == ["an error"]
