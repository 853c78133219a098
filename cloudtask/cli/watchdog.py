"""The command ``cloudtask-watchdog``: cleans up after runs that died.  A run that launches machines starts one for its session.

Exit statuses: 0 nothing is left, 1 something is, 2 wrong use.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cloudtask import providers
from cloudtask.cli.arguments import Arguments, command
from cloudtask.cli.streams import tell
from cloudtask.errors import CloudtaskError, SessionError, StorageError, UsageError
from cloudtask.instances.launches import launches_directory
from cloudtask.instances.sessions_here import SessionsHere
from cloudtask.leaks import Leaks
from cloudtask.options import Parsed
from cloudtask.places import Places
from cloudtask.providers import Provider, settings_table
from cloudtask.session import layout, replay
from cloudtask.session.lock import is_held, last_beat
from cloudtask.settings_sources import Values
from cloudtask.task import Request, Template, plan_harvest, read_layers, saved_settings
from cloudtask.units import parse_duration
from cloudtask.watchdog import Patience, Watchdog, Watched
from cloudtask.workers.forkserver import ForkServer

PROGRAM = "cloudtask-watchdog"
DESCRIPTION = "Cleans up after a run that died: fetches finished results from the machines that it launched, and destroys them."
NOTHING_LEFT, SOMETHING_LEFT = 0, 1
_ADOPT_SECONDS = 60.0


def main(argv: Sequence[str] | None = None) -> int:
    """The console script."""
    return command(PROGRAM, _run, argv)


def _arguments() -> Arguments:
    arguments = Arguments(PROGRAM, DESCRIPTION)
    arguments.add_argument("session", nargs="?", metavar="SESSION", help="a session's directory, or its number, or 'last'")
    arguments.add_argument("--all", action="store_true", help="clean up after all sessions whose runs are dead, once, and end")
    arguments.add_argument("--adopt", action="store_true", help="with --all: destroy machines with our tag of no living session, too")
    arguments.add_argument("--sessions", metavar="PATH", help="where sessions are stored")
    arguments.add_argument("--resume-grace", metavar="DURATION", type=_duration, help="time for a resume (default: the session's, 5m)")
    arguments.add_argument("--frozen", metavar="DURATION", type=_duration, default=600.0, help="when a run without a beat is ended (10m)")
    arguments.add_argument("--give-up", metavar="DURATION", type=_duration, default=3 * 3600.0, help="how long to go on destroying (3h)")
    arguments.add_argument("--secrets", action="store_true", help="read secret settings as JSON from stdin; for cloudtask itself")
    return arguments


def _duration(text: str) -> float:
    return float(parse_duration(text))


def _run(argv: Sequence[str]) -> int:
    found = _arguments().read(argv)
    if found is None:
        return NOTHING_LEFT
    if found.all == bool(found.session):
        raise UsageError("name one session, or give --all")
    if found.adopt and not found.all:
        raise UsageError("--adopt goes with --all: one session's machines are its own")
    secrets = json.loads(sys.stdin.buffer.read() or b"{}") if found.secrets else {}
    if found.all:
        left = _all(found.sessions, found.resume_grace, found.give_up)
        return _adopt(found.sessions) or left if found.adopt else left
    directory, which = _place(found.session, found.sessions)
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    house = Household(directory, which, secrets)
    patience = Patience(
        resume_grace=house.grace if found.resume_grace is None else found.resume_grace, frozen=found.frozen, rounds=found.give_up
    )
    return NOTHING_LEFT if Watchdog(house.watched(), patience, tell).run() else SOMETHING_LEFT


def _place(session: str, sessions: str | None) -> tuple[str | None, str]:
    """The directory of sessions (None: the user's own) and which session of it."""
    if os.path.isdir(session) and sessions is None:
        path = os.path.abspath(session)
        return os.path.dirname(path), os.path.basename(path)
    return sessions, session


class Household:
    """One session's settings, and what the watchdog needs made of them."""

    def __init__(self, directory: str | None, which: str, secrets: Mapping[str, Any]) -> None:
        given = dict(secrets) | ({"sessions": directory} if directory else {})
        self._request = Request(
            table=settings_table(strangers=True), parsed=Parsed(values=given), template=Template, environ=os.environ, folder="/"
        )
        layers, _ = read_layers(self._request)
        self._number, self._values = saved_settings(self._request, layers, which)

    @property
    def grace(self) -> float:
        """The session's --resume-grace, in seconds."""
        return self._values.settings.resume_grace

    def watched(self) -> Watched:
        """What the watchdog watches."""
        directory = os.path.join(self._values.settings.sessions, str(self._number))
        return Watched(directory=directory, provider=self._provider, harvest=self._harvest)

    def _provider(self) -> Provider:
        """Of whom the machines are: the journal knows better than settings that somebody may have changed since."""
        name = provider_of(self._values)
        with contextlib.suppress(SessionError, OSError):
            journal = layout.Paths(os.path.join(self._values.settings.sessions, str(self._number))).journal
            orders = replay.replay(journal, strict=False).bookings.unsettled_orders()
            name = orders[0].provider if orders else name
        return providers.find(name)(self._values.settings)

    def _harvest(self) -> None:
        plan = plan_harvest(self._request, self._number, self._values)
        # Loaded by name: a watchdog waits for days, and seldom needs it.
        engine: Any = importlib.import_module("cloudtask.engine")
        try:
            engine.execute(plan, NobodyLooks(), ForkServer([f"cloudtask.transports.{plan.settings.transport}"]), lambda directory: None)
        except CloudtaskError:
            raise
        except Exception as error:
            # Whatever it is, the machines are to be destroyed all the same.
            raise StorageError(f"{type(error).__name__}: {error}".splitlines()[0]) from error


def provider_of(values: Values) -> str:
    """The name of the provider that a session's machines are from."""
    return values.settings.provider or "hub"


class NobodyLooks:
    """A front for a run that nobody looks at: its words stand in the session's log."""

    def say(self, line: str, *, important: bool = False) -> None:
        """See `cloudtask.front.Front`."""

    def progress(self, done: int, failed: int, running: int, total: int) -> None:
        """See `cloudtask.front.Front`."""

    def job_output(self, data: bytes) -> None:
        """See `cloudtask.front.Front`."""

    def job_error_output(self, data: bytes) -> None:
        """See `cloudtask.front.Front`."""

    def close(self, *, wait: bool = True) -> None:
        """See `cloudtask.front.Front`."""


# --- all sessions ----------------------------------------------------------------------------------------------------


def _all(sessions: str | None, grace: float | None, give_up: float) -> int:
    """One look at every session: those that are dead for longer than their grace are cleaned up, at once."""
    left = False
    for directory, number in _unsettled(sessions):
        try:
            house = Household(directory, str(number), {})
            wait = house.grace if grace is None else grace
            if _dead_for(os.path.join(directory, str(number))) < wait:
                continue
            patience = Patience(resume_grace=wait, rounds=min(give_up, 60.0))
            # None: a resume took it up, and sees to its machines itself.
            left = Watchdog(house.watched(), patience, tell).clean_up() is False or left
        except CloudtaskError as error:
            tell(f"{PROGRAM}: {directory}/{number}: {error}")
            left = True
    return SOMETHING_LEFT if left else NOTHING_LEFT


def _adopt(sessions: str | None) -> int:
    """Destroy what is leaked at all providers that the sessions here or the configuration know."""
    request = Request(table=settings_table(strangers=True), parsed=Parsed(), template=Template, environ=os.environ, folder="/")
    places = Places(request)
    here = SessionsHere([sessions or places.sessions], launches_directory())
    known, complaints = places.all_known(here)
    leaks = Leaks(here, complaints, known)
    for finding in leaks.leaked:
        tell(f"leaked: {finding}")
    left = leaks.destroy(_ADOPT_SECONDS, tell, lambda: False)
    for line in [*leaks.complaints, *(f"can't destroy {id}: {why}" for id, why in left.items())]:
        tell(f"{PROGRAM}: {line}")
    return SOMETHING_LEFT if left or leaks.complaints else NOTHING_LEFT


def clean_up_session(root: str, patience: float) -> None:
    """Clean up after the dead session in the directory ``root`` now, within ``patience`` seconds; complains where that cannot be."""
    try:
        house = Household(os.path.dirname(root), os.path.basename(root), {})
        Watchdog(house.watched(), Patience(resume_grace=0.0, rounds=patience, confirm=patience), tell).clean_up()
    except CloudtaskError as error:
        tell(f"{PROGRAM}: {root}: {error}")


def _unsettled(sessions: str | None) -> Iterator[tuple[str, int]]:
    """The dead sessions that have machines to see to."""
    request = Request(table=settings_table(), parsed=Parsed(), template=Template, environ=os.environ, folder="/")
    for directory in [sessions] if sessions else [_own_sessions(request), launches_directory()]:
        for number in layout.numbers(directory):
            root = os.path.join(directory, str(number))
            try:
                if not layout.is_session(directory, number) or is_held(root):
                    continue
                state = replay.replay(layout.Paths(root).journal, strict=False)
            except (CloudtaskError, OSError) as error:
                tell(f"{PROGRAM}: {root}: {error}")
                continue
            if state.bookings.unsettled:
                yield directory, number


def _own_sessions(request: Request) -> str:
    layers, _ = read_layers(request)
    return next((str(layer.values["sessions"]) for layer in layers if "sessions" in layer.values), os.path.expanduser("~/.cloudtask"))


def _dead_for(root: str) -> float:
    """Seconds since the last beat of whoever ran the session."""
    return max(0.0, time.time() - last_beat(root) / 1e9)


if __name__ == "__main__":
    sys.exit(main())
