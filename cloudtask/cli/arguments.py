"""The options of the smaller commands: argparse, with errors in our one line and exit status 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from cloudtask.cli.streams import STDOUT_CLOSED, StdoutClosedError, put, tell
from cloudtask.errors import CloudtaskError, UsageError
from cloudtask.version import VERSION

INTERRUPTED = 130


class Arguments(argparse.ArgumentParser):
    """A parser that raises UsageError, takes no shortened options, and prints through `streams`."""

    def __init__(self, program: str, description: str) -> None:
        super().__init__(prog=program, description=description, allow_abbrev=False, add_help=False)
        self.add_argument("-h", "--help", action="store_true", help="print this")
        self.add_argument("--version", action="store_true", help="print the version")

    def error(self, message: str) -> NoReturn:
        """Wrong use."""
        raise UsageError(f"{message}; {self.prog} --help lists what there is")

    def read(self, argv: Sequence[str]) -> argparse.Namespace | None:
        """The arguments; None where --help or --version was asked for, and given."""
        if {"-h", "--help"} & set(argv):
            put(self.format_help().encode())
            return None
        if "--version" in argv:
            put(f"{self.prog} {VERSION}\n".encode())
            return None
        return self.parse_args(argv)


def command(program: str, run: Callable[[Sequence[str]], int], argv: Sequence[str] | None) -> int:
    """Run a command; returns its exit status.  Expected errors are one line."""
    try:
        return run(sys.argv[1:] if argv is None else argv)
    except CloudtaskError as error:
        tell(f"{program}: {error}")
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    except StdoutClosedError:
        return STDOUT_CLOSED
