"""The same commands with providers that are real, or as good as that: the Hub's API, EC2 (moto, with machines behind it), Docker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.accounts import Account
from tests.conftest import MakeSshd
from tests.providers import docker_engine
from tests.providers.servers.hub import HubServer
from tests.running.operator import Operator
from tests.running.program import wait_until
from tests.sshd import keygen
from tests.stage.ec2_server import Ec2Server, staged_ec2

JOBS = b"a\nb\nc\n"


@pytest.mark.skipif(os.getuid() != 0, reason="the Hub's machines are logged in to as root: logs in as root")
def test_the_hub_as_the_original_called_it(operator: Operator, sshd: MakeSshd, account: Account) -> None:
    """Its machines are at 127.1.0.N, where one sshd listens for all."""
    key, config = keygen(operator.directory / "key"), operator.directory / "ssh_config"
    server = sshd(public_keys=[(operator.directory / "key.pub").read_text()], host="0.0.0.0")
    config.write_text(f"Host *\n  Port {server.port}\n  IdentityFile {key}\n  IdentityAgent none\n")
    with HubServer(key="K3Y", boot=0.2) as hub:
        more: dict[str, Any] = {"HUB_APIKEY": "K3Y", "CLOUDTASK_HUB_URL": hub.url, "CLOUDTASK_SSH_CONFIG": str(config)}
        options = ("--region=eu-west-1", "--size=m1.large", "--type=ebs", "--label=mine", "--install-updates", "--backup-id=7")
        assert operator.command("launch", "2", str(operator.file), *options, **more) == 0, operator.said()
        forms = hub.forms("launch/")
        assert {form["region"] for form in forms} == {"eu-west-1"} and {form["sec_updates"] for form in forms} == {"INSTALL"}
        assert all(form["size"] == "m1.large" and form["backup_id"] == "7" and form["label"].endswith(" mine") for form in forms)
        assert "K3Y" not in operator.said() + operator.file.read_text()
        assert all(line.facts["region"] == "eu-west-1" and line.address.user == "root" for line in operator.listed())
        assert operator.run(f"--workers={operator.file}", "echo", jobs=JOBS, **more) == 0, operator.said()
        assert operator.command("destroy", str(operator.file), **more) == 0, operator.said()
        assert hub.live() == [] and not operator.file.exists()


def test_install_updates_is_the_hubs(operator: Operator) -> None:
    assert operator.command("launch", "--provider=fake", "--install-updates", "1", str(operator.file)) == 2
    assert "--install-updates is the hub's" in operator.said()


@pytest.fixture
def ec2(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ec2Server]:
    """An EC2 whose machines see the operator's directory."""
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with staged_ec2(operator.directory) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server
        operator.stop_all()


@pytest.mark.slow
def test_ec2(operator: Operator, ec2: Ec2Server) -> None:
    """The user's key and the machine's host key go in by user data."""
    config = operator.directory / "ssh_config"
    config.write_text(f"IdentityFile {keygen(operator.directory / 'key')}\nIdentityAgent none\n")
    launch = ("--provider=ec2", f"--ssh-config={config}", "2", str(operator.file))
    assert operator.command("launch", *launch, seconds=60) == 0, operator.said()
    assert "trust" not in operator.said() and all(line.address.host_key for line in operator.listed())
    assert len(ec2.alive()) == 2
    run = (f"--workers={operator.file}", f"--ssh-config={config}", operator.recording())
    assert operator.run(*run, jobs=JOBS) == 0, operator.said()
    assert operator.ended().total() == 3 and len(ec2.alive()) == 2
    assert operator.command("destroy", "--leaked", "--dry-run") == 0
    assert "# 0 leaked, 2 spared" in operator.said() and "an hour" in operator.said()
    assert operator.command("destroy", str(operator.file)) == 0, operator.said()
    assert not ec2.alive() and not ec2.volumes() and not operator.file.exists()
    wait_until(lambda: not operator.watchdogs(), "the watchdog has nothing to do")


@pytest.mark.slow
def test_docker(operator: Operator, docker: docker_engine.Engine) -> None:
    """No ssh, so no key of the user's is needed."""
    docker.load_busybox()
    image = ("--provider=docker", f"--docker-image={docker_engine.BUSYBOX}")
    assert operator.command("launch", *image, "2", str(operator.file)) == 0, operator.said()
    assert all(line.facts["transport"] == "docker" for line in operator.listed())
    assert operator.run(f"--workers={operator.file}", "echo", jobs=JOBS) == 0, operator.said()
    assert sorted(operator.out().read_text().split()) == ["a", "b", "c"]
    assert operator.command("destroy", str(operator.file)) == 0, operator.said()
    assert operator.said().count("destroyed worker ") == 2
