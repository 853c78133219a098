"""The command ``cloudtask-launch-workers``: launches machines and lists them in a file, for ``cloudtask --workers=FILE``.

Exit statuses: 0 all are there, 1 some are missing, 2 wrong use, 128 + n ended by signal n.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import cloudtask.settings_sources as sources
from cloudtask import options
from cloudtask.cli.arguments import command
from cloudtask.cli.streams import put, tell, write_all
from cloudtask.cli.watch import start_watchdog
from cloudtask.errors import StorageError, UsageError
from cloudtask.instances.costs import charge
from cloudtask.instances.launches import launches_directory
from cloudtask.instances.machine_file import MachineFile
from cloudtask.kinds import Scene, whole
from cloudtask.launch_only import SOME_MISSING, Handover, LaunchOnly
from cloudtask.model import Address
from cloudtask.options import Action
from cloudtask.plan import Launch, Plan
from cloudtask.providers import settings_table
from cloudtask.providers.timer import timer_script
from cloudtask.session.session import NewSession, Session
from cloudtask.settings import LAUNCHING, Settings, Table
from cloudtask.settings_checks import check
from cloudtask.task import Request, Template, command_of, plan_launch, read_layers, read_settings
from cloudtask.transports import ConnectOptions
from cloudtask.transports import find as find_transport
from cloudtask.transports.own_key import own_public_key
from cloudtask.units import format_duration
from cloudtask.version import VERSION
from cloudtask.workers.machine_timer import IT_IS_US, start_timer

PROGRAM = "cloudtask-launch-workers"
DESCRIPTION = """
Launches machines and writes each into FILE (or, for -, on standard output) as soon as one can log in to it: one a line, as
cloudtask --workers=FILE reads them. cloudtask-destroy-workers FILE destroys them.
"""
HOW = f"usage: {PROGRAM} [options] HOWMANY FILE|-\n"
STDOUT = "-"
ACTIONS = (
    Action(name="label", metavar="TEXT", help="what the machines are called (default: Cloudtask worker)"),
    Action(name="version", metavar="", help="print the version"),
    Action(name="help", metavar="", help="print this", short="-h"),
)
ALIASES = {"--region": "--ec2-region", "--size": "--ec2-size", "--type": "--ec2-type"}
"""The original's names."""

_LABEL = "Cloudtask worker"
_NOT_HERE = ("keep", "resume_grace")
"""The file is an argument here, and nobody takes up a launch."""
_MORE = ("user", "ssh_identity", "ssh_config", "transport", "quiet")
_HELP = {
    "provider": "where machines are launched",
    "min_split": "be content with so many, where more cannot be had",
    "replace": "how many machines that were never ready are replaced at most",
    "keep_for": "how long the machines may stay",
    "max_workers": "refuse to launch more machines than that",
    "max_hourly": "refuse to launch machines that cost more an hour together",
    "max_cost": "refuse to launch machines that cost more for all of --keep-for",
    "ssh_identity": "SSH identity keyfile; its public half is authorised on the machines",
}
"""What settings mean here, where that is not quite what they mean to a run."""
_MOST = 10_000
_JOBS_LIMIT = 24 * 3600


def main(argv: Sequence[str] | None = None) -> int:
    """The console script."""
    return command(PROGRAM, _run, argv)


def rows(table: Table) -> Table:
    """The settings that this command takes as options."""
    found = [row for row in table if row.name in _MORE or (row.group.startswith(LAUNCHING) and row.name not in _NOT_HERE)]
    return Table(dataclasses.replace(row, help=_HELP.get(row.name, row.help)) for row in found)


def _run(argv: Sequence[str]) -> int:
    table = settings_table(strangers=True)
    parsed = options.parse(argv, rows(table), actions=ACTIONS, aliases=ALIASES, anywhere=True)
    if "help" in parsed.actions:
        put(options.help_text(rows(table), PROGRAM, DESCRIPTION, how=HOW, actions=ACTIONS, aliases=ALIASES).encode())
        return 0
    if "version" in parsed.actions:
        put(f"{PROGRAM} {VERSION}\n".encode())
        return 0
    count, path = _words(parsed.words)
    request = Request(table=table, parsed=dataclasses.replace(parsed, words=()), template=Template, environ=os.environ, folder=os.getcwd())
    layers, warnings = read_layers(request)
    for warning in warnings:
        tell(f"{PROGRAM}: {warning}")
    values = read_settings(request, layers)
    check(values)
    plan = plan_of(request, values, count, parsed.actions.get("label") or _LABEL)
    return _launch(request, plan, count, path)


def _words(words: Sequence[str]) -> tuple[int, str]:
    if len(words) != 2:
        raise UsageError(f"say how many, and where to list them: {HOW.removeprefix('usage: ').strip()}")
    try:
        count: int = whole(1)(words[0], Scene(folder="/", environ={}))
    except ValueError as error:
        raise UsageError(f"how many machines? {words[0]!r}: {error}") from None
    if count > _MOST:
        raise UsageError(f"{count} machines are more than {_MOST}")
    return count, words[1]


def plan_of(request: Request, values: sources.Values, count: int, label: str) -> Plan:
    """What is to be launched.  Raises UsageError, also for a budget that it would not keep to, and ProviderError."""
    provider = values.settings.provider or ("hub" if values.settings.hub_apikey else None)
    if provider is None:
        raise UsageError("where? name a provider with --provider, or give the TurnKey Hub's API key with --hub-apikey or HUB_APIKEY")
    if values.settings.extra.get("install_updates") and provider != "hub":
        raise UsageError(f"{values.said('install-updates')} is the hub's; with {provider}, name an image that is up to date")
    # Nobody can take up a launch that died: its watchdog waits for nothing.
    settings = dataclasses.replace(values.settings, provider=provider, resume_grace=0.0)
    launch = dataclasses.replace(plan_launch(settings, provider, count), label=label, keep_for=settings.keep_for)
    _check_budget(settings, launch, count)
    saved = sources.saved(request.table, settings)
    return Plan(settings=settings, command=command_of(settings), sources=values.sources, saved=saved, workers=(), lines=(), launch=launch)


def _check_budget(settings: Settings, launch: Launch, count: int) -> None:
    """The machines stay when this command ends, so what they may cost is settled before."""
    if settings.max_workers is not None and count > settings.max_workers:
        raise UsageError(f"{count} machines are more than --max-workers={settings.max_workers}")
    price = launch.offer.price or 0.0
    if settings.max_hourly is not None and count * price > settings.max_hourly:
        raise UsageError(f"{count} machines cost ${count * price:.4g} an hour, more than --max-hourly={settings.max_hourly:g}")
    whole_cost = count * charge(price, launch.offer.minimum, launch.offer.quantum, settings.keep_for)
    if settings.max_cost is not None and whole_cost > settings.max_cost:
        kept = format_duration(settings.keep_for)
        raise UsageError(f"{count} machines kept for {kept} cost ${whole_cost:.4g}, more than --max-cost={settings.max_cost:g}")


def _launch(request: Request, plan: Plan, count: int, path: str) -> int:
    settings, launch = plan.settings, plan.launch
    assert launch
    connect = ConnectOptions(user=settings.user, identity=settings.ssh_identity, ssh_config=settings.ssh_config)
    public_key = own_public_key(connect, by_ssh=settings.transport == "openssh") if launch.offer.transport == "ssh" else ""
    # Where the provider could not start it at boot, it is started with the first login.
    timer = None if launch.abilities.timer or not launch.abilities.destroys else timer_script(int(settings.keep_for), _JOBS_LIMIT)
    with _list(path) as hand_out:
        wanted = Handover(
            count=count,
            launch=launch,
            public_key=public_key,
            user=settings.user,
            log_in=lambda address: log_in(address, settings.transport, connect, timer),
            hand_out=hand_out,
            say=lambda line, important: tell(line) if important or not settings.quiet else None,
        )
        new = NewSession(jobs=(), values=plan.saved, sources=plan.sources, version=VERSION)
        with Session.create(launches_directory(), new) as session:
            start_watchdog(request.table, plan, session.paths.root)
            wanted.say(_heading(launch, count), False)
            try:
                return LaunchOnly(wanted, session).run()
            except StorageError as error:
                tell(f"{PROGRAM}: {error}; the watchdog destroys what is not listed")
                return SOME_MISSING


@contextmanager
def _list(path: str) -> Iterator[Callable[[str], None]]:
    """Where the lines go."""
    if path == STDOUT:
        yield lambda line: write_all(1, f"{line}\n".encode())
    else:
        with MachineFile.create(os.path.abspath(path)) as file:
            yield file.add


def log_in(address: Address, transport: str, connect: ConnectOptions, timer: str | None = None) -> Sequence[str]:
    """Log in and out again: the machine is up, is the one that it should be, and lets the user in.  Raises WorkerError.

    ``timer`` is the script of the machine's timer, where it is to be started now.
    """
    connection = find_transport("local" if address.local else address.transport or transport).connect(address, connect)
    try:
        why = start_timer(connection, timer) if timer else ""
        return [*connection.notes, *([f"no timer ends it by itself: {why}"] if why and why != IT_IS_US else [])]
    finally:
        connection.close()


def _heading(launch: Launch, count: int) -> str:
    offer = launch.offer
    price = "price unknown" if offer.price is None else f"${count * offer.price:.4g} an hour"
    where = " ".join(word for word in (launch.provider, offer.region, offer.size) if word)
    return f"# launching {count} {'machine' if count == 1 else 'machines'}: {where}, {price}"


if __name__ == "__main__":
    sys.exit(main())
