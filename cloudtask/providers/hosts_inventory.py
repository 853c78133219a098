"""The inventory of the ``hosts`` provider: machines that exist already, from a YAML file that people write.

::

    hosts:
      - name: render1
        address: 10.0.0.11
        user: render
        slots: 8
        gpus: 2
        labels: [big, {room: b12}]
        startup_there: ["mount /scratch"]
        power: {command: {start: [wakeonlan, "aa:bb:cc:dd:ee:ff"], stop: [ssh, root@render1, poweroff]}}

A key that is none, a name that stands twice and a value that cannot be are errors that name file, host and key.  ``plain`` is a host as
JSON can hold it, and `host_of` reads it back: what is written when a host is claimed is all that is needed to stop it, whatever becomes
of the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import yaml

from cloudtask import kinds
from cloudtask.addresses import LOCAL, parse_address
from cloudtask.errors import UsageError
from cloudtask.providers.base import Instance, InstanceState
from cloudtask.providers.hosts_power import ALWAYS_ON, KINDS, Kind, Words
from cloudtask.settings_sources import did_you_mean

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
_LABEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,62}")
_VALUE = re.compile(r"[A-Za-z0-9_./:-]{0,63}")
_NOT_A_NAME = "letters, digits, '_', '.' and '-', 63 at most"

Parser = Callable[[object, kinds.Scene], Any]


@dataclass(frozen=True, kw_only=True)
class Host:
    """One machine of the inventory.  ``slots`` 0 is one for each CPU, None not said.

    ``address`` is None where the power's own word is taken (an EC2 instance has another one each time that it is started).
    """

    name: str
    address: str | None = None
    user: str | None = None
    port: int | None = None
    slots: int | None = None
    gpus: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    host_key: str | None = None
    startup_here: tuple[Words, ...] = ()
    startup_there: tuple[str, ...] = ()
    shutdown_there: tuple[str, ...] = ()
    shutdown_here: tuple[Words, ...] = ()
    power: str = ALWAYS_ON
    options: Mapping[str, Any] = field(default_factory=dict)
    plain: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The machine, whatever it is called and in whichever inventory: a digest of how it is started, or of its address."""
        identity = {name: self.options.get(name) for name in KINDS[self.power].identity}
        words = [self.power, identity] if identity else [self.address, self.port]
        return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()[:24]

    @property
    def local(self) -> bool:
        """It is the controller itself."""
        return self.address == LOCAL

    def has(self, label: str) -> bool:
        """It carries ``LABEL``, or ``LABEL=VALUE``.  Its name and its number of GPUs count as labels too: ``name=x``, ``gpus=2``."""
        name, equals, value = label.partition("=")
        known = {"name": self.name} | ({"gpus": str(self.gpus)} if self.gpus else {}) | dict(self.labels)
        return name in known and (not equals or known[name] == value)


def inventory_path(environ: Mapping[str, str]) -> str:
    """``hosts.yaml`` in the user's configuration directory (XDG Base Directory Specification: a relative one is ignored)."""
    base = environ.get("XDG_CONFIG_HOME", "")
    return os.path.join(base if os.path.isabs(base) else os.path.expanduser("~/.config"), "cloudtask", "hosts.yaml")


def read_inventory(path: str) -> list[Host]:
    """The hosts of a file, in its order.  Raises UsageError with one line that names file, host and key."""
    content = _read_yaml(path)
    _known_keys(content, ("hosts",), path)
    listed = content.get("hosts")
    if not isinstance(listed, list) or not listed:
        raise UsageError(f"{path}: key 'hosts' must hold a list of hosts, each as '- name: NAME'")
    hosts = [host_of(each, path, f"number {number}") for number, each in enumerate(listed, 1)]
    for index, host in enumerate(hosts):
        for earlier in hosts[:index]:
            if earlier.name == host.name:
                raise UsageError(f"{path}: host {host.name!r} is listed twice: names must differ")
            if earlier.key == host.key:
                raise UsageError(f"{path}: hosts {earlier.name!r} and {host.name!r} are the same machine: list it once, with its slots")
    return hosts


def host_of(raw: object, path: str, place: str) -> Host:
    """One host; ``place`` says where it stands as long as its name is not known.  Raises UsageError."""
    if not isinstance(raw, Mapping) or "name" not in raw:
        raise UsageError(f"{path}: host {place}: must be 'name: NAME' and further keys")
    where = f"{path}: host {place}"
    scene = kinds.Scene(folder=os.path.dirname(path), environ={})
    name = _value(_name, raw["name"], scene, f"{where}: key 'name'")
    where = f"{path}: host {name!r}"
    _known_keys(raw, (*_KEYS, "power"), where)
    values = {key: _value(parse, raw[key], scene, f"{where}: key {key!r}") for key, parse in _KEYS.items() if raw.get(key) is not None}
    power, options = _power(raw.get("power", ALWAYS_ON), scene, where)
    host = Host(**values, power=power, options=options, plain=_plain(values, power, options))
    if host.address is None and KINDS[power].needs_address:
        raise UsageError(f"{where}: key 'address' is missing: a host that is {KINDS[power].said} needs one")
    return host


def _power(raw: object, scene: kinds.Scene, where: str) -> tuple[str, dict[str, Any]]:
    content = {raw: {}} if isinstance(raw, str) else raw
    if not isinstance(content, Mapping) or len(content) != 1:
        raise UsageError(f"{where}: key 'power' must be one of {', '.join(KINDS)}, with its keys: power: {{libvirt: {{domain: NAME}}}}")
    [(power, given)] = content.items()
    if power not in KINDS:
        raise UsageError(f"{where}: power {power!r} is unknown{did_you_mean(str(power), KINDS)}; use one of {', '.join(KINDS)}")
    kind, where = KINDS[power], f"{where}: power {power}"
    if not isinstance(given, Mapping):
        raise UsageError(f"{where}: must be keys and values" + (f", {kind.needed[0]} at least" if kind.needed else ""))
    _known_keys(given, kind.keys, where)
    for key in kind.needed:
        if given.get(key) is None:
            raise UsageError(f"{where}: key {key!r} is missing")
    return str(power), _options(kind, given, scene, where)


def _options(kind: Kind, given: Mapping[object, object], scene: kinds.Scene, where: str) -> dict[str, Any]:
    found = {key: _value(kind.keys[key], given[key], scene, f"{where}: key {key!r}") for key in kind.keys if given.get(key) is not None}
    return {**{key: value for key, value in kind.defaults.items() if key not in found}, **found}


def _plain(values: Mapping[str, Any], power: str, options: Mapping[str, Any]) -> dict[str, Any]:
    content = {**values, "power": {power: dict(options)}}
    return cast("dict[str, Any]", json.loads(json.dumps(content)))


def _value(parse: Parser, raw: object, scene: kinds.Scene, where: str) -> Any:
    try:
        return parse(raw, scene)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None


def _known_keys(content: Mapping[Any, object], known: Iterable[str], where: str) -> None:
    for key in content:
        if key not in known:
            raise UsageError(f"{where}: key {str(key)!r} is unknown{did_you_mean(str(key), known)}")


# --- the kinds of values ---------------------------------------------------------------------------------------------


def _name(value: object, scene: kinds.Scene) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"{value!r} is no name of a host: {_NOT_A_NAME}")
    return value


def _address(value: object, scene: kinds.Scene) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a name or an IP address")
    if parse_address(value).host != value:
        raise ValueError(f"{value!r} has more than an address in it: user, port and slots have keys of their own")
    Instance(id="x", state=InstanceState.PENDING, host=value)
    return value


def _user(value: object, scene: kinds.Scene) -> str:
    word = kinds.word(value, scene)
    if word is None or parse_address(f"{word}@x").user != word:
        raise ValueError(f"{value!r} is no name of a user")
    return word


def _port(value: object, scene: kinds.Scene) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65535:
        raise ValueError(f"{value!r} is no port (1 to 65535)")
    return value


def _slots(value: object, scene: kinds.Scene) -> int:
    return kinds.slots("auto" if value == 0 and isinstance(value, int) else value, scene)


def _labels(value: object, scene: kinds.Scene) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in [value] if isinstance(value, Mapping) else value if isinstance(value, list) else [None]:
        if isinstance(item, (str, int)) and not isinstance(item, bool):
            item = {str(item).partition("=")[0]: str(item).partition("=")[2]}
        if not isinstance(item, Mapping):
            raise ValueError("must be a list of labels, or 'label: value' lines")
        found |= {_label(name): _label_value(name, content) for name, content in item.items()}
    return found


def _label(name: object) -> str:
    if isinstance(name, bool) or not _LABEL.fullmatch(str(name)):
        raise ValueError(f"{name!r} is no label: {_NOT_A_NAME}; a word that YAML reads as another kind of value needs quotes")
    return str(name)


def _label_value(name: object, content: object) -> str:
    text = "" if content is None else str(content)
    if isinstance(content, (bool, list, dict)) or not _VALUE.fullmatch(text):
        raise ValueError(f"{name}: {content!r} is no label's value; a word that YAML reads as another kind of value needs quotes")
    return text


def _host_key(value: object, scene: kinds.Scene) -> str:
    text = " ".join(value.split()[:2]) if isinstance(value, str) else ""
    try:
        Instance(id="x", state=InstanceState.PENDING, host_key=text)
    except ValueError:
        raise ValueError("is no host key (ssh-ed25519 AAAA..., a line of ssh-keyscan without the name)") from None
    return text


def _commands_here(value: object, scene: kinds.Scene) -> tuple[Words, ...]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, (list, tuple)):
        raise ValueError("must be a list of commands: each shell code, or a list of words")
    return tuple(kinds.command(each, scene).words if isinstance(each, (list, tuple)) else _code(each, scene) for each in listed)


def _code(value: object, scene: kinds.Scene) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError(f"{value!r} is no command: shell code, or a list of words")
    return value


def _commands_there(value: object, scene: kinds.Scene) -> tuple[str, ...]:
    return tuple(each if isinstance(each, str) else shlex.join(each) for each in _commands_here(value, scene))


_KEYS: Mapping[str, Parser] = {
    "name": _name,
    "address": _address,
    "user": _user,
    "port": _port,
    "slots": _slots,
    "gpus": kinds.whole(0),
    "labels": _labels,
    "host_key": _host_key,
    "startup_here": _commands_here,
    "startup_there": _commands_there,
    "shutdown_there": _commands_there,
    "shutdown_here": _commands_here,
}


# --- the file --------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML in which no key stands twice: the later one would quietly win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge"]
        for key in (name for index, name in enumerate(names) if name in names[:index]):
            raise yaml.MarkedYAMLError(problem=f"key {key!r} stands twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def _read_yaml(path: str) -> Mapping[object, object]:
    try:
        with open(path, "rb") as file:
            content = yaml.load(file, Loader=_Loader)
    except FileNotFoundError:
        raise UsageError(
            f"{path}: there is no inventory of hosts; write one (see cloudtask-providers), or name it with --hosts-file"
        ) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark else path
        raise UsageError(f"{place}: not YAML: {getattr(error, 'problem', None) or 'it cannot be read as text'}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: must hold 'hosts:' and a list of hosts")
    return content


def selected(hosts: Sequence[Host], labels: Sequence[str]) -> list[Host]:
    """Those that carry all of ``labels``."""
    return [host for host in hosts if all(host.has(label) for label in labels)]
