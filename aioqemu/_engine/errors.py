"""Exceptions of the engine.  Imports nothing."""

from __future__ import annotations


class BackendUnavailable(OSError):
    """A backend that was asked for by name cannot run here; the text says why."""
