"""The user data: what a machine is told, that it is valid, and that what it starts comes up."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cloudtask.providers.timer import TIMER_PATH, timer_script
from cloudtask.providers.userdata import BOOT_PATH, LIMIT, HostKey, cloud_config, make_host_key

LOGIN = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIC/rh+TqtJnM/spJPvuAcmQ6taEObuzdG5sxUBA1fbM cloudtask-abc"
TIMER = timer_script(1200, 86400)


def test_it_is_cloud_config_with_login_host_key_and_timer() -> None:
    key = make_host_key()
    text = cloud_config(LOGIN, key, TIMER)
    assert text.startswith("#cloud-config\n")
    config = yaml.safe_load(text)
    assert config["ssh_authorized_keys"] == [LOGIN] and config["disable_root"] is False
    assert config["ssh_keys"] == {"ed25519_private": key.private, "ed25519_public": key.public} and config["ssh_deletekeys"]
    files = {each["path"]: each for each in config["write_files"]}
    assert files[TIMER_PATH]["content"] == TIMER
    assert files[BOOT_PATH]["permissions"] == "0755"  # cloud-init runs only what may be run
    assert not any(path.startswith("/run") for path in files)
    assert len(text) < LIMIT / 2


def test_equal_arguments_give_equal_text() -> None:
    key = make_host_key()
    assert cloud_config(LOGIN, key, TIMER) == cloud_config(LOGIN, HostKey(*key), str(TIMER))
    assert cloud_config(LOGIN, key, TIMER) != cloud_config(LOGIN, make_host_key(), TIMER)


def test_what_is_not_wanted_is_left_out() -> None:
    assert set(yaml.safe_load(cloud_config(LOGIN, None, ""))) == {"disable_root", "ssh_pwauth", "ssh_authorized_keys"}


def test_too_long_is_an_error() -> None:
    with pytest.raises(ValueError, match="too long"):
        cloud_config(LOGIN, None, "x" * LIMIT)


def test_the_host_key_is_one_that_openssh_reads(tmp_path: Path) -> None:
    key = make_host_key()
    file = tmp_path / "key"
    file.write_text(key.private)
    file.chmod(0o600)
    done = subprocess.run(["ssh-keygen", "-y", "-f", file], check=True, capture_output=True, text=True)
    assert done.stdout.split()[:2] == key.public.split()
    assert key.public != make_host_key().public


@pytest.mark.skipif(os.getuid() != 0, reason="not allowed to make namespaces")
@pytest.mark.parametrize("noexec", ["/run", "/var/lib/cloudtask"])
def test_the_boot_script_starts_the_timer_and_does_not_wait_for_it(noexec: str, tmp_path: Path) -> None:
    """As cloud-init does it at each boot: write the files, run what stands in the directory.  Twice: there is one timer."""
    text = cloud_config(LOGIN, None, timer_script(1, 60, pause=1, patience=60))
    (tmp_path / "user-data").write_text(text)
    write = (
        "import os, sys, yaml\n"
        "for file in yaml.safe_load(open(sys.argv[1]))['write_files']:\n"
        "    os.makedirs(os.path.dirname(file['path']), exist_ok=True)\n"
        "    open(file['path'], 'w').write(file['content'])\n"
        "    os.chmod(file['path'], int(file['permissions'], 8))\n"
    )
    (tmp_path / "write.py").write_text(write)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("systemctl", "poweroff", "shutdown", "systemd-run"):
        (tools / name).write_text(f'#!/bin/sh\necho "{name}" >>{tmp_path}/asked\n[ {name} != systemd-run ]\n')
        (tools / name).chmod(0o755)
    code = f"""
        for d in /run /var/lib /home /var/tmp; do mount -t tmpfs none $d; done
        mkdir -p {noexec}; mount -t tmpfs -o noexec none {noexec}
        {sys.executable} {tmp_path}/write.py {tmp_path}/user-data
        PATH={tools}:$PATH
        for boot in 1 2; do {BOOT_PATH} && echo $boot >>{tmp_path}/started || exit 1; done
        while ! grep -qs systemctl {tmp_path}/asked; do sleep 0.05; done
    """
    began = time.monotonic()
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    subprocess.run([*namespaces, "sh", "-c", code], check=True, timeout=30, stdin=subprocess.DEVNULL)
    assert time.monotonic() - began < 20
    assert (tmp_path / "started").read_text() == "1\n2\n"
    asked = (tmp_path / "asked").read_text().split()
    assert asked == ["systemd-run", "systemd-run", "systemctl"]


def test_cloud_init_finds_it_valid(tmp_path: Path) -> None:
    """With cloud-init's own schema, where it is installed; CI does without, for it brings half a distribution with it."""
    if shutil.which("cloud-init") is None:
        if os.environ.get("CI") == "true":
            return
        pytest.skip("cloud-init is not installed")
    (tmp_path / "user-data").write_text(cloud_config(LOGIN, make_host_key(), TIMER))
    done = subprocess.run(["cloud-init", "schema", "-c", tmp_path / "user-data"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
