"""The ``hosts`` provider with real parts: private sshd's that commands start and stop, several processes, and kills between two steps."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloudtask.errors import ProviderBusyError, ProviderRefusedError
from cloudtask.providers import hosts as hosts_module
from cloudtask.providers import hosts_claims, hosts_store
from cloudtask.providers.base import Instance, InstanceState, Provider
from cloudtask.providers.hosts import HostsProvider
from tests.conftest import MakeSshd
from tests.providers.contract import BaseScene, ProviderContract, ids_of, login_key, wait_for
from tests.providers.hosts_place import PATIENCE, Place, Server, make_place, settings
from tests.sshd import ClientKeys, Sshd, sshd_program


@pytest.fixture
def place(tmp_path: Path, private_home: Path) -> Iterator[Place]:
    with make_place(tmp_path) as found:
        yield found


class HostsScene(BaseScene):
    """Four hosts that are off: two say whether they run, two only answer or do not."""

    boot_seconds = 15.0

    def __init__(self, place: Place, sshds: list[Sshd]) -> None:
        super().__init__()
        self.place = place
        entries = []
        for number, sshd in enumerate(sshds, 1):
            program = f"{sshd_program()} -D -f {shlex.quote(str(sshd.folder / 'sshd_config'))} -E {shlex.quote(str(sshd.log))}"
            server = Server(place.folder, f"h{number}", program, sshd.port)
            place.servers.append(server)
            entry = server.entry(user=sshd.user, slots=number)
            if number % 2:
                del entry["power"]["command"]["status"]
            entries.append(entry)
        place.write(entries)

    def make(self) -> Provider:
        return self.place.provider()

    def bogus_id(self) -> str:
        return "h1.no-such-token"

    def broken(self) -> Iterator[Provider]:
        """A state file that is garbage, a directory that is none, an inventory that cannot be read where one is needed."""
        self.place.state.mkdir(parents=True, exist_ok=True)
        garbage = self.place.state / f"{'a' * 24}.json"
        for text in ("", "{", "[]", '{"format": 2}', '{"format": 1, "key": 5}', "\udcff"):
            garbage.write_bytes(text.encode(errors="surrogateescape"))
            yield self.make()
        garbage.unlink()
        os.environ["XDG_STATE_HOME"] = str(self.place.file)
        try:
            yield self.make()
        finally:
            del os.environ["XDG_STATE_HOME"]

    def refusing(self) -> Provider:
        entry = self.place.servers[0].entry()
        entry["power"]["command"]["start"] = "echo 'no current' >&2; exit 3"
        file = self.place.folder / "refusing.yaml"
        file.write_text(yaml.safe_dump({"hosts": [entry]}))
        return HostsProvider(settings(hosts_file=str(file)))


class TestHosts(ProviderContract):
    """What every provider must do."""

    @pytest.fixture
    def scene(self, place: Place, sshd: MakeSshd) -> Iterator[HostsScene]:
        sshds = [sshd(public_keys=[login_key().public], host_keys=["ed25519"]) for _ in range(4)]
        for each in sshds:
            each.stop()
        scene = HostsScene(place, sshds)
        yield scene
        scene.clean()
        assert not any(server.is_on() for server in place.servers)
        assert not any(record["claim"] or record["left"] or record["started"] for record in place.records())


# --- starting and stopping -------------------------------------------------------------------------------------------


def test_what_is_off_is_started_and_stopped(place: Place) -> None:
    [server] = place.servers_of(1)
    place.write([server.entry(user="me", slots=3)])
    [instance] = place.run(place.order())
    assert server.is_on()
    assert (instance.host, instance.port, instance.user, instance.slots) == ("127.9.0.1", 9, "me", 3)
    place.release([instance.id])
    assert not server.is_on()
    assert server.done() == ["start", "stop"]
    assert place.records() == []


def test_what_ran_already_is_never_stopped(place: Place) -> None:
    [server] = place.servers_of(1)
    place.write([server.entry()])
    server.turn_on()
    [instance] = place.run(place.order())
    place.provider().destroy([instance.id])
    assert place.provider().describe([instance.id])[0].state is InstanceState.ABSENT, "gone at once"
    assert server.is_on() and server.done() == ["start"]
    assert place.records() == []


def test_always_on_is_what_is_not_said(place: Place) -> None:
    place.write(
        [
            {"name": "a", "address": "10.0.0.1"},
            {"name": "b", "address": "10.0.0.2", "power": "always-on"},
            {"name": "c", "address": "local"},
        ]
    )
    instances = place.run(place.order(3))
    assert sorted((each.host or "", each.transport or "") for each in instances) == [
        ("10.0.0.1", ""),
        ("10.0.0.2", ""),
        ("localhost", "local"),
    ]
    place.provider().destroy(ids_of(instances))
    assert place.provider().find() == []


def test_idle_hosts_are_stopped_after_a_while(place: Place) -> None:
    """By whoever looks: here another session's run."""
    [server, other] = place.servers_of(2)
    place.write([server.entry(), other.entry()])
    [instance] = place.run(place.order(session="one"), idle_timeout=1.0)
    place.provider(idle_timeout=1.0).destroy([instance.id])
    [left] = place.provider().find("one")
    assert left.state is InstanceState.LEAVING and left.tags == instance.tags
    assert server.is_on() and server.done() == ["start"]

    def stopped() -> bool:
        place.provider().find("another")
        return not server.is_on()

    wait_for(stopped, PATIENCE, "it is stopped")
    wait_for(lambda: not place.provider().find("one"), PATIENCE, "it is gone")
    assert server.done() == ["start", "stop"] and other.done() == []


def test_idle_hosts_are_used_again(place: Place) -> None:
    """What the first session started is the second one's to stop, and the first is rid of it."""
    [server] = place.servers_of(1)
    place.write([server.entry()])
    [first] = place.run(place.order(session="one"), idle_timeout=60.0)
    place.provider(idle_timeout=60.0).destroy([first.id])
    [second] = place.run(place.order(session="two"))
    assert server.done() == ["start"]
    assert place.provider().describe([first.id])[0].state is InstanceState.ABSENT
    assert place.provider().find("one") == []
    place.provider().destroy([first.id])
    assert place.running([second.id]), "the first one's id does nothing to the second"
    place.release([second.id])
    assert server.done() == ["start", "stop"]


def test_a_host_that_is_being_stopped_can_be_claimed(place: Place) -> None:
    """It is started again when it is off."""
    [server] = place.servers_of(1)
    server.stop_command = f"sleep 0.7; {server.stop_command}"
    place.write([server.entry()])
    [first] = place.run(place.order(session="one"))
    place.provider().destroy([first.id])
    wait_for(lambda: place.records()[0]["stopping"], PATIENCE, "its stop begins")
    order = place.order(session="two")
    [second] = place.provider().launch(order).instances
    assert second.state is InstanceState.PENDING
    place.running([second.id])
    assert server.done() == ["start", "stop", "start"]
    place.release([second.id])
    assert not server.is_on()


def test_what_was_stopped_behind_our_back_is_said(place: Place) -> None:
    [server] = place.servers_of(1)
    place.write([server.entry()])
    [instance] = place.run(place.order())
    server.turn_off()
    [found] = place.provider().describe([instance.id])
    assert found.state is InstanceState.STOPPED
    assert server.done() == ["start", "stop"], "it is not started again"
    place.release([instance.id])


def test_a_host_without_a_stop_command_is_not_ours_to_stop(place: Place) -> None:
    [server] = place.servers_of(1)
    entry = server.entry()
    del entry["power"]["command"]["stop"]
    place.write([entry])
    [instance] = place.run(place.order())
    place.provider().destroy([instance.id])
    assert not place.exists([instance.id])
    assert server.is_on()


def test_a_silent_host_is_started_once_while_it_boots(place: Place) -> None:
    """Without a status command nobody knows a host that boots from one that is off; its stop is asked for all the same."""
    [server] = place.servers_of(1)
    entry = server.entry()
    del entry["power"]["command"]["status"]
    place.write([entry])
    [instance] = place.provider().launch(place.order()).instances
    wait_for(server.is_on, PATIENCE, "it is started")
    for _ in range(5):
        [found] = place.provider().describe([instance.id])
        assert found.state is InstanceState.PENDING
    assert server.done() == ["start"]
    place.release([instance.id])
    assert server.done() == ["start", "stop"] and not server.is_on()


def test_start_up_and_shut_down_commands(place: Place, sshd: MakeSshd, client_keys: ClientKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, here and there, once for all the sessions that use the host before it is idle."""
    monkeypatch.setenv("HOME", str(client_keys.home))
    server = sshd()
    [stand_in] = place.servers_of(1)
    log = place.folder / "events"
    log.touch(mode=0o666)
    log.chmod(0o666)
    place.folder.chmod(0o755)
    for parent in place.folder.parents:
        if parent.name.startswith("pytest-"):
            parent.chmod(0o755)

    def note(word: str) -> str:
        return f"echo {word} >> {log}"

    hooks: dict[str, Any] = {
        "startup_here": [note("up-here-$HOST_NAME-$HOST_PORT"), ["touch", str(place.folder / "touched")]],
        "startup_there": [note("up-there-$USER")],
        "shutdown_there": [note("down-there")],
        "shutdown_here": note("down-here"),
    }
    place.write([stand_in.entry(**hooks) | {"address": "127.0.0.1", "port": server.port, "user": server.user}])
    values = {"ssh_config": str(client_keys.config), "idle_timeout": 60.0}
    [first] = place.run(place.order(session="one"), **values)
    assert (place.folder / "touched").exists()
    place.provider(**values).destroy([first.id])
    [second] = place.run(place.order(session="two"), **values)
    started = ["up-here-h1-" + str(server.port), f"up-there-{server.user}"]
    assert log.read_text().split() == started
    place.release([second.id], **values | {"idle_timeout": 0.0})
    assert log.read_text().split() == [*started, "down-there", "down-here"]
    assert stand_in.done() == ["start", "stop"]


def test_a_host_that_ran_is_tidied_up_and_left_on(place: Place) -> None:
    [server] = place.servers_of(1)
    place.write([server.entry(shutdown_here=[f"echo tidy >>{server.log}"])])
    server.turn_on()
    [instance] = place.run(place.order())
    place.release([instance.id])
    assert server.is_on() and server.done() == ["start", "tidy"]


def test_shut_down_commands_that_fail_stop_nothing(place: Place) -> None:
    """And are not run for ever: the host is stopped."""
    [server] = place.servers_of(1)
    place.write([server.entry(shutdown_here=["exit 1", f"echo second >>{server.log}"], shutdown_there=["true"])])
    [instance] = place.run(place.order())
    place.release([instance.id])
    assert server.done() == ["start", "second", "stop"]


# --- who gets what ---------------------------------------------------------------------------------------------------


def names(found: Iterable[Instance]) -> list[str]:
    """Of hosts, sorted."""
    return sorted(each.id.rpartition(".")[0] for each in found)


@pytest.mark.parametrize(("policy", "expected"), [("sequential", ["a", "b"]), ("smart", ["b", "d"]), ("frugal", ["c", "e"])])
def test_policies(place: Place, policy: str, expected: list[str]) -> None:
    slots = {"a": 4, "b": 16, "c": 1, "d": 8, "e": 2}
    place.write([{"name": name, "address": f"10.0.0.{count}", "slots": count} for name, count in slots.items()])
    assert names(place.provider(policy=policy).launch(place.order(2)).instances) == expected


def test_random_is_any(place: Place) -> None:
    place.write([{"name": f"h{number}", "address": f"10.0.0.{number}"} for number in range(1, 21)])
    seen = set()
    for _ in range(40):
        order = place.order()
        [instance] = place.provider(policy="random").launch(order).instances
        seen.add(instance.id.rpartition(".")[0])
        place.provider().destroy([instance.id])
    assert len(seen) > 5


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        (["big"], ["a", "b"]),
        (["big", "gpu"], ["b"]),
        (["room=b12"], ["c"]),
        (["room"], ["b", "c"]),
        (["gpus"], ["b"]),
        (["gpus=2", "name=b"], ["b"]),
    ],
)
def test_labels_select(place: Place, select: list[str], expected: list[str]) -> None:
    place.write(
        [
            {"name": "a", "address": "10.0.0.1", "labels": ["big"]},
            {"name": "b", "address": "10.0.0.2", "labels": {"big": None, "gpu": "yes-2", "room": "b11"}, "gpus": 2},
            {"name": "c", "address": "10.0.0.3", "labels": ["small", {"room": "b12"}]},
        ]
    )
    assert names(place.provider(select=tuple(select)).launch(place.order(len(expected))).instances) == expected


def test_a_host_is_one_sessions_at_a_time(place: Place) -> None:
    place.write([{"name": name, "address": f"10.0.0.{number}"} for number, name in enumerate("abc", 1)])
    first = place.provider().launch(place.order(2, session="one"))
    second = place.provider().launch(place.order(2, session="two"))
    assert names(first.instances) == ["a", "b"] and names(second.instances) == ["c"]
    assert second.certain
    assert second.refusal.startswith(
        f"hosts: {place.file}: no more of 3 hosts to be had: a is used by session one; b is used by session one"
    )
    with pytest.raises(ProviderRefusedError, match="c is used by session two"):
        place.provider().launch(place.order(session="three"))
    place.provider().destroy(ids_of(first))
    assert names(place.provider().launch(place.order(2, session="three")).instances) == ["a", "b"]


def test_two_inventories_share_a_machine(place: Place) -> None:
    """It is the same whatever it is called there."""
    place.write([{"name": "a", "address": "10.0.0.1"}])
    place.provider().launch(place.order(session="one"))
    place.write([{"name": "other", "address": "10.0.0.1", "slots": 3}])
    with pytest.raises(ProviderRefusedError, match="other is used by session one"):
        place.provider().launch(place.order(session="two"))


def test_a_claim_outlives_the_inventory(place: Place) -> None:
    """What was started is stopped, whatever became of the file."""
    [server] = place.servers_of(1)
    place.write([server.entry()])
    [instance] = place.run(place.order())
    place.file.write_text("hosts: [oops")
    assert ids_of(place.provider().find("session-1")) == [instance.id]
    place.release([instance.id])
    assert not server.is_on()


def test_a_claim_that_nobody_renews_is_nobodys(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    [server] = place.servers_of(1)
    place.write([server.entry()])
    order = place.order(session="one")
    near = dataclasses.replace(order, tags=dataclasses.replace(order.tags, expires=int(time.time()) - 5))
    [instance] = place.run(near)
    assert ids_of(place.provider().find("one")) == [instance.id], "not before an hour has passed"
    monkeypatch.setattr(hosts_claims, "OVERDUE", 1.0)
    wait_for(lambda: not place.provider().find() and not server.is_on(), PATIENCE, "it is let go, and stopped")


def test_renewal_keeps_a_claim(place: Place) -> None:
    place.write([{"name": "a", "address": "10.0.0.1"}])
    order = place.order(session="one")
    [instance] = place.run(order)
    place.provider().renew([instance.id], dataclasses.replace(order.tags, token="another", expires=2_100_000_000))
    [found] = place.provider().find("one")
    assert found.tags == dataclasses.replace(order.tags, expires=2_100_000_000)


def test_an_order_passes_over_what_cannot_be_started(place: Place) -> None:
    broken, good = place.servers_of(2)
    entry = broken.entry()
    entry["power"]["command"]["start"] = f"echo start >>{broken.log}; echo 'fuse\x1b[31m blown' >&2; exit 7"
    place.write([entry, good.entry()])
    answer = place.provider().launch(place.order())
    assert names(answer.instances) == ["h2"] and not answer.refusal
    with pytest.raises(ProviderRefusedError, match=r"h1 failed: h1: .*: exit 7: fuse\\x1b\[31m blown; h2 is used"):
        place.provider().launch(place.order())
    place.release(ids_of(answer))
    [instance] = place.provider().launch(place.order()).instances
    assert names([instance]) == ["h2"], "what failed a while ago comes last"
    assert broken.done() == ["start", "start"]


def test_a_start_up_command_that_fails_gives_the_host_up(place: Place) -> None:
    [server] = place.servers_of(1)
    place.write([server.entry(startup_here=["exit 4"])])
    [instance] = place.provider().launch(place.order()).instances
    wait_for(lambda: not place.exists([instance.id]), PATIENCE, "it is given up, and stopped")
    assert server.done() == ["start", "stop"] and not server.is_on()
    [record] = place.records()
    assert record["trouble"] == "hosts: h1: 'exit ...': exit 4"


def test_a_command_takes_no_longer_than_it_may(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloudtask.providers.hosts_wake.LIMIT", 0.3)
    monkeypatch.setattr("cloudtask.providers.hosts_commands.GRACE", 0.2)
    [server] = place.servers_of(1)
    entry = server.entry()
    entry["power"]["command"]["start"] = "trap '' TERM; sleep 60"
    place.write([entry])
    [instance] = place.provider().launch(place.order()).instances
    assert instance.state is InstanceState.PENDING and "not done in 0.3 s, and ended" in instance.note
    place.release([instance.id])


def test_a_command_dies_with_who_ran_it(place: Place) -> None:
    """And all that it has running in its group: a start must not succeed when nobody expects it any more."""
    [server] = place.servers_of(1)
    gate = place.folder / "gate"
    entry = server.entry()
    entry["power"]["command"]["start"] = (
        f"sh -c 'trap \"\" TERM HUP; touch {gate}; sleep 1; touch {gate}.late' & wait; sleep 1; {server.start_command}"
    )
    place.write([entry])
    process = another_process(place, "one", "tok", stays=1000)
    wait_for(gate.exists, PATIENCE, "it is being started")
    process.kill()
    process.communicate()
    wait_for(lambda: not running_in(place.folder), PATIENCE, "nothing of it runs")
    assert not Path(f"{gate}.late").exists() and server.done() == []


def running_in(folder: Path) -> list[str]:
    """The command lines that name a folder."""
    return subprocess.run(["pgrep", "-af", str(folder)], capture_output=True, text=True, check=False).stdout.splitlines()


# --- several processes, and kills ------------------------------------------------------------------------------------

SCRIPT = """
import sys, time
from tests.providers.hosts_place import HostsProvider, make_order, settings
file, session, token, count = sys.argv[1:5]
provider = HostsProvider(settings(hosts_file=file))
answer = provider.launch(make_order(int(count), token, session))
print(*[each.id for each in answer.instances], flush=True)
time.sleep(float(sys.argv[5]))
"""


RELEASE = """
import sys, time
from tests.providers.hosts_place import HostsProvider, settings
HostsProvider(settings(hosts_file=sys.argv[1])).destroy([sys.argv[2]])
time.sleep(float(sys.argv[5]))
"""

CHURN = """
import sys, time
from tests.providers.hosts_place import HostsProvider, make_order, settings
file, session, token, count = sys.argv[1:5]
for turn in range(1000):
    order = make_order(int(count), f"{token}-{turn}", session)
    provider = HostsProvider(settings(hosts_file=file))
    ids = [each.id for each in provider.launch(order).instances]
    while any(each.state.value != "running" for each in provider.describe(ids)):
        time.sleep(0.01)
    provider.destroy(ids)
    while provider.find(session):
        time.sleep(0.01)
"""


def another_process(
    place: Place, session: str, token: str, count: int = 1, stays: float = 0.0, script: str = SCRIPT
) -> subprocess.Popen[str]:
    """A process that launches, says what it has, and stays."""
    words = [str(place.file), session, token, str(count), str(stays)]
    return subprocess.Popen([sys.executable, "-c", script, *words], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


@pytest.mark.slow
def test_many_processes_share_the_hosts(place: Place) -> None:
    """Six orders of two at once on nine hosts: no host is given twice, none is left over."""
    servers = place.servers_of(9)
    place.write([server.entry() for server in servers])
    processes = [another_process(place, f"s{number}", f"t{number}", 2) for number in range(6)]
    answers = [process.communicate(timeout=50)[0].split() for process in processes]
    claimed = [id.rpartition(".")[0] for answer in answers for id in answer]
    assert sorted(claimed) == sorted(server.name for server in servers)
    ids = [id for answer in answers for id in answer]
    place.running(ids)
    assert all(server.done() == ["start"] for server in servers)
    place.release(ids)
    assert not any(server.is_on() for server in servers)
    assert place.records() == []


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["claim", "announced", "started", "later"])
def test_a_kill_while_starting_leaks_nothing(place: Place, moment: str) -> None:
    """kill -9 after the claim, after the start was announced, after it was done: a new process goes on, and another one cleans up."""
    [server] = place.servers_of(1)
    before, after = place.folder / "before", place.folder / "after"
    gates = {"claim": f"test -e {after} || {{ touch {before}; sleep 1000; }}"}
    entry = server.entry()
    power = entry["power"]["command"]
    if moment == "claim":
        power["status"] = f"{gates['claim']}; {server.runs}"
    elif moment == "announced":
        power["start"] = f"{gates['claim']}; {server.start_command}"
    elif moment == "started":
        power["start"] = f"{server.runs} || {{ {server.start_command}; }}; {gates['claim']}"
    else:
        entry["startup_here"] = [f"{gates['claim']}"]
    place.write([entry])
    process = another_process(place, "one", "tok", stays=1000)
    wait_for(before.exists, PATIENCE, "it is there")
    process.kill()
    process.communicate()
    after.touch()
    [claim] = place.provider().find("one")
    assert claim.id == "h1.tok" and claim.state is InstanceState.PENDING
    again = place.provider().launch(place.order(session="one", token="tok"))
    assert ids_of(again) == ["h1.tok"]
    place.running(["h1.tok"])
    place.release(["h1.tok"])
    assert not server.is_on() and server.done().count("stop") == 1


@pytest.mark.slow
def test_the_watchdog_needs_no_resume(place: Place) -> None:
    """After a kill -9 while the start is under way, only find and destroy: the host is off in the end, and never started for nobody."""
    [server] = place.servers_of(1)
    gate = place.folder / "before"
    entry = server.entry()
    entry["power"]["command"]["start"] = f"{server.start_command}; touch {gate}; sleep 1000"
    place.write([entry])
    process = another_process(place, "one", "tok", stays=1000)
    wait_for(gate.exists, PATIENCE, "it is being started")
    process.kill()
    process.communicate()

    def clean() -> bool:
        found = place.provider().find("one")
        place.provider().destroy(ids_of(found))
        return not found

    wait_for(clean, PATIENCE, "nothing is found")
    # Where the start was not done when it was killed there is nothing to stop.
    assert not server.is_on() and server.done() in (["start", "stop"], ["start"])
    assert place.records() == []


@pytest.mark.slow
def test_a_kill_while_stopping_leaks_nothing(place: Place) -> None:
    """The stop was announced and perhaps done: whoever comes next asks for it again."""
    [server] = place.servers_of(1)
    gate, after = place.folder / "before", place.folder / "after"
    entry = server.entry()
    entry["power"]["command"]["stop"] = f"test -e {after} || {{ touch {gate}; sleep 1000; }}; {server.stop_command}"
    place.write([entry])
    [instance] = place.run(place.order(session="one"))
    process = another_process(place, instance.id, "", stays=1000, script=RELEASE)
    wait_for(gate.exists, PATIENCE, "it is being stopped")
    process.kill()
    process.communicate()
    after.touch()
    wait_for(lambda: not place.provider().find("one"), PATIENCE, "it is stopped")
    assert not server.is_on()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_kills_at_any_moment(place: Place, seed: int) -> None:
    """Sessions that are killed at random: when all is let go, every host is as it was before."""
    dice = random.Random(seed)
    servers = place.servers_of(4)
    place.write([server.entry(startup_here=["true"], shutdown_here=["true"]) for server in servers])
    servers[3].turn_on()
    for number in range(3):
        process = another_process(place, f"s{number}", f"t{number}", dice.randint(1, 2), stays=1000, script=CHURN)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.4 + dice.random())
        process.kill()
        process.communicate()

    def clean() -> bool:
        found = place.provider().find()
        place.provider().destroy(ids_of(found))
        return not found

    wait_for(clean, PATIENCE, "nothing is found")
    assert [server.is_on() for server in servers] == [False, False, False, True]
    assert not any(record["started"] or record["claim"] for record in place.records())


def test_finding_starts_nothing(place: Place) -> None:
    """A claim whose owner died before the start is not started by who only looks."""
    [server] = place.servers_of(1)
    entry = server.entry()
    place.write([entry])
    provider = place.provider()
    order = place.order(session="one")
    claimed = provider._claim(order, provider._hosts(), set())
    assert len(claimed) == 1
    for _ in range(3):
        assert names(place.provider().find("one")) == ["h1"]
    place.release([f"h1.{order.token}"])
    assert server.done() == []


def test_a_lock_that_is_held_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write([{"name": "a", "address": "10.0.0.1"}])
    store = hosts_store.Store(str(place.state))
    monkeypatch.setattr(hosts_store, "PATIENCE", 0.2)
    with store.locked(), pytest.raises(ProviderBusyError, match=f"{place.state}/lock is held by another process"):
        place.provider().find()


def test_state_files_are_private(place: Place) -> None:
    place.write([{"name": "a", "address": "10.0.0.1"}])
    place.provider().launch(place.order())
    assert place.state.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in place.state.iterdir()} == {0o600}


def test_an_offer_counts_what_is_free(place: Place) -> None:
    place.write([{"name": "a", "address": "10.0.0.1", "labels": ["x"]}, {"name": "b", "address": "10.0.0.2", "labels": ["x"]}])
    place.provider().launch(place.order())
    offer = place.provider(select=("x",)).offer()
    assert offer.price == 0.0
    assert offer.rows == {"inventory": str(place.file), "hosts": "1 of 2 free (x)"}


def test_an_answer_does_not_wait_for_slow_hosts(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """One host whose status takes for ever keeps nobody from the others."""
    monkeypatch.setattr(hosts_module, "LOOK", 0.5)
    monkeypatch.setattr(hosts_module, "START", 0.5)
    slow, quick = place.servers_of(2)
    entry = slow.entry()
    entry["power"]["command"]["status"] = "sleep 30"
    place.write([entry, quick.entry()])
    provider = place.provider()
    ids = ids_of(provider.launch(place.order(2)))
    states = {}

    def seen() -> bool:
        began = time.monotonic()
        found = provider.describe(ids)
        assert time.monotonic() - began < 3
        states.update({each.id.rpartition(".")[0]: each.state for each in found})
        return states["h2"] is InstanceState.RUNNING

    wait_for(seen, PATIENCE, "the quick one runs")
    assert states["h1"] is InstanceState.PENDING
    provider.destroy(ids)
