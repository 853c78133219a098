"""The inventory of hosts: what can be written, what comes of it, and the one line that says what is wrong."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloudtask.errors import SettingError, UsageError
from cloudtask.kinds import Scene
from cloudtask.providers.hosts import HostsProvider
from cloudtask.providers.hosts_inventory import Host, host_of, inventory_path, read_inventory
from cloudtask.providers.hosts_power import KINDS, missing_package
from cloudtask.providers.hosts_settings import ROWS, labels
from cloudtask.settings import BUILT_IN
from cloudtask.settings_sources import command_line_layer, resolve
from tests.providers.contract import host_key
from tests.providers.hosts_place import settings

WHOLE = """
hosts:
  - &big
    name: render1
    address: 10.0.0.11
    user: render
    port: 2222
    slots: 8
    gpus: 2
    labels: [big, 7, {room: b12}]
    host_key: HOSTKEY root@render1
    startup_here: ["echo one", [echo, two words]]
    startup_there: mount /scratch
    shutdown_there: [[umount, "/the scratch"]]
    shutdown_here: []
    power:
      command:
        start: [wakeonlan, "aa:bb:cc:dd:ee:ff"]
        stop: ssh root@render1 poweroff
  - <<: *big
    name: render2
    address: "::1"
    slots: auto
    labels: {big: , room: 12}
  - {name: cheap, power: {ec2: {id: i-1}}}
  - {name: linode, power: {linode: {id: 12, token_file: token}}}
  - {name: box, power: {docker: {container: box}}}
  - {name: vm, address: vm.example.org, power: {libvirt: {domain: "a vm", force_after: 2m}}}
  - {name: here, address: local}
  - {name: plain, address: plain, power: always-on}
"""


def written(folder: Path, text: str) -> str:
    """The path of an inventory."""
    path = folder / "hosts.yaml"
    path.write_text(text.replace("HOSTKEY", host_key().public))
    return str(path)


def test_all_that_can_be_said(tmp_path: Path) -> None:
    first, second, ec2, linode, box, vm, here, plain = read_inventory(written(tmp_path, WHOLE))
    assert (first.name, first.address, first.user, first.port, first.slots, first.gpus) == ("render1", "10.0.0.11", "render", 2222, 8, 2)
    assert first.labels == {"big": "", "7": "", "room": "b12"}
    assert first.host_key == host_key().public
    assert first.startup_here == ("echo one", ("echo", "two words"))
    assert (first.startup_there, first.shutdown_there, first.shutdown_here) == (("mount /scratch",), ("umount '/the scratch'",), ())
    assert first.options == {"start": ("wakeonlan", "aa:bb:cc:dd:ee:ff"), "stop": "ssh root@render1 poweroff"}
    assert (second.address, second.slots, second.labels, second.user) == ("::1", 0, {"big": "", "room": "12"}, "render")
    assert (ec2.power, ec2.address, ec2.options) == ("ec2", None, {"id": "i-1"})
    assert linode.options == {"id": 12, "token_file": str(tmp_path / "token"), "url": "https://api.linode.com/v4"}
    assert box.options == {"container": "box"}
    assert vm.options == {"domain": "a vm", "force_after": 120.0, "uri": "qemu:///system"}
    assert here.local and not plain.local and plain.power == "always-on"


def test_what_is_written_down_is_read_back(tmp_path: Path) -> None:
    """As JSON, in another folder, without the file."""
    for host in read_inventory(written(tmp_path, WHOLE)):
        again = host_of(json.loads(json.dumps(host.plain)), "/elsewhere/claims", "x")
        assert again == host and again.key == host.key


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"adress": "x"}, "host 'h': key 'adress' is unknown; did you mean address?"),
        ({"slot": 3}, "host 'h': key 'slot' is unknown; did you mean slots?"),
        (
            {"address": "root@x"},
            "host 'h': key 'address': 'root@x' has more than an address in it: user, port and slots have keys of their own",
        ),
        ({"address": "x y"}, "host 'h': key 'address': 'x y': 'x y' is no name of a host"),
        ({"address": "-oProxyCommand=x"}, "host 'h': key 'address': '-oProxyCommand=x': '-oProxyCommand=x' is no name of a host"),
        ({"address": 5}, "host 'h': key 'address': must be a name or an IP address"),
        ({"user": "a b"}, "host 'h': key 'user': must be one word without blanks that does not begin with '-'"),
        ({"user": "a;b"}, "host 'h': key 'user': 'a;b@x': 'a;b' is no name of a user"),
        ({"port": 70000}, "host 'h': key 'port': 70000 is no port (1 to 65535)"),
        ({"port": "22"}, "host 'h': key 'port': '22' is no port (1 to 65535)"),
        ({"slots": 0.5}, "host 'h': key 'slots': neither a whole number from 1 nor 'auto'"),
        ({"slots": -1}, "host 'h': key 'slots': neither a whole number from 1 nor 'auto'"),
        ({"gpus": "two"}, "host 'h': key 'gpus': not a whole number from 0"),
        ({"labels": "big"}, "host 'h': key 'labels': must be a list of labels, or 'label: value' lines"),
        ({"labels": [True]}, "host 'h': key 'labels': must be a list of labels, or 'label: value' lines"),
        (
            {"labels": {"a": True}},
            "host 'h': key 'labels': a: True is no label's value; a word that YAML reads as another kind of value needs quotes",
        ),
        ({"labels": ["a b"]}, "host 'h': key 'labels': 'a b' is no label: "),
        ({"host_key": "rsa"}, "host 'h': key 'host_key': is no host key (ssh-ed25519 AAAA..., a line of ssh-keyscan without the name)"),
        ({"startup_here": [5]}, "host 'h': key 'startup_here': 5 is no command: shell code, or a list of words"),
        ({"startup_there": {"a": 1}}, "host 'h': key 'startup_there': must be a list of commands: each shell code, or a list of words"),
        ({"shutdown_there": [[]]}, "host 'h': key 'shutdown_there': is empty"),
        ({"power": "magic"}, "host 'h': power 'magic' is unknown; use one of always-on, command, docker, ec2, libvirt, linode"),
        ({"power": {"libvrt": {}}}, "host 'h': power 'libvrt' is unknown; did you mean libvirt?; use one of "),
        ({"power": ["a"]}, "host 'h': key 'power' must be one of always-on, command, "),
        ({"power": {"libvirt": {}}}, "host 'h': power libvirt: key 'domain' is missing"),
        ({"power": {"libvirt": {"domain": "a", "url": "b"}}}, "host 'h': power libvirt: key 'url' is unknown; did you mean uri?"),
        ({"power": {"libvirt": {"domain": ["a"]}}}, "host 'h': power libvirt: key 'domain': must be text"),
        ({"power": {"libvirt": "vm"}}, "host 'h': power libvirt: must be keys and values, domain at least"),
        ({"power": "command"}, "host 'h': power command: key 'start' is missing"),
        (
            {"power": {"command": {"start": "x", "stop": 5}}},
            "host 'h': power command: key 'stop': must be text (shell code) or a list of words",
        ),
        ({"power": {"linode": {"id": "x"}}}, "host 'h': power linode: key 'id': not a whole number from 1"),
        (
            {"power": {"linode": {"id": 1, "url": "http://x.org"}}},
            "host 'h': power linode: key 'url': must begin with https://: what is secret",
        ),
        ({"address": None}, "host 'h': key 'address' is missing: a host that is always on needs one"),
        ({"name": "a b"}, "host number 1: key 'name': 'a b' is no name of a host: "),
        ({"name": 5}, "host number 1: key 'name': 5 is no name of a host: "),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, entry: dict[str, Any], words: str) -> None:
    path = written(tmp_path, yaml.safe_dump({"hosts": [{"name": "h", "address": "10.0.0.1", **entry}]}))
    with pytest.raises(UsageError) as caught:
        read_inventory(path)
    assert str(caught.value).startswith(f"{path}: {words}")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ": must hold 'hosts:' and a list of hosts"),
        ("- a", ": must hold 'hosts:' and a list of hosts"),
        ("hosts: []", ": key 'hosts' must hold a list of hosts, each as '- name: NAME'"),
        ("host: []", ": key 'host' is unknown; did you mean hosts?"),
        ("hosts: [a]", ": host number 1: must be 'name: NAME' and further keys"),
        ("hosts: [{address: x}]", ": host number 1: must be 'name: NAME' and further keys"),
        ("hosts:\n- {name: a", ", line 2: not YAML: "),
        ("hosts:\n- {name: a, name: b}", ", line 2: not YAML: key 'name' stands twice"),
        ("hosts: \udcff", ": not YAML: "),
        ("hosts: [{name: a, address: x}, {name: a, address: y}]", ": host 'a' is listed twice: names must differ"),
        ("hosts: [{name: a, address: x}, {name: b, address: x}]", ": hosts 'a' and 'b' are the same machine: list it once, with its slots"),
        (
            "hosts: [{name: a, power: {ec2: {id: i-1}}}, {name: b, address: x, power: {ec2: {id: i-1, region: r}}}]",
            ": hosts 'a' and 'b' are the same machine: list it once, with its slots",
        ),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "hosts.yaml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageError) as caught:
        read_inventory(str(path))
    assert str(caught.value).startswith(f"{path}{words}")
    assert "\n" not in str(caught.value)


def test_no_file_says_where_it_would_be(private_home: Path) -> None:
    path = private_home / ".config/cloudtask/hosts.yaml"
    with pytest.raises(UsageError) as caught:
        HostsProvider(settings()).offer()
    words = "there is no inventory of hosts; write one (see cloudtask-providers), or name it with --hosts-file"
    assert str(caught.value) == f"{path}: {words}"


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert inventory_path({}) == "/home/me/.config/cloudtask/hosts.yaml"
    assert inventory_path({"XDG_CONFIG_HOME": "/etc/xdg"}) == "/etc/xdg/cloudtask/hosts.yaml"
    assert inventory_path({"XDG_CONFIG_HOME": "relative"}) == "/home/me/.config/cloudtask/hosts.yaml"


def test_a_label_that_nobody_has(tmp_path: Path, private_home: Path) -> None:
    path = written(tmp_path, "hosts: [{name: a, address: x, labels: [big, gpu]}]")
    with pytest.raises(UsageError) as caught:
        HostsProvider(settings(hosts_file=path, select=("big", "small"))).offer()
    assert str(caught.value) == f"{path}: no host has the label big and small; the labels there are: big, gpu"


def test_labels_of_the_command_line(tmp_path: Path) -> None:
    table = BUILT_IN.extended(ROWS)
    layer = command_line_layer({"select": ("big", "room=b12"), "policy": "smart"}, str(tmp_path))
    values = resolve(table, [layer], os.environ)
    assert values.settings.extra["select"] == ("big", "room=b12")
    assert values.settings.extra["policy"] == "smart"
    with pytest.raises(SettingError, match=r"--select: 'a b' is no label: LABEL or LABEL=VALUE"):
        resolve(table, [command_line_layer({"select": ("a b",)}, "/")], os.environ)
    assert labels("big", Scene(folder="/", environ={})) == ("big",)


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, private_home: Path) -> None:
    for package in ("boto3", "docker", "libvirt"):
        monkeypatch.setitem(sys.modules, package, None)
    assert missing_package("command") is None and missing_package("linode") is None
    path = written(tmp_path, "hosts: [{name: a, power: {ec2: {id: i-1}}}]")
    with pytest.raises(UsageError) as caught:
        HostsProvider(settings(hosts_file=path)).offer()
    assert str(caught.value) == f"{path}: host 'a': an EC2 instance needs the package boto3: pip install 'cloudtask[ec2]'"


def test_every_kind_has_what_it_needs() -> None:
    for name, kind in KINDS.items():
        assert {*kind.needed, *kind.identity, *kind.defaults} <= kind.keys.keys(), name


def test_a_machine_is_known_by_what_it_is() -> None:
    """Not by its name, its user or its labels."""
    one = Host(name="a", address="x", port=22)
    assert one.key == Host(name="b", address="x", port=22, user="me", labels={"l": ""}).key
    others = [Host(name="a", address="y"), Host(name="a", address="x", port=23), Host(name="a", power="ec2", options={"id": "x"})]
    assert len({one.key, *(other.key for other in others)}) == 4
