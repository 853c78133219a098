"""From the XML of a base domain, or of a template, to that of one machine.  Pure: asks nobody.

The format is that of https://libvirt.org/formatdomain.html.  A machine has a name, a uuid and MAC addresses of its own, and overlays in
the place of the base's disks; a container has a copy of the root directory.  What two machines cannot share is left out, so that
libvirt chooses it: NVRAM, sockets, names of network devices.  Disks that are read-only, shareable or transient stay as they are.
"""

from __future__ import annotations

import hashlib
import os.path
import uuid
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from cloudtask.printable import sanitize
from cloudtask.providers.libvirt_marks import NAMED, Mark, Reach, find_ours, read_reach
from cloudtask.units import format_size

PORT = "{port}"
WRAPPED_INIT = "/var/lib/cloudtask/init"
_TITLE = 80
_KEPT_DISKS = ("readonly", "shareable", "transient")
_UNITS = {"KiB": 1 << 10, "k": 1 << 10, "MiB": 1 << 20, "M": 1 << 20, "GiB": 1 << 30, "G": 1 << 30}
_BUS_LETTERS = {"virtio": "vd", "ide": "hd", "fdc": "fd", "xen": "xvd"}


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What an order's machine is called: the same whenever it is asked for."""

    name: str
    uuid: str
    seed: str

    def mac(self, number: int) -> str:
        """The address of its network card ``number``, from KVM's range for locally made ones."""
        digest = hashlib.sha256(f"{self.seed} {number}".encode()).digest()
        return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])


def identity(token: str, index: int) -> Identity:
    """Of the machine ``index`` (from 1) of the order ``token``.  Names are short: they become host names, of 64 characters at most."""
    short = token if len(token) <= 40 else hashlib.sha256(token.encode()).hexdigest()[:40]
    seed = f"cloudtask {token} {index}"
    return Identity(name=f"{NAMED}{short}-{index}", uuid=str(uuid.uuid5(uuid.NAMESPACE_URL, seed)), seed=seed)


def fill(text: str, values: Mapping[str, str]) -> str:
    """Fills in placeholders, with what is special in XML escaped.  Other braces stay as they are."""
    for key, value in values.items():
        text = text.replace(f"{{{key}}}", escape(value, {"'": "&apos;", '"': "&quot;"}))
    return text


@dataclass(frozen=True, kw_only=True)
class Source:
    """A disk of the base.  Either ``path`` or ``pool`` and ``volume`` say where it is; ``target`` is its name in the machine (``vda``)."""

    target: str
    format: str
    path: str = ""
    pool: str = ""
    volume: str = ""


class Blueprint:
    """A base's XML, filled in for one machine.  Raises ValueError where it is none."""

    def __init__(self, text: str) -> None:
        try:
            self._tree = ElementTree.fromstring(text)
        except ElementTree.ParseError as error:
            raise ValueError(f"not XML: {error}") from None
        if self._tree.tag != "domain":
            raise ValueError(f"not a domain: <{self._tree.tag}>")

    @property
    def reach(self) -> Reach:
        """What an element of ours in its metadata says."""
        metadata = self._tree.find("metadata")
        ours = find_ours(metadata) if metadata is not None else []
        return read_reach(ours[0]) if ours else Reach()

    @property
    def has_network(self) -> bool:
        """It has a network card; a container without any shares its host's network."""
        return self._tree.find("devices/interface") is not None or self._tree.find("features/privnet") is not None

    @property
    def size(self) -> str:
        """CPUs and memory, for people: ``2 CPUs, 2G``."""
        memory = self._tree.find("memory")
        cpus = (self._tree.findtext("vcpu") or "1").strip()
        return f"{cpus} CPU{'' if cpus == '1' else 's'}, {_memory(memory) if memory is not None else 'no memory'}"

    def sources(self) -> list[Source]:
        """The disks that each machine needs an overlay of.  Raises ValueError for one that can have none."""
        return [_source(disk) for disk in self._cloned_disks()]

    def root(self) -> str:
        """A container's root directory.  Raises ValueError where it has none of its own."""
        path = os.path.normpath(_root_source(self._tree).attrib["dir"])
        if path == "/":
            raise ValueError("its root directory is its host's own")
        return path

    def machine(
        self,
        *,
        identity: Identity,
        mark: Mark,
        label: str,
        overlays: Sequence[str] = (),
        seed: str = "",
        root: str = "",
        wrapped: bool = False,
    ) -> str:
        """The XML of the machine.  ``overlays`` are the paths of `sources`' overlays, ``seed`` of the disk with the user data;
        ``root`` is the copy of the root directory, and ``wrapped`` lets a container begin with `WRAPPED_INIT`."""
        for disk, path in zip(self._cloned_disks(), overlays, strict=True):
            _lay_over(disk, path)
        if seed:
            self._add_seed(seed)
        if root:
            _root_source(self._tree).attrib["dir"] = root
        if wrapped:
            _wrap_init(self._tree)
        self._name(identity, label)
        self._mark(mark)
        self._separate(identity)
        return ElementTree.tostring(self._tree, encoding="unicode")

    def _cloned_disks(self) -> list[ElementTree.Element]:
        disks = self._tree.findall("devices/disk")
        return [disk for disk in disks if disk.get("device", "disk") == "disk" and disk.find("source") is not None and not _kept(disk)]

    def _name(self, identity: Identity, label: str) -> None:
        self._tree.attrib.pop("id", None)
        for tag in ("name", "uuid", "title", "description"):
            _remove(self._tree, tag)
        texts = {
            "name": identity.name,
            "uuid": identity.uuid,
            "title": sanitize(label).replace("\t", " ")[:_TITLE],
            "description": "Made by cloudtask, which destroys it; see cloudtask-destroy-workers.",
        }
        for position, (tag, text) in enumerate(texts.items()):
            element = ElementTree.Element(tag)
            element.text = text
            self._tree.insert(position, element)

    def _mark(self, mark: Mark) -> None:
        metadata = self._tree.find("metadata")
        if metadata is None:
            metadata = ElementTree.SubElement(self._tree, "metadata")
        for element in find_ours(metadata):
            metadata.remove(element)
        metadata.append(mark.as_element())

    def _separate(self, identity: Identity) -> None:
        """Takes away what two machines cannot share."""
        _remove(self._tree, "genid")
        for system in self._tree.findall("sysinfo/system"):
            for entry in [each for each in system.findall("entry") if each.get("name") == "uuid"]:
                system.remove(entry)
        for nvram in self._tree.findall("os/nvram"):
            nvram.text = None
            _remove(nvram, "source")
            nvram.attrib.pop("type", None)
        for channel in self._tree.findall("devices/channel[@type='unix']"):
            _remove(channel, "source")
        for number, card in enumerate(self._tree.findall("devices/interface")):
            _remove(card, "mac")
            _remove(card, "target")
            ElementTree.SubElement(card, "mac", address=identity.mac(number))

    def _add_seed(self, path: str) -> None:
        targets = self._tree.findall("devices/disk/target")
        bus = next((found for target in targets if (found := target.get("bus"))), "virtio")
        taken = {target.get("dev") for target in targets}
        letters = _BUS_LETTERS.get(bus, "sd")
        device = next(name for letter in "abcdefghijklmnopqrstuvwxyz" if (name := letters + letter) not in taken)
        disk = ElementTree.SubElement(_devices(self._tree), "disk", type="file", device="disk")
        ElementTree.SubElement(disk, "driver", name="qemu", type="raw")
        ElementTree.SubElement(disk, "source", file=path)
        ElementTree.SubElement(disk, "target", dev=device, bus=bus)
        ElementTree.SubElement(disk, "readonly")


def _memory(element: ElementTree.Element) -> str:
    """In libvirt's own answers it is always in KiB; in a template in whatever unit."""
    number, unit = (element.text or "").strip(), element.get("unit", "KiB")
    if unit in _UNITS and number.isascii() and number.isdigit():
        return format_size(int(number) * _UNITS[unit])
    return f"{number} {unit}"


def _kept(disk: ElementTree.Element) -> bool:
    return any(disk.find(tag) is not None for tag in _KEPT_DISKS)


def _source(disk: ElementTree.Element) -> Source:
    kind, driver, target = disk.get("type", "file"), disk.find("driver"), disk.find("target")
    name = target.get("dev", "") if target is not None else ""
    source = disk.find("source")
    if source is None or kind not in ("file", "block", "volume"):
        raise ValueError(f"its disk {name} is of type {kind}, which cannot be laid over: make it read-only or shareable, or another base")
    if disk.find("encryption") is not None or source.find("encryption") is not None:
        raise ValueError(f"its disk {name} is encrypted, which cannot be laid over")
    if not name.isalnum():
        raise ValueError(f"it has a disk without a target: {name!r}")
    found = source.attrib
    format = driver.get("type", "raw") if driver is not None else "raw"
    path = found.get("file") or found.get("dev") or ""
    return Source(target=name, format=format, path=path, pool=found.get("pool", ""), volume=found.get("volume", ""))


def _lay_over(disk: ElementTree.Element, path: str) -> None:
    for tag in ("source", "backingStore", "mirror"):
        _remove(disk, tag)
    disk.set("type", "file")
    ElementTree.SubElement(disk, "source", file=path)
    driver = disk.find("driver")
    if driver is None:
        driver = ElementTree.SubElement(disk, "driver", name="qemu")
    driver.set("type", "qcow2")


def _root_source(tree: ElementTree.Element) -> ElementTree.Element:
    for filesystem in tree.findall("devices/filesystem"):
        target, source = filesystem.find("target"), filesystem.find("source")
        if target is not None and target.get("dir") == "/":
            if filesystem.get("type", "mount") != "mount" or source is None or not os.path.isabs(source.get("dir", "")):
                break
            return source
    raise ValueError("it has no root directory of its own: <filesystem type='mount'> with <source dir='...'/> and <target dir='/'/>")


def _wrap_init(tree: ElementTree.Element) -> None:
    os_element = tree.find("os")
    if os_element is None:
        raise ValueError("it has no <os>")
    words = [os_element.findtext("init") or "/sbin/init", *(argument.text or "" for argument in os_element.findall("initarg"))]
    for tag in ("init", "initarg"):
        _remove(os_element, tag)
    ElementTree.SubElement(os_element, "init").text = WRAPPED_INIT
    for word in words:
        ElementTree.SubElement(os_element, "initarg").text = word


def _devices(tree: ElementTree.Element) -> ElementTree.Element:
    devices = tree.find("devices")
    return devices if devices is not None else ElementTree.SubElement(tree, "devices")


def _remove(element: ElementTree.Element, tag: str) -> None:
    for child in element.findall(tag):
        element.remove(child)
