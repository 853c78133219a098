"""The ``hub`` provider against an HTTP server that answers as the TurnKey Hub does."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import pytest

from cloudtask.errors import ProviderBusyError, ProviderRefusedError, UsageError
from cloudtask.kinds import Scene as ValueScene
from cloudtask.providers import hub, hub_api
from cloudtask.providers.base import InstanceState, Order, Provider, Tags
from cloudtask.providers.hub import LONGEST_LABEL, HubProvider
from cloudtask.providers.hub_settings import ROWS, hub_url
from cloudtask.settings import BUILT_IN, Settings
from tests.providers.contract import BaseScene, ProviderContract, ids_of, launched, make_order, running, wait_for
from tests.providers.servers.hub import Fault, HubServer

KEY = "K3Y-of-a-user"
NOWHERE = "http://127.0.0.1:9/api/"
HTML = "<html><head><title>502: Bad Gateway</title></head><body>nginx</body></html>"
GARBAGE = [
    Fault(status=500, body="exception:something broke"),
    Fault(status=502, body=HTML, kind="text/html"),
    Fault(status=403, body=HTML, kind="text/html"),
    Fault(status=400, body="no colon here"),
    Fault(status=400, body=""),
    Fault(status=429, body="Request.Throttled: slow down"),
    Fault(status=301, body="", headers={"Location": NOWHERE}),
    Fault(status=200, body=HTML, kind="text/html"),
    Fault(status=200, body="[" * 100_000),
    Fault(status=200, body='{"an": "object"}'),
    Fault(status=200, body='["no machine"]'),
    Fault(status=200, body="[]", headers={"Content-Length": "4000"}),
    Fault(status=200, body="", headers={"Content-Length": "4000"}),
    Fault(status=204),
    Fault(status=0),
]


def settings(url: str = NOWHERE, **values: Any) -> Settings:
    """A run's settings for the hub at ``url``."""
    table = BUILT_IN.extended(ROWS)
    return table.settings({row.name: row.default for row in table} | {"hub_apikey": KEY, "hub_url": url} | values)


def provider(server: HubServer, **values: Any) -> HubProvider:
    """One for this server."""
    return HubProvider(settings(server.url, **values))


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer(key=KEY, boot=0.1) as running_server:
        yield running_server


@pytest.fixture(autouse=True)
def _no_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PACE", 0.0)


def an_order(count: int = 1, label: str = "Cloudtask: make world") -> Order:
    return dataclasses.replace(make_order(count, f"token-{time.monotonic_ns()}", "session-1"), label=label)


class HubScene(BaseScene):
    """The Hub with one user."""

    boot_seconds = 10.0
    reachable = False  # its machines are names only

    def __init__(self, server: HubServer) -> None:
        super().__init__()
        self.server = server

    def make(self) -> Provider:
        made = provider(self.server)
        made.abilities = dataclasses.replace(made.abilities, settles=0.2)  # this Hub lists what is new at once
        return made

    def bogus_id(self) -> str:
        return "i-00ffffff"

    def foreign_id(self) -> str:
        return self.server.add("the mail server")

    def broken(self) -> Iterable[Provider]:
        yield HubProvider(settings())
        yield HubProvider(settings(self.server.url, hub_apikey="an-0ther-key"))
        for fault in GARBAGE:
            self.server.fail("GET", "", *[fault] * 5)
            yield self.make()
            self.server.forgive()

    def refusing(self) -> Provider:
        return provider(self.server, backup_id=8)

    def lose_answer(self) -> bool:
        """Of the first machine of an order: the second is never asked for."""
        return False

    def secrets(self) -> Iterable[str]:
        return [KEY, "an-0ther-key"]


class TestHub(ProviderContract):
    """What every provider must do."""

    @pytest.fixture
    def scene(self, server: HubServer) -> Iterator[HubScene]:
        scene = HubScene(server)
        yield scene
        scene.clean()


# --- what is sent ----------------------------------------------------------------------------------------------------


def test_a_launch_is_what_the_hub_knows(server: HubServer) -> None:
    order = an_order()
    provider(server).launch(order)
    call = next(call for call in server.calls if call.method == "POST")
    assert call.path == "amazon/launch/core/"
    assert call.headers["apikey"] == KEY and call.headers["accept"] == "application/json"
    assert call.form == {
        "region": "us-east-1",
        "size": "m1.small",
        "type": "s3",
        "arch": "amd64",
        "sec_updates": "SKIP",
        "label": f"{order.tags.as_text()} Cloudtask: make world",
    }


def test_settings_choose_the_machine(server: HubServer) -> None:
    chosen = {"ec2_region": "eu-west-1", "ec2_size": "t2.small", "ec2_type": "ebs", "backup_id": 7}
    provider(server, ami_id="ami-12/34", **chosen).launch(an_order())
    provider(server, snapshot_id="snap-56").launch(an_order())
    first, second = (call for call in server.calls if call.method == "POST")
    assert (first.path, second.path) == ("amazon/launch/ami-12%2F34/", "amazon/launch/snap-56/")
    assert {"region": "eu-west-1", "size": "t2.small", "type": "ebs", "backup_id": "7"}.items() <= first.form.items()
    assert "backup_id" not in second.form


def test_each_machine_is_a_call_of_its_own(server: HubServer) -> None:
    ids = ids_of(provider(server).launch(an_order(3)))
    assert len(server.forms("launch/")) == 3
    assert sorted(ids) == sorted(server.live())


def test_destruction_unregisters(server: HubServer) -> None:
    [id] = ids_of(provider(server).launch(an_order()))
    provider(server).destroy([id])
    [call] = [call for call in server.calls if call.method == "PUT"]
    assert (call.path, call.form) == (f"amazon/instance/{id}/terminate/", {"auto_unregister": "True"})
    [described] = provider(server).describe([id])
    assert described.state is InstanceState.GONE


def test_lists_are_never_the_hubs_old_ones(server: HubServer) -> None:
    provider(server).find()
    [call] = server.calls
    assert (call.path, call.query) == ("amazon/instances/", {"refresh_cache": "True"})


@pytest.mark.parametrize("words", ["x" * 5000, "two\nlines \x1b[31m", "ünïcode " * 100, ""])
def test_a_label_keeps_the_tags_whole(server: HubServer, words: str) -> None:
    longest = "a" * 63
    tags = Tags(session=longest[:40], controller=longest[:40], token=longest, expires=2_000_000_000)
    order = dataclasses.replace(an_order(label=words), tags=tags)
    provider(server).launch(order)
    sent = server.forms("launch/")[0]["label"]
    assert len(sent) <= LONGEST_LABEL and sent.isprintable() and sent == sent.strip()
    [found] = provider(server).find(tags.session)
    assert found.tags == tags


# --- booting ---------------------------------------------------------------------------------------------------------


def test_ready_is_running_and_booted() -> None:
    with HubServer(key=KEY, pending=0.4, boot=0.4) as server:
        [id] = ids_of(provider(server).launch(an_order()))
        seen = []

        def booted() -> bool:
            [found] = provider(server).describe([id])
            seen.append((found.state, found.note, found.host is None))
            return found.state is InstanceState.RUNNING

        wait_for(booted, 10, "it boots")
    pending, running_state = InstanceState.PENDING, InstanceState.RUNNING
    expected = [(pending, "pending", True), (pending, "sec-updates", False), (running_state, "booted", False)]
    assert list(dict.fromkeys(seen)) == expected


def test_pending_is_not_destroyed_but_asked_again() -> None:
    with HubServer(key=KEY, pending=1.0, boot=100.0) as server:
        ids = ids_of(provider(server).launch(an_order(2)))
        with pytest.raises(ProviderBusyError, match="i-00000001 is pending, and cannot be destroyed before it runs; ask again") as caught:
            provider(server).destroy(ids)
        assert str(caught.value).isprintable()
        assert [each.state for each in provider(server).describe(ids)] == [InstanceState.PENDING] * 2
        wait_for(partial(destroyed, server, ids), 10, "both are destroyed once they run, booted or not")
        assert server.live() == []


def destroyed(server: HubServer, ids: list[str]) -> bool:
    try:
        provider(server).destroy(ids)
    except ProviderBusyError:
        return False
    return True


def test_a_pending_one_saves_no_other() -> None:
    with HubServer(key=KEY, pending=100.0) as server:
        old = server.add("x")
        server.machines[0].began -= 200
        [new] = ids_of(provider(server).launch(an_order()))
        with pytest.raises(ProviderBusyError):
            provider(server).destroy([new, old])
        assert server.live() == [new]


@pytest.mark.parametrize(
    ("status", "boot", "state"),
    [
        ("pending", "", InstanceState.PENDING),
        ("running", "", InstanceState.PENDING),
        ("running", None, InstanceState.PENDING),
        ("running", "tklbam-restore", InstanceState.PENDING),
        ("running", "booted", InstanceState.RUNNING),
        ("stopping", "booted", InstanceState.STOPPED),
        ("stopped", "booted", InstanceState.STOPPED),
        ("shutting-down", "booted", InstanceState.LEAVING),
        ("terminated", "booted", InstanceState.GONE),
        ("rebooting", "booted", InstanceState.PENDING),
    ],
)
def test_words_of_the_hub(status: str, boot: object, state: InstanceState) -> None:
    server = {"instanceid": "i-1", "status": status, "ipaddress": None, "server": {"boot_status": boot}}
    found = hub.instance(server)
    assert found.state is state
    assert found.host is None and found.user == "root"


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_lost_answer_leaves_the_order_open(server: HubServer) -> None:
    """The second of three machines is made, and its answer lost: the order asked again makes the third only."""
    order = an_order(3)
    server.fail("POST", "launch/", Fault(status=200, body="", after=True, kind="application/json"))
    server.fail("POST", "launch/", Fault(after=True))
    with pytest.raises(ProviderBusyError):
        provider(server).launch(order)
    answer = provider(server).launch(order)
    assert not answer.certain and not answer.refusal
    assert len(answer.instances) == 1 and len(server.live()) == 2
    whole = provider(server).launch(order)
    assert whole.certain and sorted(ids_of(whole)) == sorted(server.live())
    assert len(server.live()) == 3


def test_what_ended_meanwhile_counts_for_its_order(server: HubServer) -> None:
    """An order is made once: what was destroyed of it is not made again."""
    order = an_order(2)
    ids = ids_of(provider(server).launch(order))
    provider(server).destroy(ids[:1])
    assert sorted(ids_of(provider(server).launch(order))) == sorted(ids)
    assert len(server.forms("launch/")) == 2


def test_a_quota_ends_an_order_with_what_there_is(server: HubServer) -> None:
    server.quota = 2
    answer = provider(server).launch(an_order(5))
    assert len(answer.instances) == 2 and answer.certain
    assert answer.refusal == "hub: Amazon.InstanceLimitExceeded: your quota allows for 0 more running instance(s)"
    with pytest.raises(ProviderRefusedError, match="InstanceLimitExceeded"):
        provider(server).launch(an_order())


def test_a_slow_hub_gets_time_for_the_rest(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PATIENCE", 0.2)
    server.fail("POST", "launch/", *[Fault(after=True, status=0)])
    order = an_order(4)
    with pytest.raises(ProviderBusyError):
        provider(server).launch(order)
    server.fail("POST", "launch/", Fault(status=500, wait=0.3, body="exception:slow"))
    answer = provider(server).launch(order)
    assert not answer.certain and len(answer.instances) == 1
    wait_for(lambda: len(provider(server).launch(order).instances) == 4, 10, "the order is whole in the end")
    assert len(server.live()) == 4


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (400, "HubAccount.InvalidApiKey:look at your profile"),
        (401, "HubAccount.Forbidden:no"),
        (404, "BackupRecord.NotFound:8: no such backup"),
        (400, "Request.MissingArgument:size"),
    ],
)
def test_a_no_is_a_no(server: HubServer, status: int, text: str) -> None:
    server.fail("POST", "launch/", Fault(status=status, body=text))
    with pytest.raises(ProviderRefusedError) as caught:
        provider(server).launch(an_order())
    name, _, description = text.partition(":")
    assert str(caught.value) == f"hub: {name}: {description}"
    assert server.live() == []


@pytest.mark.parametrize("fault", GARBAGE, ids=lambda fault: f"{fault.status}-{fault.body[:12]}")
def test_all_else_settles_nothing(server: HubServer, fault: Fault) -> None:
    calls: list[tuple[str, Callable[[HubProvider], object]]] = [
        ("POST", lambda asked: asked.launch(an_order())),
        ("GET", lambda asked: asked.find()),
        ("GET", lambda asked: asked.describe(["i-1"])),
    ]
    for method, ask in calls:
        server.fail(method, "amazon/", fault)
        with pytest.raises(ProviderBusyError) as caught:
            ask(provider(server))
        assert str(caught.value).isprintable() and len(str(caught.value)) < 500
        server.forgive()


def test_a_key_that_comes_back_is_not_shown() -> None:
    """The server repeats the key in its refusal."""
    with HubServer(key="another") as server, pytest.raises(ProviderRefusedError) as caught:
        provider(server).find()
    assert "HubAccount.InvalidApiKey" in str(caught.value) and KEY not in str(caught.value)


def test_a_redirect_takes_no_key_along(server: HubServer) -> None:
    with HubServer(key=KEY) as other:
        server.fail("GET", "amazon/", Fault(status=302, headers={"Location": f"{other.url}amazon/instances/"}))
        with pytest.raises(ProviderBusyError, match="HTTP 302"):
            provider(server).find()
        assert other.calls == []


def test_silence_is_no_answer(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_api, "SILENCE", 0.2)
    server.fail("GET", "amazon/", Fault(status=200, body="[]", wait=30.0))
    with pytest.raises(ProviderBusyError, match="hub: no answer to GET amazon/instances/: timed out"):
        provider(server).find()


def test_an_endless_answer_is_cut(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_api, "LARGEST", 1000)
    server.fail("GET", "amazon/", Fault(status=200, body=" " * 5000))
    with pytest.raises(ProviderBusyError, match="more than 1000 bytes"):
        provider(server).find()


def test_destruction_that_is_refused_is_told(server: HubServer) -> None:
    ids = ids_of(provider(server).launch(an_order(2)))
    server.fail("PUT", ids[0], Fault(status=500, body="exception:oops"))
    with pytest.raises(ProviderBusyError, match="hub: HTTP 500: exception: oops"):
        provider(server).destroy(ids)
    assert server.live() == ids[:1]
    server.fail("PUT", ids[0], Fault(status=204, after=True))
    provider(server).destroy(ids)
    assert server.live() == []


def test_somebody_elses_odd_machine_is_passed_over(server: HubServer) -> None:
    order = an_order()
    ids = launched(HubScene(server), order)
    server.extra = [{"instanceid": None, "status": "?"}, {"status": 5}, {"instanceid": "i b", "status": "running", "server": []}]
    assert ids_of(provider(server).find()) == ids
    running(HubScene(server), ids)


@pytest.mark.parametrize(
    "entry",
    [
        {"instanceid": None, "status": "running", "server": {"description": "TAGS x"}},
        {"instanceid": "i-5", "status": None, "server": {"description": "TAGS x"}},
        {"instanceid": "i-5", "status": "running", "ipaddress": "1; rm -rf /", "server": {"description": "TAGS x"}},
        {"instanceid": "i-5", "status": ["running"]},
    ],
)
def test_our_own_odd_machine_makes_no_answer_certain(server: HubServer, entry: dict[str, Any]) -> None:
    tags = an_order().tags.as_text()
    if "server" in entry:
        entry = entry | {"server": {"description": entry["server"]["description"].replace("TAGS", tags)}}
    server.extra = [entry]
    with pytest.raises(ProviderBusyError, match="makes no sense"):
        provider(server).describe(["i-5"])


def test_an_id_that_can_be_none_is_refused(server: HubServer) -> None:
    with pytest.raises(ProviderRefusedError, match="hub: not an instance's id: 'i 1'"):
        provider(server).describe(["i 1"])


# --- settings --------------------------------------------------------------------------------------------------------


def test_needs_a_key() -> None:
    with pytest.raises(UsageError, match="HUB_APIKEY"):
        HubProvider(settings(hub_apikey=None))
    with pytest.raises(UsageError) as caught:
        HubProvider(settings(hub_apikey="two\r\nlines: x"))
    assert "lines" not in str(caught.value)


def test_an_image_is_one() -> None:
    with pytest.raises(UsageError, match="--ami-id and --snapshot-id exclude each other"):
        HubProvider(settings(ami_id="ami-1", snapshot_id="snap-1"))


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://hub.example.org/api", "https://hub.example.org/api/"),
        ("http://127.0.0.1:80/api//", "http://127.0.0.1:80/api/"),
        ("http://[::1]/", "http://[::1]/"),
    ],
)
def test_an_address_ends_in_a_slash(text: str, url: str) -> None:
    assert hub_url(text, ValueScene(folder="/", environ={})) == url


@pytest.mark.parametrize(
    "text",
    [
        "hub.example.org",
        "ftp://x/",
        "http://hub.example.org/",
        "https://",
        "https://u:p@x/",
        "https://x:y/",
        "https://x/?a=b",
        "https://é/",
    ],
)
def test_an_address_that_would_not_do(text: str) -> None:
    with pytest.raises(ValueError, match=r"not an address of the web|clear"):
        hub_url(text, ValueScene(folder="/", environ={}))


def test_what_cannot_be_done_is_said(server: HubServer) -> None:
    abilities = provider(server).abilities
    assert not (abilities.host_key or abilities.timer or abilities.power_off_ends_billing or abilities.retags or abilities.idempotent)
    with pytest.raises(ProviderRefusedError, match="label"):
        provider(server).renew(["i-1"], an_order().tags)
    offer = provider(server, backup_id=7).offer()
    assert (offer.size, offer.region) == ("m1.small", "us-east-1")
    assert offer.rows == {"image": "core", "instance type": "s3", "backup": "7"}
