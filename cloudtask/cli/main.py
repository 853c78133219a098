"""The command ``cloudtask``, and every task template: from the command line to an exit status.

Exit statuses: 0 all succeeded (or there was nothing to do), 1 a job failed, 2 wrong use or declined, 3 jobs are left pending,
128 + n ended by signal n (141: nobody reads stdout any more).
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import cloudtask.options as options
from cloudtask.cli.confirm import confirm
from cloudtask.cli.streams import STDOUT_CLOSED, StdoutClosedError, is_terminal, put, read_all, tell
from cloudtask.cli.template_file import load_template, place_in_template
from cloudtask.cli.watch import start_watchdog
from cloudtask.command import Command
from cloudtask.errors import CloudtaskError, UsageError
from cloudtask.plan import Plan
from cloudtask.providers import settings_table
from cloudtask.settings import Table
from cloudtask.settings_sources import Layer
from cloudtask.task import Request, Template, own_jobs, plan_again, plan_new, read_layers, read_settings
from cloudtask.version import VERSION
from cloudtask.workers.forkserver import ForkServer

STDIN, STDERR = 0, 2
DONE, WRONG, PENDING, INTERRUPTED = 0, 2, 3, 130
_LINES_AT_ONCE = 1000
DESCRIPTION = """
Runs a command once for each line of its input, in parallel, on a split of workers: hosts that are reached by ssh, or this machine.
Each line's words are appended to the command, or take the place of {} or {1} {2} ... in it. With no command each line is one.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The console script."""
    return run(Template, sys.argv[1:] if argv is None else argv, "cloudtask")


def run(template: type[Template], argv: Sequence[str], program: str) -> int:
    """Run a template, or ``cloudtask`` itself, with a command line; returns the exit status.  Nothing is raised but bugs are shown."""
    try:
        return _run(template, argv, program)
    except CloudtaskError as error:
        tell(_complaint(error))
        return error.exit_status
    except KeyboardInterrupt:
        return INTERRUPTED
    except StdoutClosedError:
        return STDOUT_CLOSED
    except Exception as error:
        # One of the three edges where anything is caught: what comes here is a bug, and 1 would say that a job failed.
        if place := place_in_template(error):
            tell(f"cloudtask: {place}: {type(error).__name__}: {error}")
            return WRONG
        for line in traceback.format_exc().splitlines():
            tell(line)
        tell("cloudtask: this is a bug; if a session was begun, --resume=last takes it up again")
        return PENDING


def _complaint(error: CloudtaskError) -> str:
    text = str(error)
    return text if text.startswith("You didn't") else f"cloudtask: {text}"


def _run(template: type[Template], argv: Sequence[str], program: str) -> int:
    table, parsed = _parse(argv)
    if "template" in parsed.actions:
        template, program = _other_template(template, parsed.actions["template"])
    if "help" in parsed.actions:
        put(options.help_text(table, program, template.DESCRIPTION or DESCRIPTION).encode())
        return DONE
    if "version" in parsed.actions:
        put(f"cloudtask {VERSION}\n".encode())
        return DONE
    request = Request(table=table, parsed=parsed, template=template, environ=os.environ, folder=_current_directory())
    request, layers, warnings = _read_layers(request)
    for warning in warnings:
        tell(f"cloudtask: {warning}")
    if kind := _kind(parsed.actions):
        return _start(request, plan_again(request, layers, kind, parsed.actions[kind]))
    return _new_session(request, layers, program)


def _parse(argv: Sequence[str]) -> tuple[Table, options.Parsed]:
    """The settings there are, and what the command line says of them; plug-ins' own are looked for only where one is missing."""
    table = settings_table()
    try:
        return table, options.parse(argv, table)
    except UsageError:
        table = settings_table(strangers=True)
        return table, options.parse(argv, table)


def _read_layers(request: Request) -> tuple[Request, list[Layer], list[str]]:
    """The same for what template, environment and configuration file say."""
    try:
        layers, warnings = read_layers(request)
        if not warnings:
            return request, layers, warnings
    except UsageError:
        pass
    request = dataclasses.replace(request, table=settings_table(strangers=True))
    return request, *read_layers(request)


def _other_template(template: type[Template], path: str) -> tuple[type[Template], str]:
    if template is not Template:
        raise UsageError(f"--template={path}: this is a template already; run that one with cloudtask --template={path}")
    return load_template(path), os.path.basename(path)


def _kind(actions: Mapping[str, str]) -> Literal["resume", "retry"] | None:
    if "resume" in actions and "retry" in actions:
        raise UsageError("--resume and --retry exclude each other: --resume runs what is pending, --retry what did not succeed as well")
    kind: Literal["resume", "retry"] | None = "resume" if "resume" in actions else "retry" if "retry" in actions else None
    if kind and "dry-run" in actions:
        raise UsageError(f"--dry-run and --{kind} exclude each other: --dry-run shows new jobs")
    return kind


def _current_directory() -> str:
    try:
        return os.getcwd()
    except OSError as error:
        raise UsageError(f"the current directory cannot be used: {error.strerror}; cd to another") from error


def _new_session(request: Request, layers: Sequence[Layer], program: str) -> int:
    plan = _read_plan(request, layers)
    if plan is None:
        for line in options.usage(program).splitlines():
            tell(line)
        tell(f"       {program} --help lists all options")
        return WRONG
    if not plan.lines:
        tell("no jobs, nothing to do")
        return DONE
    if "dry-run" in request.parsed.actions:
        return _show_code(plan.command, plan.lines)
    return _start(request, plan)


def _read_plan(request: Request, layers: Sequence[Layer]) -> Plan | None:
    """None where standard input is a terminal and the template has no jobs of its own."""
    values = read_settings(request, layers)
    data = own_jobs(request.template, values.settings.input) if is_terminal(STDIN) else read_all(STDIN)
    return None if data is None else plan_new(request, values, data)


def _preload_for(plan: Plan) -> list[str]:
    """The modules that the supervisors of a plan need."""
    wanted = {"local" if worker.local else worker.transport or plan.settings.transport for worker in (*plan.workers, *plan.spares)}
    if plan.launch:
        wanted.add(plan.launch.offer.transport if plan.launch.offer.transport != "ssh" else plan.settings.transport)
    return sorted(f"cloudtask.transports.{name}" for name in wanted)


def _show_code(command: Command, lines: Sequence[bytes]) -> int:
    for start in range(0, len(lines), _LINES_AT_ONCE):
        batch = lines[start : start + _LINES_AT_ONCE]
        put(b"".join([command.render(line, number) + b"\n" for number, line in enumerate(batch, start + 1)]))
    return DONE


def _start(request: Request, plan: Plan) -> int:
    if (plan.settings.confirm or plan.launch) and not plan.settings.force and is_terminal(STDERR):
        confirm(plan, request.table)
    # Begun first: it loads its own modules on another core while this process loads the engine.
    forkserver = ForkServer(_preload_for(plan))
    # Loaded by name, and only now: the engine with all below it and the progress bar cost more than all that is above.
    engine: Any = importlib.import_module("cloudtask.engine")
    progress: Any = importlib.import_module("cloudtask.cli.progress")
    front = progress.open_front(plan.settings.quiet, os.environ)
    try:
        status: int = engine.execute(plan, front, forkserver, partial(start_watchdog, request.table, plan))
        return status
    finally:
        front.close()
