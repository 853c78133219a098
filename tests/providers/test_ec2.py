"""EC2: the contract, what a request says, and an order asked for twice, against moto over HTTP with the real boto3."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

import pytest

from cloudtask.errors import ProviderBusyError, ProviderRefusedError, UsageError
from cloudtask.providers.base import InstanceState, Order
from cloudtask.providers.userdata import cloud_config
from tests.providers.contract import ProviderContract, gone, host_key, ids_of, login_key, running, wait_for
from tests.providers.ec2_scene import Ec2Scene, last, plain
from tests.stage.ec2_server import ACCOUNT, Ec2Server
from tests.stage.stage import Stage, require_stage

GONE = InstanceState.GONE


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ec2Scene]:
    """Answers only: no machine is behind them."""
    with Ec2Server() as server:
        yield Ec2Scene(server, monkeypatch)


@pytest.fixture
def peopled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ec2Scene]:
    """With a machine behind each instance."""
    require_stage()
    with Stage() as stage, Ec2Server(stage) as server:
        scene = Ec2Scene(server, monkeypatch)
        yield scene
        scene.clean()


class TestContract(ProviderContract):
    """With machines where there can be some."""

    @pytest.fixture
    def scene(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ec2Scene]:
        stage = Stage() if os.getuid() == 0 else None
        try:
            with Ec2Server(stage) as server:
                scene = Ec2Scene(server, monkeypatch)
                yield scene
                scene.clean()
        finally:
            if stage:
                stage.close()


# --- the request


def test_one_call_makes_all_of_an_order(scene: Ec2Scene) -> None:
    order = scene.order(3)
    assert len(scene.make().launch(order).instances) == 3
    assert [call.action for call in scene.server.calls].count("RunInstances") == 1
    said = last(scene, "RunInstances")
    assert (said["MinCount"], said["MaxCount"], said["ClientToken"], said["InstanceType"]) == ("1", "3", order.token, "t3.small")
    assert said["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert (said["MetadataOptions.HttpTokens"], said["MetadataOptions.HttpEndpoint"]) == ("required", "enabled")
    assert (said["BlockDeviceMapping.1.DeviceName"], said["BlockDeviceMapping.1.Ebs.DeleteOnTermination"]) == ("/dev/xvda", "true")
    assert [said[f"TagSpecification.{n}.ResourceType"] for n in (1, 2)] == ["instance", "volume"]
    assert "KeyName" not in said and "SecurityGroupId.1" not in said and "TagSpecification.3.ResourceType" not in said


def test_instances_and_disks_have_tags_and_user_data(scene: Ec2Scene) -> None:
    order = scene.order()
    [instance] = scene.make().launch(order).instances
    record = scene.server.instance(instance.id)
    assert record.user_data.decode() == order.user_data
    for thing in (record, *scene.server.volumes()):
        assert {tag["key"]: tag["value"] for tag in thing.get_tags()} == {**order.tags.as_dict(), "Name": order.label}


def test_disks_go_with_their_machine(scene: Ec2Scene) -> None:
    ids = ids_of(scene.make().launch(scene.order(2)))
    assert len(scene.server.volumes()) == 2
    scene.make().destroy(ids)
    assert scene.server.volumes() == []


@pytest.mark.parametrize(("size", "name"), [("t3.small", "debian-12-amd64-20240717-1811"), ("t4g.small", "debian-12-arm64-20240717-1811")])
def test_the_newest_debian_of_the_sizes_architecture(scene: Ec2Scene, size: str, name: str) -> None:
    """Not a backports one, and no other account's of that name."""
    assert name in scene.make(ec2_size=size).offer().rows["image"]


def test_the_architecture_by_name_where_one_may_not_ask(scene: Ec2Scene) -> None:
    for size, architecture in {"m7g.large": "arm64", "c6gn.xlarge": "arm64", "g5.xlarge": "x86_64", "m7i-flex.large": "x86_64"}.items():
        scene.server.fail("DescribeInstanceTypes", status=403, code="UnauthorizedOperation")
        assert scene.make(ec2_size=size)._recipe.architecture() == architecture


def test_no_image_of_debians(scene: Ec2Scene) -> None:
    with pytest.raises(ProviderRefusedError, match="name one with --ami-id"):
        scene.make(ec2_region="eu-north-1").launch(scene.order())


def test_there_is_no_such_size(scene: Ec2Scene) -> None:
    with pytest.raises(UsageError, match=r"no size 't9\.huge' in us-east-1"):
        scene.make(ec2_size="t9.huge").offer()
    with pytest.raises(ProviderRefusedError, match="no size"):
        scene.make(ec2_size="t9.huge").launch(scene.order())


def test_a_named_image(scene: Ec2Scene) -> None:
    ami = scene.server.publish("mine", "2020-01-01", owner=ACCOUNT, root_device_name="/dev/sda1")
    scene.make(ami_id=ami).launch(scene.order())
    assert (last(scene, "RunInstances")["ImageId"], last(scene, "RunInstances")["BlockDeviceMapping.1.DeviceName"]) == (ami, "/dev/sda1")
    with pytest.raises(ProviderRefusedError, match="ami-0123456789abcdef0"):
        scene.make(ami_id="ami-0123456789abcdef0").launch(scene.order())


def test_instance_store_images(scene: Ec2Scene) -> None:
    ami = scene.server.publish("old", "2012-01-01", root_device_type="instance-store", root_device_name="/dev/sda1")
    scene.make(ami_id=ami, ec2_type="s3", ec2_size="m1.small").launch(scene.order())
    assert "InstanceInitiatedShutdownBehavior" not in last(scene, "RunInstances")
    for settings, said in (
        ({"ec2_type": "s3"}, "needs the --ami-id of an instance-store image"),
        ({"ec2_type": "s3", "ami_id": "ami-00000000000000001"}, "root disk of ami-00000000000000001 is ebs"),
        ({"ec2_type": "ebs", "ami_id": ami, "ec2_size": "m1.small"}, "is instance-store"),
        ({"ami_id": ami, "ec2_size": "t3.small"}, "choose a size such as m3.medium"),
        ({"ami_id": ami, "snapshot_id": "snap-1"}, "exclude each other"),
        ({"backup_id": 7}, "--provider=hub"),
    ):
        with pytest.raises(UsageError, match=said):
            scene.make(**settings).offer()


def test_a_snapshot_becomes_an_image_once(scene: Ec2Scene) -> None:
    for _ in range(2):
        scene.make(snapshot_id="snap-0123456789abcdef0").launch(scene.order())
    assert [call.action for call in scene.server.calls].count("RegisterImage") == 1
    said = last(scene, "RegisterImage")
    assert said["BlockDeviceMapping.1.Ebs.SnapshotId"] == "snap-0123456789abcdef0"
    assert (said["Architecture"], said["RootDeviceName"], said["VirtualizationType"]) == ("x86_64", "/dev/xvda", "hvm")
    launched = [call.words["ImageId"] for call in scene.server.calls if call.action == "RunInstances"]
    assert len(set(launched)) == 1


def test_security_groups_and_subnet(scene: Ec2Scene) -> None:
    api = scene.make()._api
    [vpc] = [each["VpcId"] for each in api.listed("describe_vpcs", "Vpcs")]
    subnet = next(api.listed("describe_subnets", "Subnets"))["SubnetId"]
    ids = [api.call("create_security_group", GroupName=name, Description="d", VpcId=vpc)["GroupId"] for name in ("let me in", "b")]
    provider = scene.make(ec2_security_group=("let me in", ids[1]), ec2_subnet=subnet)
    provider.launch(scene.order())
    said = last(scene, "RunInstances")
    assert [said["SecurityGroupId.1"], said["SecurityGroupId.2"], said["SubnetId"]] == [*ids, subnet]
    assert provider.offer().rows["security group"] == f"let me in, {ids[1]}"
    assert provider.offer().rows["subnet"] == subnet
    with pytest.raises(ProviderRefusedError, match="no security group is called 'nobody'"):
        scene.make(ec2_security_group=("nobody",)).launch(scene.order())


# --- asked twice


def test_a_new_image_between_two_tries_makes_no_second_order(scene: Ec2Scene) -> None:
    order = scene.order(2)
    first = scene.make().launch(order)
    scene.server.publish("debian-12-amd64-20250101-0001", "2025-01-01")
    again = scene.make().launch(order)
    assert sorted(ids_of(again)) == sorted(ids_of(first))
    assert again.certain and not again.refusal
    assert len(scene.server.alive()) == 2


def test_the_same_while_they_are_not_listed_yet(scene: Ec2Scene) -> None:
    scene.server.hide_new = True
    order = scene.order(2)
    first = ids_of(scene.make().launch(order))
    scene.server.publish("debian-12-amd64-20250101-0001", "2025-01-01")
    with pytest.raises(ProviderBusyError, match="not listed yet"):
        scene.make().launch(order)
    scene.server.hidden.discard(plain(first)[0])
    partly = scene.make().launch(order)
    assert (ids_of(partly), partly.certain) == ([first[0]], False)
    scene.server.hidden.clear()
    assert scene.make().launch(order).certain


def test_an_order_whose_machines_were_destroyed_stays_destroyed(scene: Ec2Scene) -> None:
    order = scene.order(2)
    ids = ids_of(scene.make().launch(order))
    scene.make().destroy(ids)
    again = scene.make().launch(order)
    assert {each.state for each in again.instances} == {GONE} and again.certain
    scene.server.hidden.update(plain(ids))  # an hour later
    assert scene.make().launch(order).instances == []
    assert scene.server.alive() == []


def test_less_room_than_ordered(scene: Ec2Scene) -> None:
    scene.server.capacity = 3
    order = scene.order(5)
    answer = scene.make().launch(order)
    assert (len(answer.instances), answer.certain) == (3, True)
    assert "room for 3 of 5" in answer.refusal
    assert sorted(ids_of(scene.make().launch(order))) == sorted(ids_of(answer))


def test_no_room_at_all_is_a_refusal(scene: Ec2Scene) -> None:
    """Though it comes with HTTP 500."""
    scene.server.capacity = 0
    with pytest.raises(ProviderRefusedError, match="InsufficientInstanceCapacity"):
        scene.make().launch(scene.order())


def test_a_no_to_the_second_try_says_nothing_of_the_first(scene: Ec2Scene) -> None:
    """botocore asks twice: the first may have made machines."""
    scene.server.lose("RunInstances")
    scene.server.fail("RunInstances", status=400, code="UnauthorizedOperation")
    order = scene.order()
    with pytest.raises(ProviderBusyError, match="UnauthorizedOperation"):
        scene.make().launch(order)
    assert len(scene.make().launch(order).instances) == len(scene.server.alive()) == 1


# --- with machines


def test_the_machine_has_the_orders_host_key_and_shows_it(peopled: Ec2Scene) -> None:
    order = peopled.order()
    [instance] = running(peopled, ids_of(peopled.make().launch(order)))
    assert wait_for(lambda: peopled.make().console_keys(instance.id), 20, "the console shows its keys") == [order.host_key]


def test_the_private_address_where_there_is_no_public_one(peopled: Ec2Scene) -> None:
    [instance] = running(peopled, ids_of(peopled.make().launch(peopled.order())))
    record = peopled.server.instance(instance.id)
    record.nics[0].public_ip, record.nics[0].private_ip_address = None, "10.9.8.7"
    assert peopled.make().describe([instance.id])[0].host == "10.9.8.7"


def test_a_machine_that_powers_itself_off_is_terminated(monkeypatch: pytest.MonkeyPatch) -> None:
    require_stage()
    servers: list[Ec2Server] = []
    with Stage(ended=lambda id, why: servers[0].machine_ended(id, why)) as stage, Ec2Server(stage, commands=True) as server:
        servers.append(server)
        scene = Ec2Scene(server, monkeypatch)
        order = timed(scene.order(), "#!/bin/sh\nsleep 0.3\npoweroff\n")
        ids = ids_of(scene.make().launch(order))
        gone(scene, ids)
        assert server.volumes() == []


def timed(order: Order, timer: str) -> Order:
    """The order with a timer."""
    return dataclasses.replace(order, user_data=cloud_config(login_key().public, host_key(), timer), timer=timer)
