"""How hosts are started and stopped: the `Power` protocol, and the table of the kinds there are.

A kind is a small module that knows one way to ask, and loads what it needs for that when it is used first.  All of it blocks; who
calls it has a thread to spare.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol, cast

from cloudtask import kinds
from cloudtask.errors import ProviderRefusedError
from cloudtask.printable import sanitize
from cloudtask.providers.base import Instance, InstanceState
from cloudtask.providers.web_address import checked_url

Words = str | tuple[str, ...]
"""A command on the controller: shell code, or words that no shell sees."""

ALWAYS_ON = "always-on"


class Standing(NamedTuple):
    """How a host stands: PENDING while it starts, LEAVING while it stops, GONE or ABSENT where it never will start.

    ``address`` is where it is, as far as whoever runs it knows; ``paused`` says that it is STOPPED with work in its memory, so that it
    is not ours to end; ``note`` is the other side's own word.
    """

    state: InstanceState
    address: str | None = None
    paused: bool = False
    note: str = ""


def looked(power: Power) -> Standing:
    """What a power's `Power.look` says, without an address that can be none."""
    standing = power.look()
    try:
        Instance(id="host", state=standing.state, host=standing.address)
    except ValueError as error:
        return standing._replace(address=None, note=f"{standing.note}; {sanitize(str(error))}")
    return standing


class Power(Protocol):
    """A way to start and stop one host.  Made with its `Switch`; raises nothing but ProviderError.

    ``certain``: what it calls stopped is not on its way up either.  A host that only answers or does not is never that certain.
    """

    certain: bool

    def look(self) -> Standing:
        """How it stands now; some seconds at most."""

    def start(self) -> None:
        """Ask for its start.  ProviderRefusedError: nothing was done, and nothing would be next time."""

    def stop(self, waited: float) -> None:
        """Ask for its end, in good order; ``waited`` is for how many seconds that has been asked already."""


class Switch(NamedTuple):
    """What a power is made of: the host's name for messages, its options, and where it answers (None where only the power knows)."""

    name: str
    options: Mapping[str, Any]
    address: str | None = None
    port: int | None = None
    user: str | None = None


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A row of the table.  ``identity`` names the options that tell one machine from another, none where its address does."""

    said: str
    place: str
    package: str = ""
    keys: Mapping[str, kinds.Parser] = field(default_factory=dict)
    needed: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    identity: tuple[str, ...] = ()
    needs_address: bool = True
    costs: bool = False
    """Somebody sends a bill for its hours."""


def _words(value: object, scene: kinds.Scene) -> Words:
    """Text is shell code, a list is words."""
    if isinstance(value, str):
        return kinds.command(value, scene).words[0]
    return kinds.command(value, scene).words


def _text(value: object, scene: kinds.Scene) -> str:
    found = kinds.text(value, scene)
    if not found or not found.isprintable():
        raise ValueError(f"{value!r} is no name")
    return found


def _word(value: object, scene: kinds.Scene) -> str:
    found = kinds.word(value, scene)
    if not found:
        raise ValueError("is empty")
    return found


def _url(value: object, scene: kinds.Scene) -> str:
    return checked_url(_word(value, scene))


KINDS: Mapping[str, Kind] = {
    ALWAYS_ON: Kind(said="always on", place="cloudtask.providers.hosts_power:AlwaysOn"),
    "command": Kind(
        said="started by a command",
        place="cloudtask.providers.hosts_wake:CommandPower",
        keys={"start": _words, "stop": _words, "status": _words},
        needed=("start",),
    ),
    "docker": Kind(
        said="a container",
        place="cloudtask.providers.hosts_docker:DockerPower",
        package="docker",
        keys={"container": _word, "host": _word},
        needed=("container",),
        identity=("container", "host"),
        needs_address=False,
    ),
    "ec2": Kind(
        said="an EC2 instance",
        place="cloudtask.providers.hosts_ec2:Ec2Power",
        package="boto3",
        keys={"id": _word, "region": _word, "profile": _word},
        needed=("id",),
        identity=("id",),
        needs_address=False,
        costs=True,
    ),
    "libvirt": Kind(
        said="a libvirt domain",
        place="cloudtask.providers.hosts_libvirt:LibvirtPower",
        package="libvirt",
        keys={"domain": _text, "uri": _word, "force_after": kinds.some_duration},
        needed=("domain",),
        defaults={"uri": "qemu:///system"},
        identity=("domain", "uri"),
    ),
    "linode": Kind(
        said="a Linode",
        place="cloudtask.providers.hosts_linode:LinodePower",
        keys={"id": kinds.whole(1), "token_file": kinds.path, "url": _url},
        needed=("id",),
        defaults={"url": "https://api.linode.com/v4"},
        identity=("id", "url"),
        needs_address=False,
        costs=True,
    ),
}
"""The ways to start and stop a host, by the key of the inventory."""

PACKAGES = {"docker": "docker", "boto3": "ec2", "libvirt": "libvirt"}
"""What brings an SDK: ``pip install 'cloudtask[EXTRA]'``."""


def missing_package(power: str) -> str | None:
    """What to install for this kind of power, None where all is there."""
    package = KINDS[power].package
    if not package or find_spec(package) is not None:
        return None
    return f"{KINDS[power].said} needs the package {package}: pip install 'cloudtask[{PACKAGES[package]}]'"


def power_of(kind: str, switch: Switch) -> Power:
    """The power of a host.  Raises ProviderRefusedError where its package is not installed, or the options will not do."""
    if missing := missing_package(kind):
        raise ProviderRefusedError(f"hosts: {switch.name}: {missing}")
    module, _, attribute = KINDS[kind].place.partition(":")
    return cast(Power, getattr(import_module(module), attribute)(switch))


class AlwaysOn:
    """A host that nobody starts or stops: it runs, as far as anybody here knows."""

    certain = True

    def __init__(self, switch: Switch) -> None:
        self._address = switch.address

    def look(self) -> Standing:
        """See `Power`."""
        return Standing(InstanceState.RUNNING, self._address, note="always on")

    def start(self) -> None:
        """See `Power`."""

    def stop(self, waited: float) -> None:
        """See `Power`."""
