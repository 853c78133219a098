"""What every provider must do: the contract of `cloudtask.providers.base` as tests.

A provider's test module subclasses `ProviderContract`, and has a fixture ``scene`` that gives a `Scene` and cleans up after it::

    class WidgetScene(BaseScene):
        boot_seconds = 5.0

        def make(self) -> Provider:
            return WidgetProvider(settings_with(widget_url=self.url))

    class TestWidgets(ProviderContract):
        @pytest.fixture
        def scene(self, widget_server: Server) -> Iterator[WidgetScene]:
            scene = WidgetScene(widget_server)
            yield scene
            scene.clean()

The tests never have more than `MOST_AT_ONCE` machines at once (``clean`` runs between them), and wait for conditions, each with a deadline.
Hooks that a scene does not fill in leave their test empty.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import select
import shlex
import time
import uuid
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from cloudtask import transports
from cloudtask.errors import ConnectError, ProviderBusyError, ProviderError, ProviderRefusedError
from cloudtask.model import Address
from cloudtask.providers.base import Abilities, Instance, InstanceState, Launched, Offer, Order, Provider, Tags
from cloudtask.providers.userdata import HostKey, cloud_config, make_host_key
from cloudtask.settings import BUILT_IN, Settings
from cloudtask.transports import Connection, ConnectOptions

MOST_AT_ONCE = 4
T = TypeVar("T")
_HOST_KEY = re.compile(r"[a-z0-9@.-]+ [A-Za-z0-9+/]{16,}={0,3}")


class Scene(Protocol):
    """Where the tests play: a provider that can be had in several objects, as several processes would have it."""

    boot_seconds: float
    """How long a machine may take from the order until it runs, and until it is destroyed."""
    reachable: bool
    """A machine that runs has a host, and one can log in there with the order's key (`login_key`)."""

    def make(self) -> Provider:
        """A fresh object, as another process would make it."""

    def order(self, count: int = 1, token: str | None = None, session: str | None = None) -> Order:
        """An order with fresh tags, but for what is given.  Two calls with the same token and session give equal orders."""

    def bogus_id(self) -> str:
        """An id that looks like one and belongs to nothing."""

    def foreign_id(self) -> str | None:
        """Optional: the id of a machine that exists at this provider and carries no tag of ours."""

    def broken(self) -> Iterable[Provider]:
        """Optional: objects whose API fails: nobody listens, HTTP 500, garbage, wrong credentials.  Every call of each must fail."""

    def refusing(self) -> Provider | None:
        """Optional: an object whose launch is refused (quota, no such size) with nothing made."""

    def lose_answer(self) -> bool:
        """Optional: the next ``launch`` of any object makes the machines, but its answer is lost.  True where that was arranged."""

    def secrets(self) -> Iterable[str]:
        """Optional: what may stand in no message."""


class BaseScene:
    """A `Scene` with everything but ``make``."""

    boot_seconds = 20.0
    reachable = True

    def __init__(self) -> None:
        self.sessions: list[str] = []

    def make(self) -> Provider:
        """See `Scene`."""
        raise NotImplementedError

    def order(self, count: int = 1, token: str | None = None, session: str | None = None) -> Order:
        """See `Scene`."""
        session = session or f"test-{uuid.uuid4().hex[:12]}"
        self.sessions.append(session)
        return make_order(count, token or uuid.uuid4().hex, session)

    def bogus_id(self) -> str:
        """See `Scene`."""
        return "i-0123456789abcdef0"

    def foreign_id(self) -> str | None:
        """See `Scene`."""
        return None

    def broken(self) -> Iterable[Provider]:
        """See `Scene`."""
        return ()

    def refusing(self) -> Provider | None:
        """See `Scene`."""
        return None

    def lose_answer(self) -> bool:
        """See `Scene`."""
        return False

    def secrets(self) -> Iterable[str]:
        """See `Scene`."""
        return ()

    def clean(self) -> None:
        """Destroys what the orders made, and waits until the provider says so: what is new may be absent for a while."""
        provider = self.make()
        settled = time.monotonic() + provider.abilities.settles
        for session in dict.fromkeys(self.sessions):
            wait_for(
                partial(_destroyed, provider, session, settled), provider.abilities.settles + self.boot_seconds, "everything is destroyed"
            )


def _destroyed(provider: Provider, session: str, settled: float) -> bool:
    over = time.monotonic() >= settled
    left = provider.find(session)
    provider.destroy([each.id for each in left])
    return over and not any(each.state is not InstanceState.LEAVING for each in left)


def make_order(count: int, token: str, session: str) -> Order:
    """An order like those of the launcher; the same words give an equal one."""
    tags = Tags(session=session, controller="test-controller", token=token, expires=2_000_000_000)
    key = host_key()
    user_data = cloud_config(login_key().public, key, "")
    return Order(
        count=count, tags=tags, label="Cloudtask: test", public_key=login_key().public, host_key=key.public, user_data=user_data, timer=""
    )


@functools.cache
def login_key() -> HostKey:
    """The key pair that orders authorise."""
    return make_host_key()


@functools.cache
def host_key() -> HostKey:
    """The host key that orders choose."""
    return make_host_key()


def settings_with(**values: Any) -> Settings:
    """A run's settings: defaults but for ``values``; those of a provider's own rows stand in ``extra`` where they are given, else not."""
    return BUILT_IN.settings(values)


def wait_for(found: Callable[[], T | None], seconds: float, what: str) -> T:
    """Polls ``found`` until it gives something true; fails after ``seconds``."""
    end, pause = time.monotonic() + seconds, 0.01
    while not (answer := found()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(pause)
        pause = min(pause * 1.5, 0.5)
    return answer


def ids_of(instances: Iterable[Instance] | Launched) -> list[str]:
    """Their ids, as they come."""
    return [each.id for each in (instances.instances if isinstance(instances, Launched) else instances)]


def launched(scene: Scene, order: Order) -> list[str]:
    """Launches an order whole, and waits until the provider lists it; the ids, sorted."""
    answer = scene.make().launch(order)
    assert isinstance(answer, Launched) and all(isinstance(each, Instance) for each in answer.instances)
    assert answer.certain and not answer.refusal
    assert len(answer.instances) == order.count
    ids = sorted(ids_of(answer))
    assert len(set(ids)) == order.count
    wait_for(lambda: sorted(found_of(scene, order)) == ids, scene.boot_seconds, "what was launched is found")
    return ids


def found_of(scene: Scene, order: Order) -> dict[str, Instance]:
    """What a fresh object finds of the order's session."""
    return {each.id: each for each in scene.make().find(order.tags.session)}


def running(scene: Scene, ids: list[str]) -> list[Instance]:
    """Waits until all run, with a host where the scene has one."""

    def all_run() -> list[Instance]:
        found = scene.make().describe(ids)
        assert all(each.exists or each.state is InstanceState.ABSENT for each in found), f"gone while it boots: {found}"
        return found if all(each.state is InstanceState.RUNNING and (each.host or not scene.reachable) for each in found) else []

    return wait_for(all_run, scene.boot_seconds, "all machines run")


def gone(scene: Scene, ids: list[str]) -> None:
    """Waits until the provider says that they are destroyed."""
    provider = scene.make()
    over = {InstanceState.GONE, InstanceState.ABSENT} | (set() if provider.abilities.destroys else {InstanceState.STOPPED})
    wait_for(lambda: all(each.state in over for each in provider.describe(ids)), scene.boot_seconds, "all machines are gone")


class ProviderContract:
    """The tests.  A subclass has the fixture ``scene``."""

    def test_says_who_it_is(self, scene: Scene) -> None:
        provider = scene.make()
        assert re.fullmatch(r"[a-z][a-z0-9_-]*", provider.name)
        assert isinstance(provider.abilities, Abilities)
        assert scene.make() is not provider

    def test_offers_something(self, scene: Scene) -> None:
        offer = scene.make().offer()
        assert isinstance(offer, Offer)
        assert offer.price is None or offer.price >= 0
        assert offer.minimum >= 0 and offer.quantum > 0
        assert all(isinstance(name, str) and isinstance(value, str) for name, value in offer.rows.items())
        assert offer.transport in transports.names()

    def test_launch_makes_all_with_their_tags(self, scene: Scene) -> None:
        order = scene.order(2)
        ids = launched(scene, order)
        found = found_of(scene, order)
        assert all(each.tags and each.tags.session == order.tags.session for each in found.values())
        if scene.make().abilities.tags:
            assert [found[id].tags for id in ids] == [order.tags] * 2

    def test_launch_again_makes_nothing_more(self, scene: Scene) -> None:
        """From another object, as a process that comes after a kill would."""
        order = scene.order(2)
        if scene.make().abilities.idempotent:
            ids = sorted(ids_of(scene.make().launch(order)))
        else:
            ids = launched(scene, order)
        again = scene.make().launch(dataclasses.replace(order))
        assert sorted(ids_of(again)) == ids
        assert again.certain and not again.refusal
        running(scene, ids)
        assert sorted(ids_of(scene.make().launch(dataclasses.replace(order)))) == ids
        assert sorted(found_of(scene, order)) == ids

    def test_a_lost_answer_is_asked_for_again(self, scene: Scene) -> None:
        order = scene.order(2)
        if not scene.lose_answer():
            return
        with pytest.raises(ProviderBusyError):
            scene.make().launch(order)
        if not (abilities := scene.make().abilities).idempotent:
            settled = time.monotonic() + abilities.settles
            wait_for(
                lambda: found_of(scene, order) and time.monotonic() >= settled,
                abilities.settles + scene.boot_seconds,
                "what was made is found",
            )
        ids = sorted(ids_of(scene.make().launch(order)))
        assert len(ids) == 2
        wait_for(lambda: sorted(found_of(scene, order)) == ids, scene.boot_seconds, "two machines, no more")

    def test_two_orders_are_two(self, scene: Scene) -> None:
        """Of one session, and of another."""
        first = scene.order()
        second, third = scene.order(session=first.tags.session), scene.order()
        one, two, three = (launched_more(scene, order) for order in (first, second, third))
        assert len({*one, *two, *three}) == 3
        wait_for(lambda: {*found_of(scene, first)} == {*one, *two}, scene.boot_seconds, "both of a session are found")
        wait_for(lambda: {*found_of(scene, third)} == {*three}, scene.boot_seconds, "the other session's is found")

    def test_describe_answers_for_each_id(self, scene: Scene) -> None:
        ids = launched(scene, scene.order(2))
        asked = [ids[1], scene.bogus_id(), ids[0], ids[1]]
        found = wait_for(lambda: _settled(scene, asked, scene.bogus_id()), scene.boot_seconds, "all are known")
        assert ids_of(found) == asked
        assert [each.exists for each in found] == [True, False, True, True]
        assert found[1].state is InstanceState.ABSENT

    def test_describe_nothing(self, scene: Scene) -> None:
        assert scene.make().describe([]) == []
        scene.make().destroy([])

    def test_runs_and_can_be_reached(self, scene: Scene, tmp_path: Path) -> None:
        order = scene.order()
        [instance] = running(scene, launched(scene, order))
        if scene.reachable:
            wait_for(lambda: _says(scene, instance, order, tmp_path), scene.boot_seconds, "it can be logged in to")

    def test_find_lists_its_session_only(self, scene: Scene) -> None:
        foreign = scene.foreign_id()
        order, other = scene.order(), scene.order()
        ids, others = launched(scene, order), launched(scene, other)
        assert sorted(found_of(scene, order)) == ids
        everything = ids_of(scene.make().find())
        assert {*ids, *others} <= {*everything}
        assert len(everything) == len(set(everything))
        assert all(each.tags and each.exists for each in scene.make().find())
        assert foreign not in everything
        assert scene.make().find("no-such-session") == []

    def test_find_knows_what_it_finds(self, scene: Scene) -> None:
        """As much as describe: the watchdog has nothing else."""
        order = scene.order()
        [instance] = running(scene, launched(scene, order))
        found = found_of(scene, order)[instance.id]
        assert (found.host, found.port, found.transport) == (instance.host, instance.port, instance.transport)
        assert found.created == instance.created
        assert 0 <= found.created <= time.time() + 120

    def test_ids_can_be_written_down(self, scene: Scene) -> None:
        for id in launched(scene, scene.order(2)):
            assert isinstance(id, str)
            assert shlex.split(f"id={id}", comments=True) == [f"id={id}"]

    def test_destroy_ends_it(self, scene: Scene) -> None:
        order = scene.order(2)
        ids = launched(scene, order)
        running(scene, ids)
        scene.make().destroy(ids)
        gone(scene, ids)
        wait_for(lambda: not found_of(scene, order), scene.boot_seconds, "nothing is found")

    def test_destroy_while_it_boots(self, scene: Scene) -> None:
        order = scene.order()
        ids = ids_of(scene.make().launch(order))
        wait_for(lambda: found_of(scene, order), scene.boot_seconds, "it is known")
        scene.make().destroy(ids)
        gone(scene, ids)
        wait_for(lambda: not found_of(scene, order), scene.boot_seconds, "nothing is found")

    def test_destroy_is_silent_about_what_is_gone(self, scene: Scene) -> None:
        """Twice at once, after it is gone, and of what never was."""
        ids = launched(scene, scene.order())
        scene.make().destroy(ids)
        scene.make().destroy(ids)
        gone(scene, ids)
        scene.make().destroy(ids)
        scene.make().destroy([scene.bogus_id()])
        gone(scene, ids)

    def test_destroy_goes_through_all(self, scene: Scene) -> None:
        """An unknown id, or one that is gone, saves no other; what was not named stays."""
        ids = launched(scene, scene.order(2))
        [kept] = launched(scene, scene.order())
        scene.make().destroy([ids[0]])
        gone(scene, [ids[0]])
        scene.make().destroy([ids[0], scene.bogus_id(), ids[1]])
        gone(scene, ids)
        assert running(scene, [kept])

    def test_renew_changes_the_expiry(self, scene: Scene) -> None:
        """And leaves each machine's token alone."""
        if not scene.make().abilities.retags:
            return
        first = scene.order()
        second = scene.order(session=first.tags.session)
        ids = [*launched_more(scene, first), *launched_more(scene, second)]
        wait_for(lambda: {*ids} == {*found_of(scene, first)}, scene.boot_seconds, "both are found")
        scene.make().renew(ids, dataclasses.replace(first.tags, expires=2_000_003_600))

        def tokens() -> dict[str, str]:
            return {id: each.tags.token for id, each in found_of(scene, first).items() if each.tags and each.tags.expires == 2_000_003_600}

        expected = dict(zip(ids, (first.token, second.token), strict=True))
        wait_for(lambda: tokens() == expected, scene.boot_seconds, "the expiry is the new one, the tokens are the old ones")

    def test_console_answers(self, scene: Scene) -> None:
        if not scene.make().abilities.console_key:
            return
        [id] = launched(scene, scene.order())
        try:
            assert all(_HOST_KEY.fullmatch(key) for key in scene.make().console_keys(id))
        except ProviderError as error:
            assert_one_line(scene, error)

    def test_errors_are_the_providers(self, scene: Scene) -> None:
        """One line, no credential, no foreign exception; and never an answer that is none."""
        order = scene.order()
        for provider in scene.broken():
            calls: list[Callable[[], object]] = [
                partial(provider.launch, order),
                partial(provider.find),
                partial(provider.find, order.tags.session),
                partial(provider.describe, [scene.bogus_id()]),
                partial(provider.destroy, [scene.bogus_id()]),
            ]
            for call in calls:
                with pytest.raises(ProviderError) as caught:
                    call()
                assert_one_line(scene, caught.value)

    def test_a_refusal_makes_nothing(self, scene: Scene) -> None:
        order = scene.order()
        provider = scene.refusing()
        if provider is None:
            return
        with pytest.raises(ProviderRefusedError) as caught:
            provider.launch(order)
        assert_one_line(scene, caught.value)
        assert not found_of(scene, order)


def launched_more(scene: Scene, order: Order) -> list[str]:
    """Launches into a session that may have other machines."""
    return sorted(ids_of(scene.make().launch(order)))


def assert_one_line(scene: Scene, error: ProviderError) -> None:
    """The message is fit for a log."""
    message = str(error)
    assert message and message.isprintable(), f"not one line: {message!r}"
    assert scene.make().name in message.lower(), f"does not name the provider: {message!r}"
    assert not any(secret in message for secret in scene.secrets()), "a credential in a message"


def _settled(scene: Scene, asked: list[str], bogus: str) -> list[Instance]:
    found = scene.make().describe(asked)
    return found if all(each.exists for each in found if each.id != bogus) else []


def _says(scene: Scene, instance: Instance, order: Order, folder: Path) -> bool:
    """Logs in with the order's key, insisting on the order's host key where the provider carries it in, and runs a command there."""
    key, config = folder / "key", folder / "ssh_config"
    key.write_text(login_key().private)
    key.chmod(0o600)
    config.touch()
    carried = order.host_key if scene.make().abilities.host_key else None
    address = Address(
        host=instance.host or "",
        user=instance.user,
        port=instance.port,
        local=instance.transport == "local",
        transport=instance.transport,
        alias=f"cloudtask-{instance.id}",
        host_key=instance.host_key or carried,
    )
    options = ConnectOptions(
        user="root", identity=str(key), session_key=str(key), ssh_config=str(config), known_hosts=str(folder / "known"), timeout=10.0
    )
    try:
        connection = transports.find(instance.transport or "ssh").connect(address, options)
    except ConnectError:  # sshd comes later than the address
        return False
    try:
        return output(connection, "echo so it is") == b"so it is\n"
    finally:
        connection.close()


def output(connection: Connection, command: str) -> bytes:
    """All that a command says on stdout."""
    channel, said = connection.open(command), bytearray()
    end = time.monotonic() + 20
    while time.monotonic() < end:
        select.select([channel.fileno()], [], [], 1)
        try:
            piece = channel.recv(4096)
        except BlockingIOError:
            continue
        if not piece:
            break
        said += piece
    channel.close()
    return bytes(said)
