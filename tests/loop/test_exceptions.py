"""Rules of what a raising callback does to the loop: nothing but a report.

The rest of the pass runs, the report has what the stock loop's has, and after
KeyboardInterrupt or SystemExit the loop can be run again.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest

from .helpers import Recorder, collect_reports, connected, eventually, one_pass

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.pipes import Pipe

    MakePipe = Callable[[], Pipe]

INTERRUPTS = pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])


def _fail() -> None:
    raise ZeroDivisionError("on purpose")


def test_a_failing_callback_is_reported_and_the_pass_goes_on(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    reports = collect_reports(any_loop)
    seen: list[str] = []
    any_loop.call_soon(seen.append, "before")
    handle = any_loop.call_soon(_fail)
    any_loop.call_soon(seen.append, "after")
    one_pass(any_loop)
    assert seen == ["before", "after"]
    assert len(reports) == 1
    assert isinstance(reports[0]["exception"], ZeroDivisionError)
    assert reports[0]["handle"] is handle
    assert reports[0]["message"].startswith("Exception in callback")
    assert "_fail" in reports[0]["message"]


def test_a_failing_timer_is_reported_and_the_others_run(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    reports = collect_reports(any_loop)
    seen: list[str] = []
    now = any_loop.time()
    any_loop.call_at(now, _fail)
    any_loop.call_at(now + 1e-6, seen.append, "timer")
    any_loop.call_at(now + 0.003, any_loop.stop)
    any_loop.run_forever()
    assert seen == ["timer"]
    assert [type(report["exception"]) for report in reports] == [ZeroDivisionError]


def test_a_failing_threadsafe_callback_is_reported(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    reports = collect_reports(any_loop)
    any_loop.call_soon_threadsafe(_fail)
    any_loop.call_soon_threadsafe(any_loop.stop)
    any_loop.run_forever()
    assert [type(report["exception"]) for report in reports] == [ZeroDivisionError]


def test_a_failing_reader_is_reported_and_the_others_are_served(
    any_loop: asyncio.AbstractEventLoop, make_pipe: MakePipe
) -> None:
    reports = collect_reports(any_loop)
    pipes = [make_pipe() for _ in range(3)]
    seen: list[int] = []

    def readable(number: int) -> None:
        any_loop.remove_reader(pipes[number].r)
        seen.append(number)
        raise ZeroDivisionError

    for number, pipe in enumerate(pipes):
        pipe.feed()
        any_loop.add_reader(pipe.r, readable, number)
    any_loop.call_soon(seen.append, 9)
    any_loop.call_later(0.005, any_loop.stop)
    any_loop.run_forever()
    assert sorted(seen) == [0, 1, 2, 9]
    assert len(reports) == 3


def test_a_failing_bottom_half_is_reported_and_the_others_run(loop: Any) -> None:
    reports = collect_reports(loop)
    seen: list[str] = []

    def fail(_opaque: object) -> None:
        raise ZeroDivisionError

    halves = [
        loop.context.bh_new(lambda _opaque: seen.append("one")),
        loop.context.bh_new(fail),
        loop.context.bh_new(lambda _opaque: seen.append("two")),
    ]
    for half in halves:
        half.schedule()
    loop.call_soon(seen.append, "callback")
    one_pass(loop)
    assert seen == ["one", "two", "callback"]
    assert [type(report["exception"]) for report in reports] == [ZeroDivisionError]
    for half in halves:
        half.delete()


@pytest.mark.loop_errors
def test_a_failing_handler_is_caught_too(
    any_loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_loop: asyncio.AbstractEventLoop, _context: dict[str, Any]) -> None:
        raise KeyError("the handler itself")

    seen: list[str] = []
    any_loop.set_exception_handler(broken)
    any_loop.call_soon(_fail)
    any_loop.call_soon(seen.append, "after")
    one_pass(any_loop)
    assert seen == ["after"]
    assert "Unhandled error in exception handler" in caplog.text


@pytest.mark.loop_errors
def test_without_a_handler_the_log_has_it(
    any_loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    any_loop.call_soon(_fail)
    one_pass(any_loop)
    assert "Exception in callback" in caplog.text
    assert "ZeroDivisionError: on purpose" in caplog.text


def test_the_handler_can_be_set_read_and_taken_away(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    assert any_loop.get_exception_handler() is None

    def handler(_loop: asyncio.AbstractEventLoop, _context: dict[str, Any]) -> None:
        pass

    any_loop.set_exception_handler(handler)
    assert any_loop.get_exception_handler() is handler
    any_loop.set_exception_handler(None)
    assert any_loop.get_exception_handler() is None
    with pytest.raises(TypeError, match="A callable object or None is expected"):
        any_loop.set_exception_handler("text")  # type: ignore[arg-type]


def test_the_handler_is_called_with_the_loop(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    seen: list[Any] = []
    any_loop.set_exception_handler(lambda loop, context: seen.extend([loop, context]))
    context = {"message": "mine"}
    any_loop.call_exception_handler(context)
    assert seen == [any_loop, context]


@INTERRUPTS
def test_an_interrupt_in_a_callback_leaves_the_rest_for_the_next_run(
    any_loop: asyncio.AbstractEventLoop, interrupt: type[BaseException]
) -> None:
    seen: list[str] = []

    def stop_everything() -> None:
        raise interrupt

    any_loop.call_soon(seen.append, "before")
    any_loop.call_soon(stop_everything)
    any_loop.call_soon(seen.append, "after")
    with pytest.raises(interrupt):
        any_loop.run_forever()
    assert not any_loop.is_running()
    assert asyncio._get_running_loop() is None
    assert "before" in seen
    one_pass(any_loop)
    one_pass(any_loop)
    assert seen == ["before", "after"]
    assert any_loop.run_until_complete(asyncio.sleep(0, "works")) == "works"


@INTERRUPTS
@pytest.mark.parametrize("where", ["timer", "reader", "threadsafe", "bottom half"])
def test_an_interrupt_from_anywhere_leaves_the_loop_usable(
    loop: Any, make_pipe: MakePipe, interrupt: type[BaseException], where: str
) -> None:
    seen: list[str] = []
    pipe = make_pipe()
    half = None

    def stop_everything(*_args: object) -> None:
        loop.remove_reader(pipe.r)
        raise interrupt

    if where == "timer":
        loop.call_later(0.001, stop_everything)
    elif where == "reader":
        pipe.feed()
        loop.add_reader(pipe.r, stop_everything)
    elif where == "threadsafe":
        loop.call_soon_threadsafe(stop_everything)
    else:
        half = loop.context.bh_new(stop_everything)
        half.schedule()
    loop.call_later(0.002, seen.append, "later")
    with pytest.raises(interrupt):
        loop.run_forever()
    assert not loop.is_running()
    loop.call_later(0.005, loop.stop)
    loop.run_forever()
    assert seen == ["later"]
    if half is not None:
        half.delete()


@INTERRUPTS
def test_an_interrupt_in_a_task_comes_out_of_the_run(
    any_loop: asyncio.AbstractEventLoop, interrupt: type[BaseException]
) -> None:
    async def main() -> None:
        raise interrupt

    with pytest.raises(interrupt):
        any_loop.run_until_complete(main())
    assert any_loop.run_until_complete(asyncio.sleep(0, "works")) == "works"


@INTERRUPTS
def test_an_interrupt_in_data_received_comes_out_of_the_run(
    any_loop: asyncio.AbstractEventLoop, interrupt: type[BaseException]
) -> None:
    class Interrupting(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            raise interrupt

    any_loop.set_exception_handler(lambda *_: None)
    state: list[Any] = []

    async def arrange() -> None:
        manager = connected("unix", Interrupting)
        state.extend([manager, *(await manager.__aenter__())])

    async def finish() -> None:
        await state[0].__aexit__(None, None, None)

    any_loop.run_until_complete(arrange())
    state[3].send(b"x")
    guard = any_loop.call_later(5, any_loop.stop)
    with pytest.raises(interrupt):
        any_loop.run_forever()
    guard.cancel()
    any_loop.run_until_complete(finish())
    assert any_loop.run_until_complete(asyncio.sleep(0, "works")) == "works"


@pytest.mark.asyncio
async def test_one_failing_protocol_does_not_stop_the_next() -> None:
    class Broken(Recorder):
        def data_received(self, data: bytes) -> None:
            raise ZeroDivisionError

    reports = collect_reports(asyncio.get_running_loop())
    async with (
        connected("unix", Broken) as (_, broken, one),
        connected("unix") as (_, fine, two),
    ):
        one.send(b"x")
        two.send(b"x")
        await broken.lost
        await eventually(lambda: fine.data)
    assert len(reports) == 1


@pytest.mark.asyncio
async def test_a_failing_connection_made_of_a_server_is_reported() -> None:
    class Broken(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            raise ZeroDivisionError

    loop = asyncio.get_running_loop()
    reports = collect_reports(loop)
    made: list[Broken] = []

    def factory() -> Broken:
        made.append(Broken())
        return made[-1]

    server = await loop.create_server(factory, "127.0.0.1", 0)
    with socket.create_connection(server.sockets[0].getsockname()):
        await eventually(lambda: reports)
        assert isinstance(reports[0]["exception"], ZeroDivisionError)
        made[0].transport.abort()
        await asyncio.sleep(0.005)
    server.close()
    await server.wait_closed()


def test_a_future_whose_exception_nobody_saw_is_reported(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    reports = collect_reports(any_loop)

    async def failing() -> None:
        raise ZeroDivisionError

    async def main() -> None:
        task = asyncio.ensure_future(failing())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        del task

    any_loop.run_until_complete(main())
    gc.collect()
    assert [report["message"] for report in reports] == [
        "Task exception was never retrieved"
    ]


def test_reports_have_the_context_variables_of_the_callback(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    if sys.version_info < (3, 12):
        pytest.skip("the handler runs in the callback's context since 3.12")
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="none")
    seen: list[str] = []
    any_loop.set_exception_handler(lambda *_: seen.append(var.get()))
    context = contextvars.copy_context()
    context.run(var.set, "mine")
    any_loop.call_soon(_fail, context=context)
    one_pass(any_loop)
    assert seen == ["mine"]


def test_a_failing_writer_that_stopped_the_loop_is_reported(
    any_loop: asyncio.AbstractEventLoop, make_pipe: MakePipe
) -> None:
    reports = collect_reports(any_loop)
    pipe = make_pipe()

    def writable() -> None:
        any_loop.remove_writer(pipe.w)
        any_loop.stop()
        raise ZeroDivisionError

    any_loop.add_writer(pipe.w, writable)
    any_loop.run_forever()
    assert len(reports) == 1
