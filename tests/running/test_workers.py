"""What issue section 5 and the design's sections 5, 9 and 10 promise about workers, over real sshd's and judged from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.running.conftest import Remote
from tests.running.program import Controller, alive, command_line, wait_until
from tests.sshd import ClientKeys, Sshd, keygen
from tests.workers.conftest import TOOL_FOLDERS


def numbers(count: int) -> bytes:
    return b"".join(b"%d\n" % number for number in range(1, count + 1))


def once(count: int) -> Counter[str]:
    return Counter(str(number) for number in range(1, count + 1))


def authorized(server: Sshd) -> list[str]:
    """The lines of session keys on a server's account."""
    text = (server.account.home / ".ssh" / "authorized_keys").read_text()
    return [line for line in text.splitlines() if "cloudtask-" in line]


def agents(server: Sshd) -> list[int]:
    """The pids of the agents that run on a server's account."""
    found = []
    for state in server.account.home.glob(".cloudtask-agent/*/state"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            found.append(int(json.loads(state.read_text())["agent"][0]))
    return [pid for pid in found if alive(pid)]


def kill_everything(controller: Controller, server: Sshd) -> None:
    """As a power cut of controller and worker would."""
    controller.runs[-1].send_signal(signal.SIGSTOP)
    pids = [*controller.supervisors(), controller.runs[-1].pid]
    pids += [pid for pid in server.account.processes() if not command_line(pid).startswith("sshd")]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    controller.runs[-1].wait()
    wait_until(lambda: not any(alive(pid) for pid in pids), "all are dead")


def no_trace(server: Sshd) -> bool:
    """Nothing of ours is on the worker: no key, no home, no agent."""
    return not authorized(server) and not list(server.account.home.glob(".cloudtask-agent/*"))


def no_keys(controller: Controller) -> bool:
    """No private key of a session is left on the controller."""
    return not list((controller.home / ".local/state/cloudtask/keys").iterdir())


# --- the session's key -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["ssh", "openssh"])
def test_the_session_key_reconnects_where_the_users_key_is_gone(
    controller: Controller, remote: Remote, client_keys: ClientKeys, transport: str
) -> None:
    (server,), options = remote(slots=2)
    process = controller.start(*options, f"--transport={transport}", controller.recording("sleep 0.5;"), jobs=numbers(8))
    wait_until(lambda: len(controller.ended()) >= 2, "two jobs are done")
    (line,) = authorized(server)
    uid = controller.journal()[0]["session"]
    assert line.startswith("restrict ssh-ed25519 ") and line.endswith(f" cloudtask-{uid}")
    client_keys.identity.unlink()
    Path(f"{client_keys.identity}.pub").unlink()
    server.kill_connections()
    assert controller.finish(process) == 0, controller.said()
    assert controller.begun() == controller.ended() == once(8)
    assert no_trace(server) and no_keys(controller), controller.said()


def test_the_session_key_goes_with_an_abort(controller: Controller, remote: Remote) -> None:
    (server,), options = remote()
    process = controller.start(*options, controller.recording("sleep 30;"), jobs=b"1\n")
    wait_until(lambda: controller.begun() and authorized(server), "the job runs")
    process.terminate()
    assert controller.finish(process) == 143, controller.said()
    assert no_trace(server) and no_keys(controller), controller.said()


def test_the_session_key_goes_with_the_resume_after_all_was_killed(
    controller: Controller, remote: Remote, client_keys: ClientKeys
) -> None:
    (server,), options = remote(slots=2)
    controller.start(*options, controller.recording("sleep 0.3;"), jobs=numbers(6))
    wait_until(lambda: len(controller.ended()) >= 2, "two jobs are done")
    kill_everything(controller, server)
    assert authorized(server) and not no_keys(controller)
    client_keys.identity.rename(f"{client_keys.identity}.away")
    assert controller.run("--resume=last") == 0, controller.said()
    assert set(controller.ended()) == set(once(6))
    assert no_trace(server) and no_keys(controller), controller.said()


def test_the_key_of_a_dead_agent_is_swept_by_a_later_run(controller: Controller, remote: Remote) -> None:
    (server,), options = remote()
    controller.start(*options, "--lease=2s", "--heartbeat=1", controller.recording("sleep 0.2;"), jobs=numbers(8))
    wait_until(lambda: len(controller.ended()) >= 2, "two jobs are done")
    kill_everything(controller, server)
    assert len(authorized(server)) == 1
    (lease,) = server.account.home.glob(".cloudtask-agent/*/lease")
    os.utime(lease, (1, 1))
    assert controller.run(*options, "echo", jobs=b"1\n") == 0
    assert not authorized(server)


def test_root_gets_a_session_key_as_well(controller: Controller, remote: Remote, client_keys: ClientKeys) -> None:
    if os.getuid() != 0:
        pytest.skip("logs in as root")
    home = controller.directory / "root"
    (home / ".ssh").mkdir(parents=True)
    (server,), options = remote(slots=2, user="root", config=[f"SetEnv HOME={home}"])
    (home / ".ssh" / "authorized_keys").symlink_to(server.keys_file)
    process = controller.start(*options, controller.recording("sleep 0.5;"), jobs=numbers(6))
    wait_until(lambda: len(controller.ended()) >= 2, "two jobs are done")
    assert "restrict ssh-ed25519 " in server.keys_file.read_text()
    client_keys.identity.unlink()
    server.kill_connections()
    assert controller.finish(process) == 0, controller.said()
    assert controller.begun() == controller.ended() == once(6)
    assert "restrict" not in server.keys_file.read_text() and (home / ".ssh" / "authorized_keys").is_symlink()
    assert not (home / ".cloudtask-agent").exists()


def test_the_end_of_one_worker_leaves_the_key_to_the_other_on_the_same_host(
    controller: Controller, remote: Remote, client_keys: ClientKeys
) -> None:
    (server,), options = remote()
    workers = f"--workers={server.address} {server.address}"
    process = controller.start(workers, options[1], controller.recording("sleep 0.4;"), jobs=numbers(8))
    wait_until(lambda: len(agents(server)) == 2 and len(controller.ended()) >= 2, "both run jobs")
    os.kill(controller.supervisors()[0], signal.SIGTERM)
    wait_until(lambda: len(agents(server)) == 1, "one has gone")
    assert len(authorized(server)) == 1
    client_keys.identity.unlink()
    server.kill_connections()
    assert controller.finish(process) == 0, controller.said()
    assert set(controller.ended()) == set(once(8))
    assert no_trace(server) and no_keys(controller), controller.said()


# --- set-up ----------------------------------------------------------------------------------------------------------


def make_overlay(controller: Controller, server: Sshd) -> Path:
    """An overlay with a script in the home of the login user."""
    overlay = controller.directory / "overlay"
    folder = overlay / str(server.account.home).lstrip("/") / "tools"
    folder.mkdir(parents=True)
    (folder / "greet").write_text("#!/bin/sh\necho hello $1 $(cat tools/from-pre)\n")
    (folder / "greet").chmod(0o755)
    return overlay


def tools_without(folder: Path, hidden: str) -> Path:
    """A folder that stands for all of PATH: every tool of this machine but for one."""
    folder.mkdir()
    for source in map(Path, TOOL_FOLDERS):
        for tool in source.iterdir() if source.is_dir() else ():
            if tool.name != hidden and not os.path.lexists(folder / tool.name):
                (folder / tool.name).symlink_to(tool)
    return folder


@pytest.mark.parametrize("hidden", ["nothing", "rsync"])
def test_overlay_then_pre_then_jobs(controller: Controller, remote: Remote, hidden: str) -> None:
    """By rsync, and by tar where the worker has no rsync; --post sees it all once more."""
    tools = tools_without(controller.directory / "bin", hidden)
    (server,), options = remote(slots=2, config=[f"SetEnv PATH={tools}"])
    pre = f"{controller.recording()}; ls tools/greet && echo me > tools/from-pre".replace("{}", "pre")
    post = f"{controller.recording()}; rm -r tools".replace("{}", "post")
    overlay = make_overlay(controller, server)
    status = controller.run(*options, f"--overlay={overlay}", f"--pre={pre}", f"--post={post}", "tools/greet", jobs=numbers(4))
    assert status == 0, controller.said()
    assert sorted(controller.out().read_text().splitlines()) == [f"hello {number} me" for number in range(1, 5)]
    assert controller.begun() == Counter(pre=1, post=1)
    assert not (server.account.home / "tools").exists()
    assert ("tools/greet" in (controller.session() / "workers" / "1.log").read_text()) and no_trace(server)


@pytest.mark.parametrize("what", ["overlay", "pre", "slow pre"])
def test_a_worker_that_cannot_be_set_up_is_retired_and_a_spare_steps_in(controller: Controller, remote: Remote, what: str) -> None:
    """Files stand in the way of the overlay, or the command fails, on the first worker only; without a spare the exit status is 3."""
    servers, options = remote(2)
    overlay = make_overlay(controller, servers[0])
    more = {
        "overlay": [f"--overlay={overlay}"],
        "pre": ['--pre=[ "$CLOUDTASK_WORKER" = 2 ] || exit 7'],
        "slow pre": ['--pre=[ "$CLOUDTASK_WORKER" = 2 ] || sleep 30', "--setup-timeout=1s", "--kill-grace=1"],
    }[what]
    if what == "overlay":
        blocked = overlay / str(servers[0].account.home).lstrip("/") / ".bad"
        blocked.write_text("x")
        (servers[0].account.home / ".bad").mkdir()
        (servers[0].account.home / ".bad" / "full").touch()
    status = controller.run(*options, "--split=1", *more, "echo", jobs=numbers(3))
    said = controller.said()
    if what == "overlay":  # both logins have the same home
        assert status == 3, said
        assert said.count("setup failed: overlay") == 2
    else:
        assert status == 0, said
        assert "setup failed: pre-command: " + ("exit 7" if what == "pre" else "timeout") in said
        assert "using existing worker" in said and "Traceback" not in said
    assert no_trace(servers[0])


# --- making contact --------------------------------------------------------------------------------------------------


def test_login_scripts_that_talk_harm_nothing(controller: Controller, remote: Remote) -> None:
    """Noise on both streams before each command, and a slow one."""
    noisy = 'ForceCommand echo noise; echo more noise >&2; sleep 1; exec sh -c "$SSH_ORIGINAL_COMMAND"'
    (server,), options = remote(slots=2, config=[noisy])
    overlay = make_overlay(controller, server)
    assert controller.run(*options, f"--overlay={overlay}", "tools/greet", jobs=numbers(4)) == 0, controller.said()
    assert sorted(controller.out().read_text().split("\n")) == ["", *[f"hello {number}" for number in range(1, 5)]]


def test_an_unreachable_worker_among_good_ones(controller: Controller, remote: Remote) -> None:
    """It is given up, with the reason; a spare steps in; the run ends well."""
    servers, options = remote(3)
    servers[0].stop()
    status = controller.run(*options, "--split=2", "sleep 1; echo $CLOUDTASK_WORKER; :", jobs=numbers(6))
    assert status == 0, controller.said()
    (line,) = [line for line in controller.said().splitlines() if "unreachable" in line]
    assert line.startswith(servers[0].address) and "refused" in line
    assert set(controller.out().read_text().split()) == {"2", "3"}
    assert [record["worker"] for record in controller.journal() if "transport" in record] == [1, 2, 3]
    assert "connection lost" not in (controller.session() / "workers" / "3.log").read_text()


@pytest.mark.parametrize("transport", ["ssh", "openssh"])
@pytest.mark.parametrize("what", ["host key", "login"])
def test_a_refusal_is_one_clear_line_and_final(
    controller: Controller, remote: Remote, client_keys: ClientKeys, what: str, transport: str
) -> None:
    servers, options = remote(2)
    if what == "host key":
        wrong = servers[1].public_host_key()
        client_keys.known_hosts.write_text(f"[{servers[0].host}]:{servers[0].port} {wrong}\n")
        words = [str(client_keys.known_hosts)]
    else:
        servers[0].config.append("AuthorizedKeysFile none")
        servers[0].stop()
        servers[0].start()
        words = [servers[0].account.name]
    assert controller.run(*options, f"--transport={transport}", "echo", jobs=numbers(3)) == 0, controller.said()
    (line,) = [line for line in controller.said().splitlines() if "unreachable" in line]
    assert all(word in line for word in words), line
    assert line.startswith(servers[0].address) and controller.said().count("still trying") == 0


def test_an_unknown_host_key_is_accepted_once_and_remembered(controller: Controller, remote: Remote) -> None:
    (server,), options = remote()
    assert controller.run(*options, "echo", jobs=b"1\n") == 0
    remembered = (controller.home / ".config" / "cloudtask" / "known_hosts").read_text()
    assert server.public_host_key() in remembered
    for key in server.host_keys:
        key.unlink()
    server.host_keys[:] = [keygen(key) for key in server.host_keys[:1]]
    server.stop()
    server.start()
    assert controller.run(*options, "echo", jobs=b"1\n") == 3
    assert "known_hosts" in controller.said() and ":1" in controller.said()


def test_a_late_worker_gets_jobs_at_once(controller: Controller, remote: Remote) -> None:
    servers, options = remote(2)
    servers[1].stop()
    process = controller.start(*options, "sleep 0.3; echo $CLOUDTASK_WORKER; :", jobs=numbers(16))
    wait_until(lambda: controller.out().read_text().count("1") >= 3, "the first one works")
    servers[1].start()
    assert controller.finish(process) == 0, controller.said()
    assert controller.out().read_text().split().count("2") >= 2
    assert "unreachable" not in controller.said()


def test_idle_workers_are_let_go_and_one_stays(controller: Controller, remote: Remote) -> None:
    gate = controller.directory / "gate"
    servers, options = remote(4)
    code = f"if [ {{}} = 1 ]; then while [ ! -e {gate} ]; do sleep 0.05; done; fi; :"
    process = controller.start(*options, code, jobs=numbers(8))

    def released() -> int:
        return sum("released" in record for record in controller.journal())

    wait_until(lambda: released() == 2, "two idle ones are let go")
    assert len(agents(servers[0])) == 2
    gate.touch()
    assert controller.finish(process) == 0, controller.said()
    assert released() == 4


def test_slots_of_remote_workers(controller: Controller, remote: Remote) -> None:
    """One unless said otherwise; ``auto`` is the CPUs; ``4/host`` is four."""
    (server,), options = remote()
    code = f"echo {{}} >> {controller.witness}; while [ $(wc -l < {controller.witness}) -lt $WANTED ]; do sleep 0.02; done; :"
    for slots, workers, wanted in [("--slots=auto", server.address, len(os.sched_getaffinity(0))), ("--quiet", f"4/{server.address}", 4)]:
        controller.witness.write_text("")
        status = controller.run(
            f"--workers={workers}", options[1], slots, f"--env=WANTED={wanted}", "--timeout=10", code, jobs=numbers(wanted)
        )
        assert status == 0, controller.said()
        ready = [record["slots"] for record in controller.journal(len(controller.runs)) if "ready" in record]
        assert ready == [wanted]


def test_a_resume_waits_for_the_answer_of_every_worker(controller: Controller, remote: Remote) -> None:
    """The journal lost its end, and one worker is slow to answer: what it ran is not run again by the other."""
    servers, options = remote(2)
    controller.start(*options, controller.recording("sleep 0.3;"), jobs=numbers(8))
    wait_until(lambda: len(controller.ended()) >= 4, "four jobs are done")
    controller.runs[0].kill()
    controller.runs[0].wait()
    wait_until(lambda: controller.begun() == controller.ended(), "nothing runs")
    journal = controller.session() / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(line for line in lines if line.startswith((b'{"format', b'{"run', b'{"worker', b'{"ready', b'{"setup'))))
    servers[1].stop()
    servers[1].config.append('ForceCommand sleep 2; exec sh -c "$SSH_ORIGINAL_COMMAND"')
    servers[1].start()
    assert controller.run("--resume=last") == 0, controller.said()
    assert controller.begun() == controller.ended() == once(8)
