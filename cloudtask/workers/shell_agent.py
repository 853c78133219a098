"""The thread that stands in for the agent of a worker without python3: takes the supervisor's frames and answers as an agent would.

What is different from an agent: a cut ends what runs, and at most five jobs run at once.  A result that is finished on the worker's disk
is delivered after a cut like an agent's.
"""

from __future__ import annotations

import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from cloudtask.errors import WorkerError
from cloudtask.model import Attempt
from cloudtask.states import Ending
from cloudtask.transports import Connection
from cloudtask.wire import ProtocolError
from cloudtask.workers.shell_attempt import OutputCount, ShellAttempt, old_ending, old_row, read_base, result_row, whole_number
from cloudtask.workers.shell_channel import Control, Over
from cloudtask.workers.shell_frames import FrameQueue
from cloudtask.workers.shell_jobs import MOST_SLOTS, ShellJobs, exportable

_POST_JOB = -2
_ROWS_IN_A_FRAME = 2000
_BASES_IN_A_REQUEST = 200
_STUCK_SECONDS = 60.0
_ACKS_SECONDS = 10.0
_MORE_ROOM_SECONDS = 0.1

Header = dict[str, Any]


class _Finished(Exception):
    """There is nothing more to do for this peer."""


class ShellAgent:
    """Frames come in by ``commands`` and go out by ``answers``.  `run` is the thread's main."""

    def __init__(self, connection: Connection, control: Control, key: str, commands: FrameQueue, answers: FrameQueue) -> None:
        self._connection = connection
        self._control = control
        self._commands = commands
        self._answers = answers
        self._jobs = ShellJobs(connection, control, key, answers.put)
        self.closing = threading.Event()
        self._config: Header = {}
        self._epoch = 0
        self._greeted = False
        self._queue: deque[ShellAttempt] = deque()
        self._staged: dict[Attempt, bytearray] = {}
        self._known: set[Attempt] = set()
        self._unacknowledged: set[Attempt] = set()
        self._lost: set[Attempt] = set()
        self._old: dict[Attempt, list[str]] = {}
        """What the worker's disk has of attempts that ended before this connection: their rows as the control script prints them."""
        self._free: list[int] = []
        self._goal = ""
        self._acks_until = 0.0

    def run(self) -> None:
        """Serve until the supervisor closes, everything is finished, or the worker is gone."""
        why = "the stand-in for the agent failed"
        try:
            while not self.closing.is_set():
                self._turn()
            why = "closed"
        except _Finished:
            why = "finished"
        except ProtocolError as error:
            why = f"{self._connection.login}: the worker sent garbage: {error}"
        except (WorkerError, OSError, EOFError) as error:
            why = str(error) or type(error).__name__
        finally:
            self._jobs.close()
            self._control.close()
            self._answers.end(why)

    def _turn(self) -> None:
        for header, _ in self._obey_all():
            raise ProtocolError(f"no such frame: {header['t']}")
        self._start_what_fits()
        self._wait()
        for attempt in self._jobs.look_after():
            self._settle(attempt)
        if self._goal:
            self._come_to_an_end()

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._commands.fileno(), select.POLLIN)
        timeout = self._jobs.next_look(time.monotonic()) if not self._goal else _MORE_ROOM_SECONDS
        listening = {}
        if self._answers.congested:
            timeout = _MORE_ROOM_SECONDS
        else:
            for attempt, channel in self._jobs.channels():
                poll.register(channel.fileno(), channel.wait_events)
                listening[channel.fileno()] = attempt
        for descriptor, _ in poll.poll(timeout * 1000):
            if descriptor in listening:
                self._jobs.listen(listening[descriptor])

    # --- what the supervisor says -------------------------------------------------------------------------------------

    def _obey_all(self) -> list[tuple[Header, bytes]]:
        """Obey what has come; returns what nobody understands."""
        strange = []
        for header, payload in self._commands.take():
            obey = self._FRAMES.get(header["t"])
            if obey:
                obey(self, header, payload)
            else:
                strange.append((header, payload))
        return strange

    def _on_hello(self, header: Header, payload: bytes) -> None:
        facts = self._control.facts
        self._overtaken(self._control.ask("hello", header["epoch"], header["connection"]))
        self._config = header["config"]
        self._epoch = header["epoch"]
        self._jobs.configure(self._config, f"{header['epoch']} {header['connection']}")
        slots = min(int(self._config["slots"]) or whole_number(facts["cpus"]) or 1, MOST_SLOTS)
        busy = {attempt.slot for attempt in self._jobs.running.values()}
        self._free = [slot for slot in range(slots, 0, -1) if slot not in busy]
        if not self._greeted:
            self._take_over()
        self._put({
            "t": "welcome", "version": header["version"], "epoch": whole_number(facts["epoch"]), "pid": whole_number(facts["pid"]),
            "cpus": whole_number(facts["cpus"]) or 1, "most_slots": MOST_SLOTS, "python": "",
            "identity": [facts["machine"], facts["boot"], facts["start"]], "fresh": facts["fresh"] == "1" and not self._greeted,
            "rebooted": facts["rebooted"] == "1", "ready": facts["ready"] == "1", "survives": False, "root": facts["uid"] == "0",
            "home": facts["home"],
        })  # fmt: skip
        self._say_what_is_different(facts["fresh"] == "1")
        self._authorise()
        self._greeted = True
        self._take_inventory()

    def _overtaken(self, answer: list[str]) -> None:
        for line in answer:
            if line.startswith("overtaken "):
                self._put({"t": "overtaken", "epoch": whole_number(line.split()[1])})
                raise _Finished

    def _say_what_is_different(self, fresh: bool) -> None:
        if fresh and not self._greeted:
            text = f"no python3 on {self._connection.login}: jobs will not survive a cut connection; at most {MOST_SLOTS} slots"
            self._put({"t": "note", "text": text})
        for name in self._config["env"]:
            if not exportable(name):
                self._put({"t": "note", "text": f"{self._connection.login}: its sh cannot set the variable {name}; jobs run without it"})

    def _authorise(self) -> None:
        key = self._config["public_key"]
        if key:
            kind, text, *_ = key.split()
            self._control.ask("authorise", self._comment, "restrict", kind, text, self._comment)

    @property
    def _comment(self) -> str:
        """What marks the session's line among the authorised keys."""
        return f"cloudtask-{self._config['session']}"

    def _take_over(self) -> None:
        """What a cut left running ends, before anything else is said."""
        self._control.ask("takeover")
        began = time.monotonic()
        pause = threading.Event()
        while left := self._control.ask("remaining"):
            waited = time.monotonic() - began
            if waited > float(self._config["grace"]):
                for base in left:
                    self._control.ask("strike", "KILL", base)
            if waited > float(self._config["grace"]) + _STUCK_SECONDS:
                raise WorkerError(f"{self._connection.login}: jobs of the last connection cannot be killed: {' '.join(left[:5])}")
            if self.closing.is_set():
                raise _Finished
            pause.wait(0.1)

    def _take_inventory(self) -> None:
        rows = []
        for line in self._control.ask("rows"):
            state, base, *rest = line.split()
            key = read_base(base)
            if key in self._known:
                continue
            rows.append([*key, state, old_row(key, rest) if state == "ended" else None])
            if state == "ended":
                self._old[key] = rest
        self._known.update(Attempt(row[0], row[1]) for row in rows)  # type: ignore[arg-type]  # rows hold plain JSON
        self._send_rows(rows + self._present_rows())

    def _present_rows(self) -> list[list[Any]]:
        queued = [[*attempt.key, "queued", None] for attempt in self._queue]
        running = [[*key, "running", None] for key in self._jobs.running]
        return queued + running + [[*key, "lost", None] for key in self._lost]

    def _send_rows(self, rows: list[list[Any]]) -> None:
        for start in range(0, max(1, len(rows)), _ROWS_IN_A_FRAME):
            piece = rows[start : start + _ROWS_IN_A_FRAME]
            self._put({"t": "inventory", "rows": piece, "last": start + _ROWS_IN_A_FRAME >= len(rows)})

    def _on_code(self, header: Header, payload: bytes) -> None:
        self._staged.setdefault(Attempt(header["job"], header["attempt"]), bytearray()).extend(payload)

    def _on_run(self, header: Header, payload: bytes) -> None:
        position = 0
        refused = []
        for job, number, timeout, size in header["jobs"]:
            key = Attempt(job, number)
            code = bytes(self._staged.pop(key, b"")) if size < 0 else payload[position : position + size]
            position += max(0, size)
            if key in self._known:
                refused.append([job, number])
            else:
                self._known.add(key)
                attempt = ShellAttempt(key=key, timeout=float(timeout), code=code)
                # Set-up goes first, and takes no slot.
                (self._queue.append if job > 0 else self._queue.appendleft)(attempt)
        if refused:
            self._put({"t": "refused", "jobs": refused})
            self._send_rows(self._present_rows())

    def _on_ack(self, header: Header, payload: bytes) -> None:
        keys = [Attempt(job, number) for job, number in header["jobs"]]
        keys = [key for key in keys if key in self._unacknowledged or key in self._old]
        for start in range(0, len(keys), _BASES_IN_A_REQUEST):
            self._control.ask("ack", *(f"{job}.{number}" for job, number in keys[start : start + _BASES_IN_A_REQUEST]))
        self._unacknowledged.difference_update(keys)
        for key in keys:
            self._old.pop(key, None)

    def _on_kill(self, header: Header, payload: bytes) -> None:
        keys = {Attempt(job, number) for job, number in header["jobs"]}
        for key in keys & set(self._jobs.running):
            self._jobs.end(self._jobs.running[key], header["why"])
        self._return([attempt for attempt in self._queue if attempt.key in keys], header["why"])

    def _on_recall(self, header: Header, payload: bytes) -> None:
        jobs = [attempt for attempt in self._queue if attempt.key.job > 0]
        self._return(jobs[max(0, len(jobs) - header["count"]) :], "recalled")

    def _return(self, attempts: list[ShellAttempt], why: str) -> None:
        if attempts:
            for attempt in attempts:
                self._queue.remove(attempt)
            self._put({"t": "returned", "jobs": [list(attempt.key) for attempt in attempts], "why": why})

    def _on_want(self, header: Header, payload: bytes) -> None:
        for job, number, out, err in header["jobs"]:
            key = Attempt(job, number)
            if key in self._old:
                self._deliver_old(key, (out, err))

    def _deliver_old(self, key: Attempt, positions: tuple[int, int]) -> None:
        status, slot, seconds, *sizes, why = self._old[key]
        streams = [OutputCount(int(self._config["max_output"])) for _ in positions]
        for stream, (size, position) in enumerate(zip(map(whole_number, sizes), positions, strict=True), 1):
            self._jobs.fetch(f"{key.job}.{key.number}", stream, size, self._deliverer(key, stream, streams[stream - 1], position))
        ending, value = old_ending(status, why)
        self._put({"t": "ended", "jobs": [result_row(key, whole_number(slot), ending, value, float(whole_number(seconds)), 0.0, streams)]})
        self._unacknowledged.add(key)

    def _deliverer(self, key: Attempt, stream: int, count: OutputCount, position: int) -> Callable[[bytes], None]:
        def deliver(data: bytes) -> None:
            while self._answers.congested and not self.closing.is_set():
                self._answers.wait_for_room(1.0)
            self._jobs.deliver(key, stream, [(at, piece) for at, piece in count.take(data) if at + len(piece) > position])

        return deliver

    def _on_beat(self, header: Header, payload: bytes) -> None:
        answer = self._control.ask("beat", round(self._config["lease"]))
        self._overtaken(answer)
        free = next((whole_number(line.split()[1]) * 1024 for line in answer if line.startswith("free ")), -1)
        self._put({"t": "beat", "n": header["n"], "free": free})

    def _on_ready(self, header: Header, payload: bytes) -> None:
        self._control.ask("ready")

    def _on_finish(self, header: Header, payload: bytes) -> None:
        self._goal = self._goal or "post"

    def _on_abort(self, header: Header, payload: bytes) -> None:
        self._return(list(self._queue), "aborted")
        for attempt in list(self._jobs.running.values()):
            self._jobs.end(attempt, str(Ending.ABORTED))
        self._goal = self._goal or "post"

    _FRAMES: dict[str, Callable[[Any, Header, bytes], None]] = {
        "hello": _on_hello, "run": _on_run, "code": _on_code, "ack": _on_ack, "kill": _on_kill, "recall": _on_recall, "want": _on_want,
        "beat": _on_beat, "ready": _on_ready, "finish": _on_finish, "abort": _on_abort,
    }  # fmt: skip

    # --- jobs ----------------------------------------------------------------------------------------------------------

    def _start_what_fits(self) -> None:
        if self._jobs.unfit:
            self._return([attempt for attempt in self._queue if attempt.key.job > 0], "full")
        while self._queue and (self._free or self._queue[0].key.job < 0):
            attempt = self._queue.popleft()
            self._jobs.start(attempt, self._free.pop() if attempt.key.job > 0 else 0)

    def _settle(self, attempt: ShellAttempt) -> None:
        """An attempt is over: say how it ended, and give its slot to the next."""
        self._jobs.drop(attempt)
        if attempt.key.job > 0:
            self._free.append(attempt.slot)
            self._unacknowledged.add(attempt.key)
        if attempt.broken:
            self._judge_broken(attempt)
        if attempt.over:
            self._put({"t": "ended", "jobs": [attempt.row()]})
        else:
            # Nobody knows how the job itself ended.  Only a whole inventory can say that.
            self._unacknowledged.discard(attempt.key)
            self._lost.add(attempt.key)
            self._send_rows(self._present_rows())

    def _judge_broken(self, attempt: ShellAttempt) -> None:
        """Its script was killed, or did not start: what can be said of the job all the same."""
        began = self._control.ask("lose", attempt.base)
        if attempt.why:
            attempt.over = Over(0, 0.0, unstarted=False, refused=False)
        elif not began:
            why = f"cloudtask: the worker's shell did not start the job: {attempt.broken}\n"
            self._jobs.deliver(attempt.key, 2, attempt.streams[1].take(why.encode("utf-8", "replace")))
            attempt.over = Over(0, 0.0, unstarted=True, refused=False)

    # --- the end -------------------------------------------------------------------------------------------------------

    def _come_to_an_end(self) -> None:
        """One step towards `done`: what runs ends, post, the acknowledgements that are on their way, the key, the home."""
        if self._jobs.running or self._queue:
            return
        if self._goal == "post":
            self._goal = "acks"
            if self._config["post"]:
                code = self._config["post"].encode("utf-8", "surrogateescape")
                timeout = float(self._config["post_timeout"])
                self._queue.append(ShellAttempt(key=Attempt(_POST_JOB, self._epoch), timeout=timeout, code=code))
                return
        now = time.monotonic()
        self._acks_until = self._acks_until or now + _ACKS_SECONDS
        if self._unacknowledged and now < self._acks_until:
            return
        self._clean_up()

    def _clean_up(self) -> None:
        if self._config["public_key"]:
            self._control.ask("unauthorise", self._comment)
        if not self._unacknowledged:
            self._control.ask("bye")
        self._put({"t": "done", "left": len(self._unacknowledged)})
        raise _Finished

    def _put(self, header: Header) -> None:
        self._answers.put(header)
