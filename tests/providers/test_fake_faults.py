"""What goes wrong at the fake provider: each fault, and how it is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from cloudtask.errors import ProviderBusyError, ProviderRefusedError, UsageError
from cloudtask.kinds import Scene as Place
from cloudtask.providers.base import Instance, InstanceState
from cloudtask.providers.fake import FakeProvider
from cloudtask.providers.fake_faults import Faults, Share, parse_faults
from cloudtask.providers.fake_settings import ROWS
from tests.providers.contract import gone, ids_of, launched, running, settings_with, wait_for
from tests.providers.fake_scene import FakeScene, marked, one_running, reached, state_of

T = TypeVar("T")


@pytest.fixture(params=["local", "ssh"])
def scene(request: pytest.FixtureRequest, tmp_path: Path, private_home: Path) -> Iterator[FakeScene]:
    """Each kind."""
    scene = FakeScene(tmp_path, fake_kind=request.param)
    yield scene
    scene.clean()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[FakeScene]:
    """The kind that costs nothing."""
    scene = FakeScene(tmp_path, fake_kind="local")
    yield scene
    scene.clean()


def with_faults(scene: FakeScene, faults: str) -> FakeScene:
    scene.values["fake_faults"] = faults
    return scene


def described(scene: FakeScene, id: str) -> Instance:
    return scene.make().describe([id])[0]


def test_a_slow_boot(scene: FakeScene) -> None:
    """It runs after half of it, and answers after all of it."""
    [instance] = running(with_faults(scene, "slow-boot=1s"), launched(scene, scene.order()))
    assert time.time() >= instance.created + 0.5
    wait_for(lambda: reached(scene, instance), 10, "it answers in the end").close()
    assert time.time() >= instance.created + 1


def test_a_slow_boot_has_no_address_at_first(local: FakeScene) -> None:
    [id] = launched(with_faults(local, "slow-boot=10m"), local.order())
    assert (described(local, id).state, described(local, id).host) == (InstanceState.PENDING, None)


def test_one_never_boots(scene: FakeScene) -> None:
    """The first of a session; a replacement does."""
    with_faults(scene, "never-boots=1")
    order = scene.order()
    [bad] = running(scene, launched(scene, order))
    [good] = scene.make().launch(scene.order(session=order.tags.session)).instances
    [better] = running(scene, [good.id])
    wait_for(lambda: reached(scene, better), 10, "the second one answers").close()
    assert reached(scene, bad) is None
    [again] = running(scene, launched(scene, scene.order()))
    assert reached(scene, again) is None, "another session has a first one as well"


def test_one_boots_then_dies(scene: FakeScene) -> None:
    """With all that ran there, though nobody asks the provider."""
    instance = one_running(with_faults(scene, "boots-then-dies=1@2s"))
    connection = wait_for(lambda: reached(scene, instance), 10, "it answers")
    channel = connection.open("setsid sleep 100 & exec sleep 100")
    wait_for(lambda: not marked(scene), 10, "all that ran there is ended")
    assert time.time() >= instance.created + 2
    channel.close()
    connection.close()
    gone(scene, [instance.id])
    assert scene.make().find() == []
    assert reached(scene, instance) is None


def test_a_reclaim_is_announced(scene: FakeScene) -> None:
    instance = one_running(with_faults(scene, "reclaim=1@1s,reclaim-notice=1.5s"))
    assert instance.reclaimed == ""
    noticed = wait_for(lambda: found if (found := described(scene, instance.id)).reclaimed else None, 5, "it is announced")
    assert noticed.state is InstanceState.RUNNING
    gone(scene, [instance.id])
    assert described(scene, instance.id).reclaimed
    assert time.time() >= instance.created + 2.5


def test_a_lost_answer_is_lost_once(local: FakeScene) -> None:
    """The machines are there all the same."""
    order = with_faults(local, "lost-answer=1").order(3)
    with pytest.raises(ProviderBusyError, match="fake: no answer to launch"):
        local.make().launch(order)
    assert len(local.make().find(order.tags.session)) == 3
    assert len(local.make().launch(order).instances) == 3


def test_a_forgetful_provider_makes_it_twice(local: FakeScene) -> None:
    """Asked again before what it made is in its answers: why one waits ``settles`` seconds."""
    local.values |= {"fake_forgetful": True, "fake_settles": 2.0, "fake_faults": "lost-answer=1"}
    order = local.order()
    provider = local.make()
    assert (provider.abilities.idempotent, provider.abilities.settles) == (False, 2.0)
    with pytest.raises(ProviderBusyError):
        provider.launch(order)
    provider.launch(order)
    wait_for(lambda: len(local.make().find(order.tags.session)) == 2, 5, "there are two")
    assert len(local.make().launch(order).instances) == 2


def test_what_is_new_is_absent(local: FakeScene) -> None:
    """It cannot be destroyed either, as at EC2."""
    local.values |= {"fake_settles": 2.0}
    order = local.order()
    [instance] = local.make().launch(order).instances
    assert state_of(local, instance.id) is InstanceState.ABSENT
    assert local.make().find(order.tags.session) == []
    local.make().destroy([instance.id])
    assert ids_of(local.make().launch(order)) == [instance.id], "but its token is known"
    running(local, [instance.id])


def test_a_destruction_is_ignored_once(scene: FakeScene) -> None:
    instance = one_running(with_faults(scene, "destroy-ignored=1"))
    scene.make().destroy([instance.id])
    assert state_of(scene, instance.id) is InstanceState.RUNNING
    scene.make().destroy([instance.id])
    gone(scene, [instance.id])


def test_a_slow_destruction(local: FakeScene) -> None:
    order = with_faults(local, "slow-destroy=10m").order()
    ids = launched(local, order)
    local.make().destroy(ids)
    assert state_of(local, ids[0]) is InstanceState.LEAVING
    assert [each.state for each in local.make().find(order.tags.session)] == [InstanceState.LEAVING]
    assert not marked(local)
    gone(with_faults(local, "slow-destroy=0.1s"), ids)
    assert local.make().find(order.tags.session) == []


def test_a_refusal_names_its_word(local: FakeScene) -> None:
    with pytest.raises(ProviderRefusedError, match=r"^fake: quota$"):
        with_faults(local, "refuse=quota").make().launch(local.order())


def test_capacity_is_for_all(local: FakeScene) -> None:
    local.values |= {"fake_capacity": 3}
    order = local.order(2)
    ids = launched(local, order)
    some = local.make().launch(local.order(2))
    assert len(some.instances) == 1
    assert "3" in some.refusal and some.certain
    with pytest.raises(ProviderRefusedError, match="no machine more than 3"):
        local.make().launch(local.order())
    assert sorted(ids_of(local.make().launch(order))) == ids, "an order that was filled stays so"
    local.make().destroy(ids)
    gone(local, ids)
    launched(local, local.order(2))


def test_a_slow_api(local: FakeScene) -> None:
    began = time.monotonic()
    with_faults(local, "slow-api=0.2s").make().find()
    assert time.monotonic() - began >= 0.2


def outcomes(root: Path, faults: str) -> str:
    """Of 60 calls, from objects of their own: + for an answer, - for none."""
    scene = FakeScene(root, fake_kind="local", fake_faults=faults)
    said = ""
    for _ in range(60):
        try:
            scene.make().find()
            said += "+"
        except ProviderBusyError:
            said += "-"
    return said


def test_the_dice_follow_the_seed(tmp_path: Path) -> None:
    """Across objects and processes, as the state knows how often they were thrown."""
    folders = [tmp_path / name for name in "abcd"]
    for folder in folders:
        folder.mkdir()
    first, again = (outcomes(folder, "api-500=30%,seed=7") for folder in folders[:2])
    other, throttled = outcomes(folders[2], "api-500=30%,seed=8"), outcomes(folders[3], "throttle=10%")
    assert first == again != other
    assert 8 <= first.count("-") <= 32
    assert 1 <= throttled.count("-") <= 16


def test_half_of_the_errors_come_afterwards(local: FakeScene) -> None:
    """The machines were made, or not."""
    with_faults(local, "api-500=100%")
    made = []
    for _ in range(16):
        order = local.order()
        with pytest.raises(ProviderBusyError, match="HTTP 500"):
            local.make().launch(order)
        made.append(len(local.with_values(fake_faults=None).find(order.tags.session)))
    assert 3 <= sum(made) <= 13
    assert {*made} == {0, 1}


def test_a_throttled_call_does_nothing(local: FakeScene) -> None:
    with_faults(local, "throttle=100%")
    for _ in range(8):
        with pytest.raises(ProviderBusyError, match="RequestLimitExceeded"):
            local.make().launch(local.order())
    assert local.with_values(fake_faults=None).find() == []


def test_a_run_of_trouble_ends_with_nothing(local: FakeScene) -> None:
    """Whoever asks again until it is done is heard."""
    with_faults(local, "api-500=20%,throttle=20%,lost-answer=2,destroy-ignored=2,boots-then-dies=30%@0.1s,seed=5")
    order = local.order(6)
    answer = wait_for(lambda: tried(lambda: local.make().launch(order)), 10, "it is launched")
    assert len(answer.instances) == 6

    def destroyed() -> bool:
        left = local.make().find(order.tags.session)
        local.make().destroy(ids_of(left))
        return not left

    wait_for(lambda: tried(destroyed), 10, "nothing is left")
    assert not marked(local)


def tried(call: Callable[[], T]) -> T | None:
    try:
        return call()
    except ProviderBusyError:
        return None


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("", Faults()),
        ("slow-boot=30s", Faults(slow_boot=30.0)),
        ("never-boots=1, seed=7", Faults(never_boots=Share(count=1), seed=7)),
        ("boots-then-dies=2@5m,api-500=10%", Faults(boots_then_dies=Share(count=2, after=300.0), api_500=Share(percent=10.0))),
        ("reclaim=2.5%@1s,", Faults(reclaim=Share(percent=2.5, after=1.0))),
        ("refuse=quota", Faults(refuse="quota")),
    ],
)
def test_faults_are_read(text: str, faults: Faults) -> None:
    assert parse_faults(text) == faults


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slow-boots=3s", "there is no fault 'slow-boots'; there are slow-boot, "),
        ("slow-boot", "not a duration"),
        ("slow-boot=fast", "'fast' is not a duration"),
        ("never-boots=some", "not an amount"),
        ("never-boots=1@3s", "not an amount"),
        ("boots-then-dies=1@", "not a duration"),
        ("api-500=3", "not a percentage"),
        ("api-500=101%", "not a percentage"),
        ("refuse=no way", "not a word"),
        ("seed=x", "not a number"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, words: str) -> None:
    [row] = [row for row in ROWS if row.name == "fake_faults"]
    with pytest.raises(ValueError, match=words):
        row.parse(text, Place(folder="/", environ={}))
    with pytest.raises(UsageError, match="fake-faults"):
        FakeProvider(settings_with(fake_faults=text, fake_kind="local"))
