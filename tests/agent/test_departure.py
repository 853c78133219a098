"""How an agent leaves, and what it leaves behind: nothing, or results that somebody will fetch."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from tests.agent.client import Client, alive, processes_of, until
from tests.agent.conftest import Connect

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAWbVoyHW2J5RcM9yT8Zr7vQYx1c0mPp9n0VtW1sX2aB"
OTHER = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQC7 somebody@else"


def line(session: str) -> str:
    return f"restrict {KEY} cloudtask-{session}"


def keys_of(home: Path) -> list[str]:
    return (home / ".ssh" / "authorized_keys").read_text().splitlines()


def settle(client: Client) -> None:
    """All frames sent so far have been acted on."""
    before = client.kinds().count("beat")
    client.send({"t": "beat", "n": before})
    client.pump(lambda: client.kinds().count("beat") > before, "beat")


def write_keys(home: Path, text: str, mode: int = 0o600) -> Path:
    (home / ".ssh").mkdir(mode=0o700)
    path = home / ".ssh" / "authorized_keys"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_finish_runs_post_and_removes_everything(connect: Connect, home: Path) -> None:
    client = connect()
    client.start(public_key=KEY + " comment", post="echo tidy; pwd > post; echo ${CLOUDTASK_JOB-none} >> post")
    settle(client)
    assert keys_of(home) == [line(client.session)]
    client.run({1: b"echo out"})
    client.result(1)
    client.ack((1, 1))
    client.send({"t": "finish"})
    assert client.wait("done")["left"] == 0
    client.wait_eof()
    assert client.results[-2, 1][3:5] == ["exit", 0]
    assert client.stdout(-2) == b"tidy\n"
    assert (home / "post").read_text() == f"{home}\nnone\n"
    assert (home / ".ssh" / "authorized_keys").read_text() == ""
    assert not (home / ".cloudtask-agent").exists()
    until(lambda: not processes_of(home), "the end of all processes")


def test_post_has_a_time_limit(connect: Connect, home: Path) -> None:
    client = connect()
    client.start(post="sleep 1000", post_timeout=0.3)
    client.send({"t": "finish"})
    client.wait("done")
    assert client.results[-2, 1][3] == "timeout"
    client.wait_eof()


def test_abort_goes_through_without_a_connection(connect: Connect, home: Path) -> None:
    client = connect()
    client.start(slots=1, public_key=KEY, post="echo post >> ran", grace=0.3)
    client.run({1: b"echo $$; trap '' TERM; while :; do sleep 0.05; done", 2: b"echo 2 >> ran"})
    job = int(client.pump(lambda: client.stdout(1), "a pid"))
    client.send({"t": "abort"})
    client.wait("returned")
    client.close()
    until(lambda: not alive(job))
    until(lambda: (home / "ran").exists() and keys_of(home) == [], "post and key")
    assert (home / "ran").read_text() == "post\n"
    second = connect()
    second.start(connection=2)
    assert second.inventory()[1, 1][0] == "ended"
    second.send({"t": "want", "jobs": [[1, 1, 0, 0]]})
    assert second.result(1)[3] == "aborted"
    second.ack((1, 1))
    second.send({"t": "finish"})
    second.wait_eof()
    assert not (home / ".cloudtask-agent").exists()


def test_abort_with_everything_acknowledged_leaves_nothing(connect: Connect, home: Path) -> None:
    client = connect()
    client.start(post="true")
    client.run({1: b"true"})
    client.result(1)
    client.ack((1, 1))
    client.send({"t": "abort"})
    client.close()
    until(lambda: not (home / ".cloudtask-agent").exists() and not processes_of(home), "the end of agent and home")


def test_done_says_what_is_left_and_the_last_acknowledgement_ends_it(connect: Connect, home: Path) -> None:
    client = connect()
    client.start()
    client.run({1: b"echo out", 2: b"sleep 1000"})
    client.result(1)
    client.send({"t": "abort"})
    assert client.wait("done")["left"] == 2
    assert client.results[2, 1][3] == "aborted"
    client.run({3: b"true"})
    client.pump(lambda: client.kinds().count("returned") or client.results.get((3, 1)), "an answer")
    client.ack((1, 1), (2, 1), (3, 1))
    client.wait_eof()
    assert not client.agent_home.exists()


def test_a_run_that_comes_while_the_agent_leaves_is_returned(connect: Connect) -> None:
    client = connect()
    client.start(post="sleep 0.5")
    client.send({"t": "finish"})
    client.run({1: b"true"})
    returned = client.wait("returned")
    assert (returned["jobs"], returned["why"]) == ([[1, 1]], "leaving")


def test_a_new_run_takes_an_aborted_agent_up_again(connect: Connect, home: Path) -> None:
    first = connect()
    first.start(public_key=KEY)
    first.send({"t": "ready"})
    first.run({1: b"true"})
    first.result(1)
    first.send({"t": "abort"})
    assert first.wait("done")["left"] == 1
    first.close()
    second = connect()
    welcome = second.start(epoch=2, public_key=KEY)
    assert welcome["ready"] is False, "post has undone what set-up did"
    settle(second)
    assert keys_of(home) == [line(first.session)]
    second.run({2: b"echo on"})
    second.result(2)
    second.ack((1, 1))
    settle(second)
    assert alive(welcome["pid"])


def test_lease_over_with_nothing_to_keep(connect: Connect, home: Path) -> None:
    client = connect()
    client.start(lease=0.3, public_key=KEY, post="echo post > post")
    client.wait_eof()
    assert (home / "post").exists()
    assert not (home / ".cloudtask-agent").exists()
    assert keys_of(home) == []


def test_lease_over_finishes_what_runs_and_keeps_its_results(connect: Connect, home: Path) -> None:
    client = connect()
    pid = client.start(lease=0.3, slots=1)["pid"]
    client.run({1: b"sleep 1; echo whole", 2: b"echo never"})
    assert client.wait("returned")["jobs"] == [[2, 1]]
    client.close()
    second = connect()
    assert second.start(connection=2, lease=600)["pid"] == pid
    second.send({"t": "want", "jobs": [[1, 1, 0, 0]]})
    assert second.result(1)[3:5] == ["exit", 0]
    second.run({3: b"echo again"})
    assert second.result(3)[3:5] == ["exit", 0]


def test_beats_renew_the_lease(connect: Connect, home: Path) -> None:
    client = connect()
    client.start(lease=1)
    began = time.monotonic()
    while time.monotonic() - began < 2:
        settle(client)
    assert not client.eof
    expiry = (client.agent_home / "lease").stat().st_mtime
    assert 0 < expiry - time.time() <= 1.1


# --- authorized_keys -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["\n", ""], ids=["newline", "no newline"])
def test_other_lines_mode_and_link_are_kept(connect: Connect, home: Path, tmp_path: Path, ending: str) -> None:
    path = write_keys(home, f"# mine\n\n{OTHER}{ending}", 0o640)
    real = tmp_path / "real"
    path.rename(real)
    path.symlink_to(real)
    client = connect()
    client.start(public_key=KEY)
    settle(client)
    assert keys_of(home) == ["# mine", "", OTHER, line(client.session)]
    assert path.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    client.send({"t": "finish"})
    client.wait_eof()
    assert real.read_text() == f"# mine\n\n{OTHER}\n"
    assert path.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith("real")] == ["real"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_the_owner_is_kept(connect: Connect, home: Path) -> None:
    path = write_keys(home, OTHER + "\n")
    os.chown(path, 65534, 65534)
    client = connect()
    client.start(public_key=KEY)
    settle(client)
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534)


def test_new_files_are_private(connect: Connect, home: Path) -> None:
    client = connect()
    client.start(public_key=KEY)
    settle(client)
    assert stat.S_IMODE((home / ".ssh").stat().st_mode) == 0o700
    assert stat.S_IMODE((home / ".ssh/authorized_keys").stat().st_mode) == 0o600


def test_without_a_key_nothing_is_touched(connect: Connect, home: Path) -> None:
    client = connect()
    client.start()
    client.send({"t": "finish"})
    client.wait_eof()
    assert not (home / ".ssh").exists()


def test_two_workers_of_a_session_share_the_line(connect: Connect, home: Path) -> None:
    one, two = connect(1), connect(2)
    for client in (one, two):
        client.start(public_key=KEY)
        settle(client)
    assert keys_of(home) == [line(one.session)]
    one.send({"t": "finish"})
    one.wait_eof()
    assert keys_of(home) == [line(one.session)], "the other worker still needs it"
    two.send({"t": "finish"})
    two.wait_eof()
    assert keys_of(home) == []


def test_two_workers_that_end_at_once_leave_no_line(connect: Connect, home: Path) -> None:
    clients = [connect(number) for number in range(1, 5)]
    for client in clients:
        client.start(public_key=KEY)
        settle(client)
    for client in clients:
        client.send({"t": "finish"})
    for client in clients:
        client.wait_eof()
    assert keys_of(home) == []


def test_a_new_key_takes_the_place_of_the_old_one(connect: Connect, home: Path) -> None:
    client = connect()
    write_keys(home, f"{line(client.session).replace('AAAAC3', 'BBBBB3')}\n{OTHER}\n")
    client.start(public_key=KEY)
    settle(client)
    assert keys_of(home) == [OTHER, line(client.session)]


@pytest.mark.parametrize("key", ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 x\nssh-rsa EVIL", "nonsense", "ssh-ed25519 \"AAAAAAAAAAAAAAAAAAAA"])
def test_what_is_no_key_is_not_written(connect: Connect, home: Path, key: str) -> None:
    write_keys(home, OTHER + "\n")
    client = connect()
    client.start(public_key=key)
    settle(client)
    assert all(found == OTHER or found.startswith("restrict ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 cloudtask-") for found in keys_of(home))


def leftover(home: Path, name: str, identity: str, lease: float) -> None:
    """The home of an agent that died."""
    path = home / ".cloudtask-agent" / name
    path.mkdir(parents=True, mode=0o700)
    (path / "identity").write_text(identity)
    (path / "lock").touch()
    (path / "lease").touch()
    os.utime(path / "lease", (time.time() + lease,) * 2)


def test_lines_that_dead_agents_left_are_removed_and_no_others(connect: Connect, home: Path) -> None:
    probe = connect(session=f"probe{os.getpid()}")
    identity = str(probe.start()["identity"]).replace("'", '"')
    living = connect(session=f"living{os.getpid()}")
    living.start(public_key=KEY)
    settle(living)
    living.close()
    for session in ("dead", "leased", "gone", "foreign"):
        with open(home / ".ssh/authorized_keys", "a") as file:
            file.write(line(session) + "\n")
    with open(home / ".ssh/authorized_keys", "a") as file:
        file.write(f"{KEY} cloudtask-by-hand\n")
    leftover(home, "dead.1", identity, -10)
    leftover(home, "dead.2~2", identity, -10)
    leftover(home, "leased.1", identity, 1000)
    leftover(home, "foreign.1", '["other", "machine", "1"]', -10)
    client = connect()
    client.start(public_key=KEY)
    settle(client)
    assert keys_of(home) == [line(living.session), line("leased"), line("foreign"), f"{KEY} cloudtask-by-hand", line(client.session)]


def test_a_file_that_cannot_be_changed_is_no_reason_to_stop(connect: Connect, home: Path) -> None:
    (home / ".ssh").write_text("not a directory")
    client = connect()
    client.start(public_key=KEY)
    assert "authorized_keys" in client.wait("note")["text"]
    client.run({1: b"true"})
    assert client.result(1)[3] == "exit"
