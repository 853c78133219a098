"""``make demo-ec2``, as a user would have it: from another process, with what it printed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cloudtask.providers.base import Provider
from cloudtask.providers.ec2 import Ec2Provider
from tests.providers.contract import BaseScene, gone, ids_of, running, settings_with
from tests.stage.stage import require_stage, until


class Shop(BaseScene):
    """The demo's EC2."""

    def make(self) -> Provider:
        return Ec2Provider(settings_with())


@pytest.mark.slow
def test_the_demo_is_an_ec2_and_ends_with_a_signal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    require_stage()
    log = tmp_path / "log"
    with log.open("w") as out:
        words = [sys.executable, "-m", "tests.stage.demo_ec2", "--boot=0.1"]
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
    try:
        until(lambda: "Ctrl-C" in log.read_text() or process.poll() is not None, "the demo explains itself")
        for line in log.read_text().splitlines():
            if line.startswith("export "):
                monkeypatch.setenv(*line.removeprefix("export ").split("=", 1))
        scene = Shop()
        ids = ids_of(scene.make().launch(scene.order(2)))
        hosts = [str(each.host) for each in running(scene, ids)]
        scene.make().destroy(ids[:1])
        gone(scene, ids[:1])
        until(lambda: "is terminated" in log.read_text(), "the demo tells of it")
        assert all(f"runs at {host}\n" in log.read_text() for host in hosts)
    finally:
        process.send_signal(signal.SIGINT)
        status = process.wait(20)
    assert (status, log.read_text().splitlines()[-1]) == (0, "ending 1 machines")
    assert hosts[1] not in subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout
