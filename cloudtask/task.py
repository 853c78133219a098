"""Task templates without their printing, and how a run is put together: settings, workers and jobs become a :class:`Plan`.

``Template`` is what ``cloudtask.Task`` (``cli/program.py``) adds ``main()`` to; ``main()`` prints and exits, so it lives on the top
floor.  Nothing here touches a terminal, starts a process or makes a session.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import cloudtask.settings_sources as sources
from cloudtask import providers
from cloudtask.allocation import allocate
from cloudtask.command import Command
from cloudtask.errors import InputError, UsageError
from cloudtask.instances.costs import charge
from cloudtask.instances.demand import Limits
from cloudtask.jobs import read_jobs
from cloudtask.options import Parsed
from cloudtask.plan import Launch, Plan
from cloudtask.printable import sanitize
from cloudtask.session import conf, layout
from cloudtask.settings import Settings, Table
from cloudtask.settings_checks import check
from cloudtask.transports import ConnectOptions

_LABEL = 100


class Template:
    """A pre-configured task: class attributes in capitals are settings (``SPLIT = 2``), and win over the environment.

    ``DESCRIPTION`` heads ``--help``; ``COMMAND`` is the command, to which words of the command line are added.  None takes back what a
    base class sets.  Relative paths count from the folder of the file that defines the class which is run.  Other capitals are
    errors: call your own constants ``_LIKE_THIS``.
    """

    DESCRIPTION: ClassVar[str] = ""

    def jobs(self) -> Iterable[str | bytes] | None:
        """The job lines to use when standard input is a terminal; None where the template makes none."""
        return None


loading: ContextVar[list[type[Template]] | None] = ContextVar("loading", default=None)
"""Set while ``--template`` loads a file: its ``main()`` calls then only note their class here."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A command line with all that its settings may come from."""

    table: Table
    parsed: Parsed
    template: type[Template]
    environ: Mapping[str, str]
    folder: str


def attributes(template: type[Template]) -> dict[str, object]:
    """The settings among a template's attributes, inherited ones too, by attribute name."""
    found: dict[str, object] = {}
    for cls in reversed(template.__mro__):
        if issubclass(cls, Template) and cls is not Template:
            found.update((name, value) for name, value in vars(cls).items() if name.isupper() and not name.startswith("_"))
    found.pop("DESCRIPTION", None)
    return found


def folder_of(template: type[Template], default: str) -> str:
    """The real folder of the file that defines the class, ``default`` where it has none."""
    file = getattr(sys.modules.get(template.__module__), "__file__", None)
    return os.path.dirname(os.path.realpath(file)) if file else default


# --- settings --------------------------------------------------------------------------------------------------------


def read_layers(request: Request) -> tuple[list[sources.Layer], list[str]]:
    """The sources of settings, highest first, and warnings about the environment.  Raises UsageError."""
    template = sources.template_layer(request.table, attributes(request.template), folder_of(request.template, request.folder))
    values = dict(request.parsed.values)
    if request.parsed.words:
        values["command"] = _join(template.values.get("command"), request.parsed.words)
    environment, warnings = sources.environment_layer(request.table, request.environ, request.folder)
    config = sources.config_layer(request.table, sources.config_path(request.environ))
    return [sources.command_line_layer(values, request.folder), template, environment, config], warnings


def _join(command: object, words: Sequence[str]) -> object:
    """The words of the command line behind a template's COMMAND, which may be shell code."""
    if command is None:
        return list(words)
    if isinstance(command, str):
        return {"code": command, "words": list(words)}
    return [*command, *words] if isinstance(command, (list, tuple)) else command


def read_settings(request: Request, layers: Sequence[sources.Layer]) -> sources.Values:
    """The settings of a new session.  Raises SettingError."""
    return sources.resolve(request.table, layers, request.environ)


# --- plans -----------------------------------------------------------------------------------------------------------


def plan_new(request: Request, values: sources.Values, data: bytes) -> Plan:
    """The plan of a new session for the input ``data``; ``lines`` is empty where no line of it is a job.

    Raises UsageError where the workers cannot be had or the command cannot be used, InputError for a line that cannot be read.
    """
    plan = _plan(request, values, again=False)
    lines = read_jobs(data, values.settings.input, code=values.settings.command is None)
    plan.command.check_all(lines)
    return dataclasses.replace(plan, lines=lines)


def _plan(request: Request, values: sources.Values, *, again: bool) -> Plan:
    settings = values.settings
    check(values)
    allocation = allocate(values, again=again)
    # Saved, so that a resume knows where machines were launched though the key that meant the Hub is not saved.
    settings = dataclasses.replace(settings, provider=allocation.provider)
    return Plan(
        settings=settings,
        launch=plan_launch(settings, allocation.provider, allocation.split) if allocation.provider else None,
        command=command_of(settings),
        sources=values.sources,
        saved=sources.saved(request.table, settings),
        workers=allocation.workers,
        spares=allocation.spares,
    )


def plan_launch(settings: Settings, name: str, split: int) -> Launch:
    """What may be launched.  Raises UsageError (also where a budget cannot be kept since the price is unknown) and ProviderError."""
    make = partial(providers.find(name), settings)
    provider = make()
    offer = provider.offer()
    if offer.price is None and (settings.max_cost is not None or settings.max_hourly is not None):
        limit = "--max-cost" if settings.max_cost is not None else "--max-hourly"
        size = " ".join(word for word in (name, offer.region, offer.size) if word)
        raise UsageError(f"{limit} cannot be kept: the price of {size} is unknown; name it in a file for --prices")
    words = sanitize(" ".join(" ".join(settings.command.words).split())) if settings.command else ""
    return Launch(
        provider=name,
        make=make,
        abilities=provider.abilities,
        offer=offer,
        label=f"Cloudtask: {words}"[:_LABEL] if words else "Cloudtask",
        slots=1 if settings.slots is None else settings.slots,
        limits=Limits(
            split=split,
            replace=settings.replace,
            max_workers=settings.max_workers,
            max_hourly=settings.max_hourly,
            max_cost=settings.max_cost,
            price=offer.price,
            minimum_charge=charge(offer.price, offer.minimum, offer.quantum, 0) if offer.price else 0.0,
        ),
        boot_timeout=settings.boot_timeout,
        min_split=settings.min_split,
        keep=settings.keep,
        keep_for=settings.keep_for if settings.keep else None,
        public_key=_own_key(settings) if settings.keep and offer.transport == "ssh" else None,
        idle_timeout=settings.idle_timeout,
        user=settings.user,
    )


def _own_key(settings: Settings) -> str:
    """The user's own public key.  Raises UsageError where there is none."""
    # Loaded by name: it brings paramiko.
    own_key: Any = importlib.import_module("cloudtask.transports.own_key")
    options = ConnectOptions(user=settings.user, identity=settings.ssh_identity, ssh_config=settings.ssh_config)
    key: str = own_key.own_public_key(options, by_ssh=settings.transport == "openssh")
    return key


def command_of(settings: Settings) -> Command:
    """The command that each job's line goes to.  Raises UsageError."""
    words, code = (settings.command.words, settings.command.code) if settings.command else ((), None)
    return Command(words, literal=settings.literal, mode=settings.input, code=code)


def plan_again(request: Request, layers: Sequence[sources.Layer], kind: Literal["resume", "retry"], which: str) -> Plan:
    """The plan of a session that is taken up again: ``which`` is its number or ``last``.

    Raises UnknownSessionError, SessionError, and UsageError as for a new one.
    """
    if request.parsed.words:
        raise UsageError(f"--{kind} is incompatible with a command ({shlex.join(request.parsed.words)}): the session has its own")
    number, values = saved_settings(request, layers, which)
    if kind == "retry" and values.settings.at_most_once and not values.settings.force:
        raise UsageError(f"session {number} is --at-most-once: --retry would repeat jobs that have run; say --force as well if they may")
    return dataclasses.replace(_plan(request, values, again=True), kind=kind, session=number)


def saved_settings(request: Request, layers: Sequence[sources.Layer], which: str) -> tuple[int, sources.Values]:
    """The number of the session that ``which`` names, and its settings as a resume would have them.  Raises as `plan_again` does."""
    rows = [row for row in request.table if row.name == "sessions"]
    directory = sources.resolve(Table(rows), layers, request.environ).settings.sessions
    number = layout.find(directory, which)
    path = layout.Paths(os.path.join(directory, str(number))).conf
    content, origins = conf.load(path)
    saved = sources.saved_layer(request.table, content, origins, path)
    return number, sources.resolve_again(request.table, layers, saved, request.environ)


def plan_harvest(request: Request, number: int, values: sources.Values) -> Plan:
    """The plan of fetching what a dead run's machines have: nothing is started, launched or shown."""
    settings = dataclasses.replace(values.settings, output="none")
    return Plan(
        settings=settings,
        command=command_of(settings),
        sources=values.sources,
        saved=sources.saved(request.table, settings),
        workers=(),
        kind="harvest",
        session=number,
    )


# --- jobs ------------------------------------------------------------------------------------------------------------


def own_jobs(template: type[Template], mode: str) -> bytes | None:
    """The input that a template's ``jobs()`` makes, as it would stand on standard input; None where it makes none.

    Raises InputError on what is no line.
    """
    lines = template().jobs()
    if lines is None:
        return None
    end = b"\0" if mode == "nul" else b"\n"
    return b"".join(_line(line, number, end) + end for number, line in enumerate(lines, 1))


def _line(line: object, number: int, end: bytes) -> bytes:
    if not isinstance(line, (str, bytes)):
        raise InputError(f"jobs(), line {number}: must be text or bytes, not {type(line).__name__}")
    data = line.encode(errors="surrogateescape") if isinstance(line, str) else line
    data = data.removesuffix(b"\n") if end == b"\n" else data
    if end in data:
        raise InputError(f"jobs(), line {number}: holds the end of a line; one item is one job")
    return data
