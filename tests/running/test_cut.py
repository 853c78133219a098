"""Connections that are cut or fall silent, over real sshd's."""

from __future__ import annotations

import os
import signal
from collections import Counter

from tests.running.conftest import Remote
from tests.running.program import Controller, wait_until

JOBS = b"".join(b"%d\n" % number for number in range(1, 9))
EXACTLY_ONCE = Counter(str(number) for number in range(1, 9))


def start(controller: Controller, options: list[str], *more: str) -> None:
    controller.start(*options, *more, controller.recording("sleep 0.4;"), jobs=JOBS)
    wait_until(lambda: len(controller.ended()) >= 2, "two jobs are done")


def test_kill_9_of_sshds_connection(controller: Controller, remote: Remote) -> None:
    (server,), options = remote(slots=2)
    start(controller, options)
    server.kill_connections()
    assert controller.finish(controller.runs[0]) == 0, controller.said()
    assert controller.begun() == controller.ended() == EXACTLY_ONCE


def test_the_connection_and_the_main_process_die(controller: Controller, remote: Remote) -> None:
    (server,), options = remote(slots=2)
    start(controller, options)
    controller.runs[0].kill()
    controller.runs[0].wait()
    server.kill_connections()
    assert controller.run("--resume=last") == 0, controller.said()
    assert controller.begun() == controller.ended() == EXACTLY_ONCE


def test_a_stopped_sshd(controller: Controller, remote: Remote) -> None:
    """Nothing is closed, nothing is answered: two heartbeats later another connection is tried; the jobs ran on."""
    (server,), options = remote(slots=2)
    start(controller, options, "--heartbeat=1")
    for pid in server.connection_pids():
        os.kill(pid, signal.SIGSTOP)
    assert controller.finish(controller.runs[0]) == 0, controller.said()
    assert controller.begun() == controller.ended() == EXACTLY_ONCE


def test_lost_contact_and_a_spare(controller: Controller, remote: Remote) -> None:
    """The worker never comes back: its jobs run elsewhere, on the spare that steps in."""
    servers, options = remote(2)
    start(controller, options, "--split=1", "--heartbeat=1", "--lost-timeout=3")
    servers[0].stop()
    status = controller.finish(controller.runs[0])
    assert status == 0, controller.said()
    assert "lost contact" in controller.said()
    assert set(controller.ended()) == set(EXACTLY_ONCE)


def test_no_worker_left(controller: Controller, remote: Remote) -> None:
    servers, options = remote(1)
    start(controller, options, "--heartbeat=1", "--lost-timeout=2")
    servers[0].stop()
    assert controller.finish(controller.runs[0]) == 3, controller.said()
    assert servers[0].address in controller.said().split("no usable worker")[1]
    servers[0].start()
    assert controller.run("--resume=last") == 0, controller.said()
    assert controller.begun() == controller.ended() == EXACTLY_ONCE


def test_unreachable_from_the_start(controller: Controller, remote: Remote) -> None:
    servers, options = remote(1)
    servers[0].stop()
    assert controller.run(*options, "echo", jobs=b"1\n") == 3
    assert "unreachable" in controller.said() and "no usable worker is left" in controller.said()
