"""The docker provider, against a real engine."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudtask import kinds
from cloudtask.errors import ProviderRefusedError, UsageError
from cloudtask.providers import settings_table
from cloudtask.providers.base import InstanceState
from cloudtask.providers.docker import DockerProvider
from tests.providers.contract import ProviderContract, settings_with, wait_for
from tests.providers.docker_engine import BUSYBOX, Engine
from tests.providers.docker_scene import DockerScene, details, launch, says

pytestmark = pytest.mark.timeout(180)

SHELLLESS = "cloudtask-test/shellless:1"


@pytest.fixture
def scene(docker: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DockerScene]:
    scene = DockerScene(docker, tmp_path, monkeypatch)
    yield scene
    scene.clean()


class TestContract(ProviderContract):
    """By exec, in an image without python3 and sshd."""


# --- settings ------------------------------------------------------------------------------------------------------------


def value(name: str, raw: object) -> Any:
    """What the row makes of a raw value."""
    row = settings_table().find(name)
    assert row
    return row.parse(raw, kinds.Scene(folder="/here", environ={}))


def test_settings_are_read() -> None:
    assert value("docker_cpus", "0.5") == 0.5
    assert value("docker_memory", "64M") == 64 << 20
    assert value("docker_volume", ["/a:/b", "./data:/data:ro", "cache:/cache:rw"]) == ("/a:/b", "/here/data:/data:ro", "cache:/cache")
    assert value("docker_volume", "~/a:/b") == (f"{os.path.expanduser('~')}/a:/b",)


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("docker_cpus", "0"),
        ("docker_cpus", "many"),
        ("docker_cpus", True),
        ("docker_volume", "/a"),
        ("docker_volume", "/a:b"),
        ("docker_volume", "a/b:/c"),
        ("docker_volume", "/a:/b:rx"),
        ("docker_volume", 7),
    ],
)
def test_settings_that_cannot_be_are_refused(name: str, raw: object) -> None:
    with pytest.raises(ValueError):
        value(name, raw)


def test_what_does_not_go_together_is_told_at_once() -> None:
    with pytest.raises(UsageError, match="docker-network=none"):
        DockerProvider(settings_with(docker_ssh=True, docker_network="none"))
    with pytest.raises(UsageError, match="needs --docker-image"):
        DockerProvider(settings_with()).offer()


def test_a_missing_sdk_is_named() -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from cloudtask.errors import UsageError\n"
        "from cloudtask.providers.docker import DockerProvider\n"
        "from cloudtask.settings import Settings\n"
        "try: DockerProvider(Settings())\n"
        "except UsageError as error: print(error)\n"
    )
    root = Path(__file__).parent.parent.parent
    # -S: without what is installed.
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script, str(root)], capture_output=True, text=True, check=True)
    assert "pip install 'cloudtask[docker]'" in done.stdout


# --- offers --------------------------------------------------------------------------------------------------------------


def test_an_offer_says_what_it_will_be(scene: DockerScene) -> None:
    offer = scene.make(docker_cpus=0.5, docker_memory=64 << 20, docker_volume=("/tmp:/data:ro",)).offer()
    assert (offer.size, offer.price, offer.transport) == (BUSYBOX, 0.0, "docker")
    rows = {"image": BUSYBOX, "cpus": "0.5", "memory": "64M", "volumes": "/tmp:/data:ro", "engine": scene.engine.host}
    assert offer.rows == rows
    assert "pulled first" in scene.make(docker_image="127.0.0.1:9/none").offer().rows["image"]


def test_an_engine_that_is_not_there_is_told_before_anything_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody")
    with pytest.raises(ProviderRefusedError, match="is dockerd running") as caught:
        DockerProvider(settings_with(docker_image=BUSYBOX)).offer()
    assert str(caught.value).isprintable()


# --- what containers are ---------------------------------------------------------------------------------------------------


def test_limits_reach_the_engine(scene: DockerScene) -> None:
    config = details(scene, launch(scene, docker_cpus=0.5, docker_memory=64 << 20))["HostConfig"]
    assert (config["NanoCpus"], config["Memory"], config["MemorySwap"]) == (500_000_000, 64 << 20, 64 << 20)
    assert config["Init"] is True


def test_volumes_are_mounted(scene: DockerScene, tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "file").write_text("here\n")
    scene.engine.client.create_volume("cloudtask-test-volume")
    instance = launch(scene, docker_volume=(f"{tmp_path}/given:/given:ro", "cloudtask-test-volume:/kept"))
    assert says(instance, "cat /given/file; touch /given/x 2>/dev/null || echo ro; echo kept >/kept/file") == "here\nro\n"
    other = launch(scene, docker_volume=("cloudtask-test-volume:/kept",))
    assert says(other, "cat /kept/file") == "kept\n"
    scene.make().destroy([instance.id, other.id])
    scene.engine.client.remove_volume("cloudtask-test-volume")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"docker_volume": ("/no/such/path:/data",)}, "bind source path does not exist"),
        ({"docker_volume": ("cloudtask-test-none:/data",)}, "docker volume create cloudtask-test-none"),
        ({"docker_network": "container:cloudtask-test-none"}, "cloudtask-test-none"),
        ({"docker_network": "cloudtask-test-none"}, "network cloudtask-test-none not found"),
        ({"docker_cpus": 100_000.0}, "CPUs"),
        ({"docker_image": "127.0.0.1:9/none:1"}, "try docker pull 127.0.0.1:9/none:1"),
        ({"docker_image": None}, "no --docker-image"),
    ],
)
def test_what_the_engine_refuses_leaves_nothing(scene: DockerScene, values: dict[str, object], words: str) -> None:
    order = scene.order(2)
    with pytest.raises(ProviderRefusedError, match=re.escape(words)) as caught:
        scene.make(**values).launch(order)
    assert str(caught.value).isprintable()
    assert not scene.engine.client.containers(all=True, filters={"label": f"cloudtask={order.tags.session}"})


def test_an_image_without_a_shell_is_named_so(scene: DockerScene) -> None:
    if not scene.engine.has(SHELLLESS):
        scene.engine.load(SHELLLESS, root_without_shell())
    [instance] = scene.make(docker_image=SHELLLESS).launch(scene.order()).instances

    def note() -> str:
        [found] = scene.make().describe([instance.id])
        return found.note if found.state is InstanceState.STOPPED else ""

    assert "exec /bin/sh failed: No such file" in wait_for(note, scene.boot_seconds, "it has ended")


def root_without_shell() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("empty"))
    return buffer.getvalue()


def test_jobs_run_as_the_images_user_and_the_timer_as_root(scene: DockerScene) -> None:
    base = scene.engine.run(BUSYBOX)
    scene.engine.client.commit(base, "cloudtask-test/worker", "1", changes=["USER worker", 'ENTRYPOINT ["/bin/false"]', "CMD []"])
    instance = launch(scene, docker_image="cloudtask-test/worker:1")
    assert instance.user == "worker"
    assert says(instance, "id -un; stat -c %u /proc/1") == "worker\n0\n"
    scene.make().destroy([instance.id])
    scene.engine.client.remove_image("cloudtask-test/worker:1")


def test_what_jobs_leave_behind_is_reaped(scene: DockerScene) -> None:
    assert says(launch(scene), "(sleep 0.1 &) & sleep 0.5; cat /proc/[0-9]*/stat | grep -c ') Z '") == "0\n"


def test_anonymous_volumes_go_with_their_container(scene: DockerScene) -> None:
    base = scene.engine.run(BUSYBOX)
    scene.engine.client.commit(base, "cloudtask-test/volume", "1", changes=["VOLUME /data"])
    instance = launch(scene, docker_image="cloudtask-test/volume:1")
    [volume] = [mount["Name"] for mount in details(scene, instance)["Mounts"]]
    scene.make().destroy([instance.id])
    assert volume not in [each["Name"] for each in scene.engine.client.volumes()["Volumes"] or []]
    scene.engine.client.remove_image("cloudtask-test/volume:1")
