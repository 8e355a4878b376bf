"""The tests of CPython that are left out, each with the reason.

Three tables: tests that look inside the stock loop, which ours does not have;
tests that no loop of ours would take part in; tests that cannot be given any
real loop, because they need the test suite's own fake one. It must never list
a test that shows a difference a user could see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .kinds import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator

ANY = ((3, 11), (3, 99))


@dataclass(frozen=True)
class Exclusion:
    """One reason and the tests that it holds for.

    Attributes:
        reason: Why the tests cannot be run.
        tests: ``file``, ``file.Class`` or ``file.Class.test``, below
            `test.test_asyncio`. ``Class`` may be a base: it stands for all below.
        versions: First and last Python version that has the tests.
        control: Whether the stock loop is excluded as well.
    """

    reason: str
    tests: tuple[str, ...]
    versions: tuple[tuple[int, int], tuple[int, int]] = ANY
    control: bool = False

    @property
    def current(self) -> bool:
        """Whether the running Python has the tests."""
        return self.versions[0] <= VERSION <= self.versions[1]


EXCLUSIONS: tuple[Exclusion, ...] = (
    # --- Other loops of asyncio, and tests without a loop -------------------------
    Exclusion(
        "tests the proactor loop of Windows",
        (
            "test_proactor_events",
            "test_windows_events",
            "test_windows_utils",
            "test_buffered_proto.BufferedProtocolProactorTests",
            "test_server.ProactorStartServerTests",
            "test_sslproto.ProactorStartTLSTests",
        ),
        control=True,
    ),
    Exclusion(
        "the same mixin as EPollEventLoopTests, with another selector",
        (
            "test_events.PollEventLoopTests",
            "test_events.SelectEventLoopTests",
            "test_sendfile.PollEventLoopTests",
            "test_sendfile.SelectEventLoopTests",
            "test_sock_lowlevel.PollEventLoopTests",
            "test_sock_lowlevel.SelectEventLoopTests",
        ),
        control=True,
    ),
    Exclusion(
        "the same mixin as SubprocessPidfdWatcherTests, with another child watcher, "
        "an object that loops other than asyncio's do not consult",
        ("test_subprocess.SubprocessThreadedWatcherTests",),
        control=True,
    ),
    Exclusion(
        "the same mixin as SubprocessPidfdWatcherTests, with another child watcher, "
        "an object that loops other than asyncio's do not consult",
        (
            "test_subprocess.SubprocessSafeWatcherTests",
            "test_subprocess.SubprocessFastWatcherTests",
            "test_subprocess.GenericWatcherTests",
        ),
        versions=((3, 11), (3, 13)),
        control=True,
    ),
    Exclusion(
        "the same mixin as CTask_CFuture_Tests and PyTask_PyFuture_Tests, with other "
        "mixtures of the C and the Python implementation",
        (
            "test_tasks.CTask_CFuture_SubclassTests",
            "test_tasks.CTaskSubclass_PyFuture_Tests",
            "test_tasks.PyTask_CFutureSubclass_Tests",
            "test_tasks.CTask_PyFuture_Tests",
            "test_tasks.PyTask_CFuture_Tests",
            "test_tasks.PyTask_PyFuture_SubclassTests",
        ),
        control=True,
    ),
    Exclusion(
        "tests abstract or helper classes of asyncio; no loop is made",
        (
            "test_base_events.BaseEventTests",
            "test_base_events.TestSelectorUtils",
            "test_events.HandleTests",
            "test_events.TimerTests",
            "test_events.AbstractEventLoopTests",
            "test_protocols",
            "test_transports",
        ),
        control=True,
    ),
    Exclusion(
        "tests the report that asyncio's tools print of another process",
        ("test_tools",),
        versions=((3, 14), (3, 99)),
        control=True,
    ),
    Exclusion(
        "tests the child watchers of asyncio, which our loop does without",
        (
            "test_unix_events.AbstractChildWatcherTests",
            "test_unix_events.BaseChildWatcherTests",
            "test_unix_events.SafeChildWatcherTests",
            "test_unix_events.FastChildWatcherTests",
            "test_unix_events.PolicyTests",
        ),
        versions=((3, 11), (3, 13)),
    ),
    Exclusion(
        "the same mixin as SubprocessPidfdWatcherTests, with another child watcher",
        ("test_subprocess.SubprocessMultiLoopWatcherTests",),
        versions=((3, 11), (3, 11)),
        control=True,
    ),
    Exclusion(
        "tests a child watcher of asyncio, which our loop does without",
        ("test_subprocess.MultiLoopChildWatcherTests",),
        versions=((3, 12), (3, 13)),
    ),
    Exclusion(
        "tests asyncio's private child watcher, which our loop does without",
        (
            "test_unix_events.PidfdChildWatcherTests",
            "test_subprocess.SubprocessWatcherMixin.test_watcher_implementation",
        ),
        versions=((3, 14), (3, 99)),
    ),
    # --- Tests that no real loop passes, the stock one included -------------------
    Exclusion(
        "builds the stock selector loop and its transports on mocked sockets and "
        "a mocked selector",
        ("test_selector_events",),
        control=True,
    ),
    Exclusion(
        "builds asyncio's own pipe and process transports over mocks",
        (
            "test_unix_events.UnixReadPipeTransportTests",
            "test_unix_events.UnixWritePipeTransportTests",
            "test_subprocess.SubprocessTransportTests",
        ),
        control=True,
    ),
    Exclusion(
        "drives the abstract BaseEventLoop, or the mock that stands for its selector",
        (
            "test_base_events.BaseEventLoopTests.test_not_implemented",
            "test_base_events.BaseEventLoopTests.test__run_once",
            "test_base_events.BaseEventLoopTests.test__run_once_schedule_handle",
            "test_base_events.BaseEventLoopTests.test__run_once_cancelled_event_cleanup",
            "test_base_events.BaseEventLoopTests.test_check_thread",
            "test_base_events.BaseEventLoopTests.test_default_exc_handler_callback",
            "test_base_events.BaseEventLoopTests"
            ".test_asyncgen_finalization_by_gc_in_other_thread",
            "test_base_events.BaseEventLoopTests.test_run_forever_pre_stopped",
            "test_base_events.BaseEventLoopTests"
            ".test_single_selecter_event_callback_after_stopping",
        ),
        control=True,
    ),
    Exclusion(
        "drives the abstract BaseEventLoop, or the mock that stands for its selector",
        (
            "test_base_events.BaseEventLoopTests.test_custom_run_forever_integration",
            "test_base_events.BaseEventLoopTests.test_shutdown_default_executor_timeout",
        ),
        versions=((3, 13), (3, 99)),
        control=True,
    ),
    Exclusion(
        "steps the fake clock of CPython's test loop",
        (
            "test_tasks.BaseTaskTests.test_as_completed",
            "test_tasks.BaseTaskTests.test_as_completed_reverse_wait",
            "test_tasks.BaseTaskTests.test_as_completed_with_timeout",
            "test_tasks.BaseTaskTests.test_sleep",
            "test_tasks.BaseTaskTests.test_stop_while_run_in_complete",
            "test_tasks.BaseTaskTests.test_task_cancel_sleeping_task",
            "test_tasks.BaseTaskTests.test_wait",
            "test_tasks.BaseTaskTests.test_wait_concurrent_complete",
            "test_tasks.BaseTaskTests.test_wait_first_completed",
            "test_tasks.BaseTaskTests.test_wait_first_exception",
            "test_tasks.BaseTaskTests.test_wait_first_exception_in_wait",
            "test_tasks.BaseTaskTests.test_wait_with_exception",
            "test_tasks.BaseTaskTests.test_wait_with_iterator_of_tasks",
            "test_tasks.BaseTaskTests.test_wait_with_timeout",
        ),
        control=True,
    ),
    # --- The stock loop inside out ------------------------------------------------
    Exclusion(
        "reads or calls private members of the stock loop: its ready queue, its heap "
        "of timers, its pass, its selector, its self-pipe",
        (
            "test_base_events.BaseEventLoopTests.test__add_callback_handle",
            "test_base_events.BaseEventLoopTests.test__add_callback_cancelled_handle",
            "test_base_events.BaseEventLoopTests.test_call_soon",
            "test_base_events.BaseEventLoopTests.test_call_later",
            "test_base_events.BaseEventLoopTests.test_set_exc_handler_custom",
            "test_base_events.BaseEventLoopTests.test_set_exc_handler_broken",
            "test_base_events.BaseEventLoopTests.test_default_exc_handler_broken",
            "test_events.EventLoopTestsMixin.test_internal_fds",
            "test_events.EventLoopTestsMixin.test_timeout_rounding",
            "test_tasks.BaseTaskTests.test_log_destroyed_pending_task",
        ),
    ),
    Exclusion(
        "hands a mocked socket to the stock loop's private accept routine",
        (
            "test_base_events.BaseEventLoopWithSelectorTests.test_accept_connection_retry",
            "test_base_events.BaseEventLoopWithSelectorTests"
            ".test_accept_connection_exception",
        ),
    ),
    Exclusion(
        "mocks the socket module, and the mocked socket has no fd to ask for",
        (
            "test_base_events.BaseEventLoopWithSelectorTests"
            ".test_create_connection_multiple_errors_local_addr",
            "test_base_events.BaseEventLoopWithSelectorTests"
            ".test_create_datagram_endpoint_cant_bind",
            "test_base_events.BaseEventLoopWithSelectorTests"
            ".test_create_connection_timeout",
        ),
    ),
    Exclusion(
        "mocks the socket module, and the mocked socket has no fd to ask for",
        (
            "test_base_events.BaseEventLoopWithSelectorTests"
            ".test_create_connection_connect_non_os_err_close_err",
        ),
        versions=((3, 14), (3, 99)),
    ),
    Exclusion(
        "mocks the private routine in which the stock loop lets its attempts race",
        (
            "test_base_events.BaseEventLoopWithSelectorTests"
            ".test_create_connection_happy_eyeballs_empty_exceptions",
        ),
        versions=((3, 14), (3, 99)),
    ),
    Exclusion(
        "takes out of the socket module what every Linux has",
        (
            "test_base_events.BaseEventLoopWithSelectorTests"
            ".test_create_connection_no_inet_pton",
            "test_base_events.BaseEventLoopWithSelectorTests"
            ".test_create_server_nosoreuseport",
        ),
    ),
    Exclusion(
        "patches the stock SSLProtocol; tests/loop/test_tls_life.py looks for cycles",
        (
            "test_sslproto.BaseStartTLS"
            ".test_create_connection_ssl_failed_certificate_no_cycles",
        ),
        versions=((3, 14), (3, 99)),
    ),
    Exclusion(
        "puts a fake socket into the stock transport, by its private members",
        (
            "test_ssl.TestSSL"
            ".test_remote_shutdown_receives_trailing_data_on_slow_socket",
        ),
        versions=((3, 14), (3, 99)),
    ),
    Exclusion(
        "puts a mock in the place of the socket, and of the stock loop's _add_reader",
        (
            "test_base_events.BaseEventLoopTests.test_create_connection_happy_eyeballs",
            "test_base_events.BaseEventLoopTests"
            ".test_create_connection_happy_eyeballs_ipv4_only",
        ),
        versions=((3, 15), (3, 99)),
    ),
    Exclusion(
        "compares the arguments of the stock loop's private _make_ssl_transport",
        (
            "test_base_events.BaseEventLoopWithSelectorTests"
            ".test_create_connection_ssl_server_hostname_default",
        ),
        versions=((3, 15), (3, 99)),
    ),
    Exclusion(
        "looks for a Handle in the stock loop's private table of signal handlers",
        ("test_unix_events.SelectorEventLoopSignalTests.test_add_signal_handler",),
    ),
    Exclusion(
        "counts the calls of signal.set_wakeup_fd that the stock loop makes",
        (
            "test_unix_events.SelectorEventLoopSignalTests"
            ".test_add_signal_handler_install_error3",
            "test_unix_events.SelectorEventLoopSignalTests.test_close",
        ),
    ),
    Exclusion(
        "mocks a method of the class BaseEventLoop, which ours is not",
        ("test_tasks.CoroutineGatherTests.test_issue46672",),
    ),
    Exclusion(
        "takes out of the os module what every Linux has",
        (
            "test_unix_events.SelectorEventLoopUnixSockSendfileTests"
            ".test_sock_sendfile_not_available",
        ),
    ),
    Exclusion(
        "mocks a private function of asyncio.coroutines",
        ("test_runners.RunTests.test_asyncio_run_debug",),
    ),
    Exclusion(
        "calls the private signal routines of the stock loop",
        (
            "test_unix_events.SelectorEventLoopSignalTests.test_check_signal",
            "test_unix_events.SelectorEventLoopSignalTests"
            ".test_handle_signal_no_handler",
            "test_unix_events.SelectorEventLoopSignalTests"
            ".test_handle_signal_cancelled_handler",
        ),
    ),
    Exclusion(
        "calls the private sendfile routine of the stock loop with a future and a "
        "selector of its own",
        (
            "test_unix_events.SelectorEventLoopUnixSockSendfileTests"
            ".test_sock_sendfile_cancel1",
            "test_unix_events.SelectorEventLoopUnixSockSendfileTests"
            ".test_sock_sendfile_cancel2",
            "test_unix_events.SelectorEventLoopUnixSockSendfileTests"
            ".test_sock_sendfile_blocking_error",
            "test_unix_events.SelectorEventLoopUnixSockSendfileTests"
            ".test_sock_sendfile_os_error_first_call",
            "test_unix_events.SelectorEventLoopUnixSockSendfileTests"
            ".test_sock_sendfile_os_error_next_call",
            "test_unix_events.SelectorEventLoopUnixSockSendfileTests"
            ".test_sock_sendfile_exception",
        ),
    ),
)


def _names(file: str, cls: type, test: str) -> Iterator[str]:
    yield file
    for base in cls.__mro__:
        if base.__module__.endswith(f".{file}"):
            yield f"{file}.{base.__name__}"
            yield f"{file}.{base.__name__}.{test}"


def excluded(file: str, cls: type, test: str, control: bool) -> Exclusion | None:
    """What keeps a test from running, if anything.

    Args:
        file: Module in `test.test_asyncio`.
        cls: Class of the test.
        test: Name of the method.
        control: Whether it would run on the stock loop.
    """
    names = set(_names(file, cls, test))
    for entry in EXCLUSIONS:
        if (
            (entry.control or not control)
            and entry.current
            and not names.isdisjoint(entry.tests)
        ):
            return entry
    return None


# Tests that leave descriptors or threads behind whatever loop they run on.
LEAKY: frozenset[str] = frozenset()


def leaks(cls: type, test: str) -> bool:
    """Whether a test leaves descriptors or threads behind by itself."""
    return any(f"{base.__name__}.{test}" in LEAKY for base in cls.__mro__)
