"""``cloudtask.Task``: a task template that is a program of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cloudtask.cli.main import run
from cloudtask.task import Template, loading


class Task(Template):
    """A task template, with the attributes of :class:`~cloudtask.task.Template`.  The file that defines one ends in ``Mine.main()``."""

    @classmethod
    def main(cls, argv: Sequence[str] | None = None) -> None:
        """Run the task with this command line (default: the program's own) and exit with its status.

        While ``cloudtask --template=FILE`` loads the file, it only notes the class and returns.
        """
        if (noted := loading.get()) is not None:
            noted.append(cls)
            return
        program = os.path.basename(sys.argv[0]) or "cloudtask"
        sys.exit(run(cls, sys.argv[1:] if argv is None else argv, program))
