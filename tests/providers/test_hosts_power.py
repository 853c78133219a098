"""Each way to start and stop a host, against the real thing or a server that speaks as it does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import docker as docker_sdk
import pytest

from cloudtask.errors import ProviderBusyError, ProviderError, ProviderRefusedError
from cloudtask.providers import hosts_claims
from cloudtask.providers.base import InstanceState
from cloudtask.providers.hosts_power import KINDS, Power, Standing, Switch, looked, power_of
from tests.providers.contract import wait_for
from tests.providers.docker_engine import BUSYBOX, LABEL, Engine
from tests.providers.hosts_place import PATIENCE, Place, make_place
from tests.providers.libvirt_daemon import LibvirtDaemon, container_xml, make_root, running_daemon
from tests.providers.servers.cloud import Answer, Call, Fault
from tests.providers.servers.linode import TOKEN, LinodeServer
from tests.sshd import free_port
from tests.stage.ec2_server import SECRET_KEY, Ec2Server

RUNNING, STOPPED = InstanceState.RUNNING, InstanceState.STOPPED


class Machine:
    """One real thing that is started and stopped: its entry in an inventory, and how its owner sees it."""

    power: dict[str, Any]
    address: str | None = None

    def is_on(self) -> bool:
        """It runs, or is on its way."""
        raise NotImplementedError

    def turn_on(self) -> None:
        """As its owner does."""
        raise NotImplementedError

    def entry(self, **changes: Any) -> dict[str, Any]:
        """With other options of its power."""
        [(kind, options)] = self.power.items()
        place = {"address": self.address} if self.address else {}
        return {"name": "m", **place, "power": {kind: {**options, **changes}}}

    def switch(self, **changes: Any) -> Power:
        """Its power, with other options."""
        [(kind, options)] = self.power.items()
        return power_of(kind, Switch("m", {**KINDS[kind].defaults, **options, **changes}, self.address))


class Container(Machine):
    """A real container."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.client = docker_sdk.APIClient(base_url=engine.host)
        host_config = self.client.create_host_config(init=True)
        self.client.create_container(BUSYBOX, ["/bin/sleep", "3600"], name=name, labels={LABEL: "1"}, host_config=host_config)
        self.name = name
        self.power = {"docker": {"container": name, "host": engine.host}}

    def is_on(self) -> bool:
        return bool(self.client.inspect_container(self.name)["State"]["Running"])

    def turn_on(self) -> None:
        self.client.start(self.name)


class Domain(Machine):
    """A domain of a real libvirtd."""

    address = "127.0.0.1"

    def __init__(self, daemon: LibvirtDaemon, driver: str, path: str, name: str, xml: str = "") -> None:
        self.connection = daemon.open(driver, path)
        self.domain = self.connection.defineXML(xml) if xml else self.connection.lookupByName(name)
        if self.domain.isActive():
            self.domain.destroy()
        self.power = {"libvirt": {"uri": daemon.uri(driver, path), "domain": name}}

    def is_on(self) -> bool:
        return bool(self.domain.isActive())

    def turn_on(self) -> None:
        self.domain.create()


class Ec2Machine(Machine):
    """An instance of moto's EC2."""

    def __init__(self) -> None:
        self.client = boto3.client("ec2", region_name="eu-west-1")
        made = self.client.run_instances(ImageId="ami-00000000000000001", MinCount=1, MaxCount=1)
        self.id = made["Instances"][0]["InstanceId"]
        self.client.stop_instances(InstanceIds=[self.id])
        self.power = {"ec2": {"id": self.id, "region": "eu-west-1"}}

    def is_on(self) -> bool:
        return self.shown()["State"]["Name"] in ("pending", "running")

    def shown(self) -> Any:
        """What the API says of it."""
        answer = self.client.describe_instances(Filters=[{"Name": "instance-id", "Values": [self.id]}])
        return answer["Reservations"][0]["Instances"][0]

    def turn_on(self) -> None:
        self.client.start_instances(InstanceIds=[self.id])


class PoweredLinodes(LinodeServer):
    """Linodes that are booted and shut down, which takes ``lasts`` seconds each."""

    lasts = 0.2

    def answer(self, call: Call) -> Answer:
        parts = call.path.removeprefix("/v4/").split("/")
        if call.method == "POST" and parts[-1] in ("boot", "shutdown") and call.headers.get("authorization") == f"Bearer {TOKEN}":
            machine = self.machines[parts[2]]
            states = ("booting", "running") if parts[-1] == "boot" else ("shutting_down", "offline")
            if machine.fields.get("change", ("", "", "offline"))[2] != states[1]:
                machine.fields["change"] = (time.monotonic() + self.lasts, *states)
            return Answer(200, {})
        for machine in self.machines.values():
            until, before, after = machine.fields.get("change") or (0.0, "", machine.wrong)
            machine.wrong = before if time.monotonic() < until else after
        return super().answer(call)


class LinodeMachine(Machine):
    """A Linode of the server's."""

    def __init__(self, server: PoweredLinodes) -> None:
        self.server = server
        self.machine = server.add("mine", {"tags": []})
        self.machine.wrong = "offline"
        self.power = {"linode": {"id": int(self.machine.id), "url": f"{server.url}/v4"}}

    def is_on(self) -> bool:
        return "running" in self.machine.fields.get("change", ())

    def turn_on(self) -> None:
        self.machine.fields["change"] = (0.0, "running", "running")


@pytest.fixture
def place(tmp_path: Path, private_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(hosts_claims, "AGAIN", 1.0)  # an init that is just starting hears no signal yet
    with make_place(tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def daemon() -> Iterator[LibvirtDaemon]:
    with running_daemon() as found:
        yield found


@pytest.fixture
def server() -> Iterator[PoweredLinodes]:
    with PoweredLinodes() as found:
        yield found


@pytest.fixture
def linode(server: PoweredLinodes, monkeypatch: pytest.MonkeyPatch) -> LinodeMachine:
    monkeypatch.setenv("LINODE_TOKEN", TOKEN)
    return LinodeMachine(server)


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ec2Server]:
    with Ec2Server() as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"):
            monkeypatch.delenv(name, raising=False)
        yield found


@pytest.fixture
def ec2(aws: Ec2Server) -> Ec2Machine:
    return Ec2Machine()


@pytest.fixture
def container(docker: Engine) -> Iterator[Container]:
    found = Container(docker, f"cloudtask-host-{time.monotonic_ns()}")
    yield found
    found.client.close()


@pytest.fixture
def mock_domain(daemon: LibvirtDaemon) -> Iterator[Domain]:
    domain = Domain(daemon, "test", "default", "test")
    yield domain
    domain.connection.close()


@pytest.fixture
def lxc_domain(daemon: LibvirtDaemon, tmp_path: Path) -> Iterator[Domain]:
    root = make_root(tmp_path / "roots")
    init = "<init>/bin/sh</init><initarg>-c</initarg><initarg>trap 'exit 0' TERM; while :; do sleep 0.1; done</initarg>"
    domain = Domain(daemon, "lxc", "system", "mine", container_xml(root, "mine", port=str(free_port()), init=init))
    yield domain
    if domain.is_on():
        domain.domain.destroy()
    domain.domain.undefine()
    domain.connection.close()


@pytest.fixture(params=["container", "ec2", "linode", "mock_domain", "lxc_domain"])
def machine(request: pytest.FixtureRequest) -> Machine:
    """Each of them, off."""
    found: Machine = request.getfixturevalue(request.param)
    return found


# --- all of them -----------------------------------------------------------------------------------------------------


def seen(power: Power, state: InstanceState) -> Standing:
    """Waits until it stands so."""
    found: list[Standing] = []

    def stands() -> bool:
        found.append(looked(power))
        return found[-1].state is state

    wait_for(stands, PATIENCE, f"it is {state.value}")
    return found[-1]


def test_a_host_is_started_and_stopped(place: Place, machine: Machine) -> None:
    """By the provider, from the claim to the end."""
    place.write([machine.entry()])
    [instance] = place.run(place.order())
    assert machine.is_on() and instance.host
    place.release([instance.id])
    assert not machine.is_on()
    assert place.records() == []


def test_a_host_that_runs_is_left_running(place: Place, machine: Machine) -> None:
    machine.turn_on()
    seen(machine.switch(), RUNNING)
    place.write([machine.entry()])
    [instance] = place.run(place.order())
    place.release([instance.id])
    assert machine.is_on()


def test_each_verb_can_be_repeated(machine: Machine) -> None:
    power = machine.switch()
    assert seen(power, STOPPED).state is STOPPED
    power.stop(0.0)
    power.start()
    seen(power, RUNNING)
    with contextlib.suppress(ProviderError):
        power.start()
    seen(power, RUNNING)

    def stopped() -> bool:
        power.stop(0.0)
        return looked(power).state is STOPPED

    wait_for(stopped, PATIENCE, "it is stopped")
    power.stop(1.0)


MISSING: dict[str, dict[str, Any]] = {
    "container": {"container": "no-such-one"},
    "ec2": {"id": "i-0123456789abcdef0"},
    "linode": {"id": 4},
    "mock_domain": {"domain": "no-such-one"},
    "lxc_domain": {"domain": "no-such-one"},
}


@pytest.mark.parametrize("name", ["container", "ec2", "linode", "mock_domain"])
def test_a_host_that_is_not_there_is_refused(place: Place, name: str, request: pytest.FixtureRequest) -> None:
    machine: Machine = request.getfixturevalue(name)
    assert looked(machine.switch(**MISSING[name])).state is InstanceState.ABSENT
    place.write([machine.entry(**MISSING[name])])
    with pytest.raises(ProviderRefusedError, match="m failed: it is not there: no "):
        place.provider().launch(place.order())
    assert not machine.is_on()


NOWHERE: dict[str, dict[str, Any]] = {
    "container": {"host": "unix:///nowhere/docker.sock"},
    "linode": {"url": "http://127.0.0.1:9/v4"},
    "mock_domain": {"uri": "test+unix:///default?socket=/nowhere/socket"},
}


@pytest.mark.parametrize("name", [*NOWHERE, "ec2"])
def test_nobody_there_is_no_answer(name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    machine: Machine = request.getfixturevalue(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    power = machine.switch(**NOWHERE.get(name, {}))
    for call in (power.look, power.start, lambda: power.stop(0.0)):
        with pytest.raises(ProviderBusyError) as caught:
            call()
        message = str(caught.value)
        assert message.startswith("hosts: m: ") and message.isprintable() and SECRET_KEY not in message and TOKEN not in message


def test_trouble_on_the_way_leaves_a_claim_as_it_is(place: Place, linode: LinodeMachine, server: PoweredLinodes) -> None:
    """The API fails for a while: the host is started later, used, not lost by one bad answer, and stopped in the end."""
    place.write([linode.entry()])
    server.always = Fault(status=500, body="oops")
    [instance] = place.provider().launch(place.order()).instances
    assert instance.state is InstanceState.PENDING and "linode: HTTP 500" in instance.note
    server.always = None
    place.running([instance.id])
    server.always = Fault(status=503, body="busy")
    [found] = place.provider().describe([instance.id])
    assert found.state is RUNNING and "linode: HTTP 503" in found.note
    place.provider().destroy([instance.id])
    [left] = place.provider().describe([instance.id])
    assert left.state is InstanceState.LEAVING and linode.is_on()
    server.always = None
    wait_for(lambda: not place.exists([instance.id]), 2 * PATIENCE, "it is stopped")
    assert not linode.is_on()


# --- one of them -----------------------------------------------------------------------------------------------------


def test_a_paused_domain_is_resumed_and_not_ours(place: Place, mock_domain: Domain) -> None:
    mock_domain.turn_on()
    mock_domain.domain.suspend()
    place.write([mock_domain.entry()])
    [instance] = place.run(place.order())
    place.release([instance.id])
    assert mock_domain.is_on()


def test_a_paused_container_is_resumed_and_not_ours(place: Place, container: Container) -> None:
    container.turn_on()
    container.client.pause(container.name)
    place.write([container.entry()])
    [instance] = place.run(place.order())
    place.release([instance.id])
    assert container.is_on()


def test_a_domain_that_ignores_its_shutdown_loses_its_power(daemon: LibvirtDaemon, tmp_path: Path) -> None:
    root = make_root(tmp_path / "roots")
    init = "<init>/bin/sh</init><initarg>-c</initarg><initarg>trap '' TERM; while :; do sleep 1; done</initarg>"
    deaf = Domain(daemon, "lxc", "system", "deaf", container_xml(root, "deaf", port="1", init=init))
    try:
        power = deaf.switch(force_after=5.0)
        power.start()
        seen(power, RUNNING)
        power.stop(4.9)
        assert deaf.is_on()
        power.stop(5.0)
        seen(power, STOPPED)
    finally:
        if deaf.is_on():
            deaf.domain.destroy()
        deaf.domain.undefine()
        deaf.connection.close()


def test_a_container_tells_its_address(docker: Engine) -> None:
    client = docker_sdk.APIClient(base_url=docker.host)
    host_config = client.create_host_config(init=True)
    made = client.create_container(BUSYBOX, ["/bin/sleep", "3600"], labels={LABEL: "1"}, host_config=host_config)
    power = power_of("docker", Switch("m", {"container": made["Id"]}))
    assert looked(power).address is None
    power.start()
    address = seen(power, RUNNING).address
    assert address and address in str(client.inspect_container(made["Id"])["NetworkSettings"])
    client.close()


def test_an_instance_has_a_new_address_each_time(place: Place, ec2: Ec2Machine) -> None:
    place.write([ec2.entry()])
    [instance] = place.run(place.order())
    assert instance.host == ec2.shown()["PublicIpAddress"]
    place.release([instance.id])
    ec2.client.terminate_instances(InstanceIds=[ec2.id])
    with pytest.raises(ProviderRefusedError, match="it is not there: terminated"):
        place.provider().launch(place.order())


def test_refusals_of_amazon(aws: Ec2Server, ec2: Ec2Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProviderRefusedError, match="hosts: m: ec2: "):
        ec2.switch(profile="no-such-profile").look()
    with pytest.raises(ProviderRefusedError, match=r"hosts: m: ec2: .*region"):
        ec2.switch(region=None).look()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(ProviderRefusedError, match=r"[Cc]redentials"):
        ec2.switch().look()


def test_tokens_of_linode(linode: LinodeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LINODE_TOKEN")
    with pytest.raises(ProviderRefusedError, match="there is no token: set LINODE_TOKEN, or the key token_file"):
        linode.switch().look()
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert linode.switch(token_file=str(file)).look().state is STOPPED
    monkeypatch.setenv("LINODE_CLI_TOKEN", "another-one")
    with pytest.raises(ProviderRefusedError, match="HTTP 401: Invalid Token"):
        linode.switch().look()
    with pytest.raises(ProviderRefusedError, match="nowhere cannot be read: No such file"):
        linode.switch(token_file="/nowhere").look()


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=200, body="<html>"),
        Fault(status=200, body="[]"),
        Fault(status=200, body='{"status": 5}'),
        Fault(status=200, body="[" * 100_000),
        Fault(status=429, body='{"errors": [{"reason": "Too many requests"}]}'),
        Fault(status=400, body='{"errors": []}'),
        Fault(status=301, headers={"Location": "http://127.0.0.1:9/"}),
        Fault(status=0),
    ],
)
def test_what_linode_may_never_say(linode: LinodeMachine, server: PoweredLinodes, fault: Fault) -> None:
    server.always = fault
    with pytest.raises(ProviderBusyError) as caught:
        linode.switch().look()
    assert str(caught.value).isprintable()


def test_an_address_that_is_none_is_nobodys(linode: LinodeMachine) -> None:
    linode.machine.address = "-oProxyCommand=reboot"
    standing = looked(linode.switch())
    assert standing.address is None and "not an address" in standing.note
