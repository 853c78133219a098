"""What the kernel says about this machine and its processes.  Where there is no /proc the answers are empty, and nothing fails."""

import os
import signal

ROOT_VARIABLE = "CLOUDTASK_AGENT_PROC_ROOT"
"""Tests set it to a directory in which `identity` and `login_scope` look instead of ``/``."""


def _slurp(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        pieces: "list[bytes]" = []
        while True:
            piece = os.read(fd, 1 << 16)
            if not piece:
                return b"".join(pieces)
            pieces.append(piece)
    except OSError:
        return b""
    finally:
        os.close(fd)


def read_text(path: str) -> str:
    """A small file below the root that tests may set, stripped; empty where it cannot be read."""
    return _slurp(os.environ.get(ROOT_VARIABLE, "") + path).decode("utf-8", "replace").strip()


def identity() -> "list[str]":
    """Machine id, boot id, and when process 1 started (clock ticks after boot): which machine, boot and container this is."""
    machine = read_text("/etc/machine-id") or read_text("/var/lib/dbus/machine-id")
    started = read_text("/proc/1/stat").rpartition(")")[2].split()
    return [machine[:64], read_text("/proc/sys/kernel/random/boot_id")[:64], started[19] if len(started) > 19 else ""]


def start_of(pid: int) -> str:
    """When a process started, in clock ticks after boot; empty where there is none."""
    fields = _slurp("/proc/%d/stat" % pid).rpartition(b")")[2].split()
    return fields[19].decode() if len(fields) > 19 else ""


def out_of_memory_kills() -> int:
    """How many processes the kernel has killed for want of memory since boot; -1 where it does not say."""
    for path in ("/proc/vmstat", "/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        for line in _slurp(path).splitlines():
            if line.startswith(b"oom_kill "):
                return int(line.split()[1])
    return -1


def free_bytes(path: str) -> int:
    """Bytes that an ordinary user may still write there; -1 where that cannot be told."""
    try:
        disk = os.statvfs(path)
    except OSError:
        return -1
    return disk.f_bavail * disk.f_frsize


def processors() -> int:
    """The CPUs that this process may use; in a container with a share of them, that share rounded up."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        allowed = os.cpu_count() or 1
    quota = cpu_quota(read_text("/sys/fs/cgroup/cpu.max"))
    return min(allowed, quota) if quota else allowed


def cpu_quota(text: str) -> int:
    """The whole CPUs that a control group gives at least, from its ``cpu.max`` (``MAX PERIOD``, in microseconds); 0 for no limit."""
    words = text.split()
    if len(words) != 2 or not words[0].isdigit() or not words[1].isdigit() or int(words[1]) == 0:
        return 0
    return max(1, -(-int(words[0]) // int(words[1])))


class Process:
    """One row of the process table."""

    __slots__ = ("dead", "group", "parent", "pid", "session", "start")

    def __init__(self, pid: int, stat: bytes) -> None:
        fields = stat[stat.rindex(b")") + 2 :].split(None, 20)
        self.pid = pid
        self.dead = fields[0] in (b"Z", b"X", b"x")
        self.parent, self.group, self.session = int(fields[1]), int(fields[2]), int(fields[3])
        self.start = int(fields[19])

    def environment(self) -> "list[bytes]":
        """The NAME=VALUE strings that it was started with; none where we may not look."""
        return _slurp("/proc/%d/environ" % self.pid).split(b"\0")


def process_table() -> "dict[int, Process]":
    """All living processes that can be seen, without the caller.  Zombies are not living."""
    table = {}
    this = os.getpid()
    try:
        names = os.listdir("/proc")
    except OSError:
        return {}
    for name in names:
        if not name.isdigit() or int(name) == this:
            continue
        try:
            process = Process(int(name), _slurp("/proc/%s/stat" % name))
        except (OSError, ValueError, IndexError):
            continue
        if not process.dead:
            table[process.pid] = process
    return table


def with_descendants(found: "set[int]", table: "dict[int, Process]") -> "set[int]":
    """``found`` and all that it has started, as far as the process table still tells."""
    children: "dict[int, list[int]]" = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process.pid)
    todo, seen = list(found), set(found)
    while todo:
        for pid in children.get(todo.pop(), ()):
            if pid not in seen:
                seen.add(pid)
                todo.append(pid)
    return seen


def remaining(known: "dict[int, int]", table: "dict[int, Process]") -> "set[int]":
    """Those of the ``known`` processes (pid, start) that still live."""
    return {pid for pid, start in known.items() if pid in table and table[pid].start == start}


def send_signal(pid: int, number: int) -> None:
    """Signal one process; one that is gone, or not ours, is passed over."""
    try:
        os.kill(pid, number)
    except OSError:
        pass


def ask_to_end(pids: "list[int]") -> None:
    """TERM, and CONT so that the stopped ones hear it."""
    for pid in pids:
        send_signal(pid, signal.SIGTERM)
    for pid in pids:
        send_signal(pid, signal.SIGCONT)


def call_yourself(name: str) -> None:
    """What `ps` and `top` show for this process, up to 15 letters."""
    try:
        with open("/proc/self/comm", "w") as file:
            file.write(name)
    except OSError:
        pass


def group_lives(group: int) -> bool:
    """True while a process group has a member that is more than a zombie."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    table = process_table()
    return not table or any(process.group == group for process in table.values())
