"""Process 1 of a machine on the stage: run by `tests.stage.stage` in namespaces of its own, by path, with the standard library only.

It says ``{"event": "up", "pid": ...}`` on stdout, reads one line of JSON from stdin (the plan: see `Plan` in `tests.stage.stage`),
makes the machine of it and stays until stdin ends, SIGUSR1 (the machine's ``poweroff``) or the sshd's end.  The kernel ends with it
all that runs here, and takes root directory, network and address away.
"""

from __future__ import annotations

import json
import os
import select
import selectors
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TOOLS = Path("/run/stage/bin")
POWER_OFF = "#!/bin/sh\nkill -USR1 1\n"
# cloud-init starts the timer through it where it is; the host's own would ask for a systemd that is not there.
SYSTEMD_RUN = '#!/bin/sh\nwhile case $1 in --*) true;; *) false;; esac; do shift; done\nsetsid "$@" </dev/null >/dev/null 2>&1 &\n'
PRIVATE = ("/run", "/tmp", "/var/tmp", "/root", "/dev/shm")


def say(event: str, **more: object) -> None:
    """One line for the stage."""
    os.write(1, (json.dumps({"event": event, **more}) + "\n").encode())


def run(*words: str) -> None:
    """A command that must succeed."""
    done = subprocess.run(words, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr.strip()}")


def make_root(shared: list[str]) -> None:
    """The host's file system, where whatever is written is this machine's own; ``shared`` directories are the host's."""
    base = Path("/mnt")
    run("mount", "-t", "tmpfs", "-o", "size=256m,mode=755", "stage", str(base))
    root, upper, work = base / "root", base / "upper", base / "work"
    for folder in (root, upper, work):
        folder.mkdir()
    run("mount", "-t", "overlay", "stage", "-o", f"lowerdir=/,upperdir={upper},workdir={work}", str(root))
    run("mount", "--rbind", "/dev", f"{root}/dev")
    run("mount", "--rbind", "/sys", f"{root}/sys")
    run("mount", "-t", "proc", "proc", f"{root}/proc")
    for name in PRIVATE:
        mode = "1777" if name.endswith(("tmp", "shm")) else "700" if name == "/root" else "755"
        run("mount", "-t", "tmpfs", "-o", f"size=256m,mode={mode}", "stage", f"{root}{name}")
    for name in shared:
        Path(f"{root}{name}").mkdir(parents=True, exist_ok=True)
        run("mount", "--bind", name, f"{root}{name}")
    (root / "run/stage/old").mkdir(parents=True)
    os.chdir(root)
    run("pivot_root", ".", "run/stage/old")
    os.chdir("/")
    run("umount", "-l", "/run/stage/old")
    os.rmdir("/run/stage/old")


def make_tools() -> None:
    """``poweroff`` and its like tell process 1; on a path before the host's, and in place of the host's too."""
    TOOLS.mkdir(parents=True)
    for name in ("poweroff", "halt", "shutdown", "systemd-run"):
        write(str(TOOLS / name), SYSTEMD_RUN if name == "systemd-run" else POWER_OFF, 0o755)
    for folder in ("/sbin", "/usr/sbin"):
        for name in ("poweroff", "halt", "shutdown", "reboot"):
            if os.path.lexists(f"{folder}/{name}"):
                os.unlink(f"{folder}/{name}")
                shutil.copy(TOOLS / "poweroff", f"{folder}/{name}")


def write(path: str, content: str, mode: int = 0o644) -> None:
    """A file with its directory."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
        file.write(content)
    os.chmod(path, mode)


def join_network(address: str, gateway: str) -> None:
    """``eth0`` is the end of a cable that the stage has laid here."""
    for words in (
        "link set lo up", f"addr add {address}/32 dev eth0", "link set eth0 up", f"route add {gateway} dev eth0",
        f"route add default via {gateway}",
    ):  # fmt: skip
        run("ip", *words.split())


def make_keys(plan: dict[str, Any]) -> list[str]:
    """The host keys of the user data, or new ones; the lines that cloud-init shows on the console."""
    folder = Path("/etc/ssh")
    for old in folder.glob("ssh_host_*"):
        old.unlink()
    for kind, text in plan["host_keys"].items():
        write(str(folder / f"ssh_host_{kind}_key"), text, 0o600)
    if not plan["host_keys"]:
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "ssh_host_ed25519_key"))
    keys = sorted(folder.glob("ssh_host_*_key"))
    for key in keys:
        public = subprocess.run(["ssh-keygen", "-y", "-f", str(key)], check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        write(f"{key}.pub", " ".join(public.stdout.split()[:2]) + "\n")
    return [Path(f"{key}.pub").read_text().strip() for key in keys]


def start_sshd(address: str) -> int:
    """sshd on the machine's address, for root with the user data's keys; returns its pid once it listens."""
    os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
    keys = "".join(f"HostKey {key}\n" for key in sorted(Path("/etc/ssh").glob("ssh_host_*_key")))
    write(
        "/run/stage/sshd_config",
        f"ListenAddress {address}\n{keys}PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        f"UsePAM no\nUseDNS no\nMaxStartups 100\nSubsystem sftp internal-sftp\nSetEnv PATH={TOOLS}:{PATH}\n",
    )
    log = Path("/var/log/stage-sshd.log")
    words = ["/usr/sbin/sshd", "-D", "-e", "-f", "/run/stage/sshd_config"]
    with log.open("ab") as said:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env={"PATH": PATH}, start_new_session=True)
    while "Server listening" not in log.read_text():
        if process.poll() is not None:
            raise SystemExit(f"sshd does not start: {log.read_text()}")
        time.sleep(0.01)
    return process.pid


def boot(plan: dict[str, Any]) -> int:
    """All that a first boot does; returns sshd's pid."""
    make_root(plan["shared"])
    make_tools()
    run("hostname", plan["hostname"])
    os.unlink("/etc/machine-id") if os.path.lexists("/etc/machine-id") else None
    write("/etc/machine-id", plan["machine_id"] + "\n", 0o444)
    join_network(plan["address"], plan["gateway"])
    say("addressed")
    if select.select([0], [], [], plan["boot_seconds"])[0]:
        raise SystemExit("the stage has ended")
    public = make_keys(plan)
    write("/root/.ssh/authorized_keys", "".join(f"{key}\n" for key in plan["authorized_keys"]), 0o600)
    os.chmod("/root/.ssh", 0o700)
    for file in plan["files"]:
        write(file["path"], file["content"], int(file["mode"], 8))
    sshd = start_sshd(plan["address"])
    for words in plan["commands"]:
        environment = {"PATH": f"{TOOLS}:{PATH}", "HOME": "/root"}
        subprocess.run(words, shell=isinstance(words, str), env=environment, stdin=subprocess.DEVNULL, stdout=2, check=False)
    banner = [f"{key} root@{plan['hostname']}" for key in public]
    say("ready", console="\n".join(["-----BEGIN SSH HOST KEY KEYS-----", *banner, "-----END SSH HOST KEY KEYS-----", ""]))
    return sshd


def stay(sshd: int) -> str:
    """Reaps what ends here until the machine does; says why."""
    ear, mouth = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(mouth)
    for number in (signal.SIGCHLD, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        selector.register(ear, selectors.EVENT_READ)
        while True:
            if sshd in reap():
                return "sshd ended"
            ready = {key.fd for key, _ in selector.select()}
            if 0 in ready and not os.read(0, 4096):
                return "stopped"
            if ear in ready and signal.SIGUSR1 in os.read(ear, 4096):
                return "powered off"


def reap() -> set[int]:
    """Who has ended."""
    ended = set()
    try:
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            ended.add(pid)
    except ChildProcessError:
        pass
    return ended


def main() -> None:
    """The life of a machine."""
    # Of the host's /proc, which is still here: the pid by which the stage knows us.
    say("up", pid=int(os.readlink("/proc/self")))
    powered_off = []
    signal.signal(signal.SIGUSR1, lambda *_: powered_off.append(True))
    sshd = boot(json.loads(sys.stdin.readline()))
    say("end", why="powered off" if powered_off else stay(sshd))
    os._exit(0)


if __name__ == "__main__":
    main()
