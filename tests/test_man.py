"""The manual pages say what the programs do: the same options, the same defaults, and they build without a complaint."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from docutils.core import publish_string

from cloudtask import kinds
from cloudtask.options import ACTIONS
from cloudtask.providers import settings_table
from cloudtask.settings import BUILT_IN, Row

FOLDER = Path(__file__).parent.parent / "docs" / "man"
FILES = sorted(FOLDER.glob("*.rst"))
ALL = settings_table()
PROGRAMS = ("launch_workers", "destroy_workers", "watchdog")
"""The smaller commands, by their modules in `cloudtask.cli`."""
EXAMPLES = {"--name", "--sign"}
"""What options look like; an option of an example's command."""

_OPTIONS = re.compile(r"(?ms)^OPTIONS\n=+\n.*?(?=^[A-Z ]+\n=+\n)")
_TERM = re.compile(r"(?m)^``--[^\n]*\n(?:    [^\n]*\n|\n(?=    ))+")
_NAMES = re.compile(r"``(?P<name>-[-\w]+)(?:\[=(?P<optional>[^`\]]+)\]|=(?P<metavar>[^`]+))?``")
_DEFAULT = re.compile(r"Default:\s+``([^`]*)``\.")
_MENTION = re.compile(r"(?<![\w/-])--[a-z][a-z0-9-]*[a-z0-9]")


class Entry(NamedTuple):
    """An option as a page has it: ``--name``, its METAVAR (empty for a flag), whether that may be left out, and its default, if it names
    one."""

    name: str
    metavar: str
    optional: bool
    default: str | None


class Page:
    """A manual page that explains options: those of ``rows``, and ``others``, which are no settings."""

    def __init__(self, name: str, rows: Iterable[Row], others: Iterable[str] = ()) -> None:
        self.name = name
        self.text = (FOLDER / f"{name}.rst").read_text(encoding="utf-8")
        self.rows = [row for row in rows if row.has_option]
        self.others = list(others)

    def entries(self) -> list[Entry]:
        """The terms of its section OPTIONS, or where it has none, of all of it."""
        section = _OPTIONS.search(self.text)
        return [_entry(block) for block in _TERM.findall(section[0] if section else self.text)]

    def entry(self, row: Row) -> Entry:
        """The one of a setting."""
        return next(entry for entry in self.entries() if entry.name == row.option)


def _entry(block: str) -> Entry:
    term, _, description = block.partition("\n")
    match = _NAMES.match(term)
    assert match, f"cannot read the term {term!r}"
    default = _DEFAULT.search(description)
    return Entry(match["name"], match["optional"] or match["metavar"] or "", bool(match["optional"]), default and default[1])


# A page with options of its own: its name, the settings that it has, and its other options.
PAGES = [
    Page("cloudtask.8", BUILT_IN, [action.option for action in ACTIONS]),
    Page("cloudtask-providers.7", (row for row in ALL if BUILT_IN.find(row.name) is None)),
]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
files = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
settings = pytest.mark.parametrize(
    ("page", "row"),
    [(page, row) for page in PAGES for row in page.rows],
    ids=lambda value: value.option if isinstance(value, Row) else value.name,
)


@pages
def test_every_option_is_in_the_page_once(page: Page) -> None:
    assert sorted(entry.name for entry in page.entries()) == sorted([row.option for row in page.rows] + page.others)


@settings
def test_value_is_named_as_in_the_table(page: Page, row: Row) -> None:
    entry = page.entry(row)
    assert (entry.metavar, entry.optional) == (row.metavar, row.value_optional)


@settings
def test_default_is_the_programs(page: Page, row: Row) -> None:
    default = page.entry(row).default
    if default is None:
        assert row.default in (None, ()), f"{row.option}: the page does not say its default, {row.default!r}"
        return
    assert os.path.expanduser(str(_parsed(row, default))) == os.path.expanduser(str(row.default))


@settings
def test_choices_are_all_named(page: Page, row: Row) -> None:
    if "|" in row.metavar and re.fullmatch(r"[a-z0-9|]+", row.metavar):
        for word in row.metavar.split("|"):
            assert _parsed(row, word) == word


def _parsed(row: Row, text: str) -> object:
    return row.parse(text, kinds.Scene(folder="/", environ={}))


def test_short_options_are_in_the_page() -> None:
    for short in [action.short for action in ACTIONS if action.short] + ["-0"]:
        assert f"``{short}``" in PAGES[0].text, short


@cache
def known_options() -> frozenset[str]:
    """All that there are: settings, and what else the programs take."""
    known = {row.option for row in ALL if row.has_option} | {action.option for action in ACTIONS}
    return frozenset(known.union(*map(_own_options, PROGRAMS)))


def _own_options(program: str) -> Iterator[str]:
    words = [sys.executable, "-m", f"cloudtask.cli.{program}", "--help"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    yield from _MENTION.findall(shown)


@files
def test_every_option_that_a_page_mentions_exists(path: Path) -> None:
    assert set(_MENTION.findall(path.read_text(encoding="utf-8"))) - known_options() <= EXAMPLES


@files
def test_page_builds_without_a_complaint(path: Path) -> None:
    overrides = {"report_level": 1, "halt_level": 1, "warning_stream": False}
    text = path.read_text(encoding="utf-8")
    page = publish_string(text, source_path=str(path), writer="manpage", settings_overrides=overrides).decode()
    name, _, section = path.stem.rpartition(".")
    assert re.search(rf'\.TH "{name.upper()}" "?{section}"?'.replace("-", r"\\?-"), page, re.IGNORECASE)
    of_commands = ["OPTIONS", "EXIT STATUS", "EXAMPLES"] if section == "8" else []
    assert [each for each in ("SYNOPSIS", "DESCRIPTION", "FILES", "SEE ALSO", *of_commands) if each not in page] == []


@files
def test_no_line_is_too_long_for_a_diff(path: Path) -> None:
    assert [number for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if len(line) > 140] == []
