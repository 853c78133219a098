"""The fallback without python3, over real shells of this machine: dash, bash and busybox in the place of /bin/sh."""

from __future__ import annotations

import os
import select
import shutil
import signal
import stat
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudtask.addresses import parse_address
from cloudtask.errors import SetupError
from cloudtask.transports import Connection, find
from cloudtask.transports.program import ProgramChannel
from cloudtask.workers.shell_peer import ShellPeer
from tests.sshd import ClientKeys, Sshd

from .conftest import MakePath

pytestmark = pytest.mark.timeout(60)

Frame = tuple[dict[str, Any], bytes]

AS_SH = 'mount --bind "$0" /bin/sh && exec /bin/sh -c "$1"'
SHELLS = {"dash": "/bin/dash", "bash": "/bin/bash", "busybox": "/bin/busybox"}


class ShellConnection:
    """A connection to this machine where ``program`` is /bin/sh, in a mount namespace for each channel.

    The login shell is chatty, and runs ``first`` before each command.
    """

    login = "worker"
    notes: tuple[str, ...] = ()

    def __init__(self, program: str, home: Path, first: str = ":") -> None:
        self._program = program
        self._first = first
        self._unshare = shutil.which("unshare") or "unshare"
        self._environment = {**os.environ, "HOME": str(home)}
        self._channels: list[ProgramChannel] = []

    def open(self, command: str) -> ProgramChannel:
        line = f"echo You have mail; {self._first}; {command}"
        argv = [self._unshare, "-m", "/bin/dash", "-c", f"PATH=/bin:/sbin:$PATH {AS_SH}", self._program, line]
        channel = ProgramChannel(argv, env=self._environment)
        self._channels.append(channel)
        return channel

    def alive(self) -> bool:
        return True

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    program = SHELLS[request.param]
    if not os.path.exists(program):
        pytest.skip(f"there is no {program}")
    test = subprocess.run(["unshare", "-m", "/bin/dash", "-c", AS_SH, program, "exit 7"], capture_output=True, check=False)
    if test.returncode != 7:
        pytest.skip("not allowed to put another shell into the place of /bin/sh")
    return str(request.param)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "ho me"
    folder.mkdir()
    return folder


@pytest.fixture
def connect(shell: str, home: Path, request: pytest.FixtureRequest, make_path: MakePath, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes a driver of a peer over a connection of its own."""
    if shell == "busybox":
        monkeypatch.setenv("PATH", str(request.getfixturevalue("busybox_path")))
    else:
        monkeypatch.setenv("PATH", str(make_path("python3")))
    drivers: list[Driver] = []

    def make(first: str = ":", **changes: Any) -> Driver:
        drivers.append(Driver(ShellConnection(SHELLS[shell], home, first), changes))
        return drivers[-1]

    yield make
    for driver in drivers:
        driver.cut()


class Driver:
    """Speaks with a peer as a supervisor does, and collects what it says."""

    def __init__(self, connection: Connection, changes: dict[str, Any], key: str = "s1.1") -> None:
        self.said: list[str] = []
        self.connection = connection
        self.peer = ShellPeer(connection, key, self.said.append)
        self.frames: list[Frame] = []
        self.ended: dict[tuple[int, int], list[Any]] = {}
        self.output: dict[tuple[int, int, int], bytes] = {}
        self.gone = ""
        self.config: dict[str, Any] = {
            "session": "s1", "worker": 1, "slots": 2, "grace": 1, "lease": 60, "max_output": 1 << 30, "env": {}, "workdir": None,
            "post": None, "post_timeout": 10, "public_key": None, "heartbeat": 15, **changes,
        }  # fmt: skip

    def hello(self, epoch: int = 1, connection: int = 1) -> Driver:
        self.peer.send({"t": "hello", "version": 1, "epoch": epoch, "connection": connection, "config": self.config})
        self.until(lambda: any(header["t"] == "inventory" and header["last"] for header, _ in self.frames))
        return self

    def run(self, *codes: bytes, timeout: float = 0, first: int = 1) -> None:
        jobs = [[number, 1, timeout, len(code)] for number, code in enumerate(codes, first)]
        self.peer.send({"t": "run", "jobs": jobs}, b"".join(codes))

    def until_quiet(self, seconds: float) -> None:
        """Take in what comes for so long."""
        deadline = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > deadline)

    def until(self, condition: Callable[[], object], seconds: float = 15) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"it did not come true; {self.frames[-5:]} {self.gone}"
            select.select([] if self.gone else [self.peer], [], [], 0.05)
            self._take()

    def _take(self) -> None:
        try:
            frames = [] if self.gone else self.peer.receive()
        except EOFError as error:
            self.gone = str(error)
            return
        for header, payload in frames:
            self.frames.append((header, payload))
            if header["t"] == "out":
                key = (header["job"], header["attempt"], header["stream"])
                assert header["position"] == len(self.output.get(key, b""))
                assert 0 < len(payload) <= 65536
                self.output[key] = self.output.get(key, b"") + payload
            for row in header["jobs"] if header["t"] == "ended" else []:
                self._take_end(row)

    def _take_end(self, row: list[Any]) -> None:
        job, attempt = row[:2]
        assert (job, attempt) not in self.ended
        out, err = (self.output.get((job, attempt, stream), b"") for stream in (1, 2))
        assert row[8:12] == [len(out), len(err), zlib.crc32(out), zlib.crc32(err)]
        self.ended[job, attempt] = row

    def until_ended(self, *jobs: int, seconds: float = 15) -> list[tuple[str, int]]:
        self.until(lambda: all((job, 1) in self.ended for job in jobs), seconds)
        return [(self.ended[job, 1][3], self.ended[job, 1][4]) for job in jobs]

    def out(self, job: int, stream: int = 1) -> bytes:
        return self.output.get((job, 1, stream), b"")

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [header for header, _ in self.frames if header["t"] == kind]

    def started(self) -> list[list[int]]:
        return [row for header in self.of("started") for row in header["jobs"]]

    def rows(self) -> dict[int, str]:
        return {row[0]: row[2] for header in self.of("inventory") for row in header["rows"]}

    def ack(self, *jobs: int) -> None:
        self.peer.send({"t": "ack", "jobs": [[job, 1] for job in jobs]})

    def cut(self) -> None:
        self.peer.close()
        self.connection.close()
        self.gone = "cut"


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def read_number(path: Path) -> int:
    text = path.read_text() if path.exists() else ""
    return int(text) if text.endswith("\n") else 0


# --- greeting --------------------------------------------------------------------------------------------------------


def test_welcomes_with_what_it_found(connect: Any, home: Path) -> None:
    driver = connect().hello()
    (welcome,) = driver.of("welcome")
    assert welcome["python"] == "" and welcome["survives"] is False and welcome["fresh"] is True and welcome["epoch"] == 0
    assert welcome["identity"][1] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert welcome["identity"][2] == Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19]
    assert welcome["root"] == (os.getuid() == 0) and welcome["cpus"] == len(os.sched_getaffinity(0)) and welcome["most_slots"] == 5
    assert stat.S_IMODE(Path(welcome["home"]).stat().st_mode) == 0o700
    assert Path(welcome["home"]).parent.parent == home
    assert driver.of("note")[0]["text"] == "no python3 on worker: jobs will not survive a cut connection; at most 5 slots"
    driver.peer.send({"t": "beat", "n": 7})
    driver.until(lambda: driver.of("beat"))
    assert driver.of("beat")[0]["n"] == 7 and driver.of("beat")[0]["free"] > 1 << 20
    # Until when it is used, for the machine's timer.
    assert 30 < Path(welcome["home"], "lease").stat().st_mtime - time.time() <= 61


def test_remembers_that_it_is_ready_and_its_epoch(connect: Any) -> None:
    first = connect().hello(epoch=4)
    first.peer.send({"t": "ready"})
    first.peer.send({"t": "beat", "n": 1})
    first.until(lambda: first.of("beat"))
    first.cut()
    (welcome,) = connect().hello(epoch=4, connection=2).of("welcome")
    assert (welcome["ready"], welcome["epoch"], welcome["fresh"]) == (True, 4, False)


def test_an_older_connection_is_overtaken(connect: Any) -> None:
    old = connect().hello(epoch=2)
    connect().hello(epoch=3)
    old.peer.send({"t": "beat", "n": 1})
    old.until(lambda: old.gone)
    assert old.of("overtaken") == [{"t": "overtaken", "epoch": 3}]
    late = connect()
    late.peer.send({"t": "hello", "version": 1, "epoch": 2, "connection": 9, "config": late.config})
    late.until(lambda: late.gone)
    assert late.of("overtaken") == [{"t": "overtaken", "epoch": 3}] and not late.of("welcome")


# --- jobs ------------------------------------------------------------------------------------------------------------


def test_runs_jobs_and_tells_how_they_ended(connect: Any) -> None:
    driver = connect().hello()
    binary = b"cat; printf '\\377\\000x'"
    driver.run(b"echo out; echo err >&2", b"exit 3", b"kill -9 $$", b"kill -TERM $$", b"nothing-like-this", binary, b"exit 255")
    endings = driver.until_ended(1, 2, 3, 4, 5, 6, 7)
    assert endings == [("exit", 0), ("exit", 3), ("signal", 9), ("signal", 15), ("exit", 127), ("exit", 0), ("exit", 255)]
    assert (driver.out(1), driver.out(1, 2)) == (b"out\n", b"err\n")
    assert (driver.out(3), driver.out(3, 2)) == (b"", b"")
    assert b"nothing-like-this" in driver.out(5, 2)
    assert driver.out(6) == b"\xff\0x"
    assert len(driver.started()) == 7 and {slot for _, _, slot in driver.started()} <= {1, 2}


def test_jobs_see_what_they_should(connect: Any, home: Path) -> None:
    env = {"PLAIN": "a b", "QUOTED": "it's \"$HOME\" `x`\n!", "RAW": os.fsdecode(b"\xff\x81\x88"), "not.a.name": "x", "UID": "x"}
    (home / "work here").mkdir()
    driver = connect(env=env, workdir="~/work here").hello()
    driver.run(
        b'printf "%s\\n" "$PLAIN" "$QUOTED" "$RAW"; '
        b"echo $CLOUDTASK_SESSION $CLOUDTASK_JOB $CLOUDTASK_ATTEMPT $CLOUDTASK_WORKER $CLOUDTASK_SLOT",
        b"pwd; umask; cat; echo code: '\xff\x81'",
        b"kill -INT $$; echo survived",
        b"ls /proc/self/fd; test -t 0 || echo no terminal",
        b"test $(cut -d' ' -f5 /proc/$$/stat) = $$ && echo leads",
    )
    assert driver.until_ended(1, 2, 3, 4, 5) == [("exit", 0), ("exit", 0), ("signal", 2), ("exit", 0), ("exit", 0)]
    assert driver.out(1) == b"a b\nit's \"$HOME\" `x`\n!\n\xff\x81\x88\ns1 1 1 1 " + str(driver.ended[1, 1][2]).encode() + b"\n"
    mask = os.umask(0o022)
    os.umask(mask)
    assert driver.out(2) == os.fsencode(home / "work here") + b"\n%04o\ncode: \xff\x81\n" % mask
    assert driver.out(4) == b"0\n1\n2\n3\nno terminal\n"
    assert driver.out(5) == b"leads\n"
    assert sorted(note["text"].split("variable ")[1].split(";")[0] for note in driver.of("note")[1:]) == ["UID", "not.a.name"]


def test_a_workdir_that_is_not_there_is_not_the_jobs_failure(connect: Any) -> None:
    driver = connect(workdir="/not/there").hello()
    driver.run(b"echo never")
    assert driver.until_ended(1) == [("unstarted", 0)]
    assert b"/not/there" in driver.out(1, 2) and driver.out(1) == b""


def test_long_codes_and_much_output_arrive_whole(connect: Any) -> None:
    driver = connect().hello()
    filler = b": " + b"x\xff'y" * 50_000 + b"'\n"
    code = b"cat <<'END' | wc -c\n" + b"line of a long document\n" * 20_000 + b"END\n"
    assert len(code) > 400_000
    driver.run(filler.replace(b"'", b"") + b"echo done", b"head -c 5000000 /dev/zero; head -c 3000000 /dev/zero | tr '\\0' e >&2")
    for start in range(0, len(code), 262_144):
        driver.peer.send({"t": "code", "job": 3, "attempt": 1}, code[start : start + 262_144])
    driver.peer.send({"t": "run", "jobs": [[3, 1, 0, -1]]})
    assert driver.until_ended(1, 2, 3, seconds=30) == [("exit", 0)] * 3
    assert driver.out(1) == b"done\n"
    assert driver.out(2) == bytes(5_000_000) and driver.out(2, 2) == b"e" * 3_000_000
    assert driver.out(3).strip() == b"480000"


def test_at_most_five_run_at_once(connect: Any, tmp_path: Path) -> None:
    driver = connect(slots=50).hello()
    go = tmp_path / "go"
    driver.run(*[b"until test -e '%b'; do sleep 0.05; done" % os.fsencode(go)] * 7)
    driver.until(lambda: len(driver.started()) == 5)
    driver.peer.send({"t": "beat", "n": 1})
    driver.until(lambda: driver.of("beat"))
    assert sorted(slot for _, _, slot in driver.started()) == [1, 2, 3, 4, 5]
    go.touch()
    driver.until_ended(*range(1, 8))


def test_output_comes_while_the_job_runs(connect: Any, tmp_path: Path) -> None:
    driver = connect().hello()
    go = tmp_path / "go"
    driver.run(b"echo first; echo problem >&2; until test -e '%b'; do sleep 0.05; done; echo last" % os.fsencode(go))
    driver.until(lambda: driver.out(1) and driver.out(1, 2))
    assert (driver.out(1), driver.out(1, 2)) == (b"first\n", b"problem\n") and not driver.ended
    go.touch()
    driver.until_ended(1)
    assert driver.out(1) == b"first\nlast\n"


def test_output_past_the_limit_is_cut(connect: Any) -> None:
    driver = connect(max_output=1000).hello()
    megabytes = b"head -c 3000000 /dev/zero"
    driver.run(b"head -c 1000 /dev/zero", b"head -c 1001 /dev/zero >&2", megabytes + b"; sleep 1; " + megabytes + b"; echo e >&2")
    driver.until_ended(1, 2, 3)
    assert [driver.ended[job, 1][12] for job in (1, 2, 3)] == [False, True, True]
    assert [len(driver.out(1)), len(driver.out(2, 2)), len(driver.out(3)), driver.out(3, 2)] == [1000, 1000, 1000, b"e\n"]


def test_an_attempt_is_never_started_twice(connect: Any, tmp_path: Path) -> None:
    driver = connect().hello()
    driver.run(b"echo once >>'%b'" % os.fsencode(tmp_path / "count"))
    driver.until_ended(1)
    driver.run(b"echo twice >>'%b'" % os.fsencode(tmp_path / "count"))
    driver.until(lambda: driver.of("refused"))
    assert driver.of("refused")[0]["jobs"] == [[1, 1]]
    assert (tmp_path / "count").read_text() == "once\n"


# --- ending ----------------------------------------------------------------------------------------------------------


STUBBORN = b"""
trap '' TERM
echo $$ >'%(dir)s/leader'
(trap '' TERM; sh -c 'echo $$ >"%(dir)s/child"; while :; do sleep 1; done') &
setsid sh -c 'trap "" TERM; echo $$ >"%(dir)s/escaped"; while :; do sleep 1; done' &
echo said
while :; do sleep 1; done
"""


def stubborn(folder: Path) -> bytes:
    return STUBBORN % {b"dir": os.fsencode(folder)}


def pids(folder: Path) -> list[int]:
    return [read_number(folder / name) for name in ("leader", "child", "escaped")]


def test_a_timeout_ends_all_of_the_job(connect: Any, tmp_path: Path) -> None:
    driver = connect().hello()
    driver.run(stubborn(tmp_path), timeout=1.5)
    driver.until(lambda: all(pids(tmp_path)))
    assert all(map(lives, pids(tmp_path)))
    assert driver.until_ended(1) == [("timeout", 0)]
    assert not any(map(lives, pids(tmp_path)))
    assert driver.out(1) == b"said\n"
    assert 2 < driver.ended[1, 1][5] < 10


def test_kill_ends_what_runs_and_returns_what_waits(connect: Any) -> None:
    driver = connect(slots=1).hello()
    driver.run(b"echo begun; exec sleep 1000", b"echo never", b"echo three")
    driver.until(lambda: driver.started())
    driver.peer.send({"t": "kill", "jobs": [[1, 1], [2, 1]], "why": "superseded"})
    assert driver.until_ended(1, 3) == [("superseded", 0), ("exit", 0)]
    assert driver.of("returned") == [{"t": "returned", "jobs": [[2, 1]], "why": "superseded"}]
    assert not driver.out(2)


def test_recall_gives_back_the_newest_that_wait(connect: Any, tmp_path: Path) -> None:
    driver = connect(slots=1).hello()
    go = tmp_path / "go"
    driver.run(b"until test -e '%b'; do sleep 0.05; done" % os.fsencode(go), b"echo 2", b"echo 3", b"echo 4")
    driver.peer.send({"t": "recall", "count": 2})
    driver.until(lambda: driver.of("returned"))
    assert driver.of("returned")[0]["jobs"] == [[3, 1], [4, 1]]
    go.touch()
    driver.until_ended(1, 2)


def test_what_is_left_of_the_group_ends_with_the_shell(connect: Any, tmp_path: Path) -> None:
    driver = connect().hello()
    driver.run(b"(trap '' TERM; sh -c 'echo $$ >\"%b\"'; sleep 1000; sleep 1000) & sh -c 'echo $$'; echo $! >'%b'" % (
        os.fsencode(tmp_path / "x"), os.fsencode(tmp_path / "left")))  # fmt: skip
    assert driver.until_ended(1) == [("exit", 0)]
    assert read_number(tmp_path / "left") and not lives(read_number(tmp_path / "left"))


def test_a_killed_wrapper_means_a_lost_job_that_is_ended(connect: Any, tmp_path: Path) -> None:
    driver = connect().hello()
    other = b"until test -e '%b'; do sleep 0.05; done; echo fine" % os.fsencode(tmp_path / "go")
    names = (os.fsencode(tmp_path / "wrapper"), os.fsencode(tmp_path / "job"))
    driver.run(b"echo $PPID >'%b'; echo $$ >'%b'; exec sleep 1000" % names, other)
    driver.until(lambda: read_number(tmp_path / "job") and len(driver.started()) == 2)
    os.kill(read_number(tmp_path / "wrapper"), signal.SIGKILL)
    driver.until(lambda: "lost" in driver.rows().values())
    assert driver.rows() == {1: "lost", 2: "running"}
    assert not lives(read_number(tmp_path / "job"))
    (tmp_path / "go").touch()
    assert driver.until_ended(2) == [("exit", 0)]


def test_a_job_that_ends_as_it_is_asked_for_output_is_not_lost(connect: Any, home: Path) -> None:
    """The question stands before the job's last word, whose script has gone by the time that it is read."""
    driver = connect().hello()
    driver.run(b"while test ! -e ~/go; do sleep 0.05; done; exit 3")
    driver.until(lambda: any(header["t"] == "started" for header, _ in driver.frames))
    (pid_file,) = home.glob(".cloudtask-agent/*/1.1.pid")
    runner = int(Path(f"/proc/{pid_file.read_text().split()[0]}/stat").read_text().rpartition(")")[2].split()[1])
    (reader,) = [int(link.parts[2]) for link in Path("/proc").glob("[0-9]*/fd/5") if leads_to(link, pid_file.with_suffix(".out"))]
    os.kill(reader, signal.SIGSTOP)
    # Asked every half second, so that there is a question by then.
    driver.until_quiet(0.8)
    (home / "go").touch()
    driver.until(lambda: pid_file.with_suffix(".end").exists() and not lives(runner))
    os.kill(reader, signal.SIGCONT)
    assert driver.until_ended(1) == [("exit", 3)]
    driver.cut()


def leads_to(link: Path, target: Path) -> bool:
    try:
        return os.path.samefile(link, target)
    except OSError:
        return False


def test_a_shell_that_does_not_start_is_told_as_such(connect: Any, tmp_path: Path) -> None:
    driver = connect(first=f"test -e '{tmp_path}/full' && {{ echo no more processes >&2; exit 1; }}").hello()
    (tmp_path / "full").touch()
    driver.run(b"echo never")
    assert driver.until_ended(1) == [("unstarted", 0)]
    assert driver.out(1, 2) == b"cloudtask: the worker's shell did not start the job: no more processes\n"


def test_what_was_about_to_start_at_a_silent_cut_does_not(connect: Any, tmp_path: Path) -> None:
    first = connect(first=f"until test ! -e '{tmp_path}/slow'; do sleep 0.05; done").hello()
    (tmp_path / "slow").touch()
    first.run(b"echo ran >>'%b'" % os.fsencode(tmp_path / "ran"))
    first.peer.send({"t": "beat", "n": 1})
    first.until(lambda: first.of("beat"))
    second = connect().hello(connection=2)
    assert second.rows() == {}
    (tmp_path / "slow").unlink()
    assert first.until_ended(1) == [("lost", 0)], "no failure of the job's own"
    assert not (tmp_path / "ran").exists()


# --- a cut -----------------------------------------------------------------------------------------------------------


def test_a_cut_ends_jobs_and_they_are_lost(connect: Any, tmp_path: Path) -> None:
    first = connect().hello()
    first.run(b"echo $$ >'%b'; exec sleep 1000" % os.fsencode(tmp_path / "job"))
    first.until(lambda: read_number(tmp_path / "job"))
    first.cut()
    deadline = time.monotonic() + 10
    while lives(read_number(tmp_path / "job")):
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)
    second = connect().hello(connection=2)
    assert second.rows() == {1: "lost"}
    second.run(b"echo again")
    second.until(lambda: second.of("refused"))


def test_what_a_silent_cut_left_running_ends_before_the_inventory(connect: Any, tmp_path: Path) -> None:
    first = connect().hello()
    first.run(stubborn(tmp_path))
    first.until(lambda: all(pids(tmp_path)))
    # The first connection stays: its worker has not noticed that anything is wrong.
    second = connect().hello(connection=2)
    assert second.rows() == {1: "lost"}
    assert not any(map(lives, pids(tmp_path)))


def test_a_finished_result_is_delivered_after_a_cut(connect: Any, tmp_path: Path) -> None:
    first = connect().hello()
    first.run(b"head -c 300000 /dev/zero; echo problem >&2; exit 4", b"echo known", b"kill -9 $$")
    first.until_ended(1, 2, 3)
    first.ack(2)
    first.peer.send({"t": "beat", "n": 1})
    first.until(lambda: first.of("beat"))
    first.cut()
    second = connect().hello(connection=2)
    assert second.rows() == {1: "ended", 2: "acked", 3: "ended"}
    rows = {row[0]: row[3] for header in second.of("inventory") for row in header["rows"]}
    assert rows[1][3:5] == ["exit", 4] and rows[1][8:10] == [300_000, 8] and rows[2] is None and rows[3][3:5] == ["signal", 9]
    second.peer.send({"t": "want", "jobs": [[1, 1, 0, 0]]})
    assert second.until_ended(1) == [("exit", 4)]
    assert second.out(1) == bytes(300_000) and second.out(1, 2) == b"problem\n"
    second.ack(1)
    second.peer.send({"t": "beat", "n": 1})
    second.until(lambda: second.of("beat"))
    second.cut()
    assert connect().hello(connection=3).rows() == {1: "acked", 2: "acked", 3: "ended"}


def test_after_a_reboot_nothing_is_killed_and_all_is_lost(connect: Any, home: Path, tmp_path: Path) -> None:
    first = connect().hello()
    first.run(b"exit 4", b"echo $$ >'%b'; exec sleep 1000" % os.fsencode(tmp_path / "job"))
    first.until_ended(1)
    first.until(lambda: read_number(tmp_path / "job"))
    (folder,) = (home / ".cloudtask-agent").glob("*-sh")
    machine, _, start = (folder / "identity").read_text().splitlines()
    (folder / "identity").write_text(f"{machine}\nan-earlier-boot\n{start}\n")
    second = connect().hello(connection=2)
    assert second.rows() == {1: "lost", 2: "lost"} and second.of("welcome")[0]["rebooted"] is True
    assert lives(read_number(tmp_path / "job"))
    first.peer.send({"t": "kill", "jobs": [[2, 1]], "why": "aborted"})
    first.until_ended(2)


def test_a_home_of_another_machine_is_not_touched(connect: Any, home: Path) -> None:
    first = connect().hello()
    first.run(b"exit 4")
    first.until_ended(1)
    (folder,) = (home / ".cloudtask-agent").glob("*-sh")
    (folder / "identity").write_text("another\nboot\n1\n")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    second = connect().hello(connection=2)
    (welcome,) = second.of("welcome")
    assert welcome["fresh"] is True and welcome["home"] == f"{folder}~2" and second.rows() == {}
    second.run(b"echo here")
    assert second.until_ended(1) == [("exit", 0)]
    second.ack(1)
    second.peer.send({"t": "finish"})
    second.until(lambda: second.of("done"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before and not Path(welcome["home"]).exists()


# --- set-up and clean-up ---------------------------------------------------------------------------------------------


KEY = "ssh-ed25519 AAAAC3Nz cloudtask-s1"


def test_the_key_is_authorised_and_removed_and_nothing_else_changes(connect: Any, home: Path) -> None:
    real = home / "keys of mine"
    real.write_text("ssh-rsa BBBB me@home")
    real.chmod(0o640)
    (home / ".ssh").mkdir(mode=0o755)
    (home / ".ssh/authorized_keys").symlink_to("../keys of mine")
    driver = connect(public_key=KEY).hello()
    assert real.read_text() == f"ssh-rsa BBBB me@home\nrestrict {KEY}\n"
    connect(public_key=KEY).hello(connection=2)
    assert real.read_text() == f"ssh-rsa BBBB me@home\nrestrict {KEY}\n"
    driver = connect(public_key=KEY).hello(connection=3)
    driver.peer.send({"t": "finish"})
    driver.until(lambda: driver.of("done"))
    assert real.read_text() == "ssh-rsa BBBB me@home\n"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640 and (home / ".ssh/authorized_keys").is_symlink()
    assert sorted(os.listdir(home / ".ssh")) == ["authorized_keys"]
    assert sorted(os.listdir(home)) == [".ssh", "keys of mine"]


def test_the_key_stays_while_another_worker_of_the_account_uses_it(connect: Any, home: Path, shell: str) -> None:
    one = connect(public_key=KEY).hello()
    two = Driver(ShellConnection(SHELLS[shell], home), {"public_key": KEY}, key="s1.2").hello()
    one.peer.send({"t": "finish"})
    one.until(lambda: one.of("done"))
    assert (home / ".ssh/authorized_keys").read_text() == f"restrict {KEY}\n"
    two.peer.send({"t": "finish"})
    two.until(lambda: two.of("done"))
    assert (home / ".ssh/authorized_keys").read_text() == ""
    assert stat.S_IMODE((home / ".ssh/authorized_keys").stat().st_mode) == 0o600
    two.cut()


def test_finish_runs_post_and_leaves_nothing(connect: Any, home: Path) -> None:
    driver = connect(post="echo post $CLOUDTASK_WORKER").hello(epoch=3)
    driver.run(b"echo pre", first=-1)
    assert driver.until_ended(-1) == [("exit", 0)]
    driver.peer.send({"t": "finish"})
    driver.until(lambda: driver.gone)
    assert driver.output[-2, 3, 1] == b"post 1\n" and driver.ended[-2, 3][2:5] == [0, "exit", 0]
    assert driver.of("done") == [{"t": "done", "left": 0}]
    assert os.listdir(home) == []


def test_abort_ends_all_then_cleans_up(connect: Any, home: Path, tmp_path: Path) -> None:
    driver = connect(slots=1, post="echo cleaning up").hello()
    driver.run(b"trap 'exit 0' TERM; echo begun; echo >'%b'/began; while :; do sleep 0.1; done" % os.fsencode(tmp_path), b"echo never")
    driver.until(lambda: (tmp_path / "began").exists())
    driver.peer.send({"t": "abort"})
    assert driver.until_ended(1) == [("aborted", 0)]
    driver.ack(1)
    driver.until(lambda: driver.of("done"))
    assert driver.of("returned")[0]["jobs"] == [[2, 1]] and (-2, 1) in driver.ended
    assert driver.of("done") == [{"t": "done", "left": 0}] and os.listdir(home) == []


def test_says_when_the_home_cannot_be_written(connect: Any, home: Path) -> None:
    (home / ".cloudtask-agent").write_text("a file in the way")
    with pytest.raises(SetupError, match=r"worker: cannot keep jobs in ~/\.cloudtask-agent there: .*\.cloudtask-agent"):
        connect()


@pytest.mark.parametrize("shell", ["dash"], indirect=True)
def test_without_setsid_a_shell_without_job_control_is_not_enough(
    shell: str, home: Path, make_path: MakePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(make_path("setsid", "python3")))
    connection = ShellConnection(SHELLS[shell], home)
    with pytest.raises(SetupError, match="worker: has neither python3 nor setsid; install one of them there"):
        Driver(connection, {})
    connection.close()


@pytest.mark.parametrize("shell", ["bash"], indirect=True)
def test_without_setsid_it_takes_a_shell_with_job_control(
    shell: str, home: Path, make_path: MakePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(make_path("setsid", "python3")))
    driver = Driver(ShellConnection(SHELLS[shell], home), {}).hello()
    driver.run(b"exit 3", b"kill -9 $$", b"test $(cut -d' ' -f5 /proc/$$/stat) = $$ && echo leads", b"sleep 1000", timeout=1)
    assert driver.until_ended(1, 2, 3, 4) == [("exit", 3), ("signal", 9), ("exit", 0), ("timeout", 0)]
    assert driver.out(3) == b"leads\n" and driver.out(2, 2) == b""
    driver.cut()


def test_the_end_of_the_worker_is_the_end_of_the_file(connect: Any) -> None:
    driver = connect().hello()
    driver.connection.close()
    driver.peer.send({"t": "beat", "n": 1})
    driver.until(lambda: driver.gone)
    assert driver.gone


def test_a_cut_ssh_connection_ends_the_jobs(nopython: Sshd, client_keys: ClientKeys) -> None:
    def connect() -> Driver:
        return Driver(find("ssh").connect(parse_address(nopython.address), client_keys.options()), {})

    first = connect().hello()
    first.run(b"echo begun; exec sleep 4321.0", b"echo done; exit 3")
    assert first.until_ended(2) == [("exit", 3)]
    first.until(lambda: first.out(1))
    assert any("4321.0" in command for command in commands_of(nopython))
    nopython.kill_connections()
    first.until(lambda: first.gone, seconds=30)
    second = connect().hello(connection=2)
    assert second.rows() == {1: "lost", 2: "ended"}
    assert not any("4321.0" in command for command in commands_of(nopython))
    second.peer.send({"t": "want", "jobs": [[2, 1, 0, 0]]})
    assert second.until_ended(2) == [("exit", 3)] and second.out(2) == b"done\n"
    first.cut()
    second.cut()


def commands_of(server: Sshd) -> list[str]:
    return [Path(f"/proc/{pid}/cmdline").read_text() for pid in server.account.processes() if lives(pid)]


def test_forty_jobs_by_ssh_with_a_stock_sshd(nopython: Sshd, client_keys: ClientKeys) -> None:
    driver = Driver(find("ssh").connect(parse_address(nopython.address), client_keys.options()), {"slots": 5}).hello()
    driver.run(*[b"echo %d; exit %d" % (number, number % 3) for number in range(1, 41)])
    endings = driver.until_ended(*range(1, 41), seconds=40)
    assert endings == [("exit", number % 3) for number in range(1, 41)]
    assert [driver.out(number) for number in range(1, 41)] == [b"%d\n" % number for number in range(1, 41)]
    driver.cut()
