"""Rows of the design's failure table (section 10) on remote workers, by the real program over real sshd's."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running.conftest import Remote
from tests.running.program import Controller, wait_until
from tests.running.test_workers import agents, no_trace, numbers, once
from tests.sshd import Sshd

KILL_THE_AGENT = "kill -9 $(sed -n 's/.*\"agent\": \\[\\([0-9]*\\),.*/\\1/p' ~/.cloudtask-agent/*.$CLOUDTASK_WORKER/state)"


def ended_records(controller: Controller, number: int = 1) -> list[dict[str, object]]:
    return [item for record in controller.journal(number) for item in record.get("ended", [])]


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int, owner: tuple[int, int] = (0, 0)) -> Iterator[Path]:
    """A file system of its own at ``folder``.  Needs root."""
    if os.getuid() != 0:
        pytest.skip("not allowed to mount a file system")
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={kilobytes}k,uid={owner[0]},gid={owner[1]},mode=0755"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"not allowed to mount a file system: {done.stderr}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def fill(folder: Path, leave: int) -> Path:
    """Takes all but ``leave`` bytes."""
    disk = os.statvfs(folder)
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(max(0, disk.f_bavail * disk.f_frsize - leave)))
    return ballast


def test_poison(controller: Controller, remote: Remote) -> None:
    """A job that kills its agent is lost three times, the third time alone; the others are unharmed."""
    _, options = remote(2, slots=2)
    code = f"echo begin {{}} >> {controller.witness}; if [ {{}} = 3 ]; then sleep 0.2; {KILL_THE_AGENT}; sleep 20; fi; sleep 0.3; "
    code += f"echo end {{}} >> {controller.witness}"
    assert controller.run(*options, code, jobs=numbers(8)) == 1, controller.said()
    assert controller.begun()["3"] == 3
    (record,) = [record for record in controller.journal() if "settled" in record]
    assert record["outcome"] == "poison" and "job 3: poison" in controller.said()
    assert set(controller.ended()) == set(once(8)) - {"3"}
    assert "0 pending, 0 timeouts, 1 errors, 7 OK" in controller.summary()


def test_a_full_disk_on_a_worker_drains_it(controller: Controller, remote: Remote) -> None:
    """Nothing new starts there, a spare steps in, and every job ends once."""
    servers, options = remote(2)
    account = servers[0].account
    with small_disk(account.home / "small", 4096, (account.uid, account.gid)) as small:
        servers[0].stop()
        servers[0].config.append(f"SetEnv HOME={small}")
        servers[0].start()
        process = controller.start(*options, "--split=1", "--heartbeat=1", controller.recording("sleep 0.5;"), jobs=numbers(8))
        wait_until(lambda: len(controller.ended()) >= 2, "two jobs are done")
        fill(small, 0)
        assert controller.finish(process) == 0, controller.said()
        assert "disk full" in controller.said()
        assert controller.begun() == controller.ended() == once(8)


def test_a_full_disk_on_the_controller(controller: Controller, remote: Remote) -> None:
    """The run says so and ends, the agents keep the results; with room made a resume finishes, each job once."""
    (server,), options = remote(slots=2)
    with small_disk(controller.directory / "disk", 2048) as disk:
        controller.sessions = disk / "sessions"
        code = controller.recording("head -c 100000 /dev/urandom; sleep 0.3;")
        process = controller.start(*options, code, jobs=numbers(8), CLOUDTASK_SESSIONS=str(controller.sessions))
        wait_until(lambda: len(controller.ended()) >= 2, "two jobs are done")
        ballast = fill(disk, 0)
        status = controller.finish(process)
        said = controller.said()
        assert status == 3, said
        assert "No space left" in said and "make room, then --resume" in said and "Traceback" not in said
        ballast.unlink()
        assert controller.run("--resume=1") == 0, controller.said()
        assert controller.begun() == controller.ended() == once(8)
        # That the first two were shown could not be written down.
        assert len(controller.out(1).read_bytes()) in (600_000, 800_000)
    assert no_trace(server)


@pytest.mark.parametrize("winner", ["1", "2"])
def test_a_worker_that_comes_back_after_its_jobs_were_replaced(controller: Controller, remote: Remote, winner: str) -> None:
    """Whichever attempt ends first wins, the other is ended and recorded as superseded; output is shown once."""
    servers, options = remote(2)
    gate = controller.directory / "gate"
    code = f"echo begin {{}} $CLOUDTASK_WORKER >> {controller.witness}; "
    code += f"while [ ! -e {gate}$CLOUDTASK_WORKER ]; do sleep 0.1; done; echo out; :"
    process = controller.start(*options, "--split=1", "--heartbeat=1", "--lost-timeout=2", code, jobs=numbers(1))
    wait_until(lambda: controller.begun()["1"] == 1, "the job runs")
    servers[0].stop()
    wait_until(lambda: ["begin", "1", "2"] in controller.told(), "its replacement runs on the other worker")
    servers[0].start()
    wait_until(lambda: "contact again" in controller.said(), "the first one is back")
    Path(f"{gate}{winner}").touch()
    assert controller.finish(process) == 0, controller.said()
    assert controller.out().read_text() == "out\n"
    ends = {str(record["worker"]): item for record in controller.journal() for item in record.get("ended", [])}
    assert ends[winner]["outcome"] == "exit 0" and not ends[winner].get("again")
    loser = "2" if winner == "1" else "1"
    assert ends[loser]["outcome"] == "superseded" and ends[loser]["again"]
    assert no_trace(servers[0])


def test_a_copy_of_a_session_that_somebody_else_runs(controller: Controller, remote: Remote) -> None:
    """The higher epoch has it; the first run ends, exit 3, and starts nothing more."""
    (server,), options = remote(slots=2)
    first = controller.start(*options, "--heartbeat=1", controller.recording("sleep 0.5;"), jobs=numbers(8))
    wait_until(lambda: len(controller.ended()) >= 2, "two jobs are done")
    copied = controller.directory / "copied"
    shutil.copytree(controller.sessions, copied)
    original, controller.sessions = controller.sessions, copied
    second = controller.start("--resume=1", CLOUDTASK_SESSIONS=str(copied))
    assert controller.finish(first) == 3
    said = controller.err(0).read_text()
    assert "somebody else runs it" in said and "Traceback" not in said
    assert controller.finish(second) == 0, controller.said()
    assert set(controller.ended()) == set(once(8)) and max(controller.begun().values()) == 1
    assert no_trace(server) and original.exists()


def test_agents_go_on_under_their_lease_and_hold_results(controller: Controller, remote: Remote) -> None:
    """The controller is gone for longer than the lease: what runs ends, what waits is not begun; a resume fetches it all."""
    (server,), options = remote(slots=2)
    gate = controller.directory / "gate"
    code = controller.recording(f"while [ ! -e {gate} ]; do sleep 0.1; done; echo out {{}};")
    process = controller.start(*options, "--lease=2s", "--heartbeat=1", code, jobs=numbers(6))
    wait_until(lambda: len(controller.begun()) == 2, "two jobs run")
    for pid in [*controller.supervisors(), process.pid]:
        os.kill(pid, signal.SIGSTOP)
    for pid in [*controller.supervisors(), process.pid]:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    (lease,) = server.account.home.glob(".cloudtask-agent/*/lease")
    wait_until(lambda: is_past(lease), "the lease is over")
    gate.touch()
    wait_until(lambda: len(controller.ended()) == 2, "what ran has ended")
    assert len(agents(server)) == 1
    assert controller.run("--resume=last") == 0, controller.said()
    assert controller.begun() == controller.ended() == once(6)
    assert sorted(controller.out().read_text().splitlines()) == [f"out {number}" for number in range(1, 7)]
    assert no_trace(server)


def is_past(lease: Path) -> bool:
    return lease.stat().st_mtime < time.time() - 0.5


def test_a_job_that_is_killed_and_one_that_leaves_something_behind(controller: Controller, remote: Remote) -> None:
    """The signal is told; a background process that holds the job's output does not hold its slot."""
    _, options = remote()
    jobs = b"kill -9 $$\n(sleep 60; echo late) & echo early\nsetsid sleep 60 & echo escaped\ntrue\n"
    assert controller.run(*options, "--input=line", jobs=jobs, seconds=20) == 1, controller.said()
    outcomes = {item["job"]: item["outcome"] for item in ended_records(controller)}
    assert outcomes == {1: "signal 9", 2: "exit 0", 3: "exit 0", 4: "exit 0"}
    assert controller.out().read_text() == "early\nescaped\n"


def test_a_reboot_ends_what_ran(controller: Controller, remote: Remote) -> None:
    """The machine's identity changes: what ran there is lost at once, and runs again on the machine that came back."""
    root = controller.directory / "root"
    (root / "etc").mkdir(parents=True)
    (root / "proc/sys/kernel/random").mkdir(parents=True)
    (root / "proc/1").mkdir()
    (root / "etc/machine-id").write_text("m1\n")
    (root / "proc/sys/kernel/random/boot_id").write_text("boot1\n")
    (root / "proc/1/stat").write_text("1 (init) S " + "0 " * 18 + "22 0 0\n")
    (server,), options = remote(slots=2, config=[f"SetEnv CLOUDTASK_AGENT_PROC_ROOT={root}"])
    process = controller.start(*options, "--lost-timeout=1h", controller.recording("sleep 0.6;"), jobs=numbers(6))
    wait_until(lambda: len(controller.ended()) >= 2 and len(controller.begun()) > 2, "two jobs are done, others run")
    server.stop()
    kill_user(server)
    (root / "proc/sys/kernel/random/boot_id").write_text("boot2\n")
    server.start()
    assert controller.finish(process) == 0, controller.said()
    assert "lost (the machine restarted)" in controller.said()
    assert set(controller.ended()) == set(once(6)) and max(controller.ended().values()) == 1
    assert no_trace(server)


def kill_user(server: Sshd) -> None:
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in server.account.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    wait_until(lambda: not server.account.processes(), "nothing runs")


@pytest.mark.parametrize("how", ["whole", "cut"])
def test_by_the_systems_ssh(controller: Controller, remote: Remote, how: str) -> None:
    servers, options = remote(2, slots=2)
    process = controller.start(*options, "--transport=openssh", controller.recording("sleep 0.4; echo {};"), jobs=numbers(10))
    if how == "cut":
        wait_until(lambda: len(controller.ended()) >= 4, "four jobs are done")
        for server in servers:
            server.kill_connections()
    assert controller.finish(process) == 0, controller.said()
    assert controller.begun() == controller.ended() == once(10)
    assert sorted(controller.out().read_text().split(), key=int) == sorted(once(10), key=int)
    assert no_trace(servers[0])
