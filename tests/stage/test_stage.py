"""The stage itself: machines that are apart from one another and from the host, and that leave nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudtask.providers.userdata import cloud_config, make_host_key
from tests.sshd import ClientKeys
from tests.stage.stage import Stage, require_stage, until

HOST_KEY = make_host_key()


@pytest.fixture
def stage() -> Iterator[Stage]:
    require_stage()
    with Stage() as stage:
        yield stage


def ssh(keys: ClientKeys, address: str, command: str, host_key: str = HOST_KEY.public) -> str:
    """What a command on the machine prints; the host key is pinned."""
    known = keys.home / f"known_{address}"
    known.write_text(f"{address} {host_key}\n")
    options = [f"UserKnownHostsFile={known}", "StrictHostKeyChecking=yes", "BatchMode=yes"]
    words = ["ssh", "-F", "none", "-i", str(keys.identity), *(f"-o{each}" for each in options), f"root@{address}", command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout


def cables(network: str) -> int:
    """How many links a stage's network (``10.213.7.0``) has on the host."""
    number = network.split(".")[2]
    shown = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
    return sum(line.startswith((f"cts{number}@", f"ctm{number}-")) for line in shown.splitlines())


def test_login_with_the_key_and_host_key_of_the_user_data(stage: Stage, client_keys: ClientKeys) -> None:
    address = stage.start("i-1", cloud_config(client_keys.public, HOST_KEY, ""))
    stage.wait("i-1")
    assert ssh(client_keys, address, "id -un; hostname").split() == ["root", "i-1"]
    assert f"\n{HOST_KEY.public} root@i-1\n" in stage.console("i-1")


def test_a_host_key_of_its_own_without_one_in_the_user_data(stage: Stage, client_keys: ClientKeys) -> None:
    address = stage.start("i-1", cloud_config(client_keys.public, None, ""))
    stage.wait("i-1")
    shown = next(line for line in stage.console("i-1").splitlines() if line.startswith("ssh-"))
    assert HOST_KEY.public not in shown
    assert ssh(client_keys, address, "echo in", " ".join(shown.split()[:2])) == "in\n"


def test_machines_are_apart(stage: Stage, client_keys: ClientKeys) -> None:
    data = cloud_config(client_keys.public, HOST_KEY, "")
    addresses = {name: stage.start(name, data) for name in ("a", "b")}
    for name, address in addresses.items():
        stage.wait(name)
        ssh(client_keys, address, f"touch /tmp/{name} /var/tmp/{name} ~/{name} /etc/{name}; sleep 300 >/dev/null 2>&1 &")
    for folder in ("/tmp", "/var/tmp", "~", "/etc"):
        assert ssh(client_keys, addresses["a"], f"cd {folder}; ls -d a b 2>/dev/null || true").split() == ["a"]
    assert not Path("/etc/a").exists()
    assert ssh(client_keys, addresses["b"], "pgrep -c sleep").strip() == "1"
    ids = {ssh(client_keys, each, "cat /etc/machine-id") for each in addresses.values()}
    assert len(ids) == 2
    assert (stage.root("a") / "tmp" / "a").exists()


def test_shared_directories_are_the_hosts(tmp_path: Path) -> None:
    require_stage()
    with Stage(shared=[tmp_path]) as stage:
        stage.start("a", "#cloud-config\nruncmd: [[touch, " + str(tmp_path / "seen") + "]]\n", commands=True)
        stage.wait("a")
        assert (tmp_path / "seen").exists()


def test_stop_ends_everything_and_the_address_falls_silent(stage: Stage, client_keys: ClientKeys) -> None:
    address = stage.start("a", cloud_config(client_keys.public, HOST_KEY, ""))
    stage.wait("a")
    ssh(client_keys, address, "setsid sleep 4321 >/dev/null 2>&1 &")
    stage.stop("a")
    stage.stop("a")
    assert not subprocess.run(["pgrep", "-f", "^sleep 4321"], capture_output=True, check=False).stdout
    with socket.socket() as sock, pytest.raises(TimeoutError):
        sock.settimeout(0.3)
        sock.connect((address, 22))


def test_the_timer_powers_it_off(client_keys: ClientKeys) -> None:
    require_stage()
    heard: list[tuple[str, str]] = []
    with Stage(ended=lambda *words: heard.append(words)) as stage:
        stage.start("a", cloud_config(client_keys.public, HOST_KEY, "#!/bin/sh\nsleep 0.2\npoweroff\n"), commands=True)
        stage.start("b", cloud_config(client_keys.public, HOST_KEY, "#!/bin/sh\npoweroff\n"))
        stage.wait("b")
        until(lambda: bool(heard), "the machine powers itself off")
        assert (heard, stage.machines) == ([("a", "powered off")], ["b"])


def test_a_cut_cable(stage: Stage, client_keys: ClientKeys) -> None:
    address = stage.start("a", cloud_config(client_keys.public, HOST_KEY, ""))
    stage.wait("a")
    stage.cut("a")
    with socket.socket() as sock, pytest.raises(OSError):
        sock.settimeout(0.3)
        sock.connect((address, 22))
    stage.mend("a")
    assert ssh(client_keys, address, "echo back") == "back\n"


def test_an_address_comes_before_sshd_where_a_boot_takes_time(stage: Stage, client_keys: ClientKeys) -> None:
    address = stage.start("a", cloud_config(client_keys.public, HOST_KEY, ""), boot_seconds=1.5)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, 22), 5).close()
    stage.wait("a")
    assert ssh(client_keys, address, "echo in") == "in\n"


def test_user_data_that_locks_root_out_is_refused(stage: Stage) -> None:
    with pytest.raises(ValueError, match="disable_root"):
        stage.start("a", "#cloud-config\nssh_authorized_keys: [ssh-ed25519 AAAA]\n")
    assert stage.machines == []


def test_nothing_is_left_when_the_stages_process_is_killed() -> None:
    require_stage()
    code = "s = Stage(); s.start('a'); print(s.network[0], flush=True); s.start('b', boot_seconds=99); input()"
    words = [sys.executable, "-c", f"from tests.stage.stage import Stage; {code}"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdin is not None
    network = process.stdout.readline().strip()
    until(lambda: cables(network) == 3, "both machines and the network have their cables")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    until(lambda: cables(network) == 0, "cables are gone")
    assert network not in subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout


def test_two_stages_have_two_networks(stage: Stage) -> None:
    with Stage() as other:
        assert not other.network.overlaps(stage.network)
        assert {stage.start("a"), other.start("a")} == {f"{stage.network[2]}", f"{other.network[2]}"}
