"""One machine of an order: defined, given its disks, started; from wherever an earlier try left off."""

from __future__ import annotations

import itertools
import os
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from cloudtask.errors import ProviderRefusedError
from cloudtask.providers.base import Order
from cloudtask.providers.libvirt_calls import Calls
from cloudtask.providers.libvirt_disks import Disks, seed_image
from cloudtask.providers.libvirt_domains import Domains
from cloudtask.providers.libvirt_marks import Mark, Reach, Root
from cloudtask.providers.libvirt_root import Content, make_root, remove_root
from cloudtask.providers.libvirt_xml import PORT, Blueprint, Identity, fill, identity
from cloudtask.providers.userdata import HostKey

_PORTS = range(20000, 30000)
"""Below those that Linux gives to outgoing connections (ip_local_port_range)."""

_START_LIMIT = 40.0
_ENDS = 5


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What machines of a URI are.  ``seeded``: a disk carries the user data; ``container``: they have a root directory, and
    ``filled`` says that the keys are written into it; ``login`` is the user to let in.  ``host`` is where libvirt is."""

    seeded: bool
    container: bool
    filled: bool
    login: str | None
    host: str


def host_of(uri: str) -> str | None:
    """The machine that a URI names; None for this one."""
    return urlsplit(uri).hostname


class Making:
    """Makes machines of a base's XML."""

    def __init__(self, calls: Calls, disks: Disks, domains: Domains, kind: Kind) -> None:
        self._calls = calls
        self._disks = disks
        self._domains = domains
        self._kind = kind

    def make(self, order: Order, index: int, base: Callable[[], str]) -> Any:
        """The domain of machine ``index`` (from 1).  ``base`` gives the XML, and is asked where the domain is not defined yet.

        Raises ProviderRefusedError where it cannot be made; a domain that is defined already stays then.
        """
        who = identity(order.token, index)
        domain = self._domains.by_id(who.uuid)
        if domain is None:
            domain = self._define(order, who, index, base())
        mark = self._domains.mark(domain)
        if mark is None:
            raise self._calls.refused(f"{who.name} is there, and is no machine of cloudtask's")
        if not mark.started:
            self._furnish(domain, mark, who, order)
            self._start(domain)
            # Read again: another process may have defined it meanwhile, with another port.
            self._domains.write(domain, replace(self._domains.mark(domain) or mark, started=True))
        return domain

    def unmake(self, domain: Any, mark: Mark) -> None:
        """Ends it, deletes what was made with it, and undefines it last.  Silent about what is gone.

        Another process may be making it at the same time (a launch that was given up and went on).  One that has not looked at the
        domain since it was undefined may have made disks or started it, so both are seen to once more.
        """
        for _ in range(_ENDS):
            self._calls.ask(domain.destroy, none_for=("OPERATION_INVALID", "NO_DOMAIN"), limit=_START_LIMIT)
            self._delete(mark)
            self._undefine(domain)
            if self._domains.by_id(domain.UUIDString()) is None:
                return self._delete(mark)
        raise self._calls.busy(f"{domain.name()} is destroyed, and comes back")

    def _delete(self, mark: Mark) -> None:
        for volume in mark.volumes:
            self._disks.delete(volume)
        if mark.root:
            self._remove(mark.root)

    def _define(self, order: Order, who: Identity, index: int, base: str) -> Any:
        try:
            text = self._machine(order, who, index, base)
        except ValueError as error:
            raise self._calls.refused(f"the base cannot be used: {error}") from None
        return self._calls.on("defineXML", text, certain=True)

    def _machine(self, order: Order, who: Identity, index: int, base: str) -> str:
        """The XML of the machine.  Raises ValueError."""
        values = {"name": who.name, "uuid": who.uuid, "mac": who.mac(0), "token": order.token, "index": str(index)}
        if PORT in base:
            values["port"] = str(self._free_port(who))
        blueprint = Blueprint(fill(base, values))
        disks = [self._disks.plan(who, source) for source in blueprint.sources()]
        seed = self._disks.plan_seed(who, disks) if self._kind.seeded and order.user_data else None
        base_root = blueprint.root() if self._kind.container else ""
        root = Root(path=os.path.join(os.path.dirname(base_root), who.name), base=base_root) if base_root else None
        reach = self._reach(blueprint)
        mark = Mark(tags=order.tags, created=int(time.time()), reach=reach, disks=tuple(disks), seed=seed, root=root)
        return blueprint.machine(
            identity=who,
            mark=mark,
            label=order.label,
            overlays=[self._disks.path(disk) for disk in disks],
            seed=self._disks.path(seed) if seed else "",
            root=root.path if root else "",
            wrapped=bool(root and self._kind.filled and order.timer),
        )

    def _reach(self, blueprint: Blueprint) -> Reach:
        """Raises ValueError for a container that could only be mistaken for its host."""
        reach = replace(blueprint.reach, user=self._kind.login or blueprint.reach.user)
        shares_network = self._kind.container and not blueprint.has_network
        if shares_network and not reach.port:
            raise ValueError("it shares its host's network and names no port for its sshd (see cloudtask-providers)")
        return replace(reach, host=reach.host or self._kind.host) if shares_network else reach

    def _free_port(self, who: Identity) -> int:
        """One that no machine of ours has and nobody here listens on, looked for from a place of its own."""
        taken = {mark.reach.port for _, mark in self._domains.marked()}
        first: int = random.Random(who.seed).choice(_PORTS)
        for port in itertools.chain(range(first, _PORTS.stop), range(_PORTS.start, first)):
            if port not in taken and _is_free(port):
                return port
        raise ValueError(f"no port is free from {_PORTS.start} to {_PORTS.stop}")

    def _furnish(self, domain: Any, mark: Mark, who: Identity, order: Order) -> None:
        """Makes what the mark names."""
        if self._domains.active(domain):
            return
        for disk in mark.disks:
            self._disks.make(disk)
        if mark.seed:
            self._disks.make_seed(mark.seed, seed_image(who, order.user_data))
        if mark.root:
            self._copy(mark.root, mark, order)
        if self._domains.by_id(who.uuid) is None:  # destroyed by somebody else meanwhile: nothing would tell of what was made since
            self._delete(mark)
            raise self._calls.refused(f"{who.name} was destroyed while it was made")

    def _copy(self, root: Root, mark: Mark, order: Order) -> None:
        content = Content()
        if self._kind.filled:
            login = mark.reach.user or "root"
            content = Content(login=login, public_key=order.public_key, host_key=host_key_of(order.user_data), timer=order.timer)
        try:
            make_root(root, content)
        except OSError as error:
            raise self._calls.refused(f"the machine's root directory cannot be made: {error.strerror or error}") from None

    def _remove(self, root: Root) -> None:
        try:
            remove_root(root)
        except OSError as error:
            raise self._calls.busy(f"{root.path} cannot be deleted: {error.strerror or error}") from None

    def _start(self, domain: Any) -> None:
        """An answer other than yes is a no, but where the domain runs: another process may have started it."""
        try:
            self._calls.ask(domain.create, certain=True, limit=_START_LIMIT)
        except ProviderRefusedError:
            if not self._domains.active(domain):
                raise

    def _undefine(self, domain: Any) -> None:
        """With all that libvirt itself keeps of it; drivers know fewer of the flags, and older libvirts too."""
        libvirt = self._calls.libvirt
        kept = libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        newer = kept | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
        for flags in (newer | getattr(libvirt, "VIR_DOMAIN_UNDEFINE_TPM", 0), newer, kept):
            unknown = ("INVALID_ARG", "NO_SUPPORT", "ARGUMENT_UNSUPPORTED", "CONFIG_UNSUPPORTED", "OPERATION_UNSUPPORTED")
            if self._calls.ask(domain.undefineFlags, flags, none_for=(*unknown, "NO_DOMAIN", "OPERATION_INVALID")) is not None:
                return
        self._calls.ask(domain.undefine, none_for=("NO_DOMAIN", "OPERATION_INVALID"))


def host_key_of(user_data: str) -> HostKey | None:
    """The host key that the user data carry, for a machine that has no cloud-init to read them."""
    import yaml

    found = yaml.safe_load(user_data) if user_data else None
    keys = found.get("ssh_keys") if isinstance(found, dict) else None
    if not isinstance(keys, dict) or not {"ed25519_private", "ed25519_public"} <= keys.keys():
        return None
    return HostKey(private=str(keys["ed25519_private"]), public=str(keys["ed25519_public"]))


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        try:
            sock.bind(("", port))
        except OSError:
            return False
        return True
