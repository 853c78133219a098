"""The command ``cloudtask-destroy-workers``: destroys the machines that a file lists, or those that nobody looks after any more.

Exit statuses: 0 done, 1 some are left, 2 wrong use, 128 + n ended by signal n.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence

from cloudtask import options
from cloudtask.cli.arguments import command
from cloudtask.cli.confirm import ask
from cloudtask.cli.streams import is_terminal, put, read_all, tell
from cloudtask.cli.watchdog import clean_up_session
from cloudtask.errors import CloudtaskError, DeclinedError, InputError, UsageError
from cloudtask.instances.launches import launches_directory
from cloudtask.instances.machine_file import MachineFile, what_is_left
from cloudtask.instances.notes import Notes
from cloudtask.instances.razing import Razing
from cloudtask.instances.sessions_here import SessionsHere
from cloudtask.leaks import Finding, Leaks
from cloudtask.options import Action, Parsed
from cloudtask.places import Place, Places, unique
from cloudtask.providers import settings_table
from cloudtask.settings import LAUNCHING, Table
from cloudtask.signals import Signals
from cloudtask.targets import Target, Targets
from cloudtask.task import Request, Template
from cloudtask.units import parse_duration
from cloudtask.version import VERSION
from cloudtask.worker_file import WorkerLine, parse_lines

PROGRAM = "cloudtask-destroy-workers"
DESCRIPTION = """
Destroys the machines that FILE lists (or, for -, standard input), as cloudtask-launch-workers wrote it, and waits until their providers
say that they are gone. What is left stays in the file; a file with nothing left in it is removed.

With --leaked: destroys what carries cloudtask's tag and belongs to no living session.
"""
HOW = f"usage: {PROGRAM} [options] FILE|-\n       {PROGRAM} [options] --leaked\n"
STDIN = "-"
ACTIONS = (
    Action(name="leaked", metavar="", help="destroy what belongs to no living session"),
    Action(name="dry-run", metavar="", help="show what would be destroyed, and why the rest would not; destroy nothing"),
    Action(name="wait", metavar="DURATION", help="how long to wait until a provider says that they are gone (default: 5m)"),
    Action(
        name="force",
        metavar="",
        help="don't ask; of a file's machines destroy those without our tag, too, and take unknown ones off the list",
    ),
    Action(name="version", metavar="", help="print the version"),
    Action(name="help", metavar="", help="print this", short="-h"),
)
DONE, SOME_LEFT = 0, 1
WAIT = 300.0
_ROWS = ("provider", "hub_apikey", "ec2_region", "prices", "sessions")


def main(argv: Sequence[str] | None = None) -> int:
    """The console script."""
    return command(PROGRAM, _run, argv)


def rows(table: Table) -> Table:
    """The settings that this command takes as options: those that say where machines are."""
    found = [row for row in table if row.name in _ROWS or (row.group.startswith(LAUNCHING) and row.group != LAUNCHING)]
    named = "where to look, or where lines that name no provider belong; can be given again"
    return Table(dataclasses.replace(row, repeatable=True, help=named) if row.name == "provider" else row for row in found)


def _run(argv: Sequence[str]) -> int:
    table = settings_table(strangers=True)
    parsed = options.parse(argv, rows(table), actions=ACTIONS, anywhere=True)
    if "help" in parsed.actions:
        put(options.help_text(rows(table), PROGRAM, DESCRIPTION, how=HOW, actions=ACTIONS).encode())
        return DONE
    if "version" in parsed.actions:
        put(f"{PROGRAM} {VERSION}\n".encode())
        return DONE
    leaked = "leaked" in parsed.actions
    if len(parsed.words) != (0 if leaked else 1):
        raise UsageError(f"name one file, or give --leaked; {PROGRAM} --help says more")
    errand = Errand(table, parsed)
    return errand.destroy_leaked() if leaked else errand.destroy_listed(parsed.words[0])


class Errand:
    """One call of the command."""

    def __init__(self, table: Table, parsed: Parsed) -> None:
        self._actions = parsed.actions
        self._wait = _duration(parsed.actions["wait"]) if "wait" in parsed.actions else WAIT
        values = dict(parsed.values)
        named = values.pop("provider", ())
        assert isinstance(named, tuple)
        self._named: tuple[str, ...] = named
        request = Request(table=table, parsed=Parsed(values=values), template=Template, environ=os.environ, folder=os.getcwd())
        self._places = Places(request)
        for warning in self._places.warnings:
            tell(f"{PROGRAM}: {warning}")
        self._here = SessionsHere([self._places.sessions], launches_directory())

    # --- what a file lists -------------------------------------------------------------------------------------------

    def destroy_listed(self, path: str) -> int:
        """Destroy what a file (or standard input) lists; what is left stays in it (or goes to standard output)."""
        if path == STDIN:
            text = _decoded(read_all(0))
            gone, status = self._destroy_lines(_lines(text, "standard input"))
            if not self._dry:
                put(what_is_left(text, "standard input", gone).encode())
            return status
        with MachineFile.open(path) as file:
            text = file.read()
            gone, status = self._destroy_lines(_lines(text, path))
            if gone:
                file.replace(what_is_left(text, path, gone))
            return status

    @property
    def _dry(self) -> bool:
        return "dry-run" in self._actions

    def _destroy_lines(self, lines: Sequence[WorkerLine]) -> tuple[set[str], int]:
        """The lines whose machines are gone, and the exit status."""
        if not lines:
            tell("no workers to destroy")
            return set(), DONE
        left: dict[str, str] = {}
        targets = self._targets(lines, left)
        if self._dry:
            for target in targets:
                tell(f"would destroy worker {target.id} ({target.place})")
        signals = Signals(lambda: None)
        with signals.caught():
            gone = set() if self._dry else self._destroy_targets(targets, left, lambda: bool(signals))
            status = _status(SOME_LEFT if left else DONE, signals)
        for name, why in left.items():
            tell(f"warning: can't destroy {name}: {why}")
        return {target.line.line for target in targets if target.id in gone}, status

    def _targets(self, lines: Sequence[WorkerLine], left: dict[str, str]) -> list[Target]:
        finder, found = Targets(self._places, self._here, self._named), []
        for line in lines:
            try:
                found.append(finder.find(line))
            except CloudtaskError as error:
                left[line.facts.get("id") or str(line.address)] = str(error)
        return found

    def _destroy_targets(self, targets: Sequence[Target], left: dict[str, str], stopped: Callable[[], bool]) -> set[str]:
        gone: set[str] = set()
        with Notes() as notes:
            for place in unique(target.place for target in targets):
                mine = [target for target in targets if target.place.key == place.key]
                gone |= self._destroy_at(place, mine, notes, left, stopped)
        return gone

    def _destroy_at(
        self, place: Place, targets: Sequence[Target], notes: Notes, left: dict[str, str], stopped: Callable[[], bool]
    ) -> set[str]:
        roots = {target.id: target.root for target in targets}
        for root in {root for root in roots.values() if root and notes.take(root)}:
            notes.destroying(root, [id for id in roots if roots[id] == root], f"{PROGRAM} was asked to")

        def done(id: str) -> None:
            if root := roots[id]:
                notes.destroyed(root, id)
            tell(f"destroyed worker {id}")

        def launched(id: str) -> float:
            root = roots[id]
            return notes.launched(root, id) if root else 0.0

        razed = Razing(place.make, stopped, done, certain="force" not in self._actions).raze(list(roots), launched, self._wait)
        for id in razed.unknown:
            tell(f"# {place} knew no machine {id}: it was gone already")
        left |= razed.left
        return set(razed.gone)

    # --- what is leaked ----------------------------------------------------------------------------------------------

    def destroy_leaked(self) -> int:
        """Destroy what belongs to no living session."""
        leaks = self._look()
        for line in describe(leaks):
            tell(line)
        if not leaks.leaked or self._dry:
            return SOME_LEFT if leaks.complaints else DONE
        self._confirm(leaks.leaked)
        for root in {each.root for each in leaks.leaked if each.root}:
            # Finished results are fetched first, and what its journal knows is destroyed.
            clean_up_session(root, patience=min(self._wait, 60.0))
        signals = Signals(lambda: None)
        with signals.caught():
            left = leaks.destroy(self._wait, tell, lambda: bool(signals))
            status = _status(SOME_LEFT if left or leaks.complaints else DONE, signals)
        for id, why in left.items():
            tell(f"warning: can't destroy {id}: {why}")
        return status

    def _look(self) -> Leaks:
        places, complaints = self._places.all_known(self._here) if not self._named else ([], [])
        places = unique([*places, *(self._places.named(name) for name in self._named)])
        if not places:
            raise UsageError("no provider is configured, and no session here has launched machines: name one with --provider")
        return Leaks(self._here, complaints, places)

    def _confirm(self, leaked: Sequence[Finding]) -> None:
        if "force" in self._actions or not is_terminal(2):
            return
        if ask(f"Destroy {'this machine' if len(leaked) == 1 else f'these {len(leaked)} machines'}? [yes/no] ").lower() != "yes":
            raise DeclinedError


def describe(leaks: Leaks) -> list[str]:
    """What was found, and what could not be looked at."""
    lines = [f"leaked: {each}" for each in leaks.leaked]
    lines += [f"spared: {each}" for each in leaks.findings if not each.verdict.leaked]
    lines += [f"warning: {complaint}" for complaint in leaks.complaints]
    prices = [each.hourly for each in leaks.leaked]
    cost = sum(price or 0.0 for price in prices)
    unpriced = f", without {prices.count(None)} of unknown price" if None in prices else ""
    lines.append(f"# {len(leaks.leaked)} leaked, {len(leaks.findings) - len(leaks.leaked)} spared; leaked: ${cost:.4g} an hour{unpriced}")
    return lines


def _status(status: int, signals: Signals) -> int:
    """The exit status, which is a signal's where one came."""
    stopped_by = signals.take()
    return 128 + stopped_by[0] if stopped_by else status


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"--wait: {error}") from None


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InputError("standard input is not text in UTF-8") from None


def _lines(text: str, name: str) -> list[WorkerLine]:
    try:
        return parse_lines(text, name)
    except ValueError as error:
        raise UsageError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
