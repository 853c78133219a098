"""Kill anything at any moment, resume, and count from outside what each job did.

On the local worker: the agent, the supervisors, the journal and the main process are the same as over ssh, where
``test_cut`` has the cases of the connection.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter

import pytest

from tests.running.program import Controller, alive, children_of, processes_with, wait_until

JOBS = b"".join(b"%d\n" % number for number in range(1, 13))
NAMES = [str(number) for number in range(1, 13)]
EXACTLY_ONCE = Counter(NAMES)


def start(controller: Controller, *options: str, body: str = "sleep 0.4;") -> None:
    """Twelve jobs on two slots, and wait until some have ended and some run."""
    controller.start("--split=2", *options, controller.recording(body), jobs=JOBS)
    wait_until(lambda: len(controller.ended()) >= 3, "three jobs are done")


def finish_by_resume(controller: Controller, *options: str, status: int = 0) -> None:
    """A resume that comes to its end."""
    assert controller.run("--resume=last", *options) == status, controller.said()


def test_kill_9_of_the_main_process(controller: Controller) -> None:
    """Running jobs run on, and are taken up: each job begins and ends exactly once."""
    start(controller)
    controller.runs[0].kill()
    controller.runs[0].wait()
    finish_by_resume(controller)
    assert controller.begun() == controller.ended() == EXACTLY_ONCE
    assert "0 pending, 0 timeouts, 0 errors, 12 OK" in controller.summary()


def test_kill_9_of_a_supervisor(controller: Controller) -> None:
    """The same run goes on with another supervisor."""
    start(controller)
    for pid in controller.supervisors():
        os.kill(pid, signal.SIGKILL)
    assert controller.finish(controller.runs[0]) == 0, controller.said()
    assert "its supervisor died" in controller.said()
    assert controller.begun() == controller.ended() == EXACTLY_ONCE


def test_kill_9_of_main_and_supervisor(controller: Controller) -> None:
    """Nothing on the controller is left; the agent is."""
    start(controller)
    supervisors = controller.supervisors()
    # Stopped first: a supervisor that sees the main process die leaves by itself.
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in [*supervisors, controller.runs[0].pid]:
            os.kill(pid, number)
    controller.runs[0].wait()
    finish_by_resume(controller)
    assert controller.begun() == controller.ended() == EXACTLY_ONCE


def test_torn_journal_line(controller: Controller) -> None:
    """Half a last line is cut off; what it told is asked of the agents."""
    start(controller)
    controller.runs[0].kill()
    controller.runs[0].wait()
    journal = controller.session() / "journal.jsonl"
    with journal.open("ab") as file:
        file.write(b'{"ended":[{"job":4,"attempt":1,"outc')
    finish_by_resume(controller)
    assert "torn last line" in controller.said()
    assert controller.begun() == controller.ended() == EXACTLY_ONCE


@pytest.mark.parametrize("records", [1, 2, 4, 7])
def test_journal_rolled_back(controller: Controller, records: int) -> None:
    """A power cut took the journal's last records: the agents know better, and nothing runs twice."""
    start(controller)
    controller.runs[0].kill()
    controller.runs[0].wait()
    journal = controller.session() / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    # What was on disk for good before the first job was sent (up to `setup`) no power cut takes.
    journal.write_bytes(b"".join(lines[: max(5, len(lines) - records)]))
    finish_by_resume(controller)
    assert controller.begun() == controller.ended() == EXACTLY_ONCE


def test_kill_9_of_the_agent(controller: Controller) -> None:
    """Its jobs are ended first, then a new agent goes on: at least once, and never two at a time."""
    start(controller)
    agents = controller.agents()
    assert agents
    for pid in agents:
        os.kill(pid, signal.SIGKILL)
    assert controller.finish(controller.runs[0]) == 0, controller.said()
    check_at_least_once(controller)


def test_kill_9_of_everything(controller: Controller) -> None:
    """Main, supervisors, agent, guardian, and the jobs themselves."""
    start(controller)
    pids = [controller.runs[0].pid, *controller.supervisors(), *processes_with(f"HOME={controller.home}")]
    for pid in pids:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
    controller.runs[0].wait()
    finish_by_resume(controller)
    check_at_least_once(controller)


def check_at_least_once(controller: Controller) -> None:
    """Every job came to its end, none again after that was recorded, and no two attempts of one at a time."""
    assert set(controller.ended()) == set(NAMES)
    recorded = recorded_before_resume(controller)
    for name in recorded:
        assert controller.begun()[name] == 1, f"job {name} ran again after its recorded end"
    running: set[str] = set()
    for word, name, *_ in controller.told():
        if word == "begin":
            running.add(name)
        else:
            assert name in running, f"job {name} ended twice: two ran at a time"
            running.discard(name)


def recorded_before_resume(controller: Controller) -> set[str]:
    """The jobs whose end stood in the journal before the first loss or the second run."""
    done: set[str] = set()
    for record in controller.journal():
        if "lost" in record or record.get("run", 1) != 1:
            break
        for item in record.get("ended", []):
            if not item.get("again"):
                done.add(str(item["job"]))
    return done


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_signal_aborts(controller: Controller, number: signal.Signals) -> None:
    """Jobs are ended, the worker is clean, the exit status is the signal's, and a resume finishes."""
    start(controller, body="sleep 0.4;")
    wait_until(lambda: controller.begun().total() == controller.ended().total() + 2, "two jobs run, one of them just begun")
    controller.runs[0].send_signal(number)
    assert controller.finish(controller.runs[0]) == 128 + number, controller.said()
    assert controller.agent_homes() == []
    assert "terminated # " in controller.said()
    assert "--resume=1" in controller.said()
    finish_by_resume(controller)
    check_at_least_once(controller)


def test_two_signals_leave_at_once(controller: Controller) -> None:
    """The second one does not wait for jobs that take their time to end; the agent finishes the abort."""
    start(controller, "--kill-grace=20s", body="trap '' TERM; if [ {} -lt 5 ]; then sleep 0.2; else sleep 4; fi;")
    slow = controller.runs[0]
    slow.send_signal(signal.SIGTERM)
    wait_until(lambda: "SIGTERM" in controller.said(), "the first signal is taken")
    slow.send_signal(signal.SIGTERM)
    assert controller.finish(slow, 10) == 128 + signal.SIGTERM
    finish_by_resume(controller)
    check_at_least_once(controller)


def test_at_most_once(controller: Controller) -> None:
    """After kill -9 of everything nothing that may have begun is begun again: it is called unknown."""
    start(controller, "--at-most-once")
    pids = [controller.runs[0].pid, *controller.supervisors(), *processes_with(f"HOME={controller.home}")]
    for pid in pids:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
    controller.runs[0].wait()
    assert controller.run("--resume=last") == 1
    assert max(controller.begun().values()) == 1
    outcomes = [record["outcome"] for record in controller.journal() if "settled" in record]
    assert outcomes and set(outcomes) == {"unknown"}
    assert "0 pending" in controller.summary()


def test_sigterm_to_one_supervisor_retires_its_worker(controller: Controller) -> None:
    """Its jobs end and go back to the queue, and burn no retry."""
    controller.start("--workers=2/local 2/local", controller.recording("sleep 0.5;"), jobs=JOBS)
    wait_until(lambda: len(controller.ended()) >= 2 and len(controller.supervisors()) == 2, "jobs end on two workers")
    os.kill(controller.supervisors()[0], signal.SIGTERM)
    assert controller.finish(controller.runs[0]) == 0, controller.said()
    assert "retiring worker" in controller.said()
    assert "will retry" not in controller.said()
    assert set(controller.ended()) == set(NAMES)


def test_drain(controller: Controller) -> None:
    """SIGUSR1: what runs may end, nothing more starts, exit 3."""
    start(controller, "--at-most-once")
    controller.runs[0].send_signal(signal.SIGUSR1)
    assert controller.finish(controller.runs[0]) == 3
    assert controller.begun() == controller.ended()
    assert len(controller.begun()) < 12
    finish_by_resume(controller)
    assert controller.begun() == controller.ended() == EXACTLY_ONCE


def test_kill_9_of_the_fork_server(controller: Controller) -> None:
    """A supervisor that dies later is replaced all the same."""
    start(controller)
    supervisors = controller.supervisors()
    for pid in [*children_of(controller.runs[0].pid), *supervisors]:
        os.kill(pid, signal.SIGKILL)
    assert controller.finish(controller.runs[0]) == 0, controller.said()
    assert controller.begun() == controller.ended() == EXACTLY_ONCE


def test_nothing_is_sent_before_every_known_worker_answered(controller: Controller) -> None:
    """The journal forgot what it sent to a worker that is slow to answer: the other one must not get those jobs."""
    controller.start("--workers=1/local 1/local", controller.recording("sleep 1;"), jobs=JOBS[:8])
    wait_until(lambda: len(controller.begun()) == 2 and len(controller.agents()) == 2, "both workers run a job")
    controller.runs[0].kill()
    controller.runs[0].wait()
    journal = controller.session() / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(line for line in lines if not line.startswith((b'{"sent"', b'{"started"'))))
    agent = max(controller.agents())
    os.kill(agent, signal.SIGSTOP)
    resumed = controller.start("--resume=last")
    try:
        wait_until(lambda: len([record for record in controller.journal() if "ready" in record]) >= 3, "one answers")
        # Long enough for a job to be sent, had the gate stood open; the stopped one's job ends by itself.
        wait_until(lambda: len(controller.ended()) >= 2, "what ran is done")
    finally:
        os.kill(agent, signal.SIGCONT)
    assert controller.finish(resumed) == 0, controller.said()
    assert controller.begun() == controller.ended() == Counter(NAMES[:4])


def test_a_resume_cleans_up_after_a_run_killed_at_its_end(controller: Controller) -> None:
    """All jobs are settled, the agent was not let go: a resume does that, with the session's own exit status."""
    controller.start("--split=1", controller.recording("sleep 0.5;") + "; exit 7", jobs=b"1\n")
    wait_until(lambda: any("started" in record for record in controller.journal()), "the job runs")
    controller.runs[0].kill()
    controller.runs[0].wait()
    # What the main process would have written next, had it been killed a moment later.
    end = {"job": 1, "outcome": "exit 7", "seconds": 0.5, "cpu": 0, "memory": 0, "slot": 1}
    with (controller.session() / "journal.jsonl").open("a") as file:
        file.write(json.dumps({"ended": [end], "worker": 1, "time": 0}, separators=(",", ":")) + "\n")
    wait_until(lambda: controller.ended()["1"], "the job is over")
    assert controller.agent_homes()
    assert controller.run("--resume=last") == 1, controller.said()
    assert controller.agent_homes() == []
    assert controller.run("--resume=last") == 1
    assert "session 1 finished" in controller.said()
    assert controller.begun() == {"1": 1}
