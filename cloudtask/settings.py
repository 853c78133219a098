"""The table of settings: each is declared once, here.

From a row come the command line option (``--lost-timeout``), the template attribute (``LOST_TIMEOUT``), the environment variable
(``CLOUDTASK_LOST_TIMEOUT``), the key in ``config.yaml`` and in a session's ``conf.yaml`` (``lost-timeout``), the row of the confirmation
table, the line of ``--help`` and the check that the manual page mentions it.  Where values come from is ``settings_sources``.

A plug-in's rows are added with :meth:`Table.extended`, read without loading what the plug-in needs to run; their values stand in
``Settings.extra``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import cloudtask.kinds as kinds
from cloudtask.model import Address, Halt
from cloudtask.worker_file import write_address

PREFIX = "CLOUDTASK_"
JOB_VARIABLES = frozenset(PREFIX + name for name in ("SESSION", "JOB", "ATTEMPT", "WORKER", "SLOT"))
"""What a job finds in its environment (and so a cloudtask that a job starts): nobody's settings."""
OTHER_VARIABLES = frozenset({PREFIX + "SMTP"})
HUB_VARIABLE = "HUB_APIKEY"

Afterwards = Literal["saved", "afresh", "once"]


def plain(value: object) -> object:
    """A typed value as YAML can hold it, None for nothing; a row's parser takes back all but None."""
    if isinstance(value, Halt):
        return kinds.write_halt(value)
    if isinstance(value, kinds.CommandWords):
        return kinds.write_command(value)
    if isinstance(value, tuple):
        return [write_address(item) if isinstance(item, Address) else item for item in value] or None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


@dataclass(frozen=True, kw_only=True)
class Row:
    """One setting.  ``parse`` makes a typed value of a raw one, ``write`` a plain one (for YAML) of a typed one.

    ``afterwards`` says what a resume does without the option: ``saved`` takes the session's value, ``afresh`` looks at template,
    environment and configuration again (secrets, and what is about this run only), ``once`` wants it on the command line again.
    ``has_option`` is False for the command, which is said in words; no variable and no file sets it either.  ``value_optional``: the
    option can stand without a value, and means True then.
    """

    name: str
    parse: kinds.Parser
    default: Any
    help: str
    metavar: str
    group: str
    write: Callable[[Any], object] = plain
    secret: bool = False
    repeatable: bool = False
    always_shown: bool = False
    afterwards: Afterwards = "saved"
    shown_default: str = ""
    has_option: bool = True
    value_optional: bool = False

    @property
    def is_flag(self) -> bool:
        """True where the option needs no value."""
        return self.parse is kinds.flag or self.value_optional

    @property
    def key(self) -> str:
        """As in YAML and in the confirmation table: ``lost-timeout``."""
        return self.name.replace("_", "-")

    @property
    def option(self) -> str:
        """``--lost-timeout``."""
        return f"--{self.key}"

    @property
    def attribute(self) -> str:
        """``LOST_TIMEOUT``."""
        return self.name.upper()

    @property
    def variable(self) -> str:
        """``CLOUDTASK_LOST_TIMEOUT``."""
        return PREFIX + self.attribute


def _row(parse: kinds.Parser, default: Any, metavar: str, group: str, help: str, **more: Any) -> Any:
    return field(default=default, metadata={"parse": parse, "metavar": metavar, "group": group, "help": help, **more})


def _flag(group: str, help: str, **more: Any) -> Any:
    return _row(kinds.flag, False, "", group, help, **more)


JOBS, FAILURES, OUTPUT, WORKERS, LAUNCHING, SESSION = "Jobs", "Failures", "Output", "Workers", "Launched workers", "Session"
GROUPS = (JOBS, FAILURES, OUTPUT, WORKERS, LAUNCHING, SESSION)
HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a run, each of its type: durations are seconds, sizes bytes, paths absolute, ``slots`` 0 means one for each CPU."""

    split: int | None = _row(
        kinds.whole(1),
        None,
        "NUM",
        WORKERS,
        "number of workers to execute jobs in parallel; on this machine alone, slots",
        always_shown=True,
        shown_default="all that are listed",
    )
    command: kinds.CommandWords | None = _row(
        kinds.command, None, "COMMAND", JOBS, "command that each job's words go to", always_shown=True, has_option=False
    )
    ssh_identity: str | None = _row(kinds.readable_file, None, "FILE", WORKERS, "SSH identity keyfile to use")
    provider: str | None = _row(kinds.word, None, "NAME", LAUNCHING, "where workers are launched")
    hub_apikey: str | None = _row(kinds.text, None, "APIKEY", LAUNCHING, "TurnKey Hub API key", secret=True, afterwards="afresh")
    ec2_region: str = _row(kinds.word, "us-east-1", "REGION", LAUNCHING, "region for instance launch")
    ec2_size: str | None = _row(
        kinds.word, None, "SIZE", LAUNCHING, "instance launch size", shown_default="t3.small; with the hub m1.small"
    )
    ec2_type: str | None = _row(
        kinds.choice("s3", "ebs"), None, "s3|ebs", LAUNCHING, "instance launch type", shown_default="ebs; with the hub s3"
    )
    user: str | None = _row(kinds.word, None, "USERNAME", WORKERS, "user to log in as", shown_default="ssh_config's, else root")
    backup_id: int | None = _row(kinds.whole(1), None, "ID", LAUNCHING, "TurnKey Backup ID to restore on launch")
    ami_id: str | None = _row(kinds.word, None, "ID", LAUNCHING, "launch a specific AMI")
    snapshot_id: str | None = _row(kinds.word, None, "ID", LAUNCHING, "launch from a snapshot")
    boot_timeout: float = _row(
        kinds.some_duration, 600.0, "DURATION", LAUNCHING, "how long a launched machine may take to be ready", shown_default="10m"
    )
    min_split: int | None = _row(
        kinds.whole(1), None, "NUM", LAUNCHING, "start when so many workers are ready, and give up if they cannot be had"
    )
    replace: int | None = _row(
        kinds.whole(0), None, "NUM", LAUNCHING, "how many lost machines are replaced at most", shown_default="as many as it takes"
    )
    max_workers: int | None = _row(kinds.whole(1), None, "NUM", LAUNCHING, "how many launched machines there may be at a time")
    max_hourly: float | None = _row(kinds.money, None, "DOLLARS", LAUNCHING, "what the launched machines may cost an hour together")
    max_cost: float | None = _row(kinds.money, None, "DOLLARS", LAUNCHING, "what the session's machines may cost; then it drains and ends")
    prices: str | None = _row(
        kinds.readable_file, None, "FILE", LAUNCHING, "prices an hour, beside those that are known (see cloudtask-providers)"
    )
    keep: str | None = _row(
        kinds.new_file, None, "FILE", LAUNCHING, "keep the machines at the end, and list them in FILE for --workers", afterwards="once"
    )
    keep_for: float = _row(
        kinds.some_duration, 8 * HOUR, "DURATION", LAUNCHING, "how long kept machines may stay unused", shown_default="8h"
    )
    idle_timeout: float = _row(
        kinds.duration, 300.0, "DURATION", LAUNCHING, "when a host that was started is stopped after its last use", shown_default="5m"
    )
    resume_grace: float = _row(
        kinds.duration, 300.0, "DURATION", LAUNCHING, "how long the watchdog waits for a resume of a run that died", shown_default="5m"
    )
    workers: tuple[Address, ...] = _row(
        kinds.workers,
        (),
        "ADDRESSES",
        WORKERS,
        "list of pre-allocated workers: '[SLOTS/][USER@]HOST[:PORT] ...', or a file with one a line; local is this machine",
        shown_default="local",
    )
    slots: int | None = _row(
        kinds.slots,
        None,
        "NUM|auto",
        WORKERS,
        "jobs at a time on each worker",
        write=kinds.write_slots,
        shown_default="1, here one for each CPU",
    )
    overlay: str | None = _row(kinds.directory, None, "PATH", WORKERS, "directory that is laid over the worker's file system")
    post: str | None = _row(kinds.text, None, "COMMAND", WORKERS, "worker cleanup command")
    pre: str | None = _row(kinds.text, None, "COMMAND", WORKERS, "worker setup command")
    timeout: float = _row(
        kinds.duration, HOUR, "DURATION", JOBS, "how long a job may run; 0 is for ever", always_shown=True, shown_default="1h"
    )
    retries: int = _row(kinds.whole(0), 0, "NUM", FAILURES, "how many times to retry a failed job")
    strikes: int = _row(kinds.whole(0), 0, "NUM", FAILURES, "how many failures in a row retire a worker; 0 is off")
    report: tuple[str, ...] = _row(
        kinds.hooks,
        (),
        "HOOK",
        SESSION,
        "reporting hook: 'mail: FROM TO...', 'sh: COMMAND', 'py: FILE or CODE', 'http: URL'; can be given again. Checked; not run yet",
        repeatable=True,
    )
    setup_timeout: float = _row(
        kinds.duration, HOUR, "DURATION", WORKERS, "how long overlay, pre and post may take each", shown_default="1h"
    )
    lost_timeout: float = _row(
        kinds.duration,
        300.0,
        "DURATION",
        FAILURES,
        "how long without contact before a worker's jobs are started elsewhere",
        shown_default="5m",
    )
    lease: float = _row(
        kinds.some_duration, HOUR, "DURATION", WORKERS, "how long a worker goes on without hearing from us", shown_default="1h"
    )
    heartbeat: float = _row(
        kinds.some_duration,
        15.0,
        "DURATION",
        WORKERS,
        "how often a worker is asked for a sign of life; silent for two of them, it is reconnected",
        shown_default="15s",
    )
    kill_grace: float = _row(
        kinds.duration, 10.0, "DURATION", JOBS, "time between TERM and KILL for a job that is ended", shown_default="10s"
    )
    retry_delay: float = _row(
        kinds.duration, 1.0, "DURATION", FAILURES, "wait before the first retry on the same worker, doubling up to 5m", shown_default="1s"
    )
    at_most_once: bool = _flag(FAILURES, "never repeat a job that may have started")
    halt: Halt | None = _row(
        kinds.halt, None, "POLICY", FAILURES, "now|soon,fail=N|N%: give up after so many failed jobs", shown_default="never"
    )
    input: str = _row(
        kinds.choice("words", "line", "nul"),
        "words",
        "words|line|nul",
        JOBS,
        "what a job is: the words of a line, the whole line, or what stands between NULs; -0 is nul",
    )
    env: tuple[str, ...] = _row(
        kinds.variables, (), "NAME[=VALUE]", JOBS, "variable for the jobs' environment; can be given again", repeatable=True
    )
    workdir: str | None = _row(
        kinds.text, None, "PATH", JOBS, "directory on the worker in which jobs run", shown_default="the login's home; here, this directory"
    )
    literal: bool = _flag(JOBS, "no placeholders: {} means itself")
    output: str = _row(
        kinds.choice("group", "line", "none"),
        "group",
        "group|line|none",
        OUTPUT,
        "the jobs' output on stdout: of each job together, each line as it comes, or none",
    )
    max_output: int = _row(kinds.size, 1 << 30, "SIZE", OUTPUT, "longest output of a job; the rest is dropped", shown_default="1G")
    keep_order: bool = _flag(OUTPUT, "output in the order of the jobs")
    tag: bool = _flag(OUTPUT, "put the job's words and a tab before each line of its output")
    transport: str = _row(
        kinds.choice("ssh", "openssh", "docker"),
        "ssh",
        "ssh|openssh|docker",
        WORKERS,
        "how workers are reached: ssh, openssh (the system's ssh program), or docker (running containers, by name)",
    )
    ssh_config: str | None = _row(kinds.readable_file, None, "FILE", WORKERS, "ssh configuration to use", shown_default="~/.ssh/config")
    sessions: str = _row(kinds.path, "~/.cloudtask", "PATH", SESSION, "where sessions are stored", afterwards="afresh")
    force: bool = _flag(SESSION, "don't ask for confirmation; with --retry, repeat unknown jobs of --at-most-once", afterwards="once")
    confirm: bool = _flag(SESSION, "ask for confirmation before anything starts", afterwards="once")
    quiet: bool = _flag(OUTPUT, "only failures, warnings and the last line on stderr", afterwards="afresh")
    extra: Mapping[str, Any] = field(default_factory=dict)
    """The values of plug-ins' rows, by name."""


class Table:
    """All rows, in the order of the confirmation table."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = {row.name: row for row in rows}

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def find(self, name: str) -> Row | None:
        """The row with this name (``lost_timeout``)."""
        return self._rows.get(name)

    def extended(self, rows: Iterable[Row]) -> Table:
        """This table with a plug-in's rows after its own.  Raises ValueError where a name is taken."""
        added = list(rows)
        if taken := sorted({row.name for row in added} & self._rows.keys()):
            raise ValueError(f"settings declared twice: {', '.join(taken)}")
        return Table([*self, *added])

    def settings(self, values: Mapping[str, Any]) -> Settings:
        """Typed values as the record; those of plug-ins' rows go into ``extra``."""
        own = {name: value for name, value in values.items() if name in _BUILT_IN_NAMES}
        return Settings(**own, extra={name: value for name, value in values.items() if name not in _BUILT_IN_NAMES})


def get(settings: Settings, row: Row) -> Any:
    """The value that ``settings`` have for ``row``."""
    return getattr(settings, row.name) if row.name in _BUILT_IN_NAMES else settings.extra[row.name]


BUILT_IN = Table(Row(name=f.name, default=f.default, **f.metadata) for f in dataclasses.fields(Settings) if f.metadata)
_BUILT_IN_NAMES = frozenset(row.name for row in BUILT_IN)
