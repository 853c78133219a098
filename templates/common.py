"""What the task templates in this folder share: a module like any other, found because it lies beside them."""

from __future__ import annotations

from cloudtask import Task


class BaseTask(Task):
    """A job that fails may have met a bad moment: it is tried again."""

    RETRIES = 2
    TIMEOUT = "10m"
