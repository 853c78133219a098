"""The manual page says what the program does: the same options, the same defaults, and it builds without a complaint."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from docutils.core import publish_string

from cloudtask import kinds
from cloudtask.options import ACTIONS
from cloudtask.settings import BUILT_IN, Row

PAGE = Path(__file__).parent.parent / "docs" / "man" / "cloudtask.8.rst"
TEXT = PAGE.read_text(encoding="utf-8")

_TERM = re.compile(r"(?m)^``--[^\n]*\n(?:    [^\n]*\n|\n(?=    ))+")
_NAMES = re.compile(r"``(?P<name>-[-\w]+)(?:=(?P<metavar>[^`]+))?``")
_DEFAULT = re.compile(r"Default:\s+``([^`]*)``\.")
_MENTION = re.compile(r"(?<![\w/-])--[a-z][a-z0-9-]*[a-z0-9]")


class Entry(NamedTuple):
    """An option as the page has it: ``--name``, its METAVAR (empty for a flag) and its default, if it names one."""

    name: str
    metavar: str
    default: str | None


def options_section() -> str:
    begin = TEXT.index("\nOPTIONS\n=======\n")
    return TEXT[begin : TEXT.index("\nWORKERS\n=======\n", begin)]


def entries() -> list[Entry]:
    found = []
    for block in _TERM.findall(options_section()):
        term, _, description = block.partition("\n")
        match = _NAMES.match(term)
        assert match, f"cannot read the term {term!r}"
        default = _DEFAULT.search(description)
        found.append(Entry(match["name"], match["metavar"] or "", default and default[1]))
    return found


def rows() -> list[Row]:
    return [row for row in BUILT_IN if row.has_option]


def test_every_option_is_in_the_page_once() -> None:
    names = [entry.name for entry in entries()]
    expected = [row.option for row in rows()] + [action.option for action in ACTIONS]
    assert sorted(names) == sorted(expected)


def test_short_options_are_in_the_page() -> None:
    for short in [action.short for action in ACTIONS if action.short] + ["-0"]:
        assert f"``{short}``" in options_section(), short


def test_every_option_that_the_page_mentions_exists() -> None:
    known = {row.option for row in rows()} | {action.option for action in ACTIONS}
    mentioned = set(_MENTION.findall(TEXT))
    assert mentioned - known == {"--name", "--sign"}  # what options look like; an option of an example's command


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.option)
def test_default_is_the_programs(row: Row) -> None:
    entry = next(entry for entry in entries() if entry.name == row.option)
    if entry.default is None:
        assert row.default in (None, ()), f"{row.option}: the page does not say its default, {row.default!r}"
        return
    assert os.path.expanduser(str(_parsed(row, entry.default))) == os.path.expanduser(str(row.default))


def _parsed(row: Row, text: str) -> object:
    scene = kinds.Scene(folder="/", environ={})
    return row.parse(text, scene)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.option)
def test_flags_take_no_value_and_others_do(row: Row) -> None:
    entry = next(entry for entry in entries() if entry.name == row.option)
    assert bool(entry.metavar) == bool(row.metavar), f"{row.option}: {entry.metavar!r} in the page, {row.metavar!r} in the table"


def test_choices_are_all_named() -> None:
    for entry in entries():
        row = BUILT_IN.find(entry.name.removeprefix("--").replace("-", "_"))
        if row is None or "|" not in entry.metavar or not re.fullmatch(r"[a-z0-9|]+", entry.metavar):
            continue
        for word in entry.metavar.split("|"):
            assert _parsed(row, word) == word


def test_page_builds_without_a_complaint() -> None:
    settings = {"report_level": 1, "halt_level": 1, "warning_stream": False}
    page = publish_string(TEXT, source_path=str(PAGE), writer="manpage", settings_overrides=settings).decode()
    assert '.TH "' in page
    assert all(heading in page for heading in ("SYNOPSIS", "OPTIONS", "EXIT STATUS", "FILES", "ENVIRONMENT", "EXAMPLES"))


def test_no_line_is_too_long_for_a_diff() -> None:
    long = [number for number, line in enumerate(TEXT.splitlines(), 1) if len(line) > 140]
    assert not long
