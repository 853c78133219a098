"""The progress bar as one line of bytes: done, failed, running, rate, time to go.  rich is loaded when the first one is drawn."""

from __future__ import annotations

import io
import os
import time
from typing import Any

_FRESH_SECONDS = 0.1
# A terminal echoes Ctrl-C as ^C behind the bar: with room for two, neither breaks into a line that no redrawing clears.
_KEPT_FREE = len("^C^C") + 1


class Bar:
    """Draws a run's figures.  Not for more than one thread."""

    def __init__(self, descriptor: int) -> None:
        """It is drawn for the terminal behind ``descriptor``."""
        self._descriptor = descriptor
        self._drawn = b""
        self._drawn_at = 0.0
        self._progress: Any = None
        self._task: Any = None
        self._buffer = io.StringIO()
        self._began = time.monotonic()
        self._before = 0

    def draw(self, figures: tuple[int, int, int, int]) -> bytes:
        """One line without its end, not wider than the terminal; drawn anew at most ten times a second."""
        now = time.monotonic()
        if now - self._drawn_at >= _FRESH_SECONDS:
            self._drawn, self._drawn_at = self._draw(figures, now), now
        return self._drawn

    def _draw(self, figures: tuple[int, int, int, int], now: float) -> bytes:
        done, failed, running, total = figures
        if self._progress is None:
            self._begin(done, total)
        rate = (done - self._before) / max(now - self._began, 0.001)
        words = {"failed": failed, "running": running, "rate": f"{rate:.1f}/s", "togo": _time_to_go(total - done, rate)}
        self._progress.update(self._task, completed=done, total=total, **words)
        console = self._progress.console
        console.width = max(20, _columns(self._descriptor) - _KEPT_FREE)
        self._buffer.seek(0)
        self._buffer.truncate()
        console.print(self._progress.get_renderable(), end="", no_wrap=True, crop=True)
        return self._buffer.getvalue().partition("\n")[0].encode(errors="replace")

    def _begin(self, done: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._before = done
        console = Console(file=self._buffer, force_terminal=True, legacy_windows=False)
        self._progress = Progress(
            BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total} done, {task.fields[failed]} failed, {task.fields[running]} running"),
            TextColumn("{task.fields[rate]}"),
            TextColumn("ETA {task.fields[togo]}"),
            console=console,
            auto_refresh=False,
            expand=True,
        )
        self._task = self._progress.add_task("", completed=done, total=total, failed=0, running=0, rate="", togo="")


def _time_to_go(left: int, rate: float) -> str:
    if rate <= 0:
        return "-:--"
    seconds = round(left / rate)
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def _columns(descriptor: int) -> int:
    try:
        return os.get_terminal_size(descriptor).columns or 80
    except OSError:
        return 80
