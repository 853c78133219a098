"""The ``openstack`` provider: the real driver of libcloud, against a server that speaks Keystone 3, Nova, Glance and Neutron."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cloudtask.errors import ProviderBusyError, ProviderRefusedError, UsageError
from cloudtask.providers import find
from cloudtask.providers.base import InstanceState, Provider
from tests.providers.cloud_scene import CloudScene
from tests.providers.contract import ProviderContract, ids_of, running, settings_with
from tests.providers.servers.cloud import CloudServer, Fault
from tests.providers.servers.openstack import (
    APPLICATION,
    APPLICATION_SECRET,
    IMAGES,
    NETWORKS,
    PASSWORD,
    PROJECT,
    TWINS,
    USER,
    OpenstackServer,
)
from tests.stage.stage import Stage, require_stage

# libcloud's own, from Python 3.12 on.
pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")

ENTRY = {"username": USER, "password": PASSWORD, "project": PROJECT, "image": "Debian 12"}


class OpenstackScene(CloudScene):
    """See `CloudScene`."""

    provider = "openstack"
    create = "/servers"
    server: OpenstackServer

    def place(self, server: CloudServer) -> dict[str, Any]:
        """See `CloudScene`."""
        return {"auth_url": f"{server.url}/identity/v3"}

    def wrong(self) -> Provider:
        """See `CloudScene`."""
        return self.made(password="wrong-secret-word")

    def bogus_id(self) -> str:
        """See `Scene`."""
        return str(uuid.uuid5(uuid.NAMESPACE_DNS, "nothing"))

    def foreign_id(self) -> str:
        """See `Scene`."""
        return self.server.add("web", {"metadata": {"role": "production"}}).id


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[OpenstackScene]:
    with ExitStack() as stack:
        server = stack.enter_context(OpenstackServer(boot=0.1, leaving=0.1))
        scene = OpenstackScene(server, tmp_path, ENTRY, stack)
        yield scene
        server.quota, server.page, server.regions, server.always = 20, 1000, ("north",), None
        scene.clean()
        assert [id for id in server.live() if server.machines[id].name != "web"] == []


@pytest.fixture
def clear(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """No variable and no file says who we are."""
    for name in ("OS_CLOUD", "OS_AUTH_URL", "OS_USERNAME", "OS_PASSWORD", "OS_PROJECT_NAME", "OS_REGION_NAME", "OS_CLIENT_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return monkeypatch


def without_file(**values: Any) -> Provider:
    """A provider whose credentials are in the environment."""
    return find("openstack")(settings_with(provider="openstack", **values))


class TestContract(ProviderContract):
    """All of it."""


class TestReached:
    """With real machines behind it."""

    @pytest.fixture
    def scene(self, tmp_path: Path) -> Iterator[OpenstackScene]:
        require_stage()
        with ExitStack() as stack:
            server = stack.enter_context(OpenstackServer(boot=0.2, stage=stack.enter_context(Stage())))
            scene = OpenstackScene(server, tmp_path, ENTRY, stack)
            scene.reachable = True
            yield scene
            scene.clean()

    test_login = ProviderContract.test_runs_and_can_be_reached


def created(scene: OpenstackScene) -> list[dict[str, Any]]:
    """What servers were asked for with."""
    return [call.body["server"] for call in scene.server.asked("POST", "/compute/v2.1/servers") if call.path.endswith("/servers")]


def test_what_a_server_is_made_with(scene: OpenstackScene) -> None:
    order = scene.order()
    provider = scene.made({"cloud_network": "outside"}, security_groups=["ssh", "web"], create={"ex_config_drive": True})
    [one] = provider.launch(order).instances
    [body] = created(scene)
    assert (body["flavorRef"], body["imageRef"]) == ("m1.small", IMAGES["Debian 12"])
    assert body["networks"] == [{"uuid": NETWORKS["outside"]}]
    assert body["security_groups"] == [{"name": "ssh"}, {"name": "web"}]
    assert body["config_drive"] == "True"
    assert body["metadata"] == {**order.tags.as_dict(), "cloudtask-label": "Cloudtask: test"}
    assert "key_name" not in body
    assert scene.server.machines[one.id].user_data == order.user_data
    assert provider.offer().rows == {"image": "Debian 12", "network": "outside"}
    assert provider.offer().price is None
    assert all(PASSWORD not in str(call.body) for call in scene.server.calls if "/identity/" not in call.path)


def test_pages(scene: OpenstackScene) -> None:
    scene.server.page = 2
    for _ in range(3):
        scene.foreign_id()
    order = scene.order(2)
    ids = ids_of(scene.make().launch(order))
    assert sorted(ids_of(scene.make().find())) == sorted(ids)
    assert sorted(ids_of(scene.make().launch(order))) == sorted(ids)
    assert len(scene.server.asked("GET", "/servers/detail")) > 6


def test_a_server_of_a_part_that_is_down_is_not_gone(scene: OpenstackScene) -> None:
    """Nova's list leaves it out; asked for itself it is an error."""
    ids = ids_of(scene.make().launch(scene.order(2)))
    scene.server.fail("GET", "/servers/detail", Fault(status=200, body='{"servers": []}'))
    scene.server.fail("GET", f"/servers/{ids[0]}", Fault(status=503, body='{"computeFault": {"code": 503, "message": "cell is down"}}'))
    with pytest.raises(ProviderBusyError, match="cell is down"):
        scene.make().describe(ids)


@pytest.mark.parametrize("body", ["{}", '{"servers": null}'])
def test_an_answer_that_is_no_list_is_none(scene: OpenstackScene, body: str) -> None:
    scene.server.fail("GET", "/servers/detail", Fault(status=200, body=body))
    with pytest.raises(ProviderBusyError):
        scene.make().find()


def test_a_token_that_ends_before_its_time(scene: OpenstackScene) -> None:
    """libcloud thinks that it is good; another is had."""
    provider = scene.make()
    order = scene.order()
    ids = ids_of(provider.launch(order))
    scene.server.tokens.clear()
    assert ids_of(provider.find(order.tags.session)) == ids
    scene.server.tokens.clear()
    provider.destroy(ids)
    assert scene.server.live() == []


def test_a_token_that_ends_while_a_server_is_made(scene: OpenstackScene) -> None:
    """It may have been made: nothing is sent twice."""
    order = scene.order()
    scene.server.fail("POST", "/compute/v2.1/servers", Fault(status=401, body='{"error": {"code": 401, "message": "no"}}'))
    with pytest.raises(ProviderBusyError):
        scene.make().launch(order)
    assert len(created(scene)) == 1


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_made_but_not_to_be_seen(scene: OpenstackScene, status: int) -> None:
    """libcloud looks at the server that it has made; whatever is said to that, the order is not refused."""
    order = scene.order()
    scene.server.fail("GET", "/compute/v2.1/servers/", Fault(status=200, body='{"servers": []}'))
    scene.server.fail("GET", "/compute/v2.1/servers/", Fault(status=status, body='{"fault": {"code": 1, "message": "no"}}'))
    with pytest.raises(ProviderBusyError):
        scene.make().launch(order)
    assert len(created(scene)) == len(scene.server.live()) == 1
    assert len(scene.make().launch(order).instances) == 1


def test_a_quota_in_the_middle(scene: OpenstackScene) -> None:
    scene.server.quota = 2
    answer = scene.make().launch(scene.order(3))
    assert (len(answer.instances), answer.certain) == (2, True)
    assert answer.refusal.startswith("openstack: making a machine: HTTP 403: ")
    assert "Quota exceeded for instances: Requested 1, but already used 2 of 2 instances" in answer.refusal


def test_a_network_must_be_named_where_there_are_two(scene: OpenstackScene) -> None:
    """409 is a no here, and only here."""
    scene.server.networks = ["inside", "outside"]
    with pytest.raises(ProviderRefusedError, match="Multiple possible networks found"):
        scene.make().launch(scene.order())
    ids = ids_of(scene.made(network="inside").launch(scene.order()))
    with pytest.raises(UsageError, match="openstack: there is no network 'moon': use --cloud-network with one of inside, outside"):
        scene.made(network="moon").offer()
    scene.server.fail("DELETE", "/servers/", Fault(status=409, body='{"conflictingRequest": {"code": 409, "message": "locked"}}'))
    with pytest.raises(ProviderBusyError, match="locked"):
        scene.make().destroy(ids)


def test_a_server_that_cannot_be_made(scene: OpenstackScene) -> None:
    scene.server.fault = "No valid host was found.\nThere are not enough hosts"
    order = scene.order()
    [id] = ids_of(scene.make().launch(order))
    [found] = scene.make().find(order.tags.session)
    assert (found.id, found.state, found.host) == (id, InstanceState.STOPPED, None)
    assert found.note == "error: No valid host was found. There are not enough hosts"


def test_leaving(scene: OpenstackScene) -> None:
    scene.server.leaving = 30
    [id] = running(scene, ids_of(scene.make().launch(scene.order())))
    scene.make().destroy([id.id])
    assert scene.make().describe([id.id])[0].state is InstanceState.LEAVING
    scene.server.leaving = 0
    assert scene.make().describe([id.id])[0].state is InstanceState.ABSENT


def test_addresses(scene: OpenstackScene) -> None:
    """The floating one, else the private one of IPv4; none while it is built."""
    scene.server.boot = 30
    [id] = ids_of(scene.make().launch(scene.order()))
    assert scene.make().describe([id])[0].host is None
    scene.server.boot = 0
    assert scene.make().describe([id])[0].host == scene.server.machines[id].address
    scene.server.private = True
    assert scene.make().describe([id])[0].host == "192.168.7.7"


def test_regions(scene: OpenstackScene) -> None:
    scene.server.regions = ("north", "south")
    use = "use --cloud-region or OS_REGION_NAME with one of north, south"
    with pytest.raises(ProviderRefusedError, match=f"no region is named: {use}"):
        scene.make().find()
    with pytest.raises(ProviderRefusedError, match=f"there is no region west: {use}"):
        scene.made(region="west").find()
    order = scene.order()
    [one] = scene.made({"cloud_region": "south"}).launch(order).instances
    assert one.region == "south"
    scene.server.regions = ("south",)
    assert ids_of(scene.make().find(order.tags.session)) == [one.id]


def test_images(scene: OpenstackScene) -> None:
    """By name and by id, from a list of several pages; names are not unique."""
    assert scene.made(image="Ubuntu").offer().rows["image"] == "Ubuntu"
    assert scene.made(image=IMAGES["Debian 13"]).offer().rows["image"] == "Debian 13"
    assert scene.made(image=TWINS[1]).offer().rows["image"] == "Twin"
    twins = ", ".join(sorted(TWINS))
    with pytest.raises(UsageError, match=re.escape(f"2 images are called 'Twin': name one by its id (--cloud-image): {twins}")):
        scene.made(image="Twin").offer()
    with pytest.raises(UsageError, match="no image is named: use --cloud-image with one of Debian 12, Debian 13, Twin"):
        scene.made(image=None).offer()
    with pytest.raises(ProviderRefusedError, match="looking for the image"):
        scene.made(image=scene.bogus_id()).launch(scene.order())


def test_sizes(scene: OpenstackScene) -> None:
    """The smallest that fits; one without a disk only by its name."""
    assert scene.make().offer().size == "m1.small"
    assert scene.made({"min_memory": 512 << 20}).offer().size == "m1.tiny"
    assert scene.made({"min_cpus": 3}).offer().size == "m1.big"
    assert scene.made(size="v1.volume").offer().size == "v1.volume"
    with pytest.raises(UsageError, match=r"no size has 1 CPUs and 64G memory: there are m1.tiny \(1 CPU, 0.5G\), m1.small"):
        scene.made({"min_cpus": 1, "min_memory": 64 << 30}).offer()


def test_credentials_in_the_environment(scene: OpenstackScene, clear: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="openstack: no credentials: set OS_CLOUD or OS_AUTH_URL"):
        without_file()
    clear.setenv("OS_AUTH_URL", f"{scene.server.url}/identity/v3/")
    clear.setenv("OS_USERNAME", USER)
    with pytest.raises(UsageError, match=r"openstack: no password in the variables OS_\*"):
        without_file()
    clear.setenv("OS_PASSWORD", PASSWORD)
    clear.setenv("OS_TENANT_NAME", PROJECT)
    clear.setenv("OS_REGION_NAME", "north")
    assert without_file().find() == []
    clear.setenv("OS_USER_DOMAIN_ID", "5ab3")
    with pytest.raises(UsageError, match="set OS_USER_DOMAIN_NAME"):
        without_file()
    clear.setenv("OS_USER_DOMAIN_NAME", "Default")
    clear.setenv("OS_PROJECT_DOMAIN_NAME", "studio")
    with pytest.raises(UsageError, match="set OS_PROJECT_DOMAIN_ID"):
        without_file()
    clear.setenv("OS_PROJECT_DOMAIN_ID", "default")
    assert without_file(cloud_image="Ubuntu").offer().rows["image"] == "Ubuntu"


def test_an_application_credential(scene: OpenstackScene) -> None:
    words: dict[str, Any] = {"application_credential_id": APPLICATION, "username": None, "password": None, "project": None}
    with pytest.raises(UsageError, match="no application credential secret in"):
        scene.made(**words)
    assert scene.made(**words, application_credential_secret=APPLICATION_SECRET).find() == []


def test_openstacks_own_file(scene: OpenstackScene, clear: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``clouds.yaml`` with ``secure.yaml`` beside it, where OpenStack's own tools look for them."""
    auth = {"auth_url": f"{scene.server.url}/identity", "username": USER, "project_name": PROJECT, "project_domain_id": "default"}
    (tmp_path / "clouds.yaml").write_text(json.dumps({"clouds": {"studio": {"auth": auth, "region_name": "north"}}}))
    (tmp_path / "secure.yaml").write_text(json.dumps({"clouds": {"studio": {"auth": {"password": PASSWORD}}}}))
    clear.setenv("OS_CLOUD", "studio")
    assert without_file().find() == []
    clear.setenv("OS_CLOUD", "attic")
    with pytest.raises(UsageError, match="there is no cloud 'attic'"):
        without_file()
    clear.delenv("OS_CLOUD")
    assert scene.made(auth_url=None, os_cloud="studio").find() == []
    (tmp_path / "secure.yaml").write_text(json.dumps({"clouds": {"studio": {"auth": "hm"}}}))
    with pytest.raises(UsageError, match="studio: must be a mapping"):
        scene.made(auth_url=None, os_cloud="studio")


def test_ids_of_others_are_not_asked_for(scene: OpenstackScene) -> None:
    provider = scene.make()
    assert [each.state for each in provider.describe(["../flavors/detail", "detail"])] == [InstanceState.ABSENT] * 2
    provider.destroy(["../flavors/detail"])
    assert [call for call in scene.server.calls if "flavors" in call.path or call.method == "DELETE"] == []
