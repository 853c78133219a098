"""What a bench found, and how it is printed."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import NamedTuple

_WIDTHS = (58, 14, 14)


class Row(NamedTuple):
    """One line: ``reached`` is None where there is no aim."""

    what: str
    figure: str
    aim: str = ""
    reached: bool | None = None


class Aim(NamedTuple):
    """Something to reach, as issue 2 has it."""

    words: str
    holds: Callable[[float], bool]

    def row(self, what: str, value: float, figure: str) -> Row:
        """The line that says whether ``value`` reaches it."""
        return Row(what, figure, self.words, self.holds(value))


def at_least(value: float) -> Aim:
    """A ratio that should be high."""
    return Aim(f">= {value:g}", lambda found: found >= value)


def at_most(value: float, unit: str = "") -> Aim:
    """A figure that should be low."""
    return Aim(f"<= {value:g}{unit}", lambda found: found <= value)


def show(title: str, rows: Iterable[Row]) -> None:
    """Print one bench's lines as soon as it is done."""
    print(f"\n{title}")
    for row in rows:
        verdict = "" if row.reached is None else "reached" if row.reached else "MISSED"
        print(f"  {row.what:<{_WIDTHS[0]}} {row.figure:>{_WIDTHS[1]}}  {row.aim:<{_WIDTHS[2]}} {verdict}".rstrip(), flush=True)


def machine() -> str:
    """Where and with what this was measured."""
    with open("/proc/cpuinfo") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), platform.machine())
    tools = [_first(["ssh", "-V"]), _first(["parallel", "--version"]), _first(["xargs", "--version"])]
    loads = " ".join(f"{load:.2f}" for load in os.getloadavg())
    return (
        f"{os.cpu_count()} x {model}, Linux {platform.release()}, load {loads}\n"
        f"Python {platform.python_version()}, paramiko {version('paramiko')}, {', '.join(tools)}"
    )


def _first(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return f"no {command[0]}"
    line = (done.stdout + done.stderr).strip().partition("\n")[0]
    return re.split(r",\s", line)[0]
