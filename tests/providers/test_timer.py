"""The machine timer, under dash and under busybox with its own tools: time is ours to move, and powering off is a line in a file."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from cloudtask.providers.timer import KEEP_PATH, TIMER_PATH, keep_command, start_command, timer_script

FIRST, LIMIT, GRACE, PAUSE, PATIENCE = 600, 2700, 300, 90, 60
SHELLS = {"dash": ["/bin/sh"], "busybox": ["busybox", "sh"]}
REAL = ("cat", "grep", "readlink", "sed", "sort", "stat", "timeout", "tr", "true")
OFF = ("systemctl poweroff", "poweroff", "shutdown -h now", "busybox poweroff", "poweroff -f")
BOOTED = 1000
WALL = 1_700_000_000
"""The machine's clock at its boot, in seconds since 1970."""
PATIENT = 20.0


class Machine:
    """A root directory, tools that tell what they are asked for, and the script, which waits for us in each sleep."""

    def __init__(self, folder: Path, shell: str, *, without: tuple[str, ...] = ()) -> None:
        self.root, self.tools = folder / "root", folder / "tools"
        self.wall = 0
        """How far the machine's clock was set."""
        self._shell = SHELLS[shell]
        self._nap = 0
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("proc/self/ns", "proc/sys/kernel", "etc", "run", "root", "home", "var/tmp", "var/lib/cloudtask", "opt"):
            (self.root / name).mkdir(parents=True)
        (self.root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nadmin:x:1000:1000:Ad Min:/opt/ad min:/bin/sh\n")
        self.tools.mkdir()
        for name in REAL:
            busybox = shutil.which("busybox")
            (self.tools / name).symlink_to((busybox if shell == "busybox" else None) or shutil.which(name) or name)
        for name in sorted({words.split()[0] for words in OFF} - set(without)):
            self.tool(name, f'echo "{name} $*" >>{folder}/asked')
        self.tool("kill", f'echo "kill $*" >>{folder}/asked')
        self.tool("date", f'case $1 in +%s) cat {folder}/now;; *) exec /bin/date "$@";; esac')
        self.tool("sleep", f'echo "$1" >{folder}/asleep; read -r _ <{folder}/awake')
        self.folder = folder
        self._pipes = []
        for name in ("asleep", "awake"):
            os.mkfifo(folder / name)
            self._pipes.append(os.open(folder / name, os.O_RDWR))
        self.up = BOOTED
        self._set_clocks()

    def tool(self, name: str, code: str) -> None:
        """A program of the machine."""
        (self.tools / name).write_text(f"#!/bin/sh\n{code}\n")
        (self.tools / name).chmod(0o755)

    def boot(self, *arguments: str) -> Self:
        """Start the script."""
        text = timer_script(FIRST, LIMIT, grace=GRACE, pause=PAUSE, patience=PATIENCE, root=str(self.root), tools=f"{self.tools}/")
        (self.folder / "cloudtask-timer").write_text(text)
        command = [*self._shell, str(self.folder / "cloudtask-timer"), *arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        return self

    @property
    def now(self) -> int:
        """The machine's clock."""
        return WALL + self.up + self.wall

    def sleep(self) -> int:
        """Wait until the script sleeps, let that time pass, and wake it.  Returns how long it was, 0 where it has ended."""
        seconds = self.asleep()
        self.wake()
        return seconds

    def asleep(self) -> int:
        """Wait until the script sleeps.  Returns for how long, 0 where it has ended."""
        assert self._process
        if self._nap:
            return self._nap
        deadline = time.monotonic() + PATIENT
        while not select.select([self._pipes[0]], [], [], 0.02)[0]:
            if self._process.poll() is not None:
                return 0
            assert time.monotonic() < deadline, "the script does not come to sleep"
        self._nap = int(os.read(self._pipes[0], 100).split()[0])
        return self._nap

    def wake(self) -> None:
        """It has slept as long as it wanted."""
        if self._nap:
            self.up += self._nap
            self._nap = 0
            self._set_clocks()
            os.write(self._pipes[1], b"\n")

    def runs_on(self, seconds: float, each: Callable[[], object] = lambda: None) -> None:
        """Nothing is powered off for so long."""
        until = self.up + seconds
        while self.up < until:
            each()
            assert self.sleep() == PAUSE, f"at {self.up - BOOTED}: {self.asked}"

    def goes_off(self, within: float) -> float:
        """Seconds until the machine was powered off."""
        began = self.up
        while self.up - began <= within:
            if self.asleep() != PAUSE:
                return self.up - began
            self.wake()
        raise AssertionError(f"still on after {within} seconds")

    @property
    def asked(self) -> list[str]:
        """What was asked for to power off."""
        path = self.folder / "asked"
        return [line.strip() for line in path.read_text().splitlines()] if path.exists() else []

    def lease(self, seconds: float, home: str = "root", *, name: str = "abc.1") -> Path:
        """An agent renews its lease, on the machine's clock."""
        path = self.root / home / ".cloudtask-agent" / name / "lease"
        path.parent.mkdir(parents=True, exist_ok=True)
        return self.touch(path, seconds)

    def touch(self, path: Path, seconds: float) -> Path:
        """Set a modification time from now."""
        path.touch()
        os.utime(path, (self.now + seconds, self.now + seconds))
        return path

    def process(self, pid: int, environment: bytes) -> Path:
        """A process that runs there."""
        path = self.root / "proc" / str(pid) / "environ"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(environment)
        return path

    def ended(self) -> tuple[int, str]:
        """The script's exit status, and what it said."""
        assert self._process
        out, err = self._process.communicate(timeout=PATIENT)
        return self._process.returncode, (out + err).decode()

    def stop(self) -> None:
        """End it."""
        if self._process:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()
        for pipe in self._pipes:
            os.close(pipe)

    def _set_clocks(self) -> None:
        if not (self.root / "proc/uptime").is_dir():
            (self.root / "proc/uptime").write_text(f"{self.up}.07 12.00\n")
        (self.folder / "now").write_text(f"{self.now}\n")


MakeMachine = Callable[..., Machine]


@pytest.fixture(params=SHELLS)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeMachine]:
    """Makes machines; run for each shell."""
    if shutil.which(SHELLS[request.param][0]) is None:
        pytest.skip("busybox is not installed")
    made: list[Machine] = []

    def make(**keywords: tuple[str, ...]) -> Machine:
        folder = tmp_path / f"machine{len(made)}"
        folder.mkdir()
        made.append(Machine(folder, request.param, **keywords))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def near(seconds: float, expected: float) -> bool:
    """The second look after ``expected`` seconds."""
    return expected + PAUSE <= seconds <= expected + 2 * PAUSE + 1


def test_nobody_comes(machine: MakeMachine) -> None:
    there = machine().boot()
    assert near(there.goes_off(FIRST + 200), FIRST)
    assert all_ways(there)[0] == "systemctl poweroff"


def test_who_comes_in_time_holds_it_as_long_as_the_lease_runs(machine: MakeMachine) -> None:
    there = machine().boot()
    there.runs_on(FIRST - PAUSE)
    there.runs_on(3 * FIRST, lambda: there.lease(100))
    there.lease(1000)
    assert near(there.goes_off(2000), 1000)


@pytest.mark.parametrize("home", ["root", "home/debian", "opt/ad min", "var/tmp"])
def test_every_home_is_looked_at(home: str, machine: MakeMachine) -> None:
    there = machine().boot()
    path = there.lease(2000, home)
    if home == "var/tmp":
        path.parent.parent.rename(there.root / "var/tmp/cloudtask-agent-1000")
    there.runs_on(2000 - PAUSE)
    assert near(there.goes_off(500), PAUSE)


def test_a_home_that_only_the_agents_environment_knows(machine: MakeMachine) -> None:
    there = machine().boot()
    there.lease(2000, "srv/a b*")
    there.process(9, b"PATH=/bin\0HOME=/srv/a b*\0")
    there.process(10, b"HOME=relative\0HOME=\0")
    there.runs_on(2000 - PAUSE)
    assert near(there.goes_off(500), PAUSE)


def test_the_last_of_several_leases_counts(machine: MakeMachine) -> None:
    there = machine().boot()
    there.lease(1000, name="abc.1")
    there.lease(3000, name="abc.2")
    there.lease(2000, "home/debian")
    assert near(there.goes_off(4000), 3000)


def test_a_job_holds_it_past_its_lease_but_not_past_the_limit(machine: MakeMachine) -> None:
    there = machine().boot()
    there.lease(1000)
    there.process(7, b"")
    there.process(8, b"HOME=/root\0CLOUDTASK_ATTEMPT=1\0")
    there.runs_on(1000 + LIMIT - PAUSE)
    assert near(there.goes_off(500), PAUSE)


def test_it_goes_off_when_the_last_job_ends_after_the_lease(machine: MakeMachine) -> None:
    there = machine().boot()
    there.lease(1000)
    job = there.process(8, b"CLOUDTASK_ATTEMPT=1\0")
    there.runs_on(3000)
    job.write_bytes(b"CLOUDTASK_SESSION=1\0")
    assert there.goes_off(200) <= 2 * PAUSE


def test_where_processes_cannot_be_looked_at_jobs_are_taken_to_run(machine: MakeMachine) -> None:
    there = machine()
    (there.tools / "timeout").unlink()
    there.tool("timeout", '[ "$1" = 9 ] && exit 0; exit 124')
    there.boot().runs_on(FIRST + LIMIT - PAUSE)
    assert near(there.goes_off(300), PAUSE)


def test_an_agent_that_took_its_home_with_it_leaves_a_grace(machine: MakeMachine) -> None:
    there = machine().boot()
    lease = there.lease(5000)
    there.runs_on(2000)
    shutil.rmtree(lease.parent)
    began = there.up
    there.goes_off(1000)
    # Last seen by the look before.
    assert GRACE - PAUSE <= there.up - began <= GRACE + 3 * PAUSE + PATIENCE


def test_the_next_agent_is_welcome_within_the_grace(machine: MakeMachine) -> None:
    there = machine().boot()
    lease = there.lease(5000)
    there.runs_on(2000)
    shutil.rmtree(lease.parent)
    there.runs_on(GRACE - 2 * PAUSE)
    there.lease(2000)
    assert near(there.goes_off(3000), 2000)


def test_one_look_alone_ends_nothing(machine: MakeMachine) -> None:
    there = machine().boot()
    there.lease(1000)
    there.runs_on(1000 + PAUSE / 2)
    there.lease(PAUSE + 15)
    there.runs_on(60)
    there.process(8, b"CLOUDTASK_ATTEMPT=1\0")
    there.runs_on(1000)


@pytest.mark.parametrize("jump", [86400, -86400, 400_000_000, -WALL + 5000])
def test_a_clock_that_is_set_neither_ends_nor_holds_it(jump: int, machine: MakeMachine) -> None:
    there = machine().boot()
    there.lease(1500)
    there.sleep()
    there.wall += jump
    there.runs_on(1500 - 2 * PAUSE)
    there.lease(1000)  # on the new clock
    there.runs_on(1000 - PAUSE)
    assert near(there.goes_off(500), PAUSE)


def test_a_lease_of_an_earlier_boot_gives_the_usual_time_to_come(machine: MakeMachine) -> None:
    there = machine()
    there.lease(-3000)
    assert near(there.boot().goes_off(2000), FIRST)


def test_a_lease_without_end_has_one(machine: MakeMachine) -> None:
    there = machine().boot()
    there.lease(40 * 365 * 86400)
    there.sleep()
    there.up += 2592000 - 2 * PAUSE
    there.runs_on(PAUSE)
    assert near(there.goes_off(500), 0)


def test_it_is_held_for_the_next_session(machine: MakeMachine) -> None:
    there = machine().boot()
    lease = there.lease(3000)
    kept = there.touch(there.root / KEEP_PATH.lstrip("/"), 3600 + 900)
    there.runs_on(1000)
    shutil.rmtree(lease.parent)
    there.runs_on(3600 + 900 - 1000 - PAUSE)
    there.touch(kept, 1000)
    assert near(there.goes_off(2000), 1000)


def test_a_kept_machine_that_is_used_again_stays(machine: MakeMachine) -> None:
    there = machine().boot()
    there.touch(there.root / KEEP_PATH.lstrip("/"), 1000)
    there.runs_on(900)
    there.lease(2000)
    assert near(there.goes_off(3000), 2000)


def test_what_users_put_in_its_way_does_not_stop_it(machine: MakeMachine) -> None:
    there = machine()
    traps = {"fifo": None, "kernel": "/proc/kmsg", "zero": "/dev/zero", "loop": "lease", "bad=|0 x": None}
    for name, target in traps.items():
        place = there.root / "home/user/.cloudtask-agent" / name
        place.mkdir(parents=True)
        os.symlink(target, place / "lease") if target else os.mkfifo(place / "lease")
    bad = there.lease(10**6, "home/user", name="x=|y")
    assert bad.exists()
    assert near(there.boot().goes_off(2000), FIRST)


def test_it_looks_without_a_passwd_and_without_an_uptime(machine: MakeMachine) -> None:
    there = machine().boot()
    (there.root / "etc/passwd").unlink()
    there.lease(1000)
    (there.root / "proc/uptime").unlink()
    (there.root / "proc/uptime").mkdir()  # the script counts its own sleeps
    assert near(there.goes_off(3000), 1000)


# --- powering off ----------------------------------------------------------------------------------------------------


def all_ways(there: Machine) -> list[str]:
    """What is asked for until the first way comes again."""
    slept, told = PATIENCE, 0
    while len(there.asked) < 2 or there.asked.count(there.asked[0]) < 2:
        before, slept = slept, there.asleep()
        # Each is given its time while it runs beside; nothing new is asked for after the first process's end and the magic key.
        deadline = time.monotonic() + PATIENT
        while slept == before == PATIENCE and len(there.asked) == told and there.asked[-1:] != ["kill -TERM 1"]:
            assert time.monotonic() < deadline, there.asked
            time.sleep(0.005)
        told = len(there.asked)
        there.wake()
    return there.asked


def test_every_way_is_tried_and_the_magic_key_last(machine: MakeMachine) -> None:
    there = machine()
    (there.root / "proc/self/ns/pid").symlink_to("pid:[4026531836]")
    there.boot().goes_off(2000)
    assert all_ways(there)[: len(OFF) + 1] == [*OFF, OFF[0]]
    assert (there.root / "proc/sysrq-trigger").read_text() == "o\n"
    assert (there.root / "proc/sys/kernel/sysrq").read_text() == "1\n"


def test_in_a_container_the_magic_key_is_not_touched(machine: MakeMachine) -> None:
    there = machine()
    (there.root / "proc/self/ns/pid").symlink_to("pid:[4026532185]")
    there.boot().goes_off(2000)
    assert all_ways(there)[: len(OFF) + 2] == [*OFF, "kill -TERM 1", OFF[0]]
    assert not (there.root / "proc/sysrq-trigger").exists()


def test_what_is_not_there_is_passed_over(machine: MakeMachine) -> None:
    there = machine(without=("systemctl", "shutdown"))
    there.boot().goes_off(2000)
    assert all_ways(there)[:3] == ["poweroff", "busybox poweroff", "poweroff -f"]


def test_a_way_that_hangs_does_not_hold_up_the_next(machine: MakeMachine) -> None:
    there = machine()
    there.tool("systemctl", f'echo "systemctl $*" >>{there.folder}/asked; exec /bin/sleep 600')
    there.boot().goes_off(2000)
    assert all_ways(there)[:2] == ["systemctl poweroff", "poweroff"]


def test_as_a_containers_main_process_it_just_ends(machine: MakeMachine) -> None:
    there = machine().boot("--main")
    there.lease(1000)
    slept = 0
    while seconds := there.sleep():
        slept += seconds
    assert near(slept, 1000)
    status, said = there.ended()
    assert status == 0 and "nobody uses this machine" in said and not there.asked


def test_a_second_timer_leaves_to_the_first(machine: MakeMachine, request: pytest.FixtureRequest) -> None:
    there = machine().boot()
    pidfile = there.root / "run/cloudtask-timer.pid"
    there.sleep()
    pid = pidfile.read_text().strip()
    (there.root / "proc" / pid).mkdir(exist_ok=True)
    (there.root / "proc" / pid / "cmdline").write_bytes(Path(f"/proc/{pid}/cmdline").read_bytes())
    second = [*there._shell, str(there.folder / "cloudtask-timer")]
    assert subprocess.run(second, timeout=PATIENT, check=False).returncode == 0
    assert pidfile.read_text().strip() == pid
    (there.root / "proc" / pid / "cmdline").write_bytes(b"sleep\x00600\x00")  # its number belongs to another now
    other = subprocess.Popen(second, start_new_session=True)
    deadline = time.monotonic() + PATIENT
    while pidfile.read_text().strip() != str(other.pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(other.pid, signal.SIGKILL)
    other.wait()


# --- the real thing ------------------------------------------------------------------------------------------------------

NAMESPACES = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
needs_namespaces = pytest.mark.skipif(os.getuid() != 0, reason="not allowed to make namespaces")
PRIVATE = (
    "for d in /run /home /var/tmp /var/lib /root/.cloudtask-agent; do [ ! -d $d ] || mount -t tmpfs none $d; done; "
    "mkdir -p /var/lib/cloudtask /home/user;"
)


def real(tmp_path: Path, *, first: int = 1, pause: int = 1) -> Path:
    """The script without a root of its own, for namespaces; powering off is a line in a file nevertheless."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in (*REAL, "date", "sleep"):
        (tools / name).symlink_to(shutil.which(name) or name)
    for name in ("systemctl", "poweroff", "shutdown", "busybox", "kill"):
        (tools / name).write_text(f'#!/bin/sh\necho "{name} $*" >>{tmp_path}/asked\n')
        (tools / name).chmod(0o755)
    script = tmp_path / "cloudtask-timer"
    script.write_text(timer_script(first, 60, grace=1, pause=pause, patience=1, tools=f"{tools}/"))
    return script


@needs_namespaces
@pytest.mark.parametrize("shell", SHELLS)
def test_a_real_agents_lease_and_a_real_job_hold_it(shell: str, tmp_path: Path) -> None:
    script = real(tmp_path)
    agent = "from cloudtask.agent import home; it = home.find('abc.1'); it.renew_lease(1)"
    code = f"""{PRIVATE}
        HOME=/home/user {sys.executable} -c "{agent}" || exit 3
        env CLOUDTASK_ATTEMPT=1 sleep 5 &
        cat /proc/uptime >{tmp_path}/began
        {" ".join(SHELLS[shell])} {script} >/dev/null &
        while [ ! -e {tmp_path}/asked ]; do sleep 0.05; done
        cat /proc/uptime >{tmp_path}/off
    """
    subprocess.run([*NAMESPACES, "sh", "-c", code], check=True, timeout=40)
    began, off = (float((tmp_path / name).read_text().split()[0]) for name in ("began", "off"))
    assert 5 <= off - began < 15
    assert (tmp_path / "asked").read_text().startswith("systemctl poweroff")


@needs_namespaces
@pytest.mark.parametrize("shell", SHELLS)
def test_as_process_one_it_ends_with_what_runs_there(shell: str, tmp_path: Path) -> None:
    script = real(tmp_path)
    began = time.monotonic()
    program = " ".join(SHELLS[shell])
    done = subprocess.run([*NAMESPACES, "sh", "-c", f"sleep 300 & exec {program} {script}"], check=False, timeout=40, capture_output=True)
    assert done.returncode == 0 and b"nobody uses this machine" in done.stdout
    assert time.monotonic() - began < 15 and not (tmp_path / "asked").exists()


@needs_namespaces
@pytest.mark.parametrize("shell", SHELLS)
def test_as_process_one_it_ends_when_it_is_told_and_reaps(shell: str, tmp_path: Path) -> None:
    script = real(tmp_path, first=600, pause=300)
    orphans = "for i in 1 2 3; do (sh -c 'sleep 0.2 & exit' &); done"
    watch = (
        f"(sleep 0.5; grep -s ^State:.Z /proc/[0-9]*/status | wc -l >{tmp_path}/zombies; kill -TERM 1; "
        "for i in 1 2 3 4 5 6 7 8 9; do sleep 1; done; echo late) &"
    )
    command = f"{orphans}; {watch} exec {' '.join(SHELLS[shell])} {script}"
    done = subprocess.run([*NAMESPACES, "sh", "-c", command], check=False, timeout=40, capture_output=True)
    assert done.returncode == 0 and b"late" not in done.stdout
    assert (tmp_path / "zombies").read_text().strip() == "0"


@needs_namespaces
def test_the_machine_is_kept_by_what_the_launcher_runs(tmp_path: Path) -> None:
    for shell in SHELLS.values():
        code = f"{PRIVATE} rmdir /var/lib/cloudtask; {' '.join(shell)} -c '{keep_command(3600)}'; stat -c %Y {KEEP_PATH}; date +%s"
        done = subprocess.run([*NAMESPACES, "sh", "-c", code], check=True, timeout=40, capture_output=True)
        until, now = map(int, done.stdout.split())
        assert 3590 <= until - now <= 3600


@needs_namespaces
@pytest.mark.parametrize("systemd", [True, False])
def test_it_is_started_apart_from_whoever_starts_it(systemd: bool, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """systemd-run where it works (a double tells of it), else a process session of its own."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "systemd-run").write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/systemd\nexit {0 if systemd else 1}\n')
    (bin_folder / "systemd-run").chmod(0o755)
    (tmp_path / "ct timer").write_text(f"ps -o sid= -p $$ >{tmp_path}/sid.new; mv {tmp_path}/sid.new {tmp_path}/sid\n")
    command = start_command(str(tmp_path / "ct timer"))
    environment = {"PATH": f"{bin_folder}:{os.environ['PATH']}"}
    began = time.monotonic()
    subprocess.run(["/bin/sh", "-c", command], check=True, timeout=20, env=environment, capture_output=True)
    assert time.monotonic() - began < 10
    assert "--unit=cloudtask-timer" in (tmp_path / "systemd").read_text()
    if not systemd:
        deadline = time.monotonic() + PATIENT
        while not (tmp_path / "sid").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert int((tmp_path / "sid").read_text()) != os.getsid(0)


def test_equal_arguments_give_equal_text_and_no_surprises() -> None:
    assert timer_script(600, 86400) == timer_script(600, 86400) != timer_script(601, 86400)
    assert timer_script(1, 1).isascii() and len(timer_script(600, 86400)) < 5000
    assert TIMER_PATH.startswith("/var/lib/")
