"""A provider of somebody else's, that raises what no contract allows: nothing is left all the same."""

from __future__ import annotations

import pytest

from tests.running.program import Controller, wait_until
from tests.running.test_launched import all_gone, events

_CODE = """
import os, random
from cloudtask.providers.fake import FakeProvider

class Odd(FakeProvider):
    name = "odd"

    def describe(self, ids):
        self._stumble()
        return super().describe(ids)

    def destroy(self, ids):
        self._stumble()
        return super().destroy(ids)

    def find(self, session=None):
        self._stumble()
        return super().find(session)

    @staticmethod
    def _stumble():
        if random.random() < 0.3:
            raise random.choice([KeyError("Reservations"), AttributeError("'NoneType' object has no attribute 'id'")])
"""


@pytest.fixture
def path(controller: Controller) -> str:
    """What ``PYTHONPATH`` must have for the provider ``odd``."""
    site = controller.directory / "site"
    metadata = site / "odd-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "odd.py").write_text(_CODE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[cloudtask.providers]\nodd = odd:Odd\n")
    return f"{controller.environment()['PYTHONPATH']}:{site}"


def test_a_watchdog_survives_what_a_provider_raises(controller: Controller, path: str) -> None:
    options = ("--provider=odd", "--fake-kind=local", "--slots=1", "--split=2", "--resume-grace=0")
    run = controller.start(*options, "sleep 60; echo", jobs=b"1\n2\n", PYTHONPATH=path)
    wait_until(lambda: len(events(controller, "started")) == 2, "the jobs run")
    run.kill()
    run.wait()
    wait_until(lambda: all_gone(controller), "the watchdog destroyed them")
    assert len(events(controller, "destroyed")) >= 1
