"""EC2: what it answers, and does not, when there is much, trouble, or somebody else's; spot machines; consoles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cloudtask.errors import ProviderBusyError, ProviderError, ProviderRefusedError
from cloudtask.providers.base import InstanceState
from cloudtask.providers.ec2_answers import Ec2Id, console_keys, instances_of
from cloudtask.providers.ec2_api import ATTEMPTS
from tests.providers.contract import ids_of, running
from tests.providers.ec2_scene import ODD_ANSWERS, Ec2Scene, last, plain
from tests.stage.ec2_server import ACCESS_KEY, ACCOUNT, Ec2Server

GONE, ABSENT = InstanceState.GONE, InstanceState.ABSENT


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ec2Scene]:
    """Answers only: no machine is behind them."""
    with Ec2Server() as server:
        yield Ec2Scene(server, monkeypatch)


# --- many, slow, odd


@pytest.mark.slow
def test_pages_and_batches(scene: Ec2Scene) -> None:
    """More than a filter or a termination takes at once, with ids that are none among them."""
    order, provider = scene.order(203), scene.make()
    ids = ids_of(provider.launch(order))
    more = ids_of(provider.launch(scene.order(session=order.tags.session)))
    scene.server.page = 1
    assert sorted(ids_of(provider.find(order.tags.session))) == sorted(ids + more)
    asked = [*ids, "i-0000000000bad0000", *more, "nonsense", ids[0]]
    found = provider.describe(asked)
    assert ids_of(found) == asked
    assert [asked[place] for place, each in enumerate(found) if each.state is ABSENT] == ["i-0000000000bad0000", "nonsense"]
    provider.destroy(asked)
    assert scene.server.alive() == []
    assert {each.state for each in provider.describe(ids)} == {GONE}


def test_an_id_that_is_not_visible_yet_is_absent_and_saves_no_other(scene: Ec2Scene) -> None:
    ids = ids_of(scene.make().launch(scene.order(3)))
    running(scene, ids) if scene.reachable else None
    scene.server.hidden.add(plain(ids)[1])
    states = [each.state for each in scene.make().describe(ids)]
    assert states[1] is ABSENT and ABSENT not in (states[0], states[2])
    scene.make().destroy(ids)
    scene.server.hidden.clear()
    assert scene.server.alive() == [plain(ids)[1]]


def test_a_protected_machine_saves_no_other(scene: Ec2Scene) -> None:
    ids = ids_of(scene.make().launch(scene.order(3)))
    scene.server.instance(ids[1]).disable_api_termination = True
    with pytest.raises(ProviderError, match="OperationNotPermitted"):
        scene.make().destroy(ids)
    assert scene.server.alive() == [plain(ids)[1]]


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (503, "RequestLimitExceeded", ProviderBusyError),
        (400, "Throttling", ProviderBusyError),
        (500, "InternalError", ProviderBusyError),
        (503, "Unavailable", ProviderBusyError),
        (400, "VcpuLimitExceeded", ProviderRefusedError),
        (400, "InstanceLimitExceeded", ProviderRefusedError),
        (400, "MaxSpotInstanceCountExceeded", ProviderRefusedError),
        (403, "UnauthorizedOperation", ProviderRefusedError),
        (401, "AuthFailure", ProviderRefusedError),
        (400, "RequestExpired", ProviderRefusedError),
        (400, "InvalidParameterValue", ProviderRefusedError),
    ],
)
def test_errors_are_told_apart(scene: Ec2Scene, status: int, code: str, kind: type[ProviderError]) -> None:
    scene.server.fail("RunInstances", times=ATTEMPTS, status=status, code=code, message="so it is")
    with pytest.raises(kind) as caught:
        scene.make().launch(scene.order())
    assert str(caught.value).startswith(f"ec2: RunInstances: {code}: so it is")
    assert scene.server.alive() == []


def test_messages_are_cut_to_what_a_person_reads(scene: Ec2Scene) -> None:
    message = f"You are not authorized.\n Encoded authorization failure message: {'x' * 900} {ACCESS_KEY} \x1b[31m"
    scene.server.fail("DescribeInstances", status=403, code="UnauthorizedOperation", message=message.replace("\x1b", "&#155;"))
    with pytest.raises(ProviderRefusedError) as caught:
        scene.make().find()
    assert len(str(caught.value)) < 200 and str(caught.value).isprintable() and ACCESS_KEY not in str(caught.value)


def test_a_no_that_is_not_amazons_settles_nothing(scene: Ec2Scene) -> None:
    """A proxy's page, a login of a hotel's network."""
    scene.server.garble("RunInstances", b"<html><body>403 Forbidden</body></html>", times=9, status=403)
    with pytest.raises(ProviderBusyError):
        scene.make().launch(scene.order())


@pytest.mark.parametrize("body", ODD_ANSWERS)
def test_an_answer_of_another_shape_is_not_an_empty_list(scene: Ec2Scene, body: bytes) -> None:
    scene.server.garble("DescribeInstances", body, times=9)
    with pytest.raises(ProviderBusyError):
        scene.make().find("s")
    with pytest.raises(ProviderBusyError):
        scene.make().describe(["i-0123456789abcdef0"])


@pytest.mark.parametrize(
    "reservation",
    [
        {},
        {"Instances": None},
        {"Instances": ["i-1"]},
        {"Instances": [{"InstanceId": "i-0123456789abcdef0"}]},
        {"Instances": [{"InstanceId": "../../etc", "State": {"Name": "running"}}]},
        {"Instances": [{"InstanceId": "i-0123456789abcdef0", "State": {"Name": "dancing"}}]},
        {"Instances": [{"InstanceId": "i-0123456789abcdef0", "State": {"Name": "running"}, "PublicIpAddress": "-oProxyCommand=x"}]},
    ],
)
def test_what_is_no_instance_is_refused(reservation: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        list(instances_of(reservation, "us-east-1"))


def test_a_machine_that_lost_its_other_tags_is_still_the_sessions(scene: Ec2Scene) -> None:
    order = scene.order()
    [id] = ids_of(scene.make().launch(order))
    scene.make()._api.call("delete_tags", Resources=plain([id]), Tags=[{"Key": "cloudtask-token"}])
    [found] = scene.make().find(order.tags.session)
    assert found.id == id and found.tags and found.tags.session == order.tags.session
    assert scene.make().find() == []


# --- spot


def test_spot_is_asked_for(scene: Ec2Scene) -> None:
    provider = scene.make(ec2_spot=0.0095)
    provider.launch(scene.order())
    said = last(scene, "RunInstances")
    assert said["InstanceMarketOptions.MarketType"] == "spot"
    assert said["InstanceMarketOptions.SpotOptions.MaxPrice"] == "0.0095"
    assert said["InstanceMarketOptions.SpotOptions.SpotInstanceType"] == "one-time"
    assert said["InstanceMarketOptions.SpotOptions.InstanceInterruptionBehavior"] == "terminate"
    assert said["TagSpecification.3.ResourceType"] == "spot-instances-request"
    assert (provider.offer().price, provider.offer().rows["market"]) == (0.0095, "spot, at most $0.0095 an hour")
    scene.make(ec2_spot=True).launch(scene.order())
    assert "InstanceMarketOptions.SpotOptions.MaxPrice" not in last(scene, "RunInstances")
    assert (scene.make(ec2_spot=9.0).offer().price, scene.make().offer().price) == (0.0208, 0.0208)


def test_a_spot_machine_about_to_go_is_noticed(scene: Ec2Scene) -> None:
    order = scene.order(3)
    provider = scene.make(ec2_spot=True)
    ids = ids_of(provider.launch(order))
    assert {each.reclaimed for each in provider.describe(ids)} == {""}
    scene.server.interrupt(ids[0], "marked-for-termination")
    scene.server.interrupt(ids[1], "instance-terminated-by-user")
    scene.server.take_back(ids[2])
    found = {each.id: each for each in provider.describe(ids)}
    assert (found[ids[0]].reclaimed, found[ids[0]].exists) == ("spot: marked-for-termination", True)
    assert found[ids[1]].reclaimed == ""
    assert (found[ids[2]].state, found[ids[2]].reclaimed) == (GONE, "Server.SpotInstanceTermination: Spot instance termination")
    assert {each.reclaimed for each in provider.find(order.tags.session)} == {"spot: marked-for-termination", ""}


def test_who_may_not_ask_for_spot_requests_still_has_answers(scene: Ec2Scene) -> None:
    provider = scene.make(ec2_spot=True)
    ids = ids_of(provider.launch(scene.order()))
    scene.server.fail("DescribeSpotInstanceRequests", status=403, code="UnauthorizedOperation")
    assert provider.describe(ids)[0].exists


# --- whose it is


def test_an_id_says_region_and_account(scene: Ec2Scene) -> None:
    [id] = ids_of(scene.make(ec2_region="eu-west-1").launch(scene.order()))
    assert id.endswith(f".eu-west-1.{ACCOUNT}")
    at_home = scene.make()
    assert at_home.describe([id])[0].exists
    assert at_home.describe([plain([id])[0]])[0].state is ABSENT
    at_home.destroy([id])
    assert scene.server.alive() == []


def test_another_accounts_machine_is_not_called_gone(scene: Ec2Scene) -> None:
    foreign = f"i-0123456789abcdef0.us-east-1.{'9' * 12}"
    [id] = ids_of(scene.make().launch(scene.order()))
    for ask in (lambda: scene.make().describe([id, foreign]), lambda: scene.make().destroy([id, foreign])):
        with pytest.raises(ProviderRefusedError, match=f"account {'9' * 12}.* --ec2-profile"):
            ask()
    assert scene.server.alive() == []


def test_ids_are_read_as_they_are_written() -> None:
    whole = Ec2Id("i-0123456789abcdef0", "us-east-1", ACCOUNT)
    assert Ec2Id.parse(str(whole), "eu-west-1") == whole
    assert Ec2Id.parse("i-01234567", "eu-west-1") == Ec2Id("i-01234567", "eu-west-1")
    assert [Ec2Id.parse(text, "r") for text in ("", "i-", "i-xyz", "us-east-1", f"{whole}.x", "i-01234567 ")] == [None] * 6


# --- consoles

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEmlLW1EkcEmlLW1EkcEmlLW1EkcEmlLW1EkcEmlLW1Ekc"
BLOCK = "-----BEGIN SSH HOST KEY KEYS-----\r\n{}\r\n-----END SSH HOST KEY KEYS-----\r\n"


@pytest.mark.parametrize(
    ("output", "keys"),
    [
        ("", []),
        ("booting...\r\n", []),
        ("<14>Jan  1 ec2: " + BLOCK.format(f"{KEY} root@ip-10-0-0-1") + "login: ", [KEY]),
        (
            BLOCK.format("ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAB== root@old") + BLOCK.format(f"[   12.3] cloud-init[401]: {KEY} root@new"),
            [KEY],
        ),
        (BLOCK.format(f"{KEY}\r\n{KEY}\r\nssh-dss AAAAB3NzaC1kc3MAAACB x"), [KEY]),
        (f"-----BEGIN SSH HOST KEY KEYS-----\r\n{KEY}\r\n", []),
    ],
)
def test_console_keys(output: str, keys: list[str]) -> None:
    assert console_keys(output) == keys


def test_console_keys_of_older_machines(scene: Ec2Scene) -> None:
    """Which have no latest output."""
    [id] = ids_of(scene.make().launch(scene.order()))
    scene.server.consoles[plain([id])[0]] = BLOCK.format(KEY)
    scene.server.fail("GetConsoleOutput", status=400, code="UnsupportedOperation")
    assert scene.make().console_keys(id) == [KEY]
    with pytest.raises(ProviderRefusedError):
        scene.make().console_keys("i-0000000000bad0000")
