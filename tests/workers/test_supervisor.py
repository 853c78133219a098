"""A supervisor with real workers: machines that are still booting, machines that are gone, and what it says of them."""

from __future__ import annotations

import contextlib
import glob
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from cloudtask.errors import ConnectError, HostKeyError, RefusedError, SetupError
from cloudtask.model import Address, Attempt
from cloudtask.workers import messages as m
from cloudtask.workers.contact import Boot, Contact
from cloudtask.workers.forkserver import ForkServer
from cloudtask.workers.mailbox import Mailbox
from tests.conftest import MakeSshd
from tests.running.program import processes_with
from tests.sshd import ClientKeys, Sshd, free_port, keygen

Message = TypeVar("Message")
PATIENCE = 40.0


class Main:
    """The main process's end of the pipe to one supervisor."""

    def __init__(self, spec: m.WorkerSpec, forkserver: ForkServer) -> None:
        self.spec = spec
        self._mailbox = Mailbox(forkserver.fork(spec))
        self.heard: list[object] = []

    def post(self, *messages: object) -> None:
        """Say something to it."""
        self._mailbox.post(messages)

    def hear(self, kind: type[Message]) -> Message:
        """Wait for a message of this kind; what came before stays in ``heard``."""
        deadline = time.monotonic() + PATIENCE
        while True:
            for message in self.heard:
                if type(message) is kind:
                    self.heard.remove(message)
                    return message
            assert time.monotonic() < deadline and not self._mailbox.closed, f"no {kind.__name__}: {self.heard}\n{self.log}"
            self.post(m.Beat(1))
            select.select([self._mailbox], [], [], 0.1)
            self.heard += [message for message in self._mailbox.receive() if not isinstance(message, m.Alive)]

    def ready(self) -> None:
        """Until it takes jobs."""
        self.hear(m.Inventory)
        self.post(m.Adopt([], [], []))
        self.hear(m.Ready)

    def reads(self, words: str) -> None:
        """Until the worker's log has these."""
        deadline = time.monotonic() + PATIENCE
        while words not in self.log:
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    @property
    def log(self) -> str:
        """The worker's log."""
        return "".join(Path(file).read_text() for file in glob.glob(f"{self.spec.directory}/workers/*.log"))

    def close(self) -> None:
        """It leaves when the main process is gone."""
        self._mailbox.close()


Supervise = Callable[..., Main]


@pytest.fixture
def supervise(tmp_path: Path, client_keys: ClientKeys) -> Iterator[Supervise]:
    """Starts supervisors; with a server as the worker, or here without."""
    made: list[Main] = []
    forkserver = ForkServer(["cloudtask.transports.ssh"])

    def make(server: Sshd | None = None, **changes: object) -> Main:
        address = Address(host="local", local=True)
        if server:
            address = Address(host=server.host, user=server.user, port=server.port)
        folder = tmp_path / f"session{len(made)}"
        (folder / "workers").mkdir(parents=True)
        values: dict[str, object] = {
            "number": 1, "address": address, "transport": "ssh" if server else "local", "connect": client_keys.options(),
            "session": f"t{os.getpid()}x{len(made)}", "directory": str(folder), "epoch": 1, "first_connection": 1, "slots": 1,
            "timeout": 60.0, "setup_timeout": 60.0, "kill_grace": 1.0, "lease": 60.0, "heartbeat": 15.0, "lost_timeout": 300.0,
            "max_output": 1 << 20, "prefetch": True, "cautious": False, "tell_output": False, "env": (), "workdir": None, "pre": None,
            "post": None, "overlay": None, "public_key": None, "ask_only": False, "known": False,
        }  # fmt: skip
        made.append(Main(m.WorkerSpec(**values | changes), forkserver))  # type: ignore[arg-type]  # the caller's words are checked by the class
        return made[-1]

    yield make
    for each in made:
        each.close()
    forkserver.close()
    # An agent here, whose machine was said to be gone, knows nothing of that.
    for pid in list(processes_with(f"HOME={client_keys.home}")):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def pinned(server: Sshd, key: str) -> Address:
    return Address(host=server.host, user=server.user, port=server.port, alias="cloudtask-i-1", host_key=key)


# --- when to try again ---------------------------------------------------------------------------------------------------


def test_the_waits_for_a_booting_machine_are_gentle() -> None:
    boot = Boot(600)
    waits = [boot.pause(ConnectError("x"), failures, 0.0) or 0 for failures in range(1, 9)]
    assert 0.8 <= waits[0] <= 1.2 and 1.6 <= waits[1] <= 2.4 and all(8 <= wait <= 12 for wait in waits[4:])
    assert len(set(waits)) == len(waits)
    refused = [boot.pause(RefusedError("x"), failures, 0.0) or 0 for failures in range(1, 30)]
    assert all(5 <= wait <= 12 for wait in refused)


def test_another_machines_key_is_waited_for_a_minute_and_never_taken() -> None:
    boot = Boot(600)
    assert boot.pause(HostKeyError("x"), 1, 100.0)
    assert boot.pause(ConnectError("sshd starts anew"), 2, 130.0)
    assert boot.pause(HostKeyError("x"), 3, 159.0)
    assert boot.pause(HostKeyError("x"), 4, 161.0) is None


def test_what_no_time_can_mend_is_tried_three_times() -> None:
    boot = Boot(600)
    assert [boot.pause(SetupError("no sh"), failures, 0.0) is None for failures in (1, 2, 3)] == [False, False, True]


def test_patience_ends_with_the_boot_timeout_and_with_the_first_contact() -> None:
    contact = Contact(known=False, lost_timeout=300, boot_timeout=0)
    assert contact.booting and contact.overdue() and contact.reason == "not ready within --boot-timeout: no answer yet"
    contact = Contact(known=False, lost_timeout=300, boot_timeout=60)
    assert not any(contact.failed(RefusedError("key")) for _ in range(20)) and not contact.away()
    contact.made()
    assert not contact.booting and not contact.overdue()
    assert not Contact(known=True, lost_timeout=300, boot_timeout=0).overdue()
    assert not Contact(known=False, lost_timeout=300).overdue()


# --- machines that boot ----------------------------------------------------------------------------------------------------


def test_a_machine_that_does_not_listen_yet_is_waited_for(supervise: Supervise, sshd: MakeSshd) -> None:
    server = sshd()
    server.stop()
    main = supervise(server, boot_timeout=60.0)
    main.reads("not ready yet: no connection to 127.0.0.1")
    server.start()
    main.ready()
    assert main.log.count("not ready yet") == 1
    main.post(m.Finish())
    assert main.hear(m.Gone).clean


@pytest.mark.slow
def test_a_machine_that_has_not_our_key_yet_is_waited_for(supervise: Supervise, sshd: MakeSshd, client_keys: ClientKeys) -> None:
    server = sshd(public_keys=[])
    main = supervise(server, boot_timeout=60.0)
    main.reads("login refused")
    began = time.monotonic()
    server.authorize(client_keys.public)
    main.ready()
    assert 4 < time.monotonic() - began < 20
    main.post(m.Finish())
    assert main.hear(m.Gone).clean


@pytest.mark.slow
def test_a_machine_that_shows_its_images_key_at_first_is_waited_for(supervise: Supervise, sshd: MakeSshd, client_keys: ClientKeys) -> None:
    server = sshd(host_keys=["ed25519"])
    right = keygen(client_keys.home / "right")
    main = supervise(server, boot_timeout=60.0, address=pinned(server, Path(f"{right}.pub").read_text()))
    main.reads("it shows another host key")
    assert "Accepted" not in server.log.read_text()
    server.stop()
    server.host_keys = [right]
    server.start()
    main.ready()
    main.post(m.Finish())
    assert main.hear(m.Gone).clean


@pytest.mark.parametrize("silent", [False, True])
def test_a_machine_that_never_comes_up_fails_in_time_with_the_reason(silent: bool, supervise: Supervise) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if silent:
            listener.listen()
        port = listener.getsockname()[1] if silent else free_port()
        began = time.monotonic()
        main = supervise(transport="ssh", address=Address(host="127.0.0.1", port=port), boot_timeout=2.0)
        why = main.hear(m.Failed).why
        assert time.monotonic() - began < 12
        assert "not ready within --boot-timeout: " in why and ("no answer yet" in why) == silent
        assert main.hear(m.Gone).clean


def test_an_agent_that_never_starts_does_not_hold_it_up_for_ever(supervise: Supervise, sshd: MakeSshd) -> None:
    server = sshd(config=["ForceCommand echo cloud-init is not done; sleep 0.2; exit 1"])
    main = supervise(server, boot_timeout=3.0)
    assert "cloud-init is not done" in main.hear(m.Failed).why


def test_one_that_was_not_launched_is_refused_at_once(supervise: Supervise, sshd: MakeSshd) -> None:
    main = supervise(sshd(public_keys=[]))
    assert "login refused" in main.hear(m.Failed).why
    assert main.hear(m.Gone).clean


def test_an_unknown_transport_is_said(supervise: Supervise) -> None:
    main = supervise(transport="carrier-pigeon", address=Address(host="h"), boot_timeout=60.0)
    assert "there is no transport 'carrier-pigeon'" in main.hear(m.Failed).why


def test_a_host_key_taken_on_trust_is_said_once(supervise: Supervise, sshd: MakeSshd) -> None:
    server = sshd()
    main = supervise(
        server, boot_timeout=60.0, address=Address(host=server.host, user=server.user, port=server.port, alias="cloudtask-i-2")
    )
    main.ready()
    server.kill_connections()
    main.reads("connection lost")
    main.post(m.Work([(1, 1, b"true")]))
    assert main.hear(m.Ended).results[0].succeeded
    notes = [message for message in main.heard if isinstance(message, m.Note)]
    assert len(notes) == 1 and "taken on trust (not verified): pinned to this machine" in notes[0].text
    assert main.log.count(notes[0].text) == 1
    main.post(m.Durable([Attempt(1, 1)]), m.Finish())
    assert main.hear(m.Gone).clean


# --- machines that are gone --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("silent", [False, True])
def test_a_machine_that_is_gone_is_believed_at_once(silent: bool, supervise: Supervise, sshd: MakeSshd) -> None:
    server = sshd()
    main = supervise(server)
    main.ready()
    main.post(m.Work([(1, 1, b"sleep 300"), (2, 1, b"true")]))
    main.hear(m.Started)
    server.pause() if silent else None
    began = time.monotonic()
    main.post(m.MachineGone("spot interruption"))
    lost = main.hear(m.Lost)
    assert sorted(lost.attempts) == [Attempt(1, 1), Attempt(2, 1)] and lost.why == "spot interruption"
    assert main.hear(m.Gone).clean and time.monotonic() - began < 3
    assert "the machine is gone: spot interruption" in main.log


def test_a_machine_that_goes_before_it_was_reached_is_no_loss(supervise: Supervise) -> None:
    main = supervise(transport="ssh", address=Address(host="127.0.0.1", port=free_port()), boot_timeout=600.0)
    main.reads("not ready yet")
    main.post(m.MachineGone("terminated"))
    assert main.hear(m.Gone).clean
    assert not any(isinstance(message, (m.Lost, m.Failed)) for message in main.heard)


def test_results_that_came_before_the_machine_went_count(supervise: Supervise) -> None:
    main = supervise()
    main.ready()
    main.post(m.Work([(1, 1, b"echo hello")]))
    main.reads("exit 0 # echo hello")
    main.post(m.MachineGone("terminated"))
    assert main.hear(m.Ended).results[0].succeeded
    assert main.hear(m.Gone).clean
    assert not any(isinstance(message, m.Lost) for message in main.heard)


# --- the machine's timer -------------------------------------------------------------------------------------------------------


def test_the_controller_itself_gets_no_timer(supervise: Supervise) -> None:
    main = supervise(timer="exit 1\n")
    main.ready()
    note = main.hear(m.Note)
    assert note.text == "no timer on this machine: it is the controller itself" and not note.warning
    assert note.text in main.log
    main.post(m.Finish())
    assert main.hear(m.Gone).clean


def test_where_it_is_not_wanted_nothing_is_said(supervise: Supervise) -> None:
    main = supervise()
    main.ready()
    assert not any(isinstance(message, m.Note) for message in main.heard)
    main.post(m.Finish())
    assert main.hear(m.Gone).clean
