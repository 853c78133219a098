"""From a base's XML to a machine's, and marks: pure, with no libvirt."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from cloudtask.providers.base import Tags
from cloudtask.providers.libvirt_marks import NAMESPACE, Disk, Mark, Reach, Root, Seed, read_mark
from cloudtask.providers.libvirt_xml import WRAPPED_INIT, Blueprint, Source, fill, identity

WHO = identity("token", 1)
TAGS = Tags(session="session", controller="here", token="token", expires=1_900_000_000)
MARK = Mark(
    tags=TAGS,
    created=1_700_000_000,
    started=True,
    reach=Reach(host="10.0.0.1", port=2222, user="debian"),
    disks=(Disk(pool="p<q", name="cloudtask-token-1-vda.qcow2", backing='/images/a "b".img', format="raw", capacity=7),),
    seed=Seed(pool="p", name="cloudtask-token-1-seed.iso"),
    root=Root(path="/roots/cloudtask-token-1", base="/roots/base"),
)


def machine(body: str, **keywords: object) -> ElementTree.Element:
    """The machine of a base with this body."""
    blueprint = Blueprint(f"<domain type='kvm' id='7'>{body}</domain>")
    text = blueprint.machine(identity=WHO, mark=MARK, label="Cloudtask: x", **keywords)  # type: ignore[arg-type]  # the caller's words
    return ElementTree.fromstring(text)


def devices(body: str) -> Blueprint:
    """A base with these devices."""
    return Blueprint(f"<domain><devices>{body}</devices></domain>")


def test_mark_comes_back() -> None:
    assert read_mark(MARK.as_text()) == MARK
    assert read_mark(ElementTree.tostring(MARK.as_element(), encoding="unicode")) == MARK
    plain = Mark(tags=TAGS)
    assert read_mark(plain.as_text()) == plain


@pytest.mark.parametrize(
    "change",
    [
        ('token="token"', ""),
        ('expires="1900000000"', 'expires="soon"'),
        ('session="session"', 'session="../x"'),
        ('name="cloudtask-token-1-vda.qcow2"', 'name="base.qcow2"'),
        ('name="cloudtask-token-1-seed.iso"', 'name="cloudtask-/../x"'),
        ('path="/roots/cloudtask-token-1"', 'path="/roots"'),
        ('path="/roots/cloudtask-token-1"', 'path="/roots/../cloudtask-x"'),
        ('path="/roots/cloudtask-token-1"', 'path="cloudtask-x"'),
        ('port="2222"', 'port="0"'),
        ("<machine", "<other"),
        (">", ""),
    ],
)
def test_mark_that_makes_no_sense_is_none(change: tuple[str, str]) -> None:
    text = MARK.as_text()
    assert change[0] in text
    assert read_mark(text.replace(*change)) is None


def test_renewed_mark_keeps_its_token() -> None:
    renewed = MARK.renewed(Tags(session="session", controller="there", token="other", expires=5))
    assert (renewed.tags.token, renewed.tags.controller, renewed.tags.expires, renewed.disks) == ("token", "there", 5, MARK.disks)


def test_identity_is_the_orders_and_short() -> None:
    assert identity("token", 1) == WHO
    assert WHO.mac(0).startswith("52:54:00:") and WHO.mac(0) != WHO.mac(1)
    long = identity("t" * 63, 1000)
    assert len(long.name) <= 64 and long.name != identity("t" * 62, 1000).name
    assert len({identity("token", index).uuid for index in range(100)}) == 100


def test_placeholders_are_data() -> None:
    filled = fill("<a b='{name}'>{name} {other} {\"json\": 1}</a>", {"name": "<'\"&>"})
    assert ElementTree.fromstring(filled).attrib["b"] == "<'\"&>"
    assert ElementTree.fromstring(filled).text == "<'\"&> {other} {\"json\": 1}"


def test_machine_shares_nothing_that_cannot_be_shared() -> None:
    tree = machine(
        """
        <name>base</name><uuid>11111111-0000-4000-8000-000000000000</uuid><genid>2</genid><title>t</title>
        <os><type>hvm</type><nvram template='/t.fd'>/nvram/base.fd</nvram></os>
        <sysinfo><system><entry name='uuid'>1</entry><entry name='serial'>2</entry></system></sysinfo>
        <devices>
          <interface type='network'><mac address='52:54:00:00:00:01'/><target dev='vnet1'/></interface>
          <interface type='bridge'><source bridge='br0'/></interface>
          <channel type='unix'><source mode='bind' path='/run/base.sock'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
        </devices>
        """
    )
    assert (tree.findtext("name"), tree.findtext("uuid"), tree.get("id")) == (WHO.name, WHO.uuid, None)
    assert tree.findtext("title") == "Cloudtask: x" and len(tree.findall("title")) == 1
    nvram = tree.find("os/nvram")
    assert nvram is not None and not nvram.text and nvram.get("template") == "/t.fd"
    assert [entry.get("name") for entry in tree.findall("sysinfo/system/entry")] == ["serial"]
    assert [mac.get("address") for mac in tree.findall("devices/interface/mac")] == [WHO.mac(0), WHO.mac(1)]
    assert tree.find("genid") is None and tree.find("devices/interface/target") is None and tree.find("devices/channel/source") is None
    assert tree.find(f"metadata/{{{NAMESPACE}}}machine") is not None


def test_disks_are_laid_over() -> None:
    disks = """
      <devices>
        <disk type='block'><source dev='/dev/vg/base'/><backingStore type='file'/><target dev='sda' bus='scsi'/></disk>
        <disk type='file'><driver name='qemu' type='qcow2' cache='none'/><source file='/b.qcow2'/><target dev='sdb' bus='scsi'/></disk>
        <disk type='file' device='cdrom'><target dev='sdc' bus='sata'/></disk>
        <disk type='network'><source protocol='rbd' name='x'/><target dev='sdd'/><shareable/></disk>
        <disk type='file'><source file='/scratch'/><target dev='sde'/><transient/></disk>
      </devices>
    """
    assert Blueprint(f"<domain>{disks}</domain>").sources() == [
        Source(target="sda", format="raw", path="/dev/vg/base"),
        Source(target="sdb", format="qcow2", path="/b.qcow2"),
    ]
    tree = machine(disks, overlays=["/o/1", "/o/2"], seed="/o/seed")
    found = tree.findall("devices/disk")
    assert [source.get("file") for source in tree.findall("devices/disk/source")] == ["/o/1", "/o/2", None, "/scratch", "/o/seed"]
    assert [disk.get("type") for disk in found] == ["file", "file", "file", "network", "file", "file"]
    drivers = [driver.attrib for driver in tree.findall("devices/disk/driver")]
    assert drivers[:2] == [{"name": "qemu", "type": "qcow2"}, {"name": "qemu", "type": "qcow2", "cache": "none"}]
    assert tree.find("devices/disk/backingStore") is None
    seed = found[-1].find("target")
    assert seed is not None and seed.attrib == {"dev": "sdf", "bus": "scsi"}
    assert found[-1].find("readonly") is not None


@pytest.mark.parametrize(
    ("disk", "words"),
    [
        ("<disk type='network'><source protocol='rbd' name='x'/><target dev='vda'/></disk>", "of type network"),
        ("<disk type='file'><source file='/x'><encryption format='luks'/></source><target dev='vda'/></disk>", "encrypted"),
        ("<disk type='file'><source file='/x'/><target dev='../x'/></disk>", "without a target"),
    ],
)
def test_disk_that_cannot_be_laid_over_is_said(disk: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        devices(disk).sources()


def test_container_begins_with_our_init() -> None:
    tree = machine(
        """
        <os><type>exe</type><init>/usr/sbin/sshd</init><initarg>-D</initarg></os>
        <devices><filesystem><source dir='/roots/base/'/><target dir='/'/></filesystem></devices>
        """,
        root="/roots/cloudtask-token-1",
        wrapped=True,
    )
    assert [element.text for element in tree.findall("os/init")] == [WRAPPED_INIT]
    assert [element.text for element in tree.findall("os/initarg")] == ["/usr/sbin/sshd", "-D"]
    source = tree.find("devices/filesystem/source")
    assert source is not None and source.get("dir") == "/roots/cloudtask-token-1"


@pytest.mark.parametrize(
    "filesystem",
    [
        "",
        "<filesystem type='mount'><source dir='/data'/><target dir='/data'/></filesystem>",
        "<filesystem type='mount'><source dir='/'/><target dir='/'/></filesystem>",
        "<filesystem type='mount'><source dir='/..'/><target dir='/'/></filesystem>",
        "<filesystem type='file'><source file='/root.img'/><target dir='/'/></filesystem>",
    ],
)
def test_container_needs_a_root_of_its_own(filesystem: str) -> None:
    with pytest.raises(ValueError, match="root directory"):
        devices(filesystem).root()


def test_what_a_base_says_of_its_sshd() -> None:
    said = f"<metadata><x xmlns='urn:other'/><ssh xmlns='{NAMESPACE}' port='2222' user='u'/></metadata>"
    assert Blueprint(f"<domain>{said}</domain>").reach == Reach(port=2222, user="u")
    assert Blueprint("<domain/>").reach == Reach()


@pytest.mark.parametrize("text", ["", "<domain>", "<network/>", "not XML"])
def test_what_is_no_domain_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="not"):
        Blueprint(text)


def test_size_for_people() -> None:
    assert Blueprint("<domain><memory>2097152</memory><vcpu>2</vcpu></domain>").size == "2 CPUs, 2G"
    assert Blueprint("<domain><memory unit='MiB'> 256 </memory></domain>").size == "1 CPU, 256M"
    assert Blueprint("<domain/>").size == "1 CPU, no memory"
