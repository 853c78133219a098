"""The manual pages of the smaller commands have every option that those take, and no other; and so have their units for systemd."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cloudtask.cli import destroy_workers, launch_workers, watchdog
from cloudtask.kinds import Scene
from cloudtask.providers import settings_table
from cloudtask.settings import Row

DOCS = Path(__file__).parent.parent / "docs"
TABLE = settings_table()

_OPTIONS = re.compile(r"(?ms)^OPTIONS\n=+\n.*?(?=^[A-Z ]+\n=+\n)")
_MENTION = re.compile(r"(?<![\w/-])--[a-z][a-z0-9-]*[a-z0-9]")
_TERM = re.compile(r"(?m)^``--.*$")
_DEFAULT = re.compile(r"Default:\s+``([^`]*)``\.")


def of_launch() -> set[str]:
    return {row.option for row in launch_workers.rows(TABLE)} | {each.option for each in launch_workers.ACTIONS} | {*launch_workers.ALIASES}


def of_destroy() -> set[str]:
    return {row.option for row in destroy_workers.rows(TABLE)} | {each.option for each in destroy_workers.ACTIONS}


def of_watchdog() -> set[str]:
    return {option for action in watchdog._arguments()._actions for option in action.option_strings if option.startswith("--")}


OPTIONS = {"cloudtask-launch-workers": of_launch(), "cloudtask-destroy-workers": of_destroy(), "cloudtask-watchdog": of_watchdog()}
pages = pytest.mark.parametrize("page", OPTIONS)


def section(page: str) -> str:
    match = _OPTIONS.search((DOCS / "man" / f"{page}.8.rst").read_text(encoding="utf-8"))
    assert match
    return match[0]


@pages
def test_every_option_is_in_the_page(page: str) -> None:
    assert OPTIONS[page] - set(_MENTION.findall(section(page))) == set()


@pages
def test_every_term_is_an_option_once(page: str) -> None:
    terms = [option for line in _TERM.findall(section(page)) for option in _MENTION.findall(line)]
    assert len(terms) == len(set(terms)) and set(terms) <= OPTIONS[page]


@pytest.mark.parametrize("row", list(launch_workers.rows(TABLE)), ids=lambda row: row.option)
def test_defaults_are_the_programs(row: Row) -> None:
    """Those that the page of the launch names; a default that depends on the provider stands in words."""
    block = re.search(rf"(?m)^``{row.option}(?==|``).*\n((?:    .*\n)+)", section("cloudtask-launch-workers"))
    default = _DEFAULT.search(block[1]) if block else None
    if default and row.default is not None:
        assert row.parse(default[1], Scene(folder="/", environ={})) == row.default


def test_units_call_what_there_is() -> None:
    service = (DOCS / "cloudtask-watchdog.service").read_text(encoding="utf-8")
    [line] = re.findall(r"(?m)^ExecStart=.*$", service)
    assert set(_MENTION.findall(line)) <= OPTIONS["cloudtask-watchdog"]
    assert "[Timer]" in (DOCS / "cloudtask-watchdog.timer").read_text(encoding="utf-8")
