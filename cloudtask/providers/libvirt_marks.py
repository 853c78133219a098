"""What we write on a domain, in its ``<metadata>``: whose it is, what was made with it, and how it is reached.

::

    <cloudtask:machine xmlns:cloudtask="urn:cloudtask:libvirt" session="..." controller="..." token="..." expires="..." created="..."
                       started="yes" host="127.0.0.1" port="20022" user="root">
      <cloudtask:disk pool="default" name="cloudtask-...-vda.qcow2" backing="/images/base.qcow2" format="qcow2" capacity="10737418240"/>
      <cloudtask:seed pool="default" name="cloudtask-...-seed.iso"/>
      <cloudtask:root path="/srv/roots/cloudtask-..." base="/srv/roots/base"/>
    </cloudtask:machine>

It is written in the call that defines the domain, before any disk is made: what is made is known, whoever dies.  libvirt keeps
one element of a namespace, so a base or a template says where its sshd listens in an element of ours that this one replaces::

    <cloudtask:ssh xmlns:cloudtask="urn:cloudtask:libvirt" host="127.0.0.1" port="{port}" user="root"/>
"""

from __future__ import annotations

import os.path
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, dataclass, replace

from cloudtask.providers.base import TAG, Tags

NAMESPACE = "urn:cloudtask:libvirt"
PREFIX = "cloudtask"
NAMED = "cloudtask-"
"""Names of domains, volumes and directories that we make begin so; nothing else is ever deleted."""

ElementTree.register_namespace(PREFIX, NAMESPACE)
ElementTree.register_namespace("qemu", "http://libvirt.org/schemas/domain/qemu/1.0")
ElementTree.register_namespace("lxc", "http://libvirt.org/schemas/domain/lxc/1.0")


@dataclass(frozen=True, kw_only=True)
class Disk:
    """A volume of ours in a storage pool: an overlay over ``backing``, a file or a block device of ``format`` and ``capacity`` bytes."""

    pool: str
    name: str
    backing: str
    format: str
    capacity: int


@dataclass(frozen=True, kw_only=True)
class Seed:
    """A volume of ours in a storage pool, with the user data."""

    pool: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Root:
    """A directory of ours, the copy of ``base``."""

    path: str
    base: str


@dataclass(frozen=True, kw_only=True)
class Reach:
    """How sshd is reached: what is None is found out, or is the usual."""

    host: str | None = None
    port: int | None = None
    user: str | None = None


@dataclass(frozen=True, kw_only=True)
class Mark:
    """All that is written on a machine.  ``created`` is in whole seconds since 1970."""

    tags: Tags
    created: int = 0
    started: bool = False
    reach: Reach = Reach()
    disks: tuple[Disk, ...] = ()
    seed: Seed | None = None
    root: Root | None = None

    @property
    def volumes(self) -> tuple[Disk | Seed, ...]:
        """All that was made, or will be, in storage pools."""
        return (*self.disks, *([self.seed] if self.seed else []))

    def renewed(self, tags: Tags) -> Mark:
        """With other tags, but its own token."""
        return replace(self, tags=replace(tags, token=self.tags.token))

    def as_element(self, namespace: str = NAMESPACE) -> ElementTree.Element:
        """The element for ``<metadata>``."""
        tags = {key.removeprefix(f"{TAG}-").replace(TAG, "session"): value for key, value in self.tags.as_dict().items()}
        element = ElementTree.Element(_name("machine", namespace), tags | {"created": str(self.created)} | _reach_attributes(self.reach))
        if self.started:
            element.set("started", "yes")
        for disk in self.disks:
            _add(element, _name("disk", namespace), **{key: str(value) for key, value in asdict(disk).items()})
        if self.seed:
            _add(element, _name("seed", namespace), **asdict(self.seed))
        if self.root:
            _add(element, _name("root", namespace), **asdict(self.root))
        return element

    def as_text(self) -> str:
        """The same as XML without our namespace, as ``virDomainSetMetadata`` wants it (it adds it)."""
        return ElementTree.tostring(self.as_element(""), encoding="unicode")


def read_mark(text: str) -> Mark | None:
    """Of what ``virDomainGetMetadata`` gives, which leaves out the namespace; None where it is no machine of ours, or was tampered with."""
    try:
        element = ElementTree.fromstring(text)
        tags = Tags.from_dict({TAG: element.get("session", "")} | {f"{TAG}-{key}": value for key, value in element.items()})
        if tags is None or _local(element) != "machine":
            return None
        seeds, roots = _children(element, "seed"), _children(element, "root")
        return Mark(
            tags=tags,
            created=int(element.get("created", "0")),
            started=element.get("started") == "yes",
            reach=read_reach(element),
            disks=tuple(_disk(child) for child in _children(element, "disk")),
            seed=Seed(pool=seeds[0].attrib["pool"], name=_ours(seeds[0].attrib["name"])) if seeds else None,
            root=_root(roots[0]) if roots else None,
        )
    except (ElementTree.ParseError, KeyError, ValueError):
        return None


def read_reach(element: ElementTree.Element) -> Reach:
    """Of a machine's element, or of the one that a template has.  Raises ValueError."""
    port = element.get("port")
    return Reach(host=element.get("host"), port=_port(port) if port else None, user=element.get("user"))


def find_ours(metadata: ElementTree.Element) -> list[ElementTree.Element]:
    """The elements of our namespace."""
    return [child for child in metadata if child.tag.startswith(f"{{{NAMESPACE}}}")]


def _port(text: str) -> int:
    port = int(text)
    if not 0 < port < 65536:
        raise ValueError(f"not a port: {text}")
    return port


def _disk(element: ElementTree.Element) -> Disk:
    found = element.attrib
    return Disk(
        pool=found["pool"], name=_ours(found["name"]), backing=found["backing"], format=found["format"], capacity=int(found["capacity"])
    )


def _root(element: ElementTree.Element) -> Root:
    path = element.attrib["path"]
    if path != os.path.normpath(path) or not os.path.isabs(path):
        raise ValueError(f"not a path of ours: {path!r}")
    _ours(os.path.basename(path))
    return Root(path=path, base=element.attrib["base"])


def _ours(name: str) -> str:
    if not name.startswith(NAMED) or "/" in name:
        raise ValueError(f"not a name of ours: {name!r}")
    return name


def _reach_attributes(reach: Reach) -> dict[str, str]:
    found = {"host": reach.host, "port": str(reach.port) if reach.port else None, "user": reach.user}
    return {key: value for key, value in found.items() if value}


def _children(element: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [child for child in element if _local(child) == name]


def _add(element: ElementTree.Element, tag: str, /, **attributes: str) -> None:
    ElementTree.SubElement(element, tag, attributes)


def _name(local: str, namespace: str) -> str:
    return f"{{{namespace}}}{local}" if namespace else local


def _local(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
