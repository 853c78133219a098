"""A pytest plug-in for the continuous integration: a test that is skipped there has failed.  ``make test`` loads it where ``CI`` is set."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest

# What no package brings: the machine has it, or the user has the right, or not.
NOT_TO_BE_INSTALLED = ("no IPv6",)
NEEDS_ROOT = ("logs in as root", "not allowed to", "a root directory without python3 needs root")
EXCUSES = NOT_TO_BE_INSTALLED + (NEEDS_ROOT if os.getuid() else ())


def _refuse(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Make a skip a failure; an expected failure, which looks like a skip, stays one."""
    if report.skipped and not hasattr(report, "wasxfail"):
        why = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if why.removeprefix("Skipped: ").startswith(EXCUSES):
            return
        report.outcome = "failed"
        report.longrepr = f"{why}: nothing may be skipped under CI; install what is missing (see needs-test in the Makefile)"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test's own skip."""
    report = yield
    _refuse(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A whole module's."""
    report = yield
    _refuse(report)
    return report
