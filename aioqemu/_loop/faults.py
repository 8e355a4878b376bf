"""Fault injection: a device seen through rules that make chosen requests go wrong.

Knows no engine: the rules are asked before each submission, and answer with an errno, a
delay, or a transfer cut short.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aioqemu._loop.blockdev import BlockDevice, NullDevice, Opening

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from aioqemu._block.request import BlockRequest

    Hook = Callable[[BlockRequest], object]

MAX_DELAY = 1e6  # seconds


@dataclass(slots=True)
class Fault:
    """One rule of a fault injector.

    Attributes:
        op: "read", "write", "fdatasync", "fallocate", "truncate", ...; None for all.
        error: the errno with which the submission fails.  EINTR and EAGAIN are
            resubmitted, as when they come from the kernel.
        short: transfer at most so many bytes in one go.
        delay: seconds to wait before the submission, or before it fails.
        start: only where the request touches bytes from here ...
        end: ... up to here.
        after: let so many matching submissions pass first.
        times: how often it applies; None for ever.
    """

    op: str | None = None
    error: int = 0
    short: int = 0
    delay: float = 0.0
    start: int = 0
    end: int | None = None
    after: int = 0
    times: int | None = None
    hits: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.error < 4096:
            raise ValueError(f"error must be an errno, not {self.error}")
        if not 0 <= self.delay <= MAX_DELAY:
            text = f"delay must be 0 to {MAX_DELAY:g} seconds, not {self.delay}"
            raise ValueError(text)
        if self.short < 0 or self.after < 0:
            raise ValueError("short and after must not be negative")

    def matches(self, req: BlockRequest) -> bool:
        """Whether the rule applies to a submission."""
        if self.op is not None and req.op != self.op:
            return False
        if self.end is not None and req.offset >= self.end:
            return False
        if req.offset + req.length <= self.start and self.start:
            return False
        if self.after > 0:
            self.after -= 1
            return False
        if self.times is not None and self.hits >= self.times:
            return False
        self.hits += 1
        return True


# The methods of a device that make requests.
_REQUESTS = frozenset(
    {
        "pread",
        "pread_into",
        "preadv",
        "pwrite",
        "pwritev",
        "flush",
        "discard",
        "write_zeroes",
        "truncate",
        "map",
        "copy_range",
        "aio_preadv",
        "aio_pwritev",
        "aio_flush",
        "aio_discard",
    }
)


class FaultyDevice:
    """A device seen through fault rules; has all that the device has.

    It shares everything with the device, which may be used beside it: only requests
    that are made here meet the rules.
    """

    def __init__(self, device: Any, hook: Hook) -> None:
        self._device = device
        # The device at the bottom, where several are stacked.
        self._faulty_device = getattr(device, "_faulty_device", device)
        self._rules = hook

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._device!r}>"

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._device, name)
        if name not in _REQUESTS:
            return found

        def through_the_rules(*args: Any, **kwargs: Any) -> Any:
            served = self._faulty_device._service
            before = served.swap_hook(None)
            served.swap_hook(self._rules if before is None else _both(before, self))
            try:
                return found(*args, **kwargs)
            finally:
                served.swap_hook(before)

        return through_the_rules

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._device.close()


def _both(outer: Hook, faulty: FaultyDevice) -> Hook:
    def ask(req: BlockRequest) -> object:
        verdict = outer(req)
        return faulty._rules(req) if verdict is None else verdict

    return ask


def _hook_of(rules: list[Fault]) -> Hook:
    def hook(req: BlockRequest) -> object:
        for rule in rules:
            if rule.matches(req):
                if rule.error:
                    return (rule.delay, -rule.error) if rule.delay else -rule.error
                if rule.short:
                    req.service.shorten(req, rule.short)
                return float(rule.delay) if rule.delay else None
        return None

    return hook


def with_faults(inner: Any, rules: list[Fault]) -> Any:
    """A device, or the opening of one, whose requests meet `rules`."""
    if isinstance(inner, Opening):
        return inner.wrapped(lambda blk: with_faults(blk, rules))
    if not isinstance(inner, (BlockDevice, NullDevice, FaultyDevice)):
        raise TypeError(f"a block device is expected, got {inner!r}")
    return FaultyDevice(inner, _hook_of(rules))
