"""What cloudtask-providers(7) tells beside options is so: what providers can do, faults, files, prices, times."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from docutils import nodes
from docutils.core import publish_doctree

from cloudtask.instances.orders import EXPIRY
from cloudtask.providers import BUILT_IN, prices, timer
from cloudtask.providers.base import Abilities
from cloudtask.providers.docker import DockerProvider
from cloudtask.providers.ec2 import Ec2Provider
from cloudtask.providers.fake import FakeProvider
from cloudtask.providers.fake_faults import parse_faults
from cloudtask.providers.hosts import HostsProvider
from cloudtask.providers.hosts_inventory import read_inventory
from cloudtask.providers.hosts_power import KINDS
from cloudtask.providers.hub import HubProvider
from cloudtask.providers.libcloud import LibcloudProvider
from cloudtask.providers.libcloud_config import Cloud, read_cloud
from cloudtask.providers.linode import LinodeProvider
from cloudtask.providers.openstack import OpenstackProvider
from cloudtask.providers.openstack_config import read_identity
from cloudtask.providers.price_table import EC2
from tests.providers.contract import settings_with

PAGE = Path(__file__).parent.parent / "docs" / "man" / "cloudtask-providers.7.rst"
TEXT = PAGE.read_text(encoding="utf-8")
FLAT = " ".join(TEXT.split())
TREE = publish_doctree(TEXT, source_path=str(PAGE))
ABLE = ("idempotent", "retags", "host_key", "timer", "power_off_ends_billing")


def tables() -> list[list[list[str]]]:
    """Each table's rows of cells, without its head."""
    bodies = [next(iter(table.findall(nodes.tbody))) for table in TREE.findall(nodes.table)]
    return [[[cell.astext() for cell in row.findall(nodes.entry)] for row in body.findall(nodes.row)] for body in bodies]


def table(first: str) -> dict[str, list[str]]:
    """The table whose first cell says ``first``, or begins with that: the other cells by the first one of each row."""
    return next({row[0]: row[1:] for row in rows} for rows in tables() if rows[0][0].startswith(first))


def example(word: str) -> str:
    """The first literal block with ``word`` in it."""
    return next(block.astext() for block in TREE.findall(nodes.literal_block) if word in block.astext())


def test_every_provider_is_there() -> None:
    listed, able = tables()[:2]
    assert {row[0] for row in listed} == {*BUILT_IN, "DRIVER"}
    assert {row[0] for row in able} == {*BUILT_IN, "digitalocean"} - {"libcloud"}


CLASSES = (DockerProvider, Ec2Provider, HostsProvider, HubProvider, LinodeProvider, OpenstackProvider)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: str(kind.name))
def test_what_a_provider_can_do(kind: type) -> None:
    assert_said(kind.name, kind.abilities)  # type: ignore[attr-defined]  # each is a Provider, and has them on its class


def test_what_fake_machines_can_do() -> None:
    assert_said("fake", FakeProvider(settings_with(fake_kind="local")).abilities)


def test_what_a_driver_of_libcloud_can_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIGITALOCEAN_TOKEN", "nobody's")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert_said("digitalocean", LibcloudProvider(settings_with(provider="digitalocean")).abilities)


def assert_said(name: str, abilities: Abilities) -> None:
    said = tables()[1]
    words = next(row[1:] for row in said if row[0] == name)
    assert dict(zip(ABLE, words, strict=True)) == {ability: "yes" if getattr(abilities, ability) else "no" for ability in ABLE}


def test_faults_are_all_there() -> None:
    with pytest.raises(ValueError, match="there are ") as caught:
        parse_faults("nonsense=1")
    known = str(caught.value).partition("there are ")[2].split(", ")
    assert [term.partition("=")[0] for term in table("slow-boot")] == known


def test_inventory_is_one(tmp_path: Path) -> None:
    file = tmp_path / "hosts.yaml"
    file.write_text(example("startup_here"))
    hosts = read_inventory(str(file))
    assert {host.power for host in hosts} == set(KINDS)
    assert {key for host in hosts for key in host.options} | {"url"} >= {key for kind in KINDS.values() for key in kind.keys}
    assert {"startup_here", "startup_there", "shutdown_there", "shutdown_here", "host_key", "gpus", "labels"} <= {*hosts[0].plain}


def clouds(folder: Path, name: str, provider: str) -> Cloud:
    """An entry of the page's example."""
    file = folder / "clouds.yaml"
    (folder / "lab.pem").touch()
    file.write_text(example("g6-standard").replace("/etc/ssl/certs/lab.pem", f"{folder}/lab.pem"))
    file.chmod(0o600)
    return read_cloud(settings_with(provider=provider, cloud=name, libcloud_config=str(file)), provider, {})


@pytest.mark.parametrize(("name", "provider"), [("linode", "linode"), ("lab", "openstack"), ("google", "libcloud")])
def test_clouds_are_read(tmp_path: Path, name: str, provider: str) -> None:
    found = clouds(tmp_path, name, provider)
    assert found.region and found.driver == {"google": "gce"}.get(name, provider)
    if provider == "openstack":
        assert read_identity(found, {}).project == "simulations"


def test_prices_are_read(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(example("us-east-1: {t3"))
    found = prices.read_prices(str(file))
    assert prices.price("ec2", "eu-west-1", "c7i.xlarge", found) == yaml.safe_load(file.read_text())["ec2"]["*"]["c7i.xlarge"]


def test_table_of_prices_is_dated() -> None:
    assert f"as of {prices.DATE}" in FLAT
    assert all(f"``{region}``" in TEXT for region in EC2)


def test_times_of_the_timer() -> None:
    assert f"looks every {timer.PAUSE} seconds" in FLAT
    assert f"for {timer.GRACE // 60} minutes after the last agent" in FLAT
    assert timer.TIMER_PATH in TEXT and f'touch -d "8 hours" {timer.KEEP_PATH}' in TEXT
    assert EXPIRY == 2 * 3600 and "The expiry is two hours ahead and is renewed every hour" in FLAT


def test_extras_are_declared() -> None:
    declared = set(re.findall(r"(?m)^([a-z0-9]+) =$", (PAGE.parents[2] / "setup.cfg").read_text(encoding="utf-8")))
    assert {row[2] for row in tables()[0]} - {"none", "as started", "none; sshd"} <= declared
