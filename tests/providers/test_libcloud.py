"""Any driver of libcloud by its name: DigitalOcean's for a real one; the configuration, the choice of a size, tags, errors."""

from __future__ import annotations

import dataclasses
import datetime
import inspect
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from cloudtask.errors import ProviderBusyError, ProviderError, ProviderRefusedError, UsageError
from cloudtask.providers import find
from cloudtask.providers.base import Provider, Tags
from cloudtask.providers.libcloud import LibcloudProvider
from cloudtask.providers.libcloud_choice import Size, choose_size, size_of
from cloudtask.providers.libcloud_config import read_cloud
from cloudtask.providers.libcloud_dialects import KNOWN, tags_of, words_for
from cloudtask.providers.libcloud_errors import AbsentError, ConflictError, Speaker, ThrottledError, UnauthorisedError
from cloudtask.providers.libcloud_names import DRIVERS
from cloudtask.providers.libcloud_nodes import host_of
from cloudtask.providers.libcloud_tags import as_pieces, from_pieces, index_of, machine_name, others
from tests.providers.cloud_scene import CloudScene
from tests.providers.contract import ProviderContract, ids_of, make_order, settings_with
from tests.providers.servers.cloud import Fault
from tests.providers.servers.digitalocean import TOKEN, DigitalOceanServer


class DigitalOceanScene(CloudScene):
    """See `CloudScene`."""

    provider = "digitalocean"
    create = "/droplets"
    server: DigitalOceanServer

    def bogus_id(self) -> str:
        """See `Scene`."""
        return "99999999"

    def foreign_id(self) -> str:
        """See `Scene`."""
        return self.server.add("web", {}).id


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[DigitalOceanScene]:
    with ExitStack() as stack:
        server = stack.enter_context(DigitalOceanServer(boot=0.1, leaving=0.1))
        scene = DigitalOceanScene(server, tmp_path, {"token": TOKEN, "region": "ams3", "image": "debian-12-x64"}, stack)
        yield scene
        server.quota, server.page, server.always = 20, 200, None
        scene.clean()
        assert [id for id in server.live() if server.machines[id].name != "web"] == []


class TestContract(ProviderContract):
    """All of it."""


# --- a driver by its name ------------------------------------------------------------------------------------------------------


def test_what_a_machine_is_made_with(scene: DigitalOceanScene) -> None:
    order = scene.order(2)
    provider = scene.make()
    instances = provider.launch(order).instances
    bodies = [call.body for call in scene.server.asked("POST", "/v2/droplets")]
    assert [each["name"] for each in bodies] == [f"{order.tags.as_text()}.{number}" for number in (1, 2)]
    assert {(each["region"], each["size"], each["image"]) for each in bodies} == {("ams3", "s-1vcpu-1gb", "101")}
    assert [scene.server.machines[each.id].user_data for each in instances] == [order.user_data] * 2
    offer = provider.offer()
    assert (offer.size, offer.region, offer.price) == ("s-1vcpu-1gb", "ams3", 0.00893)
    assert offer.rows == {"image": "12 debian-12-x64", "driver": "libcloud digitalocean"}


def test_sizes_are_the_regions(scene: DigitalOceanScene) -> None:
    with pytest.raises(UsageError, match="digitalocean: no size has 4 CPUs"):
        scene.made({"min_cpus": 4}).offer()
    assert scene.made({"min_cpus": 4, "cloud_region": "nyc1"}).offer().size == "c-4"
    with pytest.raises(UsageError, match="digitalocean: no region is named: use --cloud-region with one of AMS3, NYC1"):
        scene.made(region=None).offer()


def test_pages(scene: DigitalOceanScene) -> None:
    scene.server.page = 2
    for _ in range(3):
        scene.foreign_id()
    order = scene.order(2)
    ids = ids_of(scene.make().launch(order))
    assert sorted(ids_of(scene.make().find())) == sorted(ids)
    assert sorted(ids_of(scene.make().launch(order))) == sorted(ids)


def test_a_name_that_is_shortened_is_no_tag(scene: DigitalOceanScene) -> None:
    scene.server.shortens = 40
    with pytest.raises(ProviderRefusedError, match="without the tags"):
        scene.make().launch(scene.order())
    assert scene.server.live() == []


def test_part_of_an_order_is_completed(scene: DigitalOceanScene) -> None:
    """The second of three was lost: the others stay, one more is made, and it takes the free number."""
    order = scene.order(3)
    ids = ids_of(scene.make().launch(order))
    scene.server.leaving = 0
    scene.server.end(ids[1])
    assert len(set(ids_of(scene.make().launch(order))) - set(ids)) == 1
    names = [scene.server.machines[id].name for id in scene.server.live()]
    assert sorted(names) == [f"{order.tags.as_text()}.{number}" for number in (1, 2, 3)]


def test_words_for_the_driver(scene: DigitalOceanScene) -> None:
    create = {"ex_create_attr": {"tags": ["films"], "ipv6": True}}
    ids_of(scene.made(create=create).launch(scene.order()))
    assert scene.server.asked("POST", "/v2/droplets")[0].body["tags"] == ["films"]
    with pytest.raises(ProviderRefusedError, match=r"digitalocean: the driver's words for a machine: .*ex_colour.*; see 'create' in "):
        scene.made(create={"ex_colour": "blue"}).launch(scene.order())
    with pytest.raises(ProviderError, match=r"digitalocean: making the driver: .*; see 'options' in "):
        scene.made(options={"colour": "blue"}).find()


def test_a_cloud_by_another_name(scene: DigitalOceanScene) -> None:
    """``--provider=libcloud --cloud=NAME``, and a driver's name with another cloud's entry."""
    file = scene.folder / "clouds.yaml"
    file.touch(mode=0o600)
    file.write_text(f"mine: {{driver: digitalocean, token: {TOKEN}, endpoint: '{scene.server.url}'}}\n")
    for name in ("libcloud", "digitalocean"):
        provider = find(name)(settings_with(provider=name, libcloud_config=str(file), cloud="mine"))
        assert provider.name == name
        assert provider.find() == []
    with pytest.raises(UsageError, match="linode: .*: its driver is digitalocean: use --provider=digitalocean".replace("linode: ", "")):
        find("linode")(settings_with(provider="linode", libcloud_config=str(file), cloud="mine"))
    with pytest.raises(UsageError, match=r"libcloud: no cloud 'yours' in .*clouds.yaml \(there are: mine\)"):
        find("libcloud")(settings_with(provider="libcloud", libcloud_config=str(file), cloud="yours"))
    with pytest.raises(UsageError, match="libcloud: no cloud 'libcloud' in"):
        find("libcloud")(settings_with(provider="libcloud", libcloud_config=str(file)))


def test_names_of_drivers_are_providers() -> None:
    for name in ("digitalocean", "gce", "vultr"):
        assert find(name) is LibcloudProvider
    with pytest.raises(UsageError, match=r"there is no provider 'digitalocea': use one of .*a driver of apache-libcloud"):
        find("digitalocea")


def test_our_list_of_drivers_is_libclouds() -> None:
    from libcloud.compute.providers import DRIVERS as THEIRS
    from libcloud.compute.types import Provider as Names

    assert {str(Names(each)) for each in THEIRS} == DRIVERS | {"dummy", "ec2", "libvirt"}


def test_libcloud_is_loaded_when_it_is_needed() -> None:
    modules = "libcloud libcloud_settings linode openstack"
    code = "; ".join(f"import cloudtask.providers.{name}" for name in modules.split())
    loaded = f"{code}; import sys; print([name for name in ('libcloud', 'requests', 'yaml') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_without_the_package(tmp_path: Path) -> None:
    """One line that names it."""
    code = (
        "import sys; sys.modules['libcloud'] = None\n"
        "from cloudtask.errors import UsageError\n"
        "from cloudtask.providers import find, settings_table\n"
        "rows = {row.name: row.default for row in settings_table()}\n"
        "for name in ('linode', 'openstack', 'digitalocean'):\n"
        "    try:\n"
        "        find(name)(settings_table().settings(rows | {'provider': name}))\n"
        "    except UsageError as error:\n"
        "        print(error)\n"
    )
    environment = {"LINODE_TOKEN": "x", "DIGITALOCEAN_TOKEN": "x", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True, cwd=Path.cwd())
    assert done.stdout.splitlines() == ["no Python package libcloud: pip install apache-libcloud (or 'cloudtask[libcloud]')"] * 3


@pytest.mark.parametrize(("name", "lacks"), [("scaleway", True), ("ovh", True), ("upcloud", False), ("brightbox", False)])
def test_what_an_unknown_driver_can_do_is_read_from_its_words(name: str, lacks: bool, tmp_path: Path) -> None:
    file = tmp_path / "clouds.yaml"
    file.touch(mode=0o600)
    file.write_text(f"{name}: {{key: k1234, secret: s1234}}")
    settings = settings_with(provider=name, libcloud_config=str(file))
    if lacks:
        with pytest.raises(UsageError, match=f"{name}: the driver {name} takes neither user data nor an SSH key"):
            find(name)(settings)
        return
    abilities = find(name)(settings).abilities
    assert (abilities.host_key, abilities.timer) == (name == "brightbox", name == "brightbox")
    assert not abilities.idempotent
    assert abilities.settles > 0


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_what_we_know_of_a_driver_is_so(name: str) -> None:
    """The words that we give are words that it takes, and its methods are there."""
    from libcloud.compute.drivers.digitalocean import DigitalOcean_v2_NodeDriver
    from libcloud.compute.drivers.gce import GCENodeDriver
    from libcloud.compute.drivers.vultr import VultrNodeDriverV2

    drivers: dict[str, Any] = {"digitalocean": DigitalOcean_v2_NodeDriver, "gce": GCENodeDriver, "vultr": VultrNodeDriverV2}
    driver, order = drivers[name], make_order(1, "o0123", "12-abc")
    words = words_for(KNOWN[name], order, 1, str)
    inspect.signature(driver.create_node).bind(None, size=1, image=2, location=3, **words)
    assert not KNOWN[name].getter or callable(getattr(driver, KNOWN[name].getter))
    assert not KNOWN[name].renames or callable(driver.ex_rename_node)
    node = SimpleNamespace(name=words["name"], extra={"labels": words.get("ex_labels")})
    assert tags_of(KNOWN[name], node) == order.tags


# --- the configuration ---------------------------------------------------------------------------------------------------------


def configured(folder: Path, text: str, mode: int = 0o600, provider: str = "digitalocean", **values: Any) -> Provider:
    file = folder / "clouds.yaml"
    file.write_text(text)
    file.chmod(mode)
    return find(provider)(settings_with(provider=provider, libcloud_config=str(file), **values))


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o644, 0o602])
def test_a_file_that_others_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(UsageError, match=rf"clouds.yaml: others may read or write it \(mode {mode:04o}\).*: chmod 600 "):
        configured(tmp_path, "digitalocean: {token: abcd}", mode)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("digitalocean: {tokn: hush-hush}", "digitalocean: there is no key 'tokn'; did you mean 'token'?"),
        ("digitalocean: [hush-hush]", "digitalocean: must be a mapping"),
        ("[hush-hush]", "clouds.yaml: must be a mapping"),
        ("a: b\ndigitalocean: {token: 'hush-hush}\n", "clouds.yaml:3: this is no YAML"),
        ("digitalocean: {token: {hush: hush}}", "token must be a word"),
        ("digitalocean: {token: x, timeout: 999}", "timeout must be 60 seconds at most"),
        ("digitalocean: {token: x, create: hush}", "create must be a mapping"),
        ("digitalocean: {token: x, security_groups: ssh}", "security_groups must be a list of names"),
        ("digitalocean: {token: x, driver: digital_ocean}", "'digital_ocean' is no driver of apache-libcloud that we know; did you mean"),
        ("digitalocean: {token: x, endpoint: 'http://example.org'}", "endpoint: must begin with https://"),
        ("digitalocean: {token: x, endpoint: 'ftp://example.org'}", "endpoint: not an address like"),
        ("digitalocean: {token: x, cacert: /nowhere.pem}", "cacert: no file /nowhere.pem"),
        ("digitalocean: {region: ams3}", "digitalocean: no credentials: put 'token: ...'"),
        ("digitalocean: {token: \x07}", "this is no YAML"),
    ],
)
def test_what_is_wrong_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    """It is said in one line, and nothing of it is shown."""
    monkeypatch.delenv("DIGITALOCEAN_TOKEN", raising=False)
    with pytest.raises(UsageError) as caught:
        configured(tmp_path, text)
    assert message in str(caught.value)
    assert "hush" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_where_the_file_is(tmp_path: Path) -> None:
    """``$XDG_CONFIG_HOME/cloudtask/clouds.yaml``; a key may have dashes; options of the command line win."""
    folder = tmp_path / "cloudtask"
    folder.mkdir()
    file = folder / "clouds.yaml"
    file.touch(mode=0o600)
    file.write_text("linode: {token: abcd, region: us-west, image: one, size: big, security-groups: [a]}")
    settings = settings_with(provider="linode", cloud_region="us-east", cloud_image="two")
    cloud = read_cloud(settings, "linode", {"XDG_CONFIG_HOME": str(tmp_path), "LINODE_TOKEN": "other"})
    assert (cloud.region, cloud.image, cloud.size, cloud.text["token"]) == ("us-east", "two", "big", "abcd")
    assert cloud.security_groups == ("a",)
    assert "abcd" not in repr(cloud)
    assert read_cloud(settings, "linode", {"XDG_CONFIG_HOME": "relative", "HOME": "/", "LINODE_TOKEN": "other"}).text["token"] == "other"


def test_a_server_whose_certificate_nobody_signed(scene: DigitalOceanScene, tmp_path: Path) -> None:
    """Refused at once, saying what to do; with ``cacert`` it is trusted.  Never is nothing checked."""
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    _self_signed(key, cert)
    with scene.like() as server:
        server.secure(str(cert), str(key))
        url = server.url.replace("http://127.0.0.1", "https://localhost")
        with pytest.raises(ProviderRefusedError, match="signed by nobody we know"):
            scene.made(endpoint=url).find()
        assert scene.made(endpoint=url, cacert=str(cert)).find() == []


def _self_signed(key: Path, cert: Path) -> None:
    """A key and its certificate for ``localhost``."""
    own, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(own.public_key()).serial_number(1)
    builder = builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(hours=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    cert.write_bytes(builder.sign(own, hashes.SHA256()).public_bytes(Encoding.PEM))
    key.write_bytes(own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


# --- the choice ----------------------------------------------------------------------------------------------------------------


def size(id: str, cpus: float, memory: int, price: float | None) -> Size:
    return Size(id, id, cpus, memory << 20, price, None)


SIZES = [size("d", 4, 8192, 0.2), size("b", 2, 2048, 0.05), size("a", 2, 2048, 0.05), size("c", 1, 4096, 0.04), size("e", 8, 512, None)]


@pytest.mark.parametrize(
    ("cpus", "memory", "chosen"),
    [(None, None, "c"), (2, None, "a"), (None, 3 << 30, "c"), (2, 3 << 30, "d"), (8, 512 << 20, "e"), (1, 0, "c")],
)
@pytest.mark.parametrize("order", [1, -1])
def test_the_cheapest_that_fits(cpus: int | None, memory: int | None, chosen: str, order: int) -> None:
    """In whatever order they are listed; of equals the first by id."""
    assert choose_size(SIZES[::order], None, cpus, memory).id == chosen


def test_a_size_by_its_name_must_be_large_enough_too() -> None:
    assert choose_size(SIZES, "e", None, None).id == "e"
    with pytest.raises(UsageError, match="no size c has 2 CPUs: there are"):
        choose_size(SIZES, "c", 2, None)
    with pytest.raises(UsageError, match="lists no sizes"):
        choose_size([], None, None, None)


def test_an_error_does_not_list_thousands() -> None:
    many = [size(f"s{number:04}", 1, 1024, number / 100 + 1) for number in range(500)]
    with pytest.raises(UsageError) as caught:
        choose_size(many, None, 99, None)
    assert "and 480 smaller ones" in str(caught.value)
    assert "s0499 (1 CPU, 1G, $5.99/h)" in str(caught.value)


def test_sizes_of_odd_clouds() -> None:
    """CPUs in another place, no price, no memory, no number."""
    own = SimpleNamespace(id=7, name=None, ram=None, price="cheap", extra={"cpus": "many", "cpu": 3})
    assert size_of(own)[:5] == ("7", "7", 3.0, 0, None)


@pytest.mark.parametrize(
    ("public", "private", "host"),
    [
        (["203.0.113.1"], ["10.0.0.1"], "203.0.113.1"),
        (["2001:db8::1"], ["10.0.0.1"], "10.0.0.1"),
        (["2001:db8::1"], [], "2001:db8::1"),
        ([], ["fe80::1", "169.254.0.1"], None),
        (["$(reboot)", None, 17, "-oProxyCommand=x"], ["10.0.0.9"], "0.0.0.17"),
        ([""], [], None),
    ],
)
def test_the_address_to_connect_to(public: list[object], private: list[object], host: str | None) -> None:
    assert host_of(public, private) == (host if host != "0.0.0.17" else "10.0.0.9")


# --- tags ----------------------------------------------------------------------------------------------------------------------

PARTS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}", fullmatch=True)
TAGS = st.builds(Tags, session=PARTS, controller=PARTS, token=PARTS, expires=st.integers(0, 2**40))


@given(TAGS, st.lists(st.text(max_size=50)))
def test_pieces_say_all(tags: Tags, more: list[str]) -> None:
    pieces = as_pieces(tags)
    assert all(3 <= len(each) <= 50 and each.isascii() for each in pieces)
    assert from_pieces([*more, *reversed(pieces)]) == tags
    assert others([*more, *pieces]) == [each for each in more if each != "cloudtask" and not each.startswith("cloudtask:")]


@given(TAGS, TAGS)
def test_pieces_that_are_not_whole_say_nothing(one: Tags, two: Tags) -> None:
    """One is missing, or two machines' are mixed."""
    pieces = as_pieces(one)
    assert from_pieces(pieces[:-1]) is None
    assert from_pieces(pieces[:1]) is None
    assert one == two or from_pieces([*pieces, *as_pieces(two)]) is None


def test_pieces_of_real_tags_are_few() -> None:
    """As the launcher makes them."""
    tags = Tags(session="123-0123456789ab", controller="0123456789abcdef", token="o0123456789abcdef", expires=1_800_000_000)
    assert as_pieces(tags) == [
        "cloudtask",
        "cloudtask:0:tro8w0:123-0123456789ab.0123456789abcd",
        "cloudtask:1:tro8w0:ef.o0123456789abcdef.",
    ]


@given(PARTS, st.integers(1, 100_000))
def test_names(token: str, index: int) -> None:
    name = machine_name(token, index)
    assert name == machine_name(token, index)
    assert 3 <= len(name) <= 64
    assert "--" not in name
    assert name[0].isalpha() and name[-1].isalnum()
    assert index_of(name) == index
    assert machine_name(token, index + 1) != name


def test_names_of_others_have_no_number() -> None:
    assert index_of("web-1") is None
    assert index_of("cloudtask") is None
    assert index_of("cloudtask.a.b.c.12.7") == 7


# --- errors --------------------------------------------------------------------------------------------------------------------


def translated(error: Exception) -> ProviderError:
    return Speaker("cloud", ["s3cr3t-word", "abc"]).translate(error, "asking")


def http(status: int, message: object, **headers: str) -> Exception:
    from libcloud.common.exceptions import exception_from_message

    found = exception_from_message(status, message, dict(headers))  # type: ignore[no-untyped-call]  # libcloud's
    assert isinstance(found, Exception)
    return found


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, ProviderRefusedError), (401, UnauthorisedError), (403, ProviderRefusedError), (404, AbsentError), (408, ProviderBusyError),
        (409, ConflictError), (413, ProviderRefusedError), (422, ProviderRefusedError), (429, ThrottledError), (500, ProviderBusyError),
        (503, ProviderBusyError), (302, ProviderBusyError),
    ],
)  # fmt: skip
def test_http_statuses(status: int, kind: type[ProviderError]) -> None:
    assert type(translated(http(status, "no"))) is kind


def test_what_errors_say() -> None:
    from libcloud.common.types import InvalidCredsError, LibcloudError, MalformedResponseError, ServiceUnavailableError

    assert str(translated(http(403, {"error": {"message": "no \n s3cr3t-word"}}))) == "cloud: asking: HTTP 403: no ***"
    assert str(translated(http(400, ["a", {"reason": "b"}]))) == "cloud: asking: HTTP 400: a; b"
    assert type(translated(http(413, "slow down", **{"retry-after": "3"}))) is ThrottledError
    assert str(translated(LibcloudError("no plan-type Status code: 400."))) == "cloud: asking: HTTP 400: no plan-type Status code: 400."
    assert type(translated(LibcloudError("gone Status code: 404."))) is AbsentError
    assert type(translated(LibcloudError("hm"))) is ProviderBusyError
    assert str(translated(InvalidCredsError("abc"))) == "cloud: asking: credentials refused: abc"
    assert type(translated(ServiceUnavailableError())) is ProviderBusyError
    assert str(translated(MalformedResponseError("bad", body="s3cr3t-word " * 99))) == "cloud: asking: odd answer: bad"
    assert str(translated(Exception())) == "cloud: asking: odd answer: Exception"
    assert str(translated(KeyError("data"))) == "cloud: asking: odd answer: data"


def test_no_address_of_a_request_is_shown(scene: DigitalOceanScene) -> None:
    """Some drivers put credentials there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(ProviderBusyError) as caught:
            scene.made(endpoint=f"http://127.0.0.1:{port}").find()
    assert str(caught.value) == "digitalocean: listing machines: no connection: Connection refused"


def test_throttled_before_anything_is_made(scene: DigitalOceanScene) -> None:
    scene.server.fail("POST", "/droplets", Fault(status=429, body='{"message": "slow down"}', headers={"Retry-After": "soon"}))
    with pytest.raises(ProviderBusyError):
        scene.make().launch(scene.order())


def test_renewing_leaves_what_is_gone(scene: DigitalOceanScene) -> None:
    order = scene.order()
    [id] = ids_of(scene.make().launch(order))
    scene.make().renew([id, scene.bogus_id()], dataclasses.replace(order.tags, token="another", expires=2_000_000_777))
    [found] = scene.make().find()
    assert found.tags == dataclasses.replace(order.tags, expires=2_000_000_777)
