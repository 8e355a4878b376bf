"""EventNotifier: an eventfd that never blocks and never forgets."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import warnings
from typing import TYPE_CHECKING

import pytest
from support.qemu import Busy, EventData, settle

from aioqemu import AioContext, EventNotifier, qemu_aio

if TYPE_CHECKING:
    from collections.abc import Callable


def readable(fd: int) -> bool:
    """Return whether ``fd`` polls readable now."""
    return bool(select.select([fd], [], [], 0)[0])


def test_set_and_clear() -> None:
    notifier = EventNotifier()
    assert notifier.test_and_clear() is False
    assert readable(notifier.fileno()) is False
    notifier.set()
    notifier.set()
    assert readable(notifier.fileno()) is True
    assert notifier.test_and_clear() is True
    assert notifier.test_and_clear() is False
    assert readable(notifier.fileno()) is False
    notifier.close()


@pytest.mark.parametrize("active", [False, True])
def test_initial_state(active: bool) -> None:
    notifier = EventNotifier(active)
    assert notifier.test_and_clear() is active
    notifier.close()
    notifier = EventNotifier(active=active)
    assert readable(notifier.fileno()) is active
    notifier.close()


def test_descriptor_flags() -> None:
    notifier = EventNotifier()
    fd = notifier.fileno()
    assert os.get_blocking(fd) is False
    assert os.get_inheritable(fd) is False
    notifier.close()


def test_close_twice_does_nothing_and_use_after_close_is_defined() -> None:
    notifier = EventNotifier()
    notifier.close()
    notifier.close()
    # As in C: setting fails, testing finds it clear.
    with pytest.raises(OSError, match="closed"):
        notifier.set()
    assert notifier.test_and_clear() is False
    assert notifier.fileno() == -1


def test_a_dropped_notifier_gives_its_fd_back_with_a_warning() -> None:
    held = [EventNotifier()]
    fd = held[0].fileno()
    with pytest.warns(ResourceWarning):
        held.clear()
    with pytest.raises(OSError):
        os.fstat(fd)


def test_a_dropped_notifier_gives_its_fd_back_where_warnings_are_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    held = [EventNotifier()]
    fd = held[0].fileno()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        held.clear()
    with pytest.raises(OSError):
        os.fstat(fd)


def test_c_names() -> None:
    notifier = qemu_aio.event_notifier_init(True)
    assert isinstance(notifier, EventNotifier)
    assert qemu_aio.event_notifier_get_fd(notifier) == notifier.fileno()
    assert qemu_aio.event_notifier_test_and_clear(notifier) is True
    assert qemu_aio.event_notifier_test_and_clear(notifier) is False
    qemu_aio.event_notifier_set(notifier)
    assert qemu_aio.event_notifier_test_and_clear(notifier) is True
    qemu_aio.event_notifier_cleanup(notifier)
    qemu_aio.event_notifier_cleanup(notifier)


def test_set_from_another_thread(
    ctx: AioContext, busy: Busy, event: Callable[..., EventData]
) -> None:
    data = event()
    ctx.set_event_notifier(data.e, data.ready)
    settle(ctx)
    thread = threading.Thread(target=data.e.set)
    thread.start()
    while data.n == 0:
        assert ctx.poll(True) is True
    thread.join()
    assert (data.n, busy.n) == (1, 0)


def test_set_from_a_signal_handler(
    ctx: AioContext, busy: Busy, event: Callable[..., EventData]
) -> None:
    data = event()
    ctx.set_event_notifier(data.e, data.ready)
    settle(ctx)
    old = signal.signal(signal.SIGALRM, lambda *_: data.e.set())
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        while data.n == 0:
            ctx.poll(True)
    finally:
        signal.signal(signal.SIGALRM, old)
    assert (data.n, busy.n) == (1, 0)


@pytest.mark.usefixtures("busy")
def test_a_notifier_that_is_not_cleared_stays_ready(ctx: AioContext) -> None:
    notifier, calls = EventNotifier(active=True), 0

    def cb(_: EventNotifier) -> None:
        nonlocal calls
        calls += 1

    ctx.set_event_notifier(notifier, cb)
    for expected in (1, 2, 3):
        assert ctx.poll(False) is True
        assert calls == expected
    ctx.set_event_notifier(notifier, None)
    notifier.close()


@pytest.mark.usefixtures("busy")
def test_reregistration_replaces_the_callback(ctx: AioContext) -> None:
    notifier = EventNotifier(active=True)
    seen: list[str] = []
    ctx.set_event_notifier(notifier, lambda _: seen.append("first"))
    ctx.set_event_notifier(notifier, lambda e: seen.append(str(e.test_and_clear())))
    settle(ctx)
    assert seen == ["True"]
    ctx.set_event_notifier(notifier, None)
    ctx.set_event_notifier(notifier, None)
    notifier.close()


def test_registration_checks_its_arguments(ctx: AioContext) -> None:
    with pytest.raises(TypeError):
        ctx.set_event_notifier(3, print)  # type: ignore[arg-type]
    notifier = EventNotifier()
    with pytest.raises(TypeError):
        ctx.set_event_notifier(notifier, 3)  # type: ignore[arg-type]
    notifier.close()
    with pytest.raises((RuntimeError, ValueError, OSError)):
        ctx.set_event_notifier(notifier, print)
