"""What a run does when nothing goes wrong, and when jobs do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.running.conftest import Remote
from tests.running.program import Controller, wait_until


def numbers(count: int) -> bytes:
    return b"".join(b"%d\n" % number for number in range(1, count + 1))


def test_jobs_on_this_machine(controller: Controller) -> None:
    assert controller.run("echo", jobs=numbers(10)) == 0, controller.said()
    assert sorted(controller.out().read_text().split(), key=int) == [str(n) for n in range(1, 11)]
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d :: session 1 \(\d+ seconds\): 0/10 !OK - 0 pending, 0 timeouts, 0 errors, 10 OK",
        controller.summary(),
    )
    assert controller.agent_homes() == []
    assert (controller.session().stat().st_mode & 0o777, (controller.session() / "journal.jsonl").stat().st_mode & 0o777) == (0o700, 0o600)


def test_jobs_over_ssh(controller: Controller, remote: Remote) -> None:
    servers, options = remote(2)
    command = 'echo "$CLOUDTASK_JOB $CLOUDTASK_WORKER $USER"; pwd >&2; echo'
    assert controller.run(*options, command, jobs=numbers(6)) == 0, controller.said()
    lines = controller.out().read_text().splitlines()
    assert sorted(line.split()[0] for line in lines[0::2]) == ["1", "2", "3", "4", "5", "6"]
    account = servers[0].account
    assert f"{account.home}" in controller.said()
    assert "using existing worker" in controller.said()
    assert not (Path(account.home) / ".cloudtask-agent").exists() or not any((Path(account.home) / ".cloudtask-agent").iterdir())
    assert "cloudtask-" not in (Path(account.home) / ".ssh" / "authorized_keys").read_text()
    assert not any((controller.home / ".local/state/cloudtask/keys").iterdir())


def test_the_same_host_twice_is_two_workers(controller: Controller, remote: Remote) -> None:
    servers, options = remote()
    address = servers[0].address
    code = "sleep 0.3; echo $CLOUDTASK_WORKER; :"
    assert controller.run(f"--workers={address} {address}", options[1], code, jobs=numbers(6)) == 0, controller.said()
    assert set(controller.out().read_text().split()) == {"1", "2"}


def test_output_is_exact_bytes_and_streams_are_apart(controller: Controller, remote: Remote) -> None:
    _, options = remote()
    code = r"printf '\377\000\033[31m out'; printf 'err\n' >&2; :"
    assert controller.run(*options, "--quiet", code, jobs=b"x\n") == 0
    assert controller.out().read_bytes() == b"\xff\x00\x1b[31m out"
    assert "err" in controller.said()


def test_large_output_arrives_whole(controller: Controller, remote: Remote) -> None:
    _, options = remote(slots=2)
    assert controller.run(*options, "head -c 20000000 /dev/zero | tr '\\0' y; :", jobs=numbers(3)) == 0
    data = controller.out().read_bytes()
    assert len(data) == 60_000_000 and data.count(b"y") == len(data)


def test_exit_statuses(controller: Controller) -> None:
    assert controller.run("exit", jobs=b"0\n3\n255\n") == 1
    assert "exit 255 # exit 255" in controller.said() and "exit 3 # exit 3" in controller.said()
    assert "2/3 !OK - 0 pending, 0 timeouts, 2 errors, 1 OK" in controller.summary()


def test_timeouts_end_the_whole_group(controller: Controller) -> None:
    began = time.monotonic()
    status = controller.run(
        "--timeout=1", "--kill-grace=1", f"trap '' TERM; sleep 98765 & sleep 98765; echo late >> {controller.witness}; :", jobs=b"1\n"
    )
    assert status == 1 and time.monotonic() - began < 20
    assert "1 timeouts, 0 errors" in controller.summary()
    assert subprocess.run(["pgrep", "-f", "sleep 98765"], capture_output=True, check=False).stdout == b""


def test_retries_and_their_words(controller: Controller) -> None:
    code = f"echo begin {{}} >> {controller.witness}; [ $CLOUDTASK_ATTEMPT = 3 ]"
    assert controller.run("--retries=3", "--retry-delay=0.1", code, jobs=b"a\n") == 0, controller.said()
    assert controller.begun()["a"] == 3
    assert "will retry (1 of 3)" in controller.said() and "will retry (2 of 3)" in controller.said()


def test_retry_runs_what_failed_again(controller: Controller) -> None:
    flag = controller.directory / "flag"
    assert controller.run(f"echo begin {{}} >> {controller.witness}; [ {{}} = ok ] || [ -e {flag} ]", jobs=b"ok\nbad\nworse\n") == 1
    flag.touch()
    assert controller.run("--retry=1") == 0, controller.said()
    assert controller.begun() == {"ok": 1, "bad": 2, "worse": 2}
    assert controller.run("--resume=last") == 0
    assert "session 1 finished" in controller.said()


def test_resume_of_a_finished_session_has_its_exit_status(controller: Controller) -> None:
    assert controller.run("false", jobs=b"1\n") == 1
    assert controller.run("--resume=1") == 1


def test_strikes_retire_a_worker(controller: Controller) -> None:
    code = "sleep 0.1; if [ $CLOUDTASK_WORKER = 1 ]; then exit 9; fi; :"
    assert controller.run("--workers=1/local 1/local", "--strikes=2", code, jobs=numbers(8)) == 1
    assert "terminating worker after 2 strikes" in controller.said()
    # One more may have been on its way to the worker.
    assert re.search("(2 errors, 6|3 errors, 5) OK", controller.summary())


def test_halt_soon(controller: Controller) -> None:
    assert controller.run("--split=1", "--halt=soon,fail=1", "false", jobs=numbers(5)) == 3
    assert "4 pending" in controller.summary()


def test_keep_order_and_tag(controller: Controller) -> None:
    assert (
        controller.run("--split=4", "--keep-order", "--tag", "sleep 0.$((5 - CLOUDTASK_JOB)); echo {1}; echo two", jobs=numbers(4)) == 0
    ), controller.said()
    assert controller.out().read_text() == "".join(f"{n}\t{n}\n{n}\ttwo\n" for n in range(1, 5))


def test_output_by_line_comes_while_the_job_runs(controller: Controller) -> None:
    gate = controller.directory / "gate"
    process = controller.start("--output=line", f"echo first; while [ ! -e {gate} ]; do sleep 0.05; done; echo second; :", jobs=b"x\n")
    wait_until(lambda: controller.out().read_text() == "first\n", "the first line is there")
    gate.touch()
    assert controller.finish(process) == 0
    assert controller.out().read_text() == "first\nsecond\n"


def test_tail_follows_a_running_job(controller: Controller) -> None:
    gate = controller.directory / "gate"
    process = controller.start("--split=1", f"echo hello; while [ ! -e {gate} ]; do sleep 0.05; done; :", jobs=b"x\n")
    log = controller.session() / "workers" / "1.log"
    wait_until(lambda: log.exists() and b"\nhello\n" in log.read_bytes(), "the output is in the log while the job runs")
    gate.touch()
    assert controller.finish(process) == 0


def test_a_closed_stdout_ends_the_run(controller: Controller) -> None:
    command = [sys.executable, "-m", "cloudtask", "echo"]
    process = subprocess.Popen(
        ["bash", "-c", '"$@" 2>err | head -1; echo ${PIPESTATUS[0]}', "bash", *command],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=controller.environment(), cwd=controller.directory,
    )  # fmt: skip
    out, _ = process.communicate(numbers(3000), timeout=60)
    assert out.split()[1] == b"141", out
    assert "Traceback" not in (controller.directory / "err").read_text()


def test_a_stdout_that_nobody_reads_holds_nothing_up(controller: Controller) -> None:
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "cloudtask", f"echo begin {{}} >> {controller.witness}; head -c 100000 /dev/zero"],
        stdin=subprocess.PIPE, stdout=write, stderr=subprocess.DEVNULL, env=controller.environment(), cwd=controller.directory,
    )  # fmt: skip
    os.close(write)
    assert process.stdin
    process.stdin.write(numbers(20))
    process.stdin.close()
    wait_until(lambda: len(controller.begun()) == 20, "all jobs ran")
    with os.fdopen(read, "rb") as pipe:
        assert len(pipe.read()) == 2_000_000
    assert process.wait(30) == 0


def test_pre_post_and_setup_failure(controller: Controller) -> None:
    pre, post = f"echo begin pre >> {controller.witness}; echo words of pre", f"echo begin post >> {controller.witness}"
    assert controller.run(f"--pre={pre}", f"--post={post}", "echo", jobs=numbers(3)) == 0, controller.said()
    assert controller.begun() == {"pre": 1, "post": 1}
    assert "words of pre" in (controller.session() / "workers" / "1.log").read_text()
    assert controller.run("--pre=exit 4", "echo", jobs=numbers(2)) == 3
    assert "setup failed: pre-command: exit 4" in controller.said()


def test_environment_and_workdir(controller: Controller) -> None:
    (controller.directory / "place").mkdir()
    code = 'echo "$COLOUR $(pwd) $CLOUDTASK_SLOT"; :'
    assert controller.run("--env=COLOUR=deep blue", f"--workdir={controller.directory}/place", code, jobs=b"x\n") == 0
    assert controller.out().read_text() == f"deep blue {controller.directory}/place 1\n"


def test_a_word_of_a_megabyte(controller: Controller) -> None:
    assert controller.run("--output=none", ":", jobs=b"x" * (1 << 20) + b"\n") == 0, controller.said()[-500:]


def test_invalid_utf8_passes_through(controller: Controller) -> None:
    assert controller.run("printf %s", jobs=b"caf\xe9\n") == 0
    assert controller.out().read_bytes() == b"caf\xe9"


@pytest.mark.parametrize("jobs, words", [(b'ok\n"unbalanced\n', "line 2"), (b"ok\nnul\0byte\n", "NUL")])
def test_bad_input_makes_no_session(controller: Controller, jobs: bytes, words: str) -> None:
    assert controller.run("echo", jobs=jobs) == 2
    assert words in controller.said() and len(controller.said().splitlines()) == 1
    assert not controller.session().exists()


def test_a_session_that_runs_is_not_resumed(controller: Controller) -> None:
    gate = controller.directory / "gate"
    process = controller.start(f"while [ ! -e {gate} ]; do sleep 0.05; done; :", jobs=b"x\n")
    wait_until(lambda: controller.session().exists() and controller.journal(), "the session is there")
    assert controller.run("--resume=1") == 2
    assert str(process.pid) in controller.said() and len(controller.said().splitlines()) == 1
    gate.touch()
    assert controller.finish(process) == 0


def test_unknown_sessions(controller: Controller) -> None:
    assert controller.run("--resume=7") == 2
    assert len(controller.said().splitlines()) == 1 and "7" in controller.said()


def test_max_output_is_cut_and_marked(controller: Controller) -> None:
    assert controller.run("--max-output=1000", "head -c 5000 /dev/zero; :", jobs=b"x\n") == 0
    assert len(controller.out().read_bytes()) == 1000
    (item,) = [item for record in controller.journal() for item in record.get("ended", [])]
    assert item["cut"]


def test_a_job_that_was_long_silent_is_heard_at_once(controller: Controller) -> None:
    gate = controller.directory / "gate"
    code = f"while [ ! -e {gate} ]; do sleep 0.05; done; echo spoken; while [ -e {gate} ]; do sleep 0.05; done; :"
    process = controller.start("--split=1", code, jobs=b"x\n")
    log = controller.session() / "workers" / "1.log"
    wait_until(
        lambda: any("anon_inode:inotify" in os.readlink(fd) for pid in controller.agents() for fd in descriptors(pid)), "the kernel watches"
    )
    gate.touch()
    began = time.monotonic()
    wait_until(lambda: b"\nspoken\n" in log.read_bytes(), "its word is in the log")
    assert time.monotonic() - began < 5, "it was found by the look that comes every ten seconds"
    gate.unlink()
    assert controller.finish(process) == 0


def descriptors(pid: int) -> list[str]:
    """The links of a process's open descriptors."""
    directory = f"/proc/{pid}/fd"
    return [f"{directory}/{name}" for name in os.listdir(directory)]


def test_the_value_of_a_bare_variable_is_saved_nowhere(controller: Controller) -> None:
    assert controller.run("--env=TOKEN", "[ ${#TOKEN} = 6 ] && exit", jobs=b"4\n", TOKEN="s3cret") == 1
    assert "exit 4" in controller.said()
    for path in controller.session().rglob("*"):
        assert path.is_dir() or b"s3cret" not in path.read_bytes()
    assert controller.run("--retry=1") == 2
    assert "TOKEN" in controller.said() and len(controller.said().splitlines()) == 1


def test_retry_at_most_once_wants_force(controller: Controller) -> None:
    assert controller.run("--at-most-once", f"echo begin {{}} >> {controller.witness}; false", jobs=b"a\n") == 1
    assert controller.run("--retry=1") == 2
    assert "--force" in controller.said() and controller.begun()["a"] == 1
    assert controller.run("--retry=1", "--force") == 1
    assert controller.begun()["a"] == 2


def test_a_resume_shows_what_a_full_disk_kept_back(controller: Controller) -> None:
    command = f"{sys.executable} -m cloudtask 'echo {{}}; exit {{}}' > /dev/full"
    environment = controller.environment()
    done = subprocess.run(
        ["sh", "-c", command], input=b"1\n2\n", env=environment, cwd=controller.directory, capture_output=True, check=False
    )
    assert done.returncode == 3 and b"No space left on device" in done.stderr and b"Errno" not in done.stderr
    assert controller.run("--resume=last") == 1
    assert sorted(controller.out().read_text().split()) == ["1", "2"]
    assert controller.agent_homes() == []


def test_a_signal_ends_the_waiting_for_a_reader(controller: Controller) -> None:
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "cloudtask", "head -c 300000 /dev/zero; :"],
        stdin=subprocess.PIPE, stdout=write, stderr=subprocess.PIPE, env=controller.environment(), cwd=controller.directory,
    )  # fmt: skip
    os.close(write)
    assert process.stdin and process.stderr
    process.stdin.write(numbers(3))
    process.stdin.close()
    try:
        log = controller.session() / "log"
        wait_until(lambda: log.exists() and b"waiting for standard output" in log.read_bytes(), "all else is done")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
        os.close(read)
    assert controller.run("--resume=last") == 0
    assert len(controller.out().read_bytes()) >= 600_000


def test_cut_output_is_said_in_the_status_line(controller: Controller) -> None:
    assert controller.run("--max-output=10", "head -c 50 /dev/zero; :", jobs=b"x\n") == 0
    assert "exit 0 (output cut) # head" in controller.said()


def test_the_way_out_names_the_sessions_directory(controller: Controller) -> None:
    assert controller.run("--halt=soon,fail=1", "--split=1", "false", jobs=numbers(3)) == 3
    assert f"cloudtask --resume=1 --sessions={controller.sessions}" in controller.said()


def test_a_bad_worker_does_not_swallow_jobs(controller: Controller) -> None:
    code = "if [ $CLOUDTASK_WORKER = 1 ]; then exit 1; fi; sleep 0.01; :"
    assert controller.run("--strikes=3", "--workers=1/local 1/local", code, jobs=numbers(100)) == 1
    failed = int(re.search(r"(\d+) errors", controller.summary())[1])  # type: ignore[index]  # the summary has it
    assert 3 <= failed <= 6
