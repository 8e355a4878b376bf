"""The warning for things that were dropped without close().

One function, with all it needs bound when it is defined: finalizers run while the
interpreter takes modules apart.  Knows nothing of what is dropped.
"""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def warn_unclosed(
    text: str,
    source: object,
    _warn: Callable[..., None] = warnings.warn,
    _finalizing: Callable[[], bool] = sys.is_finalizing,
    _category: type[Warning] = ResourceWarning,
) -> None:
    """Warn that `source` is `text`; says nothing once the interpreter is going down."""
    if not _finalizing():
        _warn(text, _category, source=source, stacklevel=2)
