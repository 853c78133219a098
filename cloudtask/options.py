"""From settings to command line options: parsing them, and the text of ``--help``.

Options stop at the first word that is not one, or at ``--``; ``--name=value`` and ``--name value`` are the same.  Prefixes of names are
not accepted: a script that used one would break with the next release.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from cloudtask.errors import UsageError
from cloudtask.settings import GROUPS, Row, Table
from cloudtask.settings_sources import did_you_mean

WIDTH = 80
_COLUMN = 26
_OTHER = "This run"


@dataclass(frozen=True, kw_only=True)
class Action:
    """An option that is no setting: it says what to do this time."""

    name: str
    metavar: str
    help: str
    short: str = ""

    @property
    def option(self) -> str:
        """``--dry-run``."""
        return f"--{self.name}"


ACTIONS = (
    Action(name="resume", metavar="ID|last", help="run what is pending of a session"),
    Action(name="retry", metavar="ID|last", help="run all of a session that did not succeed, again"),
    Action(name="template", metavar="FILE", help="run the task template in FILE"),
    Action(name="dry-run", metavar="", help="print the shell code of each job, and run nothing"),
    Action(name="version", metavar="", help="print the version"),
    Action(name="help", metavar="", help="print this", short="-h"),
)
_NUL_INPUT = "-0"


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """A command line: raw values of settings by row name, actions by name (flags hold ""), and the words after the options."""

    values: dict[str, object] = field(default_factory=dict)
    actions: dict[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()


def parse(
    argv: Sequence[str],
    table: Table,
    *,
    actions: Sequence[Action] = ACTIONS,
    aliases: Mapping[str, str] = MappingProxyType({}),
    anywhere: bool = False,
) -> Parsed:
    """Read a command line.  Raises UsageError naming the option and, for an unknown one, the nearest.

    ``aliases`` are other names of settings' options (``--region``: ``--ec2-region``).  ``anywhere``: options may stand behind words too.
    """
    rows = {row.option: row for row in table if row.has_option}
    rows |= {alias: rows[option] for alias, option in aliases.items()}
    known = {name: action for action in actions for name in (action.option, action.short) if name}
    parsed, rest, words = Parsed(), list(argv), []
    while rest and (anywhere or _is_option(rest[0])):
        word = rest.pop(0)
        if word == "--":
            break
        name, equals, given = word.partition("=")
        value = given if equals else None
        if not _is_option(word):
            words.append(word)
        elif word == _NUL_INPUT and "--input" in rows:
            parsed.values["input"] = "nul"
        elif name in rows:
            _take_setting(parsed, rows[name], value, rest)
        elif name in known:
            _take_action(parsed, known[name], value, rest)
        else:
            raise UsageError(f"unknown option {name}{did_you_mean(name, [*rows, *known])}; --help lists them all")
    return Parsed(values=parsed.values, actions=parsed.actions, words=(*words, *rest))


def _is_option(word: str) -> bool:
    return word.startswith("-") and word != "-"


def _take_setting(parsed: Parsed, row: Row, value: str | None, rest: list[str]) -> None:
    if row.is_flag:
        parsed.values[row.name] = True if value is None else value
        return
    given = _needed(row.option, row.metavar, value, rest)
    if row.repeatable:
        # An empty one takes back what came before it, and what a template sets.
        earlier = parsed.values.get(row.name, ())
        assert isinstance(earlier, tuple)
        parsed.values[row.name] = (*earlier, given) if given else ()
    else:
        parsed.values[row.name] = given


def _take_action(parsed: Parsed, action: Action, value: str | None, rest: list[str]) -> None:
    if action.metavar:
        parsed.actions[action.name] = _needed(action.option, action.metavar, value, rest)
    elif value is None:
        parsed.actions[action.name] = ""
    else:
        raise UsageError(f"{action.option} takes no value")


def _needed(option: str, metavar: str, value: str | None, rest: list[str]) -> str:
    if value is not None:
        return value
    if not rest:
        raise UsageError(f"{option} needs a value: {option}={metavar}")
    return rest.pop(0)


# --- help ------------------------------------------------------------------------------------------------------------


def usage(program: str) -> str:
    """The few lines that say how to call it."""
    return (
        f"usage: cat jobs | {program} [options] [command ...]\n"
        f"       {program} [options] --resume=ID|last\n"
        f"       {program} [options] --retry=ID|last\n"
    )


def help_text(
    table: Table,
    program: str,
    description: str,
    *,
    how: str = "",
    actions: Sequence[Action] = ACTIONS,
    aliases: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """All of ``--help``: what it is, how to call it (``how``, else as cloudtask is), and each option in its group with its default.

    ``actions`` and ``aliases`` are those of `parse`.  No line is over 80 columns.
    """
    others = {option: f", {alias}" for alias, option in aliases.items()}
    parts = [_wrap(description, ""), "\n", how or usage(program)]
    groups = [*GROUPS, *sorted({row.group for row in table} - set(GROUPS))]
    for group in groups:
        members = [row for row in table if row.group == group and row.has_option]
        entries = [_entry(_row_names(row) + others.get(row.option, ""), row.help + _default_note(row)) for row in members]
        parts += [f"\n{group}:\n", *entries] if entries else []
    parts += [f"\n{_OTHER}:\n", *(_entry(_action_names(action), action.help) for action in actions)]
    parts.append("\nDURATION is 90, 90s, 15m, 2h or 1d; SIZE is 4096, 100K, 20M or 1G.\n")
    return "".join(parts)


def _row_names(row: Row) -> str:
    value = f"={row.metavar}" if row.metavar else ""
    return row.option + (f"[{value}]" if value and row.value_optional else value)


def _action_names(action: Action) -> str:
    return (f"{action.short}, " if action.short else "") + action.option + (f"={action.metavar}" if action.metavar else "")


def _default_note(row: Row) -> str:
    shown = row.shown_default or ("" if row.default in (None, "", (), False, 0) else str(row.default))
    return f" (default: {shown})" if shown else ""


def _entry(names: str, help: str) -> str:
    return "\n".join(_entry_lines(names, help)) + "\n"


def _entry_lines(names: str, help: str) -> Iterator[str]:
    lines = textwrap.wrap(help, WIDTH - _COLUMN, break_on_hyphens=False)
    head = f"  {names}"
    if len(head) > _COLUMN - 2:
        yield head
        head = ""
    for line in lines:
        yield head.ljust(_COLUMN) + line
        head = ""


def _wrap(text: str, indent: str) -> str:
    paragraphs = textwrap.dedent(text).strip().split("\n\n")
    return (
        "\n\n".join(
            textwrap.fill(" ".join(paragraph.split()), WIDTH, initial_indent=indent, break_on_hyphens=False) for paragraph in paragraphs
        )
        + "\n"
    )
