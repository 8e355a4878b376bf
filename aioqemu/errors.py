"""Exceptions that aioqemu raises of its own.

Everything else is what asyncio raises in the same place. Re-exports only: the engine
defines them, and it must never import this module.
"""

from __future__ import annotations

from ._engine.errors import BackendUnavailable

__all__ = ["BackendUnavailable"]
