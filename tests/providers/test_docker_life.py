"""The life of the docker provider's containers, against a real engine: lost answers, ends, ssh, and images that have to be pulled."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cloudtask import transports
from cloudtask.errors import ConnectError, HostKeyError, ProviderBusyError, ProviderRefusedError
from cloudtask.model import Address
from cloudtask.providers.base import InstanceState, Launched, Order, Provider
from cloudtask.providers.docker import DockerProvider
from cloudtask.providers.docker_containers import engine_mark, instance_id, name_of
from cloudtask.providers.timer import timer_script
from cloudtask.transports import ConnectOptions
from tests.providers.contract import ProviderContract, found_of, ids_of, login_key, running, settings_with, wait_for
from tests.providers.docker_engine import BUSYBOX, DEBIAN, Engine, busybox_root
from tests.providers.docker_registry import Registry
from tests.providers.docker_scene import DockerScene, SshScene, details, launch, says

pytestmark = pytest.mark.timeout(180)

LOST_ANSWERS = (rb"POST \S*/containers/create", rb"GET \S*/containers/\S*/json", rb"POST \S*/start\b", rb"GET \S*/containers/json")


@pytest.fixture
def scene(docker: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DockerScene]:
    scene = DockerScene(docker, tmp_path, monkeypatch)
    yield scene
    scene.clean()


# --- the life of a container -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", LOST_ANSWERS)
def test_whatever_answer_is_lost_the_order_is_made_once(scene: DockerScene, lost: bytes) -> None:
    order = scene.order(3)
    proxy = scene.proxy()
    proxy.lose(lost)
    with pytest.raises(ProviderBusyError):
        scene.make().launch(order)
    assert proxy.lost.wait(5)
    ids = ids_of(scene.make().launch(order))
    assert len(set(ids)) == 3
    assert sorted(found_of(scene, order)) == sorted(ids)
    running(scene, ids)


def test_a_name_that_is_taken_is_not_taken_over(scene: DockerScene) -> None:
    order = scene.order()
    taken = scene.engine.client.create_container(BUSYBOX, ["true"], name=name_of(order.token, 0), labels={"cloudtask-test": "1"})
    with pytest.raises(ProviderRefusedError, match="not of this order"):
        scene.make().launch(order)
    assert scene.engine.client.inspect_container(taken["Id"])["State"]["Status"] == "created"


def test_part_of_an_order_is_what_there_is(scene: DockerScene) -> None:
    order = scene.order(2)
    scene.engine.client.create_container(BUSYBOX, ["true"], name=name_of(order.token, 1), labels={"cloudtask-test": "1"})
    answer = scene.make().launch(order)
    assert len(answer.instances) == 1 and answer.certain and "not of this order" in answer.refusal


def test_a_container_that_has_ended_stands_still_until_it_is_destroyed(scene: DockerScene) -> None:
    instance = launch(scene)
    scene.engine.client.kill(instance.id.partition(".")[0])
    [found] = scene.make().describe([instance.id])
    assert (found.state, found.host) == (InstanceState.STOPPED, None)
    assert "Exited (137)" in found.note
    assert ids_of(scene.make().find(found.tags.session if found.tags else "")) == [instance.id]
    scene.make().destroy([instance.id])
    assert scene.make().describe([instance.id])[0].state is InstanceState.ABSENT


def test_a_container_that_is_paused_still_runs(scene: DockerScene) -> None:
    instance = launch(scene)
    scene.engine.client.pause(instance.id.partition(".")[0])
    [found] = scene.make().describe([instance.id])
    assert found.state is InstanceState.RUNNING and "Paused" in found.note


@pytest.mark.slow
@pytest.mark.parametrize("image", [BUSYBOX, DEBIAN])
def test_the_timer_ends_a_container_that_nobody_uses(scene: DockerScene, docker_debian: Engine, image: str) -> None:
    timer = timer_script(1, 1, grace=1, pause=1, patience=1)
    instance = launch(scene, dataclasses.replace(scene.order(), timer=timer), docker_image=image)
    wait_for(lambda: scene.make().describe([instance.id])[0].state is InstanceState.STOPPED, 30, "it ends itself")
    assert details(scene, instance)["State"]["ExitCode"] == 0


def test_another_engine_knows_nothing_of_ours(scene: DockerScene) -> None:
    """It would say that the container is gone."""
    instance = launch(scene)
    container, _, mark = instance.id.partition(".")
    elsewhere = instance_id(container, engine_mark(f"not {mark}"))
    for call in (scene.make().describe, scene.make().destroy):
        with pytest.raises(ProviderBusyError, match="another engine"):
            call([elsewhere, instance.id] if call.__name__ == "destroy" else [elsewhere])
    assert scene.make().describe([instance.id])[0].state is InstanceState.ABSENT


def test_a_stopped_engine_is_asked_again_and_answers(scene: DockerScene) -> None:
    """The object outlives it."""
    instance = launch(scene)
    proxy = scene.proxy()
    provider = scene.make()
    assert provider.describe([instance.id])[0].exists
    proxy.lose(rb"GET \S*/containers/json")
    with pytest.raises(ProviderBusyError):
        provider.describe([instance.id])
    assert provider.describe([instance.id])[0].exists


def test_many_are_made_and_destroyed_in_one_call(scene: DockerScene) -> None:
    order = scene.order(12)
    answer = scene.make().launch(order)
    assert len(answer.instances) == 12
    scene.make().destroy(ids_of(answer))
    wait_for(lambda: not found_of(scene, order), scene.boot_seconds, "nothing is found")


# --- images that are not here ------------------------------------------------------------------------------------------------


def test_an_image_that_is_not_here_is_pulled_once(scene: DockerScene) -> None:
    with Registry(busybox_root()) as registry:
        image = f"{registry.place}/cloudtask-test/pulled:1"
        instance = launch(scene, docker_image=image)
        assert says(instance, "echo here") == "here\n"
        pulls = registry.manifests
        launch(scene, docker_image=image)
        assert registry.manifests == pulls
    scene.clean()
    scene.engine.client.remove_image(image)


def test_an_image_that_takes_its_time_is_waited_for_by_the_next_call(scene: DockerScene) -> None:
    with Registry(busybox_root()) as registry:
        registry.hold()
        image = f"{registry.place}/cloudtask-test/slow:1"
        provider, order = DockerProvider(settings_with(docker_image=image), patience=0.2), scene.order()
        for _ in range(2):
            with pytest.raises(ProviderBusyError, match="still being pulled"):
                provider.launch(order)
        registry.let_go()
        answer = wait_for(partial(unless_busy, provider, order), 30, "it is there")
        assert len(answer.instances) == 1
    scene.clean()
    scene.engine.client.remove_image(image)


def unless_busy(provider: Provider, order: Order) -> Launched | None:
    try:
        return provider.launch(order)
    except ProviderBusyError:
        return None


# --- by ssh --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ssh_scene(docker_debian: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SshScene]:
    scene = SshScene(docker_debian, tmp_path, monkeypatch)
    yield scene
    scene.clean()


@pytest.mark.slow
def test_by_ssh_the_host_key_is_the_orders(ssh_scene: SshScene, tmp_path: Path) -> None:
    contract = ProviderContract()
    contract.test_offers_something(ssh_scene)
    contract.test_runs_and_can_be_reached(ssh_scene, tmp_path)
    contract.test_find_knows_what_it_finds(ssh_scene)


@pytest.mark.slow
def test_by_ssh_a_lost_answer_leaves_no_container_without_keys(ssh_scene: SshScene, tmp_path: Path) -> None:
    order = ssh_scene.order()
    ssh_scene.proxy().lose(rb"POST \S*/containers/create")
    with pytest.raises(ProviderBusyError):
        ssh_scene.make().launch(order)
    [found] = found_of(ssh_scene, order).values()
    assert (found.state, found.host) == (InstanceState.PENDING, None)
    [instance] = running(ssh_scene, ids_of(ssh_scene.make().launch(order)))
    address = Address(host=instance.host or "", port=instance.port, user=instance.user, alias="a", host_key=login_key().public)
    key = tmp_path / "key"
    key.write_text(login_key().private)
    key.chmod(0o600)
    options = ConnectOptions(session_key=str(key), identity=str(key), ssh_config="none", known_hosts=str(tmp_path / "known"), timeout=10.0)
    wait_for(partial(is_reached, dataclasses.replace(address, host_key=order.host_key), options), 20, "it can be logged in to")
    with pytest.raises(HostKeyError):
        transports.find("ssh").connect(address, options)


def is_reached(address: Address, options: ConnectOptions) -> bool:
    try:
        transports.find("ssh").connect(address, options).close()
    except ConnectError:
        return False
    return True


@pytest.mark.slow
def test_by_ssh_an_image_without_sshd_is_named_so(scene: DockerScene) -> None:
    [instance] = scene.make(docker_ssh=True).launch(scene.order()).instances
    wait_for(lambda: "no sshd in this image" in scene.make().describe([instance.id])[0].note, 20, "it says why")
