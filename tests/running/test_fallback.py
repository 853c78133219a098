"""A worker without python3, by the real program: its sh stands in for the agent, with less comfort, and the log says so."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.running.program import Controller, wait_until
from tests.running.test_trouble import ended_records
from tests.running.test_workers import numbers, once
from tests.sshd import ClientKeys, Sshd


@pytest.fixture
def options(nopython: Sshd, client_keys: ClientKeys) -> list[str]:
    return [f"--workers=2/{nopython.address}", f"--ssh-config={client_keys.config}"]


def inside(server: Sshd) -> Path:
    """The login user's home, which is in a root directory of its own."""
    (root,) = [line.split()[1] for line in server.config if line.startswith("ChrootDirectory")]
    return Path(root + str(server.account.home))


def clean(server: Sshd) -> bool:
    home = inside(server)
    keys = home / ".ssh" / "authorized_keys"
    return not list(home.glob(".cloudtask-agent/*")) and (not keys.exists() or "cloudtask-" not in keys.read_text())


def remember(name: str = "{}") -> str:
    """Shell code that tells when a job begins: the witness is in the home here."""
    return f"echo begin {name} >> witness;"


def told(server: Sshd) -> Counter[str]:
    path = inside(server) / "witness"
    return Counter(line.split()[1] for line in path.read_text().splitlines()) if path.exists() else Counter()


def running(server: Sshd, word: str) -> list[int]:
    found = []
    for pid in server.account.processes():
        try:
            if word in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
        except OSError:
            pass
    return found


def test_jobs_output_and_exit_statuses(controller: Controller, nopython: Sshd, options: list[str]) -> None:
    code = "echo out {}; echo err {} >&2; case {} in 3) exit 9;; 4) kill -9 $$;; esac; echo $CLOUDTASK_JOB $CLOUDTASK_WORKER $COLOUR; :"
    assert controller.run(*options, "--env=COLOUR=blue", "--post=echo tidy", code, jobs=numbers(6)) == 1, controller.said()
    assert {item["job"]: item["outcome"] for item in ended_records(controller)} == {
        1: "exit 0", 2: "exit 0", 3: "exit 9", 4: "signal 9", 5: "exit 0", 6: "exit 0",
    }  # fmt: skip
    lines = controller.out().read_text().splitlines()
    assert sorted(lines) == sorted([f"out {n}" for n in range(1, 7)] + [f"{n} 1 blue" for n in (1, 2, 5, 6)])
    assert all(f"err {number}\n" in controller.said() for number in range(1, 7))
    assert "no python3" in controller.said()
    assert "no python3" in (controller.session() / "workers" / "1.log").read_text()
    assert clean(nopython)


def test_timeouts_and_retries(controller: Controller, nopython: Sshd, options: list[str]) -> None:
    code = f"{remember()} case {{}} in slow) trap '' TERM; sleep 4321 & sleep 4321;; twice) [ $CLOUDTASK_ATTEMPT = 2 ];; esac"
    began = time.monotonic()
    status = controller.run(
        *options, "--timeout=2", "--kill-grace=1", "--retries=1", "--retry-delay=0.1", code, jobs=b"slow\ntwice\n", seconds=30
    )
    assert status == 1 and time.monotonic() - began < 25, controller.said()
    assert "1 timeouts, 0 errors, 1 OK" in controller.summary()
    assert told(nopython) == Counter(slow=2, twice=2)
    assert not running(nopython, "4321") and clean(nopython)


def test_an_abort(controller: Controller, nopython: Sshd, options: list[str]) -> None:
    process = controller.start(*options, f"{remember()} sleep 4322", jobs=numbers(4))
    wait_until(lambda: sum(told(nopython).values()) == 2, "two jobs run")
    process.terminate()
    assert controller.finish(process) == 143, controller.said()
    assert "4 pending" in controller.summary()
    assert not running(nopython, "4322") and clean(nopython), controller.said()
    assert not list((controller.home / ".local/state/cloudtask/keys").iterdir())


def test_a_cut(controller: Controller, nopython: Sshd, options: list[str]) -> None:
    """What ran is lost, ended, and runs again: never two at a time."""
    code = f"{remember()} mkdir lock{{}} || exit 1; sleep 1; rmdir lock{{}}"
    process = controller.start(*options, code, jobs=numbers(6))
    wait_until(lambda: sum(told(nopython).values()) >= 3, "jobs run")
    ended = {str(item["job"]) for item in ended_records(controller)}
    nopython.kill_connections()
    for lock in inside(nopython).glob("lock*"):
        lock.rmdir()
    assert controller.finish(process) == 0, controller.said()
    assert "lost (" in controller.said()
    assert set(told(nopython)) == set(once(6)) and all(told(nopython)[name] == 1 for name in ended)
    assert clean(nopython)


def test_kill_9_and_resume(controller: Controller, nopython: Sshd, options: list[str]) -> None:
    """The main process dies, its jobs with it; a resume finishes, and runs nothing again whose end is known."""
    process = controller.start(*options, f"{remember()} sleep 0.5; echo out {{}}", jobs=numbers(8))
    wait_until(lambda: len(ended_records(controller)) >= 2, "two jobs are done")
    process.kill()
    process.wait()
    known = {str(item["job"]) for item in ended_records(controller)}
    assert controller.run("--resume=last") == 0, controller.said()
    assert set(told(nopython)) == set(once(8)) and all(told(nopython)[name] == 1 for name in known)
    # What was shown in the last second before the end may be shown again.
    shown = {*controller.out(0).read_text().splitlines(), *controller.out(1).read_text().splitlines()}
    assert shown == {f"out {number}" for number in range(1, 9)}
    assert "0 pending, 0 timeouts, 0 errors, 8 OK" in controller.summary()
    assert clean(nopython)


def test_the_session_key_reconnects_where_the_users_key_is_gone(
    controller: Controller, nopython: Sshd, client_keys: ClientKeys, options: list[str]
) -> None:
    """sshd reads the keys outside of the root directory here, so the file there is the one that the worker edits."""
    (inside(nopython) / ".ssh").mkdir(mode=0o700)
    keys = inside(nopython) / ".ssh" / "authorized_keys"
    keys.write_text(client_keys.public + "\n")
    os.chown(keys.parent, nopython.account.uid, nopython.account.gid)
    os.chown(keys, nopython.account.uid, nopython.account.gid)
    nopython.config.append(f"AuthorizedKeysFile {keys}")
    nopython.stop()
    nopython.start()
    process = controller.start(*options, f"{remember()} sleep 0.5", jobs=numbers(6))
    wait_until(lambda: len(ended_records(controller)) >= 2, "two jobs are done")
    assert " cloudtask-" in keys.read_text() and "restrict ssh-ed25519 " in keys.read_text()
    client_keys.identity.unlink()
    nopython.kill_connections()
    assert controller.finish(process) == 0, controller.said()
    assert set(told(nopython)) == set(once(6)) and clean(nopython)
    assert keys.read_text() == client_keys.public + "\n"
