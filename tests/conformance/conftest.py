"""Chooses which loops the conformance tests run on, and cleans up after each file.

It reads the option ``--fdmon`` and the variable ``AIOQEMU_FDMON`` and knows nothing
of single tests.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest
from support import backends
from support.guards import Snapshot

from .exclusions import leaks
from .kinds import Kind, reset_policy

if TYPE_CHECKING:
    from collections.abc import Iterator

# The tests of CPython that take a second or more.
SLOW = frozenset(
    {
        "test_create_connection_ssl_1",
        "test_create_server_ssl_over_ssl",
        "test_env_var_debug",
        "test_flush_before_shutdown",
        "test_future_del_collect",
        "test_kill_issue43884",
        "test_remote_shutdown_receives_trailing_data",
        "test_shutdown_cleanly",
        "test_start_tls_slow_client_cancel",
        "test_task_del_collect",
        "test_taskgroup_23",
    }
)


def _kind(item: pytest.Item) -> Kind | None:
    if isinstance(item, pytest.Function):
        if item.cls is not None and isinstance(getattr(item.cls, "kind", None), Kind):
            return item.cls.kind
        callspec = getattr(item, "callspec", None)
        if callspec is not None and isinstance(callspec.params.get("kind"), Kind):
            return callspec.params["kind"]
    return None


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Drop the backends that are not asked for; skip those that cannot run."""
    wanted = backends.chosen(config.getoption("--fdmon"))
    control = not config.getoption("--no-control")
    dropped = []
    kept = []
    for item in items:
        kind = _kind(item)
        if kind is not None and not (
            control if kind.is_control else kind.name in wanted
        ):
            dropped.append(item)
            continue
        kept.append(item)
        if kind is None:
            continue
        item.add_marker(pytest.mark.conformance)
        if item.name in SLOW:
            item.add_marker(pytest.mark.slow)
        if kind.fdmon and (reason := backends.refusal(kind.fdmon)) is not None:
            # --require-fdmon turns this into a failure.
            item.add_marker(pytest.mark.skip(reason=reason))
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


@pytest.fixture(autouse=True)
def guards(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves descriptors or threads behind.

    Unlike the guard of the other tests it lets errors be logged: CPython's tests
    provoke many.
    """
    gc.collect(1)
    before = Snapshot()
    yield
    reset_policy()
    gc.collect()
    gc.freeze()
    cls, name = request.cls, request.node.name
    if cls is not None and leaks(cls, name):
        return
    if problems := before.leaks():
        pytest.fail("\n".join(problems), pytrace=False)


@pytest.fixture(autouse=True, scope="module")
def _quick_collections() -> None:
    """Let the garbage collector pass over what was imported so far.

    Some of CPython's tests collect hundreds of times, and the guards twice a test.
    """
    gc.collect()
    gc.freeze()
