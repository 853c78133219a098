"""CloudTask: one job for each input line, in parallel, on a split of workers.

The façade above all floors.  Names are handed out lazily, so that ``from cloudtask import Task`` loads nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cloudtask.version import VERSION as __version__

if TYPE_CHECKING:
    from cloudtask.cli.program import Task as Task
    from cloudtask.errors import CloudtaskError as CloudtaskError

__all__ = ["CloudtaskError", "Task", "__version__"]

_HOMES = {"Task": "cloudtask.cli.program", "CloudtaskError": "cloudtask.errors"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cloudtask' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
