"""The ``linode`` provider: the real driver of libcloud, against a server that speaks version 4 of Linode's API."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cloudtask.errors import ProviderBusyError, ProviderError, ProviderRefusedError, UsageError
from cloudtask.providers import find
from cloudtask.providers.base import InstanceState, Order
from tests.providers.cloud_scene import CloudScene
from tests.providers.contract import ProviderContract, ids_of, login_key, running, settings_with
from tests.providers.servers.cloud import Fault
from tests.providers.servers.linode import TOKEN, LinodeServer
from tests.stage.stage import Stage, require_stage


class LinodeScene(CloudScene):
    """See `CloudScene`."""

    provider = "linode"
    create = "/linode/instances"
    server: LinodeServer

    def bogus_id(self) -> str:
        """See `Scene`."""
        return "99999999"

    def foreign_id(self) -> str:
        """See `Scene`."""
        return self.server.add("web", {"tags": ["production"], "region": "us-east"}).id


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[LinodeScene]:
    with ExitStack() as stack:
        server = stack.enter_context(LinodeServer(boot=0.1, leaving=0.1))
        scene = LinodeScene(server, tmp_path, {"token": TOKEN}, stack)
        yield scene
        server.quota, server.page, server.always = 20, 500, None
        scene.clean()
        assert [id for id in server.live() if server.machines[id].name != "web"] == []


class TestContract(ProviderContract):
    """All of it."""


class TestReached:
    """With real machines behind it."""

    @pytest.fixture
    def scene(self, tmp_path: Path) -> Iterator[LinodeScene]:
        require_stage()
        with ExitStack() as stack:
            server = stack.enter_context(LinodeServer(boot=0.2, stage=stack.enter_context(Stage())))
            scene = LinodeScene(server, tmp_path, {"token": TOKEN}, stack)
            scene.reachable = True
            yield scene
            scene.clean()

    test_login = ProviderContract.test_runs_and_can_be_reached


def created(scene: LinodeScene) -> list[dict[str, object]]:
    """What machines were asked for with."""
    return [call.body for call in scene.server.asked("POST", scene.create)]


def test_what_a_machine_is_made_with(scene: LinodeScene) -> None:
    order = scene.order(2)
    [one, two] = scene.make().launch(order).instances
    first, second = created(scene)
    assert {first["region"], first["type"], first["image"]} == {"us-east", "g6-nanode-1", "linode/debian12"}
    assert first["authorized_keys"] == [login_key().public]
    assert scene.server.machines[one.id].user_data == order.user_data
    assert first["root_pass"] != second["root_pass"]
    assert [one.size, one.region, one.port, one.user] == ["g6-nanode-1", "us-east", None, None]
    assert abs(one.created - time.time()) < 60
    assert one.host != two.host
    assert all(TOKEN not in str(call.body) + str(call.query) for call in scene.server.calls)


def test_tags_of_the_user_stay(scene: LinodeScene) -> None:
    order = scene.order()
    [id] = ids_of(scene.make().launch(order))
    scene.server.machines[id].fields["tags"].append("mine")
    scene.make().renew([id], dataclasses.replace(order.tags, expires=2_000_007_200))
    assert "mine" in scene.server.machines[id].fields["tags"]
    [found] = scene.make().find(order.tags.session)
    assert found.tags == dataclasses.replace(order.tags, expires=2_000_007_200)


def test_pages(scene: LinodeScene) -> None:
    """Five machines, two to a page: all are found, and those of the order are not made again."""
    scene.server.page = 2
    for _ in range(3):
        scene.foreign_id()
    order = scene.order(2)
    ids = ids_of(scene.make().launch(order))
    assert sorted(ids_of(scene.make().find())) == sorted(ids)
    assert sorted(ids_of(scene.make().launch(order))) == sorted(ids)
    assert [each.state.name for each in scene.make().describe([*ids, "99999999"])][2] == "ABSENT"


def test_a_list_that_leaves_one_out_makes_it_not_gone(scene: LinodeScene) -> None:
    """As when the list shifts between two pages: what is missing is asked for by its id."""
    ids = ids_of(scene.make().launch(scene.order(2)))
    scene.server.fail("GET", "/linode/instances", Fault(status=200, body='{"data": [], "page": 1, "pages": 1, "results": 0}'))
    assert all(each.exists for each in scene.make().describe(ids))


@pytest.mark.parametrize("body", ["{}", '{"data": null}', '{"data": {"id": 1}}'])
def test_an_answer_that_is_no_list_is_none(scene: LinodeScene, body: str) -> None:
    scene.server.fail("GET", "/linode/instances", *[Fault(status=200, body=body)] * 2)
    for session in (None, "some-session"):
        with pytest.raises(ProviderBusyError):
            scene.make().find(session)


def test_a_taken_label_is_a_machine_that_is_not_listed_yet(scene: LinodeScene) -> None:
    """Two launchers of one order: the second one is told no by Linode, and that is no refusal of the order."""
    order = scene.order()
    [id] = ids_of(scene.make().launch(order))
    scene.server.fail("GET", "/linode/instances", Fault(status=200, body='{"data": [], "page": 1, "pages": 1, "results": 0}'))
    with pytest.raises(ProviderBusyError, match="unique"):
        scene.make().launch(order)
    assert ids_of(scene.make().launch(order)) == [id]


def test_a_quota_in_the_middle(scene: LinodeScene) -> None:
    scene.server.quota = 2
    answer = scene.make().launch(scene.order(3))
    assert len(answer.instances) == 2
    assert answer.certain
    assert "Account Limit reached" in answer.refusal


def test_throttling_in_the_middle(scene: LinodeScene) -> None:
    """The order stays open, and the rest is made when it is asked for again."""
    order = scene.order(3)
    scene.server.fail("POST", scene.create, Fault(status=429, body='{"errors": [{"reason": "Too many requests"}]}'), skip=1)
    answer = scene.make().launch(order)
    assert (len(answer.instances), answer.certain, answer.refusal) == (1, False, "")
    assert len(scene.make().launch(order).instances) == 3
    assert len(scene.server.live()) == 3


def test_an_answer_that_never_comes(scene: LinodeScene) -> None:
    """Made, but the time is over: nothing is sent twice, and the machine is found when the order comes again."""
    order = scene.order()
    scene.server.fail("POST", scene.create, Fault(after=True, wait=5))
    with pytest.raises(ProviderBusyError, match="no answer in time"):
        scene.made(timeout=0.3).launch(order)
    assert len(created(scene)) == 1
    assert len(scene.make().launch(order).instances) == 1
    assert len(created(scene)) == 1


def test_libclouds_own_retries_are_off(scene: LinodeScene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable turns them on; a machine that was made is not made again for it."""
    monkeypatch.setenv("LIBCLOUD_RETRY_FAILED_HTTP_REQUESTS", "1")
    scene.server.fail("POST", scene.create, Fault(after=True), Fault(after=True))
    with pytest.raises(ProviderBusyError):
        scene.make().launch(scene.order())
    assert len(created(scene)) == 1


def test_an_endless_list_ends(scene: LinodeScene) -> None:
    """Each page comes in time, the last one never does."""
    scene.server.always = Fault(status=200, body='{"data": [], "page": 1, "pages": 1000000000, "results": 0}', wait=0.02)
    began = time.monotonic()
    with pytest.raises(ProviderBusyError):
        scene.made(timeout=0.2).find()
    assert time.monotonic() - began < 3


def test_more_than_there_is_time_to_ask_for(scene: LinodeScene) -> None:
    """Nothing is called absent that nobody was asked for."""
    ids = ids_of(scene.make().launch(scene.order()))
    lost = [str(number) for number in range(90_000_000, 90_000_100)]
    scene.server.always = None
    scene.server.fail("GET", "/linode/instances/", *[Fault(status=404, body='{"errors": [{"reason": "Not found"}]}', wait=0.05)] * 100)
    found = scene.made(timeout=0.5).describe([*ids, *lost])
    assert found[0].exists
    assert not found[0].note.startswith("not listed")
    assert {InstanceState.ABSENT, InstanceState.PENDING} == {each.state for each in found[1:]}


def test_an_unknown_state_hides_no_machine(scene: LinodeScene) -> None:
    order = scene.order()
    [id] = ids_of(scene.make().launch(order))
    scene.server.machines[id].wrong = "quantum_entangled"
    [found] = scene.make().find(order.tags.session)
    assert found.state is InstanceState.PENDING


def test_states(scene: LinodeScene) -> None:
    scene.server.leaving, scene.server.boot = 30, 30
    order = scene.order()
    [id] = ids_of(scene.make().launch(order))
    assert scene.make().describe([id])[0].state is InstanceState.PENDING
    scene.server.boot = 0
    assert scene.make().describe([id])[0].state is InstanceState.RUNNING
    scene.server.machines[id].wrong = "offline"
    assert scene.make().describe([id])[0].state is InstanceState.STOPPED
    scene.server.machines[id].wrong = ""
    scene.make().destroy([id])
    assert scene.make().describe([id])[0].state is InstanceState.LEAVING
    scene.server.leaving = 0
    assert scene.make().describe([id])[0].state is InstanceState.ABSENT


def test_a_user_who_may_write_no_tags(scene: LinodeScene) -> None:
    scene.server.restricted = True
    with pytest.raises(ProviderRefusedError, match="unrestricted user"):
        scene.make().launch(scene.order())


def test_a_machine_that_comes_without_its_tags_goes(scene: LinodeScene) -> None:
    """It would be lost: nobody could tell whose it is."""
    scene.server.forgets = True
    with pytest.raises(ProviderRefusedError, match="without the tags"):
        scene.make().launch(scene.order())
    assert scene.server.live() == []


def test_a_linode_that_is_busy_is_asked_again(scene: LinodeScene) -> None:
    ids = ids_of(scene.make().launch(scene.order(2)))
    scene.server.fail("DELETE", ids[0], Fault(status=400, body='{"errors": [{"reason": "Linode busy."}]}'))
    with pytest.raises(ProviderBusyError, match="busy"):
        scene.make().destroy(ids)
    assert scene.server.live() == [ids[0]]


def test_tags_that_nothing_carries_go(scene: LinodeScene) -> None:
    """A day after what they say is over; those of others, and those that something carries, stay."""
    now = int(time.time())
    old, alive, fresh = (_until(scene.order(), at) for at in (now - 2 * 86400, now - 2 * 86400, now))

    def pieces(order: Order) -> set[str]:
        return set(scene.server.machines[ids[order.token]].fields["tags"]) - {"cloudtask"}

    ids = {each.token: ids_of(scene.make().launch(each))[0] for each in (old, alive, fresh)}
    scene.server.tags |= {"production", "cloudtask:not-one"}
    scene.server.leaving = 0
    scene.make().destroy([ids[old.token]])
    scene.make().destroy([ids[fresh.token]])
    assert not pieces(old) & scene.server.tags
    assert pieces(alive) | pieces(fresh) | {"production", "cloudtask:not-one", "cloudtask"} == scene.server.tags
    assert scene.make().find(alive.tags.session)


def _until(order: Order, expires: int) -> Order:
    return dataclasses.replace(order, tags=dataclasses.replace(order.tags, expires=expires))


def test_tags_that_cannot_be_swept_stop_nothing(scene: LinodeScene) -> None:
    [id] = ids_of(scene.make().launch(scene.order()))
    scene.server.fail("GET", "/v4/tags", Fault(status=403, body='{"errors": [{"reason": "Unauthorized"}]}'))
    scene.make().destroy([id])
    assert scene.server.live() == []


def test_the_price_is_the_regions(scene: LinodeScene) -> None:
    offer = scene.make().offer()
    assert (offer.size, offer.region, offer.price, offer.minimum) == ("Linode nanode-1", "us-east", 0.0075, 3600)
    assert scene.made(region="br-gru").offer().price == 0.0105
    prices = scene.folder / "prices.yaml"
    prices.write_text('{linode: {"": {g6-nanode-1: 0.0025}}}')
    assert scene.made({"prices": str(prices)}).offer().price == 0.0025


def test_a_size_by_needs(scene: LinodeScene) -> None:
    """The cheapest of those with 2 CPUs and 4G is not the first one listed."""
    assert scene.made({"min_cpus": 2}).offer().price == 0.036
    assert scene.made({"min_memory": 2 << 30}).offer().price == 0.018
    assert scene.made({"cloud_size": "g6-dedicated-2"}).offer().price == 0.054
    with pytest.raises(UsageError, match=r"^linode: no size has 64 CPUs and 1G memory: there are .*g6-nanode-1 \(1 CPU, 1G, \$0.0075/h\)"):
        scene.made({"min_cpus": 64}).offer()
    with pytest.raises(UsageError, match="there is no size 'huge': there are"):
        scene.made(size="huge").offer()
    with pytest.raises(ProviderRefusedError, match="no size 'huge'"):
        scene.made(size="huge").launch(scene.order())


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"region": "old-town"}, "the region old-town gives machines no user data"),
        ({"region": "atlantis"}, "there is no region 'atlantis': use --cloud-region with one of"),
        ({"image": "linode/debian9"}, "the image linode/debian9 has no cloud-init"),
        ({"image": "linode/beos"}, "there is no image 'linode/beos': use --cloud-image with one of"),
    ],
)
def test_what_cannot_be(scene: LinodeScene, entry: dict[str, Any], message: str) -> None:
    provider = scene.made(**entry)
    with pytest.raises(UsageError, match=re.escape(message)):
        provider.offer()
    with pytest.raises(ProviderRefusedError, match=re.escape(message)):
        provider.launch(scene.order())


def test_the_token_comes_from_the_environment(scene: LinodeScene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINODE_CLI_TOKEN", TOKEN)
    assert scene.made(token=None).find() == []
    monkeypatch.setenv("LINODE_TOKEN", "another-secret-token")
    with pytest.raises(ProviderRefusedError, match="credentials refused: Invalid Token"):
        scene.made(token=None).find()


def test_no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("LINODE_TOKEN", "LINODE_CLI_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    file = f"{tmp_path}/cloudtask/clouds.yaml"
    with pytest.raises(UsageError, match=f"linode: no credentials: set LINODE_TOKEN, or put 'token: ...' into {file}"):
        find("linode")(settings_with(provider="linode"))


def test_running_machines_have_an_address(scene: LinodeScene) -> None:
    [found] = running(scene, ids_of(scene.make().launch(scene.order())))
    assert found.host
    assert found.host.startswith("203.0.113.")


def test_ids_of_others_are_not_asked_for(scene: LinodeScene) -> None:
    provider = scene.make()
    assert [each.state for each in provider.describe(["../account", "i-0123"])] == [InstanceState.ABSENT] * 2
    provider.destroy(["../account", "i-0123"])
    assert [call for call in scene.server.calls if "account" in call.path or call.method == "DELETE"] == []


@pytest.mark.slow
def test_a_whole_run(tmp_path: Path) -> None:
    """The command itself: three jobs on two machines that it makes, reaches, destroys and sees gone."""
    require_stage()
    file = tmp_path / "cloudtask" / "clouds.yaml"
    file.parent.mkdir()
    file.touch(mode=0o600)
    places = {"XDG_CONFIG_HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state"), "LINODE_TOKEN": TOKEN}
    with Stage() as stage, LinodeServer(boot=0.2, stage=stage) as server:
        file.write_text(f"linode: {{endpoint: '{server.url}'}}")
        command = [sys.executable, "-m", "cloudtask", "--provider=linode", "--split=2", "--force", f"--sessions={tmp_path}/sessions"]
        done = subprocess.run(
            [*command, "echo", "job"], input="1\n2\n3\n", text=True, capture_output=True, env=os.environ | places, check=False, timeout=50
        )
        assert done.returncode == 0, done.stderr
        assert sorted(done.stdout.split("\n")) == ["", "job 1", "job 2", "job 3"]
        assert "# machines: created 2, confirmed gone 2" in done.stderr
        assert server.live() == stage.machines == []
        assert TOKEN not in done.stderr + "".join(each.read_text() for each in (tmp_path / "sessions").rglob("*") if each.is_file())


def test_words_of_a_server_are_made_harmless(scene: LinodeScene) -> None:
    reason = f"\\u001b[31m no\\nway {TOKEN} " + "x" * 5000
    scene.server.fail("GET", "/linode/instances", Fault(status=400, body=f'{{"errors": [{{"reason": "{reason}"}}]}}'))
    with pytest.raises(ProviderError) as caught:
        scene.make().find()
    assert str(caught.value).startswith("linode: listing machines: HTTP 400: ?[31m no way *** xxx")
    assert len(str(caught.value)) < 400
