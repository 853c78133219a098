"""The fake provider: the contract on all its kinds, other processes, and kill -9."""

from __future__ import annotations

import dataclasses
import getpass
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cloudtask.errors import ProviderBusyError, ProviderRefusedError, UsageError
from cloudtask.providers import find, settings_table
from cloudtask.providers.base import InstanceState
from cloudtask.providers.fake import FakeProvider
from cloudtask.providers.userdata import HostKey, cloud_config
from tests.providers.contract import (
    ProviderContract,
    gone,
    ids_of,
    launched,
    login_key,
    make_order,
    output,
    running,
    settings_with,
    wait_for,
)
from tests.providers.fake_scene import FakeScene, marked, named, one_running, reached, state_of

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(params=["local", "ssh"])
def scene(request: pytest.FixtureRequest, tmp_path: Path, private_home: Path) -> Iterator[FakeScene]:
    """Each kind."""
    scene = FakeScene(tmp_path, fake_kind=request.param)
    yield scene
    scene.clean()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[FakeScene]:
    """The kind that costs nothing."""
    scene = FakeScene(tmp_path, fake_kind="local")
    yield scene
    scene.clean()


class TestBothKinds(ProviderContract):
    """Without settings, but for the kind."""


class TestForgetful(ProviderContract):
    """Tokens mean nothing to it, and what is new is absent for a while."""

    @pytest.fixture
    def scene(self, tmp_path: Path) -> Iterator[FakeScene]:
        scene = FakeScene(tmp_path, fake_kind="local", fake_forgetful=True, fake_settles=0.1)
        yield scene
        scene.clean()


class TestSlowWithItsOwnHostKey(ProviderContract):
    """The order's host key is not taken; the console shows the machine's own."""

    @pytest.fixture
    def scene(self, tmp_path: Path, private_home: Path) -> Iterator[FakeScene]:
        faults = "slow-boot=0.2s,slow-destroy=0.1s,slow-api=0.01s"
        scene = FakeScene(tmp_path, fake_host_key="console", fake_faults=faults)
        yield scene
        scene.clean()


def test_a_machine_has_a_home_of_its_own_and_its_mark(scene: FakeScene) -> None:
    instance = one_running(scene)
    connection = wait_for(lambda: reached(scene, instance), 10, "it answers")
    said = output(connection, 'echo "$HOME:$PWD:$FAKE_MACHINE:$(id -un)"; env | grep -c SSH_ORIGINAL').decode()
    connection.close()
    home = f"{scene.state}/disks/{instance.id}/home"
    assert said == f"{home}:{home}:{instance.id}:{getpass.getuser()}\n0\n"
    scene.make().destroy([instance.id])
    gone(scene, [instance.id])
    assert not os.path.exists(home)


def test_programs_on_a_machine_hear_signals(scene: FakeScene) -> None:
    """None is ignored, as in a fresh login."""
    instance = one_running(scene)
    connection = wait_for(lambda: reached(scene, instance), 10, "it answers")
    ignored = int(output(connection, "grep SigIgn: /proc/self/status").split()[1], 16)
    assert ignored & 0x7FFFFFFF == 0  # the C library has two more that are its own
    connection.close()


def test_destroy_takes_along_all_that_runs_there(scene: FakeScene) -> None:
    """What daemonised, what cleared its environment, and the connection."""
    instance = one_running(scene)
    connection = wait_for(lambda: reached(scene, instance), 10, "it answers")
    mark = uuid.uuid4().hex
    channel = connection.open(f"setsid sh -c 'sleep 100; : {mark} daemon' & env -i sh -c 'sleep 100; : {mark} bare'; echo over")
    wait_for(lambda: len(named(mark)) >= 3, 10, "the programs run")
    scene.make().destroy([instance.id])
    gone(scene, [instance.id])
    assert not named(mark)
    wait_for(lambda: reached(scene, instance) is None, 10, "nobody answers")
    channel.close()
    connection.close()


def test_a_machine_whose_first_process_is_killed_is_gone(scene: FakeScene) -> None:
    instance = one_running(scene)
    connection = wait_for(lambda: reached(scene, instance), 10, "it answers")
    mark = uuid.uuid4().hex
    channel = connection.open(f"setsid sh -c 'sleep 100; : {mark}'")
    wait_for(lambda: named(mark), 10, "the program runs")
    os.kill(min(first_processes(instance.id)), signal.SIGKILL)
    gone(scene, [instance.id])
    assert not named(mark) and not marked(scene)
    assert scene.make().find() == []
    channel.close()
    connection.close()


def first_processes(id: str) -> list[int]:
    """Those that know the machine's record, or wait in its stead."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            if stat[3] == name and f"FAKE_MACHINE={id}".encode() in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                found.append(int(name))
        except OSError:
            continue
    return found


def test_a_machine_whose_sshd_is_killed_is_gone(tmp_path: Path, private_home: Path) -> None:
    """And what it left is ended though nobody asks the provider."""
    scene = FakeScene(tmp_path)
    instance = one_running(scene)
    connection = wait_for(lambda: reached(scene, instance), 10, "it answers")
    mark = uuid.uuid4().hex
    channel = connection.open(f"setsid sh -c 'sleep 100; : {mark}'")
    wait_for(lambda: named(mark), 10, "the program runs")
    [listener] = [pid for pid in named(f"/{instance.id}/sshd_config") if Path(f"/proc/{pid}/comm").read_text() == "sshd\n"]
    os.kill(listener, signal.SIGKILL)
    wait_for(lambda: not named(mark), 10, "what it left is ended")
    gone(scene, [instance.id])
    channel.close()
    connection.close()
    scene.clean()


OTHER_PROCESS = """
import sys
from cloudtask.providers.fake import FakeProvider
from cloudtask.providers.userdata import HostKey, cloud_config
from cloudtask.settings import BUILT_IN
provider = FakeProvider(BUILT_IN.settings({"fake_state": sys.argv[1], "fake_kind": sys.argv[2]}))
found = provider.find(sys.argv[3])
provider.destroy([each.id for each in found])
sys.stdout.write(" ".join(each.id for each in found))
"""


def test_another_process_finds_and_destroys(scene: FakeScene) -> None:
    order = scene.order(2)
    ids = launched(scene, order)
    argv = [sys.executable, "-c", OTHER_PROCESS, scene.state, str(scene.values["fake_kind"]), order.tags.session]
    said = subprocess.run(argv, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert sorted(said.split()) == ids
    gone(scene, ids)
    assert not marked(scene)


LAUNCHING = """
import sys
sys.path.insert(0, sys.argv[4])
from tests.providers.contract import make_order, settings_with
from cloudtask.providers.fake import FakeProvider
from cloudtask.providers.userdata import HostKey, cloud_config
provider = FakeProvider(settings_with(fake_state=sys.argv[1], fake_kind="local"))
sys.stdout.write("now\\n")
sys.stdout.flush()
provider.launch(make_order(int(sys.argv[3]), sys.argv[2], "killed-launcher"))
sys.stdin.read()
"""


def launching(scene: FakeScene, token: str, count: int) -> subprocess.Popen[bytes]:
    """Another process that is about to launch, and stays."""
    scene.sessions.append("killed-launcher")
    argv = [sys.executable, "-c", LAUNCHING, scene.state, token, str(count), str(ROOT)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout and process.stdout.readline() == b"now\n"
    return process


def test_machines_outlive_who_launched_them(local: FakeScene) -> None:
    with launching(local, "token", 2) as process:
        wait_for(lambda: len(local.make().find("killed-launcher")) == 2, 10, "both are there")
        ids = sorted(ids_of(local.make().find("killed-launcher")))
        os.killpg(process.pid, signal.SIGKILL)
    assert [state_of(local, id) for id in ids] == [InstanceState.RUNNING] * 2
    assert sorted(ids_of(local.make().launch(make_order(2, "token", "killed-launcher")))) == ids


@pytest.mark.parametrize("number", range(6))
def test_nothing_runs_that_is_not_known(local: FakeScene, number: int) -> None:
    """However early who launches is killed: what runs is found, the order can be repeated, and destroying leaves nothing."""
    moment = time.monotonic() + random.Random(number).random() * 0.08
    with launching(local, "token", 30) as process:
        wait_for(partial(passed, moment), 5, "the moment has come")
        os.killpg(process.pid, signal.SIGKILL)
    known = {*ids_of(local.make().find("killed-launcher"))}
    wait_for(lambda: marked(local) <= known, 5, "what is not known has ended")
    again = local.make().launch(make_order(30, "token", "killed-launcher"))
    assert known <= {*ids_of(again)} and len({*ids_of(again)}) == 30
    running(local, ids_of(again))
    local.make().destroy(ids_of(again))
    gone(local, ids_of(again))
    assert not marked(local)


def passed(moment: float) -> bool:
    return time.monotonic() >= moment


def test_destroying_can_be_killed(local: FakeScene) -> None:
    """What a killed process has begun, the next one that looks ends."""
    order = local.order(30)
    ids = launched(local, order)
    argv = [sys.executable, "-c", OTHER_PROCESS, local.state, "local", order.tags.session]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, cwd=ROOT) as process:
        wait_for(lambda: len(marked(local)) < 30 or process.poll() is not None, 10, "some are destroyed")
        process.kill()
    local.make().destroy(ids)
    gone(local, ids)
    assert not marked(local)


def test_two_launchers_at_once_make_an_order_once(local: FakeScene) -> None:
    with launching(local, "token", 20) as one, launching(local, "token", 20) as two:
        wait_for(lambda: len(local.make().find("killed-launcher")) == 20, 10, "all are there")
        assert len(ids_of(local.make().launch(make_order(20, "token", "killed-launcher")))) == 20
        for process in (one, two):
            os.killpg(process.pid, signal.SIGKILL)
    assert len(local.make().find("killed-launcher")) == 20


def test_a_record_that_makes_no_sense_is_said(local: FakeScene) -> None:
    [id] = launched(local, local.order())
    record = Path(local.state) / "machines" / f"{id}.json"
    text = record.read_text()
    for nonsense in ("", "[]", "{}", '{"id": 1}', "\0"):
        record.write_text(nonsense)
        with pytest.raises(ProviderBusyError, match=f"{id}.json is no"):
            local.make().find()
    record.write_text(text)


def test_ids_are_no_paths(local: FakeScene) -> None:
    launched(local, local.order())
    strange = ["../lock", "/etc/passwd", "f-1/../../dice", "%", "."]
    assert [each.state for each in local.make().describe(strange)] == [InstanceState.ABSENT] * 5
    local.make().destroy(strange)


def test_what_is_gone_is_forgotten_after_an_hour(local: FakeScene) -> None:
    [id] = launched(local, local.order())
    local.make().destroy([id])
    gone(local, [id])
    record = Path(local.state) / "machines" / f"{id}.json"
    text = record.read_text()
    leaving, _, rest = text.partition('"gone": ')
    record.write_text(f'{leaving}"gone": {time.time() - 3700}{rest[rest.index(",") :]}')
    launched(local, local.order())
    assert state_of(local, id) is InstanceState.ABSENT


LOCKED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.providers.contract import output, wait_for
from tests.providers.fake_scene import FakeScene, one_running, reached
scene = FakeScene(Path(sys.argv[1]))
try:
    instance = one_running(scene)
    connection = wait_for(lambda: reached(scene, instance), 10, "it answers")
    sys.stdout.write(output(connection, "pwd; echo $FAKE_MACHINE").decode())
    connection.close()
finally:
    scene.clean()
"""


def test_a_user_whose_password_is_locked_gets_in(tmp_path: Path, private_home: Path) -> None:
    """In a mount namespace with another /etc/shadow."""
    if os.getuid():
        pytest.skip("logs in as root")
    shadow = tmp_path / "shadow"
    shadow.write_text("".join(line.replace("root:", "root:!", 1) for line in Path("/etc/shadow").read_text().splitlines(True)))
    script = 'mount --bind "$1" /etc/shadow && shift && exec "$@"'
    argv = ["unshare", "-m", "sh", "-c", script, "sh", str(shadow), sys.executable, "-c", LOCKED, str(tmp_path), str(ROOT)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    home, id = done.stdout.split()
    assert home == f"{tmp_path}/state/disks/{id}/home"


def test_a_machine_that_is_forgotten_ends_itself(scene: FakeScene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody could find it any more."""
    monkeypatch.setattr("cloudtask.providers.fake_machine.LOOK_EVERY", 0.05)
    one_running(scene)
    assert marked(scene)
    shutil.rmtree(scene.state)
    wait_for(lambda: not marked(scene), 10, "nothing of it runs")


def test_an_sshd_that_cannot_start_is_a_machine_that_is_gone(tmp_path: Path, private_home: Path) -> None:
    """Its console says why, for as long as there is one."""
    scene = FakeScene(tmp_path)
    order = dataclasses.replace(scene.order(), user_data=cloud_config(login_key().public, HostKey("no key", "ssh-ed25519 AAAA"), ""))
    ids = ids_of(scene.make().launch(order))
    gone(scene, ids)
    scene.clean()


def test_user_data_that_cannot_be_read_is_refused(tmp_path: Path, private_home: Path) -> None:
    scene = FakeScene(tmp_path)
    with pytest.raises(ProviderRefusedError, match="user data"):
        scene.make().launch(dataclasses.replace(scene.order(), user_data="#cloud-config\n{"))
    assert scene.make().find() == []


def test_what_was_half_made_is_swept(local: FakeScene) -> None:
    """A disk without a machine, and a record that was being written."""
    launched(local, local.order())
    disk, record = Path(local.state) / "disks" / "f-0", Path(local.state) / "machines" / "f-0.json.new"
    disk.mkdir()
    record.touch()
    assert len(local.make().find()) == 1
    assert not disk.exists() and not record.exists()


def test_without_sshd_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cloudtask.providers.fake_machine._SSHD_PATH", str(tmp_path))
    with pytest.raises(UsageError, match="install openssh-server, or use --fake-kind=local"):
        FakeProvider(settings_with())
    FakeProvider(settings_with(fake_kind="local"))


def test_it_is_found_by_name_and_its_rows_are_settings() -> None:
    assert find("fake") is FakeProvider
    rows = {row.name for row in settings_table() if row.name.startswith("fake_")}
    assert rows >= {"fake_kind", "fake_state", "fake_faults", "fake_price", "fake_capacity", "fake_settles"}


def test_the_state_is_the_users(monkeypatch: pytest.MonkeyPatch, private_home: Path) -> None:
    assert FakeProvider(settings_with()).offer().rows["fake-state"] == f"{private_home}/.local/state/cloudtask/fake"
    monkeypatch.setenv("XDG_STATE_HOME", "/var/other")
    assert FakeProvider(settings_with()).offer().rows["fake-state"] == "/var/other/cloudtask/fake"


def test_a_path_that_breaks_the_configuration_is_refused() -> None:
    with pytest.raises(UsageError, match="fake-state"):
        FakeProvider(settings_with(fake_state='/tmp/a"b'))


def test_an_overlay_is_refused(local: FakeScene, tmp_path: Path) -> None:
    """It would be laid over the tester's own files.  What there is can be destroyed all the same."""
    ids = launched(local, local.order())
    provider = local.with_values(overlay=str(tmp_path))
    with pytest.raises(UsageError, match="--overlay"):
        provider.offer()
    with pytest.raises(ProviderRefusedError, match="--overlay"):
        provider.launch(local.order())
    provider.destroy(ids)
    gone(local, ids)
