"""Hypothesis drives a device and a bytearray side by side, on each engine."""

from __future__ import annotations

import asyncio
import tempfile
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

import aioqemu
from aioqemu import block

if TYPE_CHECKING:
    from pathlib import Path

_SIZE = 20_000
_offsets = st.integers(0, _SIZE) | st.integers(0, 40).map(lambda i: i * 512)
_lengths = st.integers(0, 5000) | st.integers(0, 8).map(lambda i: i * 512)


class Machine(RuleBasedStateMachine):
    """No overlapping requests are in flight together: their order is not promised."""

    fdmon = engine = "?"
    direct = False
    disk = "?"

    def __init__(self) -> None:
        super().__init__()
        self.loop = aioqemu.new_event_loop(fdmon=self.fdmon)
        self.folder = tempfile.TemporaryDirectory(dir=self.disk)
        self.path = f"{self.folder.name}/image"
        self.blk: Any = self.run(self._open("x"))
        self.run(self._do(lambda: self.blk.truncate(_SIZE)))
        self.model = bytearray(_SIZE)
        self.fill = 0

    async def _open(self, mode: str) -> Any:
        return await block.open(
            self.path, mode, engine=self.engine, direct=self.direct, max_in_flight=4
        )

    async def _do(self, use: Any) -> Any:
        return await use()

    def run(self, coro: Any) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(coro, 20))

    def _cut(self, offset: int, n: int) -> tuple[int, int]:
        offset = min(offset, len(self.model))
        return offset, min(n, len(self.model) - offset)

    def _data(self, n: int) -> bytes:
        self.fill = self.fill % 250 + 1
        return bytes([self.fill]) * n

    @rule(offset=_offsets, n=_lengths)
    def read(self, offset: int, n: int) -> None:
        offset, n = self._cut(offset, n)
        got = self.run(self._do(lambda: self.blk.pread(n, offset)))
        assert got == self.model[offset : offset + n]

    @rule(
        offset=_offsets,
        parts=st.lists(st.integers(0, 1500), max_size=4),
        fua=st.booleans(),
    )
    def write(self, offset: int, parts: list[int], fua: bool) -> None:
        data = [self._data(n) for n in parts]
        whole = b"".join(data)
        if offset + len(whole) > len(self.model):
            with pytest.raises(OSError, match="beyond"):
                self.run(self._do(lambda: self.blk.pwritev(data, offset, fua)))
            return
        assert self.run(self._do(lambda: self.blk.pwritev(data, offset, fua))) == len(
            whole
        )
        self.model[offset : offset + len(whole)] = whole

    @rule(offset=_offsets, sizes=st.lists(st.integers(1, 900), min_size=2, max_size=12))
    def write_neighbours(self, offset: int, sizes: list[int]) -> None:
        async def all_at_once() -> None:
            at, requests = offset, []
            for size in sizes:
                start, n = self._cut(at, size)
                data = self._data(n)
                requests.append(self.blk.pwrite(data, start))
                self.model[start : start + n] = data
                at += n
            await asyncio.gather(*requests)

        self.run(all_at_once())

    @rule(offset=_offsets, n=_lengths)
    def cancelled_read(self, offset: int, n: int) -> None:
        offset, n = self._cut(offset, n)

        async def cancel() -> None:
            buffer = bytearray(n)
            request = self.blk.pread_into(buffer, offset)
            request.cancel()
            try:
                assert await request == n
            except asyncio.CancelledError:
                pass
            buffer.extend(b"free again")

        self.run(cancel())

    @rule(offset=_offsets, n=_lengths)
    def cancelled_write(self, offset: int, n: int) -> None:
        offset, n = self._cut(offset, n)
        data = self._data(n)

        async def cancel() -> bytes:
            request = self.blk.pwrite(data, offset)
            request.cancel()
            await asyncio.wait([request])
            return bytes(await self.blk.pread(n, offset))

        # It may have happened, in part or not at all; each byte is the old or the new.
        got = self.run(cancel())
        old = self.model[offset : offset + n]
        assert all(g in (o, d) for g, o, d in zip(got, old, data, strict=True))
        self.model[offset : offset + n] = got

    @rule(offset=_offsets, n=_lengths, unmap=st.booleans())
    def zero(self, offset: int, n: int, unmap: bool) -> None:
        offset, n = self._cut(offset, n)
        self.run(self._do(lambda: self.blk.write_zeroes(offset, n, unmap)))
        self.model[offset : offset + n] = bytes(n)

    @rule(offset=_offsets, n=_lengths)
    def discard(self, offset: int, n: int) -> None:
        offset, n = self._cut(offset, n)
        self.run(self._do(lambda: self.blk.discard(offset, n)))
        self.model[offset : offset + n] = bytes(n)

    @rule(n=st.integers(0, _SIZE + 5000))
    def truncate(self, n: int) -> None:
        self.run(self._do(lambda: self.blk.truncate(n)))
        self.model[n:] = b""
        self.model.extend(bytes(n - len(self.model)))
        assert self.blk.length == n

    @rule(source=_offsets, n=_lengths)
    def copy(self, source: int, n: int) -> None:
        source, n = self._cut(source, n)
        target = source + n
        n = min(n, len(self.model) - target)
        self.run(self._do(lambda: self.blk.copy_range(source, self.blk, target, n)))
        self.model[target : target + n] = self.model[source : source + n]

    @rule()
    def flush(self) -> None:
        self.run(self._do(self.blk.flush))

    @rule()
    def drain(self) -> None:
        async def drained() -> None:
            requests = [self.blk.pread(1, 0) for _ in range(9) if self.model]
            async with self.blk.drained():
                assert all(r.done() for r in requests[:4])
            await asyncio.gather(*requests)

        self.run(drained())

    @rule()
    def reopen(self) -> None:
        self.run(self.blk.close())
        with open(self.path, "rb") as f:
            assert f.read() == self.model
        self.blk = self.run(self._open("r+"))

    def teardown(self) -> None:
        self.run(self.blk.close())
        self.loop.close()
        with open(self.path, "rb") as f:
            assert f.read() == self.model
        self.folder.cleanup()


@pytest.mark.slow
def test_a_device_is_a_bytearray(
    disk: Path, fdmon: str, engine: str, direct: bool
) -> None:
    name = f"Machine_{fdmon}_{engine}_{direct}"
    machine = type(
        name,
        (Machine,),
        {"fdmon": fdmon, "engine": engine, "direct": direct, "disk": str(disk)},
    )
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=15,
            stateful_step_count=25,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
