"""Async generators of a loop: the hooks of a run, and closing those that are left.

As in the stock loop; only what is kept of each generator is native (`live`), since the
hook is called for every one.
"""

from __future__ import annotations

import asyncio
import sys
import warnings
from typing import TYPE_CHECKING, Any

from .live import LiveGenerators

if TYPE_CHECKING:
    from ._typing import LoopBase
else:
    LoopBase = object


class AsyncGensMixin(LoopBase):
    """``shutdown_asyncgens``, and the hooks that tell it whom to close."""

    _asyncgens: LiveGenerators
    _asyncgens_shutdown_called: bool
    _old_agen_hooks: Any

    def _init_asyncgens(self) -> None:
        self._asyncgens = LiveGenerators()
        self._asyncgens_shutdown_called = False
        self._old_agen_hooks = None

    def _set_agen_hooks(self) -> None:
        self._old_agen_hooks = sys.get_asyncgen_hooks()
        late = self._asyncgens_shutdown_called
        sys.set_asyncgen_hooks(
            firstiter=self._asyncgen_late if late else self._asyncgens.add,
            finalizer=self._asyncgen_finalizer,
        )

    def _restore_agen_hooks(self) -> None:
        hooks, self._old_agen_hooks = self._old_agen_hooks, None
        if hooks is not None:
            sys.set_asyncgen_hooks(*hooks)

    def _asyncgen_late(self, agen: Any) -> None:
        warnings.warn(
            f"asynchronous generator {agen!r} was scheduled after "
            f"loop.shutdown_asyncgens() call",
            ResourceWarning,
            source=self,
            stacklevel=2,
        )
        self._asyncgens.add(agen)

    def _asyncgen_finalizer(self, agen: Any) -> None:
        # Called by the garbage collector, in whichever thread it runs.
        self._asyncgens.discard(agen)
        if not self.is_closed():
            self.call_soon_threadsafe(self.create_task, agen.aclose())

    async def shutdown_asyncgens(self) -> None:
        """Close all async generators that this loop has iterated and not finished."""
        self._asyncgens_shutdown_called = True
        if sys.get_asyncgen_hooks().firstiter == self._asyncgens.add:
            sys.set_asyncgen_hooks(firstiter=self._asyncgen_late)
        agens = self._asyncgens.take()
        if not agens:
            return
        results = await asyncio.gather(
            *[agen.aclose() for agen in agens], return_exceptions=True
        )
        for agen, result in zip(agens, results, strict=True):
            if isinstance(result, Exception):
                self.call_exception_handler(
                    {
                        "message": "an error occurred during closing of "
                        f"asynchronous generator {agen!r}",
                        "exception": result,
                        "asyncgen": agen,
                    }
                )
