"""The running attempts of a worker without python3: starts them, listens to them, ends them and sees that they are over.

Used by one thread, that of `shell_agent`; blocks for round trips only.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cloudtask.errors import ConnectError
from cloudtask.model import Attempt
from cloudtask.transports import Connection
from cloudtask.wire import ProtocolError
from cloudtask.workers import shell_scripts
from cloudtask.workers.shell_attempt import OutputCount, ShellAttempt
from cloudtask.workers.shell_channel import Began, Broken, Control, Event, JobChannel, Over, Script, Told, Unfit, Wrote, new_mark, wait_for

MOST_SLOTS = 5
"""Channels for jobs at once: with a stock sshd more than a few short ones at a time get refused (MaxSessions 10, freed late)."""

_LONGEST_INLINE = 64 << 10
_TICK_SECONDS = 0.5
_LOOK_SECONDS = 0.2
_STUCK_SECONDS = 60.0
_STAGE_SECONDS = 120.0
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_READ_ONLY = frozenset({"BASHOPTS", "BASH_VERSINFO", "EUID", "PPID", "SHELLOPTS", "UID"})

Put = Callable[..., None]


def exportable(name: str) -> bool:
    """True for a variable that every sh can set."""
    return bool(_NAME.match(name)) and name not in _READ_ONLY


class ShellJobs:
    """The attempts that have a channel.  ``put`` queues a frame; ``settled`` is called with each attempt that needs its slot no more."""

    def __init__(self, connection: Connection, control: Control, key: str, put: Put) -> None:
        self._connection = connection
        self._control = control
        self._key = key
        self._home = control.facts["home"]
        self._put = put
        self._leader = control.facts["leader"]
        self._config: Mapping[str, Any] = {}
        self._rank = ""
        self.running: dict[Attempt, ShellAttempt] = {}
        self.unfit = ""
        """Why nothing can be started: the worker's disk is full, or not to be written."""

    def configure(self, config: Mapping[str, Any], rank: str) -> None:
        """Take the settings of a hello; ``rank`` is its epoch and connection."""
        self._config = config
        self._rank = rank

    # --- starting ----------------------------------------------------------------------------------------------------

    def start(self, attempt: ShellAttempt, slot: int) -> None:
        """Open a channel and send the job through it.  Raises ConnectError or RefusedError."""
        attempt.slot = slot
        attempt.streams = [OutputCount(int(self._config["max_output"])) for _ in range(2)]
        staged = len(attempt.code) > _LONGEST_INLINE
        if staged:
            self._stage(attempt)
        mark = new_mark()
        values: dict[str, str | bytes] = {
            "id": attempt.base,
            "code": b"" if staged else attempt.code,
            "staged": "staged" if staged else "",
            "workdir": self._config["workdir"] or "",
            "leader": self._leader,
            "slot": str(slot),
            "rank": self._rank,
            "grace": str(max(1, round(float(self._config["grace"])))),
            "limit": str(int(self._config["max_output"])),
        }
        attempt.channel = JobChannel(self._connection, mark, shell_scripts.job(self._home, mark, values, self._exports(attempt)))
        self.running[attempt.key] = attempt

    def _exports(self, attempt: ShellAttempt) -> dict[str, str]:
        return {
            **{name: value for name, value in self._config["env"].items() if exportable(name)},
            "CLOUDTASK_AGENT": shell_scripts.tag(self._key, attempt.base),
            "CLOUDTASK_SESSION": str(self._config["session"]),
            # Neither pre nor post is a job.
            **({"CLOUDTASK_JOB": str(attempt.key.job)} if attempt.key.job > 0 else {}),
            "CLOUDTASK_ATTEMPT": str(attempt.key.number),
            "CLOUDTASK_WORKER": str(self._config["worker"]),
            "CLOUDTASK_SLOT": str(attempt.slot),
        }

    def _stage(self, attempt: ShellAttempt) -> None:
        """Write long code into a file: as an argument it would be too long for execve(2)."""
        mark = new_mark()
        script = Script(self._connection, mark, shell_scripts.stage(self._home, mark, f"{attempt.base}.code"))
        try:
            script.write(attempt.code, last=True)
            deadline = time.monotonic() + _STAGE_SECONDS
            while (size := script.line()) is None and not script.ended:
                wait_for(script, deadline)
        finally:
            script.close()
        if size is None or size.strip() != str(len(attempt.code)):
            raise ConnectError(f"{self._connection.login}: cannot write the code of job {attempt.key.job} there")

    # --- listening ---------------------------------------------------------------------------------------------------

    def listen(self, attempt: ShellAttempt) -> None:
        """Take in what an attempt tells.  Raises ProtocolError."""
        assert attempt.channel
        for event in attempt.channel.read():
            self._on_event(attempt, event)

    def _on_event(self, attempt: ShellAttempt, event: Event) -> None:
        match event:
            case Began():
                attempt.began = attempt.ticked = time.monotonic()
                self._put({"t": "started", "jobs": [[*attempt.key, attempt.slot]]})
            case Wrote(stream, data):
                self.deliver(attempt.key, stream, attempt.streams[stream - 1].take(data))
            case Told():
                attempt.tick_open = False
            case Over(refused=True):
                self._not_started(attempt, "no room for the files of a job")
            case Unfit(why):
                self._not_started(attempt, why)
            case Over():
                attempt.lasted = time.monotonic() - attempt.began if attempt.began else 0.0
                attempt.over = event
            case Broken(why):
                attempt.broken = why

    def deliver(self, key: Attempt, stream: int, pieces: Iterable[tuple[int, bytes]]) -> None:
        """Queue pieces of output."""
        for position, piece in pieces:
            self._put({"t": "out", "job": key.job, "attempt": key.number, "stream": stream, "position": position}, piece)

    def _not_started(self, attempt: ShellAttempt, why: str) -> None:
        self.unfit = why
        self.drop(attempt)
        self._put({"t": "full", "error": why})
        self._put({"t": "returned", "jobs": [list(attempt.key)], "why": "full"})

    def drop(self, attempt: ShellAttempt) -> None:
        """Forget an attempt."""
        assert attempt.channel
        attempt.channel.close()
        del self.running[attempt.key]

    # --- ending ------------------------------------------------------------------------------------------------------

    def end(self, attempt: ShellAttempt, why: str) -> None:
        """See to it that an attempt ends, with the ending ``why``; one that is over already keeps its own."""
        if not attempt.why and attempt.over is None:
            attempt.why = why
            self._look_after(attempt, time.monotonic())

    def look_after(self) -> list[ShellAttempt]:
        """What is due by the clock: output, timeouts, the next step of an ending.  Returns the attempts that are over."""
        now = time.monotonic()
        return [attempt for attempt in list(self.running.values()) if self._look_after(attempt, now)]

    def next_look(self, now: float) -> float:
        """Seconds until `look_after` should be called again."""
        if any(attempt.why or attempt.over or attempt.broken for attempt in self.running.values()):
            return _LOOK_SECONDS
        return _TICK_SECONDS if self.running else 5.0

    def _look_after(self, attempt: ShellAttempt, now: float) -> bool:
        if attempt.over and not attempt.asked_to_end:
            attempt.why = ""
            return True
        if attempt.broken or attempt.why:
            return self._see_to_the_end(attempt, now)
        if attempt.began and attempt.timeout and now - attempt.began > attempt.timeout:
            attempt.why = "timeout"
            return self._see_to_the_end(attempt, now)
        if attempt.began and not attempt.tick_open and now - attempt.ticked >= _TICK_SECONDS:
            assert attempt.channel
            attempt.ticked, attempt.tick_open = now, True
            attempt.channel.tick()
        return False

    def _see_to_the_end(self, attempt: ShellAttempt, now: float) -> bool:
        """One step of TERM, grace, KILL, over the other channel; True once nothing of it runs, by the word of that channel."""
        if not attempt.began and not attempt.broken:
            return False  # It is about to start: it ends as soon as its process group is known.
        if not attempt.asked_to_end:
            attempt.asked_to_end = now
            self._strike("TERM", attempt)
        if not attempt.killed and now - attempt.asked_to_end >= float(self._config["grace"]):
            attempt.killed = now
            self._strike("KILL", attempt)
        if now - attempt.looked < _LOOK_SECONDS or not (attempt.over or attempt.broken or attempt.killed):
            return False
        attempt.looked = now
        if self._control.ask("running", attempt.base):
            self._still_running(attempt, now)
            return False
        return attempt.over is not None or bool(attempt.broken)

    def _still_running(self, attempt: ShellAttempt, now: float) -> None:
        if attempt.killed and now - attempt.killed > _STUCK_SECONDS:
            self._put({"t": "stuck", "jobs": [list(attempt.key)]})
            self.drop(attempt)
        elif attempt.killed:
            self._strike("KILL", attempt)

    def _strike(self, signal: str, attempt: ShellAttempt) -> None:
        self._control.ask("strike", signal, attempt.base, attempt.why)

    # --- what an earlier connection left ------------------------------------------------------------------------------

    def fetch(self, base: str, stream: int, size: int, deliver: Callable[[bytes], None]) -> None:
        """Read a spool to its end, ``size`` bytes.  Raises ConnectError or ProtocolError where it is not whole."""
        if not size:
            return
        mark = new_mark()
        script = Script(self._connection, mark, shell_scripts.fetch(self._home, mark, f"{base}.{'out' if stream == 1 else 'err'}"))
        received = 0
        try:
            while not script.ended:
                if script.begun and script.buffer:
                    received += len(script.buffer)
                    deliver(bytes(script.buffer))
                    script.buffer.clear()
                wait_for(script, time.monotonic() + _STAGE_SECONDS)
            received += len(script.buffer)
            deliver(bytes(script.buffer))
        finally:
            script.close()
        if received != size:
            raise ProtocolError(f"the output of attempt {base} is not whole")

    def close(self) -> None:
        """Let go of all channels: what runs behind them is ended there."""
        for attempt in list(self.running.values()):
            self.drop(attempt)

    def channels(self) -> Iterable[tuple[ShellAttempt, JobChannel]]:
        """The attempts with their channels."""
        return [(attempt, attempt.channel) for attempt in self.running.values() if attempt.channel]
