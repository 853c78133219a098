"""The libvirt provider against a real libvirtd: LXC containers that are logged in to by ssh, and libvirt's own mock driver."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cloudtask.errors import ProviderBusyError, ProviderError, ProviderRefusedError, UsageError
from cloudtask.providers.base import InstanceState, Order, Provider
from cloudtask.providers.libvirt import LibvirtProvider
from cloudtask.providers.libvirt_calls import Calls
from cloudtask.providers.libvirt_disks import Disks, seed_image
from cloudtask.providers.libvirt_marks import NAMESPACE
from cloudtask.providers.libvirt_xml import Source, identity
from cloudtask.providers.timer import timer_script
from cloudtask.providers.userdata import cloud_config
from tests.providers.contract import (
    BaseScene,
    ProviderContract,
    gone,
    host_key,
    ids_of,
    launched,
    login_key,
    make_order,
    running,
    settings_with,
    wait_for,
)
from tests.providers.libvirt_daemon import LibvirtDaemon, container_xml, make_root, processes_of, running_daemon

BOGUS = "deadbeef-0000-4000-8000-000000000000"
POOL = "default-pool"
MACHINE = f"""
  <domain type='test'>
    <name>base</name>
    <metadata><x:keep xmlns:x='urn:other'>as it is</x:keep></metadata>
    <memory unit='MiB'>512</memory>
    <vcpu>2</vcpu>
    <os><type>hvm</type></os>
    <devices>
      <disk type='volume' device='disk'>
        <driver name='qemu' type='qcow2'/><source pool='{POOL}' volume='base.qcow2'/><target dev='vda' bus='virtio'/>
      </disk>
      <disk type='file' device='cdrom'><source file='/isos/tools.iso'/><target dev='vdb' bus='virtio'/><readonly/></disk>
      <interface type='network'><mac address='52:54:00:11:22:33'/><source network='default'/></interface>
    </devices>
  </domain>
"""
VOLUME = "<volume><name>base.qcow2</name><capacity>1048576</capacity><target><format type='qcow2'/></target></volume>"


class LibvirtScene(BaseScene):
    """What both drivers share."""

    connection: Any

    def __init__(self, uri: str, **values: Any) -> None:
        super().__init__()
        self.uri = uri
        self.values = values

    def make(self) -> Provider:
        return self.provider()

    def provider(self, **values: Any) -> LibvirtProvider:
        """With settings of the test's own."""
        return LibvirtProvider(settings_with(libvirt_uri=self.uri, **(self.values | values)))

    def bogus_id(self) -> str:
        return BOGUS

    def refusing(self) -> Provider:
        return self.provider(libvirt_base="no-such-domain")

    def broken(self) -> Iterable[Provider]:
        return [LibvirtProvider(settings_with(libvirt_uri="test+unix:///default?socket=/nowhere/socket", libvirt_base="base"))]

    def names(self) -> list[str]:
        """Of all domains there are."""
        return sorted(domain.name() for domain in self.connection.listAllDomains())


class ContainerScene(LibvirtScene):
    """Containers, cloned from a domain."""

    def __init__(self, daemon: LibvirtDaemon, folder: Path) -> None:
        super().__init__(daemon.uri("lxc"), libvirt_base="base")
        self.connection = daemon.open("lxc")
        self.root = make_root(folder)
        self.base = self.connection.defineXML(container_xml(self.root))

    def foreign_id(self) -> str:
        return str(self.base.UUIDString())

    def machine_root(self, order: Order, index: int = 1) -> Path:
        """Where the copy of the root directory is."""
        return self.root.parent / identity(order.token, index).name

    def left(self) -> list[str]:
        """All that was made and is there still: directories, domains, processes, mounts."""
        folders = [path.name for path in self.root.parent.iterdir() if path != self.root]
        mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.root.parent) in line]
        return folders + [name for name in self.names() if name != "base"] + mounts

    def clean(self) -> None:
        super().clean()
        self.base.undefine()
        left = self.left()
        self.connection.close()
        assert not left


class MockScene(LibvirtScene):
    """Virtual machines of libvirt's test driver, which has states, metadata and volumes, and boots nothing.

    Its world is the daemon's: all connections share it.
    """

    reachable = False

    def __init__(self, daemon: LibvirtDaemon) -> None:
        super().__init__(daemon.uri("test", "default"), libvirt_base="base")
        self.connection = daemon.open("test", "default")
        self.pool = self.connection.storagePoolLookupByName(POOL)
        self.pool.createXML(VOLUME)
        self.base = self.connection.defineXML(MACHINE)

    def foreign_id(self) -> str:
        return str(self.connection.lookupByName("test").UUIDString())

    def volumes(self) -> list[str]:
        """What is in the pool."""
        return sorted(self.pool.listVolumes())

    def clean(self) -> None:
        super().clean()
        self.base.undefine()
        left = self.volumes(), self.names()
        self.pool.storageVolLookupByName("base.qcow2").delete(0)
        self.connection.close()
        assert left == (["base.qcow2"], ["test"])


@pytest.fixture(scope="session")
def libvirt_daemon() -> Iterator[LibvirtDaemon]:
    """One for all tests."""
    with running_daemon() as daemon:
        yield daemon


@pytest.fixture
def containers(libvirt_daemon: LibvirtDaemon, tmp_path: Path) -> Iterator[ContainerScene]:
    scene = ContainerScene(libvirt_daemon, tmp_path / "roots")
    yield scene
    scene.clean()


@pytest.fixture
def mock(libvirt_daemon: LibvirtDaemon) -> Iterator[MockScene]:
    scene = MockScene(libvirt_daemon)
    yield scene
    scene.clean()


class TestContainers(ProviderContract):
    @pytest.fixture
    def scene(self, containers: ContainerScene) -> ContainerScene:
        return containers


class TestMock(ProviderContract):
    @pytest.fixture
    def scene(self, mock: MockScene) -> MockScene:
        return mock


def ssh(scene: LibvirtScene, order: Order, folder: Path, command: str, user: str = "root") -> str:
    """What a command says over the system's ssh, with the order's key, which insists on the order's host key."""
    [instance] = running(scene, ids_of(scene.make().find(order.tags.session)))
    key, known = folder / "key", folder / "known"
    key.write_text(login_key().private)
    key.chmod(0o600)
    known.write_text(f"machine {order.host_key}\n")
    options = ["StrictHostKeyChecking=yes", f"UserKnownHostsFile={known}", "HostKeyAlias=machine", "IdentitiesOnly=yes", "BatchMode=yes"]
    options += ["ConnectionAttempts=20"]
    words = ["ssh", "-F", "none", "-i", str(key), "-p", str(instance.port), *(f"-o{option}" for option in options)]
    done = subprocess.run([*words, f"{user}@{instance.host}", command], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def ordered(session: str, *, count: int = 1, timer: str = "") -> Order:
    """An order, with a timer where one is given."""
    order = make_order(count, f"t{os.urandom(8).hex()}", session)
    data = cloud_config(login_key().public, host_key(), timer)
    return dataclasses.replace(order, timer=timer, user_data=data)


def test_container_has_keys_and_a_life_of_its_own(containers: ContainerScene, tmp_path: Path) -> None:
    for kind in ("rsa", "ed25519"):
        (containers.root / "etc" / "ssh" / f"ssh_host_{kind}_key").write_text("the base's own")
    order = containers.order()
    [id] = launched(containers, order)
    assert ssh(containers, order, tmp_path, "hostname; ls /etc/ssh; stat -c %a:%U /root/.ssh/authorized_keys").split() == [
        identity(order.token, 1).name, "ssh_host_ed25519_key", "ssh_host_ed25519_key.pub", "sshd_config", "600:root",
    ]  # fmt: skip
    ssh(containers, order, tmp_path, "(setsid sleep 1000 >/dev/null 2>&1 &); mkdir -p /var/deep/tree; touch /var/deep/tree/file")
    name = identity(order.token, 1).name
    assert processes_of(name)
    containers.make().destroy([id])
    assert containers.left() == []
    wait_for(lambda: not processes_of(name), 10, "its processes are gone")
    assert (containers.root / "etc" / "ssh" / "ssh_host_rsa_key").exists()


def test_container_of_a_template_and_another_login(containers: ContainerScene, tmp_path: Path) -> None:
    template = tmp_path / "machine.xml"
    template.write_text(container_xml(containers.root, "{name}").replace("<vcpu>", "<uuid>{uuid}</uuid><vcpu>"))
    containers.values = {"libvirt_xml": str(template), "libvirt_user": "worker"}
    offer = containers.make().offer()
    assert (offer.size, offer.price, offer.rows["machine"]) == ("machine", 0.0, "1 CPU, 256M")
    order = containers.order()
    launched(containers, order)
    assert ssh(containers, order, tmp_path, "id -un; stat -c %a:%U:%G ~/.ssh ~/.ssh/authorized_keys", user="worker").split() == [
        "worker", "700:worker:worker", "600:worker:worker",
    ]  # fmt: skip


@pytest.mark.slow
def test_timer_ends_a_container(containers: ContainerScene) -> None:
    """The script that the launcher orders, started before the container's own init; the stopped machine is destroyed as any other."""
    session = containers.order().tags.session
    order = ordered(session, timer=timer_script(0, 0, grace=0, pause=1, patience=1))
    [id] = launched(containers, order)
    wait_for(lambda: containers.make().describe([id])[0].state is InstanceState.STOPPED, 30, "the timer ends it")
    assert [each.state for each in containers.make().launch(order).instances] == [InstanceState.STOPPED]
    containers.make().destroy([id])
    assert containers.left() == []


def test_timer_leaves_a_used_container_alone(containers: ContainerScene, tmp_path: Path) -> None:
    order = ordered(containers.order().tags.session, timer=timer_script(3600, 0))
    launched(containers, order)
    assert "cloudtask-timer" in ssh(containers, order, tmp_path, "tr '\\0' ' ' </proc/[0-9]*/cmdline | cat; cat /proc/[0-9]*/cmdline")


def test_stopped_machine_is_not_started_again(mock: MockScene) -> None:
    order = mock.order(2)
    ids = launched(mock, order)
    mock.connection.lookupByUUIDString(ids[0]).destroy()
    answer = mock.make().launch(order)
    assert {each.id: each.state for each in answer.instances} == {ids[0]: InstanceState.STOPPED, ids[1]: InstanceState.RUNNING}
    assert mock.make().find(order.tags.session)[0].exists


def test_machine_is_a_clone(mock: MockScene) -> None:
    order = mock.order()
    [id] = launched(mock, order)
    name = identity(order.token, 1).name
    found = mock.connection.lookupByUUIDString(id)
    tree = ElementTree.fromstring(found.XMLDesc())
    sources = [source.get("file") for source in tree.findall("devices/disk/source")]
    assert sources == [f"/default-pool/{name}-vda.qcow2", "/isos/tools.iso"]
    assert [mac.get("address") for mac in tree.findall("devices/interface/mac")] == [identity(order.token, 1).mac(0)]
    assert tree.findtext("title") == "Cloudtask: test"
    assert tree.findtext("metadata/{urn:other}keep") == "as it is"
    volume = ElementTree.fromstring(mock.pool.storageVolLookupByName(f"{name}-vda.qcow2").XMLDesc())
    assert (volume.findtext("backingStore/path"), volume.findtext("capacity")) == ("/default-pool/base.qcow2", "1048576")
    [instance] = mock.make().describe([id])
    assert instance.host and instance.host.startswith("192.168.")
    assert 0 <= time.time() - instance.created < 60


def test_two_processes_launch_one_order(containers: ContainerScene) -> None:
    """As happens where a call was given up that went on: the machines are made once."""
    order = containers.order(3)
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: containers.make().launch(order), range(3)))
    ids = [identity(order.token, index).uuid for index in (1, 2, 3)]
    assert [ids_of(answer) for answer in answers] == [ids] * 3
    assert [answer.refusal for answer in answers] == [""] * 3
    found = running(containers, ids)
    assert len({each.port for each in found}) == 3
    for each in found:
        with socket.create_connection((str(each.host), each.port or 0), timeout=5) as connection:
            assert connection.recv(4) == b"SSH-"
    containers.make().destroy(ids)
    assert containers.left() == []


@pytest.mark.slow
def test_launch_that_goes_on_while_all_is_destroyed(containers: ContainerScene) -> None:
    """Whatever meets whom: what the launch made is gone, or found; and nothing is left once that is destroyed too."""
    for _ in range(10):
        order = containers.order(2)
        ids = [identity(order.token, index).uuid for index in (1, 2)]
        with ThreadPoolExecutor(3) as pool:
            launch = pool.submit(containers.make().launch, order)
            ends = [pool.submit(containers.make().destroy, ids) for _ in range(2)]
            assert all(isinstance(error, ProviderError | None) for error in (launch.exception(), *(end.exception() for end in ends)))
        wait_for(partial(destroyed, containers, order), 20, "all that is found is destroyed")
        assert containers.left() == []


def destroyed(scene: LibvirtScene, order: Order) -> bool:
    """Destroys what is found; True where that is nothing."""
    ids = ids_of(scene.make().find(order.tags.session))
    scene.make().destroy(ids)
    return not ids


def test_long_launch_is_gone_on_with(mock: MockScene, monkeypatch: pytest.MonkeyPatch) -> None:
    order = mock.order(2)
    with monkeypatch.context() as patch:
        patch.setattr("cloudtask.providers.libvirt._LAUNCH", -1.0)
        assert mock.make().launch(order) == ([], "", False)
    assert len(mock.make().launch(order).instances) == 2


def test_what_is_not_ours_is_left_alone(mock: MockScene) -> None:
    [id] = launched(mock, mock.order())
    foreign = mock.foreign_id()
    with pytest.raises(ProviderRefusedError, match="no machine of cloudtask's"):
        mock.make().destroy([foreign, id])
    gone(mock, [id])
    [instance] = mock.make().describe([foreign])
    assert (instance.state, instance.tags) == (InstanceState.RUNNING, None)
    mock.make().renew([foreign, BOGUS], mock.order().tags)
    assert mock.make().describe([foreign])[0].tags is None


def test_refused_machine_keeps_those_before_it(mock: MockScene) -> None:
    """Somebody has a domain of the second one's name."""
    order = mock.order(3)
    name = identity(order.token, 2).name
    taken = mock.connection.defineXML(f"<domain type='test'><name>{name}</name><memory>1</memory><os><type>hvm</type></os></domain>")
    answer = mock.make().launch(order)
    assert [each.id for each in answer.instances] == [identity(order.token, 1).uuid]
    assert answer.certain and "already exists" in answer.refusal
    assert len([name for name in mock.volumes() if name != "base.qcow2"]) == 1
    taken.undefine()


def test_mark_that_was_tampered_with_deletes_nothing(mock: MockScene) -> None:
    """A mark that names a volume which is none of ours is no mark."""
    [id] = launched(mock, mock.order())
    domain = mock.connection.lookupByUUIDString(id)
    mark = domain.metadata(2, NAMESPACE)
    domain.setMetadata(2, mark.replace(f'name="{domain.name()}-vda.qcow2"', 'name="base.qcow2"'), "cloudtask", NAMESPACE)
    with pytest.raises(ProviderRefusedError):
        mock.make().destroy([id])
    assert "base.qcow2" in mock.volumes()
    domain.setMetadata(2, mark, "cloudtask", NAMESPACE)


def test_base_that_runs_is_not_cloned(mock: MockScene) -> None:
    mock.base.create()
    try:
        with pytest.raises(UsageError, match="shut it off"):
            mock.make().offer()
        with pytest.raises(ProviderRefusedError, match="shut it off"):
            mock.make().launch(mock.order())
    finally:
        mock.base.destroy()


def test_links_in_an_image_are_not_followed(containers: ContainerScene, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (containers.root / "root" / ".ssh").symlink_to(outside)
    with pytest.raises(ProviderRefusedError, match="links are not followed"):
        containers.make().launch(containers.order())
    assert list(outside.iterdir()) == []
    assert containers.left() == []


def test_container_that_cannot_start_leaves_nothing(containers: ContainerScene) -> None:
    containers.base.undefine()
    text = container_xml(containers.root).replace("<source dir='/usr'/>", "<source dir='/no/such/directory'/>")
    containers.base = containers.connection.defineXML(text)
    with pytest.raises(ProviderRefusedError):
        containers.make().launch(containers.order())
    assert containers.left() == []


def test_mount_is_never_deleted_through(containers: ContainerScene, tmp_path: Path) -> None:
    """Whoever mounted something below a machine's root directory keeps it; the machine stays listed until it is away."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    order = containers.order()
    [id] = launched(containers, order)
    place = containers.machine_root(order) / "tmp"
    subprocess.run(["mount", "--bind", precious, place], check=True)
    try:
        with pytest.raises(ProviderBusyError, match="is a mount"):
            containers.make().destroy([id])
        assert [each.state for each in containers.make().find(order.tags.session)] == [InstanceState.STOPPED]
    finally:
        subprocess.run(["umount", place], check=True)
    containers.make().destroy([id])
    assert (precious / "file").exists()
    assert containers.left() == []


def test_broken_off_copy_goes_too(containers: ContainerScene) -> None:
    order = containers.order()
    [id] = launched(containers, order)
    part = containers.machine_root(order).with_name(f"{containers.machine_root(order).name}.part-x1y2")
    shutil.copytree(containers.root, part, symlinks=True)
    containers.make().destroy([id])
    assert containers.left() == []


_DYING = """
import os, sys
from cloudtask.providers import libvirt_calls
from tests.providers.contract import make_order
from tests.providers.test_libvirt import ask_provider

last, run = int(sys.argv[1]), libvirt_calls.Calls._run
def dying(self, *arguments):
    global last
    last -= 1
    if last < 0:
        os._exit(9)
    return run(self, *arguments)
libvirt_calls.Calls._run = dying
ask_provider(*sys.argv[2:])
"""


def ask_provider(uri: str, action: str, token: str, session: str) -> None:
    """What the process that dies is asked for."""
    provider = LibvirtProvider(settings_with(libvirt_uri=uri, libvirt_base="base"))
    if action == "launch":
        provider.launch(make_order(1, token, session))
    else:
        provider.destroy([identity(token, 1).uuid])


def dies(scene: LibvirtScene, action: str, order: Order, calls: int) -> bool:
    """True where the process died at its call ``calls`` of libvirt; False where it needed fewer."""
    words = [str(calls), scene.uri, action, order.token, order.tags.session]
    done = subprocess.run([sys.executable, "-c", _DYING, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, 9), done.stderr
    return done.returncode == 9


def made(scene: LibvirtScene) -> list[str]:
    """All that there is beside the base."""
    return scene.left() if isinstance(scene, ContainerScene) else [*scene.names(), *scene.volumes()] if isinstance(scene, MockScene) else []


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["containers", "mock"])
def test_killed_launch_loses_nothing(kind: str, request: pytest.FixtureRequest) -> None:
    """Killed before each of its calls: what was made is found and destroyed with all that belongs to it, or is completed."""
    scene: LibvirtScene = request.getfixturevalue(kind)
    before, calls = made(scene), 0
    order = scene.order()
    while dies(scene, "launch", order, calls):
        if calls % 2:
            assert ids_of(scene.make().launch(make_order(1, order.token, order.tags.session))) == [identity(order.token, 1).uuid]
        scene.make().destroy(ids_of(scene.make().find(order.tags.session)))
        assert made(scene) == before, f"killed before call {calls}"
        calls += 1
    assert calls > 10
    assert len(scene.make().find(order.tags.session)) == 1


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["containers", "mock"])
def test_killed_destroy_loses_nothing(kind: str, request: pytest.FixtureRequest) -> None:
    """Killed before each of its calls: as long as anything is left, the machine is found."""
    scene: LibvirtScene = request.getfixturevalue(kind)
    before, calls, died = made(scene), 0, True
    while died:
        order = scene.order()
        launched(scene, order)
        died = dies(scene, "destroy", order, calls)
        assert made(scene) == before or scene.make().find(order.tags.session)
        scene.make().destroy(ids_of(scene.make().find(order.tags.session)))
        assert made(scene) == before, f"killed before call {calls}"
        calls += 1
    assert calls > 5


@pytest.fixture
def pool(libvirt_daemon: LibvirtDaemon, tmp_path: Path) -> Iterator[Path]:
    """The folder of a real storage pool, ``real``."""
    folder = tmp_path / "pool"
    folder.mkdir()
    text = f"<pool type='dir'><name>real</name><target><path>{folder}</path></target></pool>"
    made_pool = libvirt_daemon.open("lxc").storagePoolDefineXML(text)
    made_pool.create()
    yield folder
    made_pool.destroy()
    made_pool.undefine()


def test_volumes_are_made_in_a_real_pool(libvirt_daemon: LibvirtDaemon, pool: Path, tmp_path: Path) -> None:
    """The storage driver is the same for all kinds of machines: an overlay by qemu-img, and an upload."""
    if shutil.which("qemu-img") is None:
        pytest.skip("no libvirt here (qemu-img): apt-get install qemu-utils")
    base = tmp_path / "base.img"
    base.write_bytes(b"base" * (1 << 18))
    disks, who = Disks(Calls(libvirt_daemon.uri("lxc")), "real"), identity("token", 1)
    disk = disks.plan(who, Source(target="vda", format="raw", path=str(base)))
    seed = disks.plan_seed(who, [disk])
    image = seed_image(who, "#cloud-config\n")
    for _ in range(2):  # the second time is a launch that was broken off and is gone on with
        disks.make(disk)
        disks.make_seed(seed, image)
    assert sorted(path.name for path in pool.iterdir()) == [seed.name, disk.name]
    assert Path(disks.path(seed)).read_bytes() == image
    words = ["qemu-img", "info", "--output=json", disks.path(disk)]
    found = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    assert (found["format"], found["virtual-size"], found["backing-filename"]) == ("qcow2", 1 << 20, str(base))
    assert found["backing-filename-format"] == "raw"
    for _ in range(2):
        disks.delete(disk)
        disks.delete(seed)
    assert list(pool.iterdir()) == []


def test_pool_that_is_no_directory_is_refused(mock: MockScene) -> None:
    text = "<pool type='logical'><name>volumes</name><source><name>vg</name></source><target><path>/dev/vg</path></target></pool>"
    made_pool = mock.connection.storagePoolDefineXML(text)
    made_pool.create()
    try:
        with pytest.raises(ProviderRefusedError, match="is of type logical: name one that is a directory"):
            mock.provider(libvirt_pool="volumes").launch(mock.order())
    finally:
        made_pool.destroy()
        made_pool.undefine()


def test_silent_daemon_is_not_waited_for(libvirt_daemon: LibvirtDaemon) -> None:
    """Neither by a call on an open connection nor by one that opens it; afterwards it is asked again."""
    calls, fresh = (Calls(libvirt_daemon.uri("test", "default"), limit=0.3) for _ in range(2))
    assert calls.on("numOfDomains") == 1
    with libvirt_daemon.frozen():
        for each in (calls, fresh, fresh):
            with pytest.raises(ProviderBusyError, match="no answer within"):
                each.on("numOfDomains")
    assert Calls(calls.uri).on("numOfDomains") == 1
    assert [each.on("numOfDomains") for each in (calls, fresh)] == [1, 1]


def test_calls_without_an_answer_are_few(libvirt_daemon: LibvirtDaemon) -> None:
    calls = Calls(libvirt_daemon.uri("test", "default"), limit=0.01)
    with libvirt_daemon.frozen():
        for _ in range(16):
            with pytest.raises(ProviderBusyError, match="no answer within"):
                calls.on("numOfDomains")
        with pytest.raises(ProviderBusyError, match="16 calls wait for an answer already"):
            calls.on("numOfDomains")


def test_lost_connection_is_made_again(libvirt_daemon: LibvirtDaemon) -> None:
    calls = Calls(libvirt_daemon.uri("test", "default"))
    first = calls.on("listAllDomains", 0)
    libvirt_daemon.stop()
    with pytest.raises(ProviderBusyError):
        calls.ask(first[0].isActive)
    libvirt_daemon.start()
    assert calls.on("numOfDomains") == 1


def test_libvirt_says_nothing_itself(libvirt_daemon: LibvirtDaemon, capfd: pytest.CaptureFixture[str]) -> None:
    calls = Calls(libvirt_daemon.uri("test", "default"))
    with pytest.raises(ProviderRefusedError, match="Domain not found"):
        calls.on("lookupByName", "no-such-domain")
    assert capfd.readouterr() == ("", "")


def test_password_in_a_uri_is_not_told() -> None:
    with pytest.raises(ProviderBusyError) as caught:
        Calls("qemu+tcp://me:secret@127.0.0.1:1/system").on("getType")
    assert "secret" not in str(caught.value) and "//me@127.0.0.1:1/" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"libvirt_uri": "qemu"}, "not a URI"),
        ({"libvirt_uri": "lxc+ssh://elsewhere/system", "libvirt_base": "base"}, "on this machine only"),
        ({"libvirt_uri": "test:///default"}, "one of them"),
        ({"libvirt_uri": "test:///default", "libvirt_base": "a", "libvirt_xml": "/b"}, "one of them"),
        ({"libvirt_uri": "test:///default", "libvirt_base": "nothing"}, "no domain nothing"),
        ({"libvirt_uri": "test:///default", "libvirt_xml": "/no/such/file"}, "cannot be read"),
    ],
)
def test_wrong_settings(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        LibvirtProvider(settings_with(**values)).offer()


def test_abilities_are_those_of_the_kind() -> None:
    carried = {
        uri: LibvirtProvider(settings_with(libvirt_uri=uri, libvirt_seed=seed)).abilities.host_key
        for uri, seed in [("qemu:///system", "yes"), ("lxc:///system", "yes"), ("test:///default", "yes"), ("qemu+ssh://a/system", "no")]
    }
    assert carried == {"qemu:///system": True, "lxc:///system": True, "test:///default": False, "qemu+ssh://a/system": False}


def test_package_that_is_missing_is_named() -> None:
    """And is not loaded before a provider is made."""
    code = """
import sys
from cloudtask.providers.libvirt import LibvirtProvider
from cloudtask.errors import UsageError
from tests.providers.contract import settings_with
assert "libvirt" not in sys.modules and "pycdlib" not in sys.modules
for name in ("pycdlib", "libvirt"):
    sys.modules[name] = None
    try:
        LibvirtProvider(settings_with(libvirt_seed="no" if name == "libvirt" else "yes"))
    except UsageError as error:
        sys.stdout.write(f"{error}\\n")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [line.split(" (")[0] for line in done.stdout.splitlines()] == [
        "--provider=libvirt needs pycdlib", "--provider=libvirt needs libvirt-python",
    ]  # fmt: skip


def test_seed_is_what_cloud_init_looks_for() -> None:
    """NoCloud: a file system labelled cidata with two files."""
    import pycdlib

    image = seed_image(identity("token", 1), "#cloud-config\n{}\n")
    iso = pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(image))
    assert iso.pvd.volume_identifier.strip() == b"cidata"
    found = {}
    for name in ("user-data", "meta-data"):
        data = io.BytesIO()
        iso.get_file_from_iso_fp(data, rr_path=f"/{name}")
        found[name] = data.getvalue().decode()
    assert found["user-data"] == "#cloud-config\n{}\n"
    assert found["meta-data"] == f"instance-id: {identity('token', 1).uuid}\nlocal-hostname: cloudtask-token-1\n"
