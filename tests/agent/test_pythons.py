"""The agent on every python3 that is found here, from 3.6 on; and its source checked for what 3.6 cannot do."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.agent.client import alive
from tests.agent.conftest import Connect

AGENT = Path(__file__).parents[2] / "cloudtask" / "agent"


def pythons() -> dict[str, str]:
    """Version to path, one for each minor version from 3.6 on."""
    patterns = ["/usr/bin/python3*", "/usr/local/bin/python3*"]
    patterns += [os.path.join(root, ".pyenv/versions/*/bin/python3") for root in ("/root", os.path.expanduser("~"))]
    patterns += [os.path.join(folder, "python3.*") for folder in os.environ.get("PATH", "").split(":") if folder and "shims" not in folder]
    found: dict[str, str] = {}
    paths = [path for pattern in patterns for path in sorted(glob.glob(pattern))]
    ask = "import sys; print('%d.%d' % sys.version_info[:2])"
    for path in paths:
        if os.path.basename(path).strip("0123456789.") != "python":
            continue
        try:
            said = subprocess.run([path, "-c", ask], capture_output=True, text=True, timeout=20)
        except OSError:
            continue
        version = said.stdout.strip()
        if said.returncode == 0 and tuple(map(int, version.split("."))) >= (3, 6):
            found.setdefault(version, path)
    return dict(sorted(found.items(), key=lambda item: tuple(map(int, item[0].split(".")))))


@pytest.mark.parametrize(("version", "path"), list(pythons().items()), ids=lambda value: value if "/" not in value else "")
def test_the_agent_does_its_work(connect: Connect, tmp_path: Path, version: str, path: str) -> None:
    (tmp_path / "bin").mkdir()
    # Its directory may hold no `python3`, or one of another version.
    (tmp_path / "bin" / "python3").symlink_to(path)
    first = connect(python=str(tmp_path / "bin" / "python3"))
    welcome = first.start(slots=3, grace=0.3, env={"RAW": "\udcff"}, post="echo bye")
    assert welcome["python"].startswith(version + ".")
    first.run([
        (1, 1, 0, b"printf '%s' \"$RAW\"; echo err >&2; exit 3"), (2, 1, 0.3, b"trap '' TERM; echo $$; while :; do sleep 0.05; done"),
        (3, 1, 0, b"head -c 300000 /dev/zero"), (4, 1, 0, b": " + b"x" * 150_000), (5, 1, 0, b"a\0b"), (6, 1, 0, b"yes | head -n 1"),
        (7, 1, 0, b"grep SigIgn /proc/self/status; ps -o pgid= -p $$ | tr -d ' '; echo $$"),
    ])  # fmt: skip
    assert first.result(1)[3:5] == ["exit", 3]
    assert (first.stdout(1), first.stderr(1)) == (b"\xff", b"err\n")
    assert first.result(2)[3] == "timeout"
    assert not alive(int(first.stdout(2)))
    assert first.result(3)[8] == len(first.stdout(3)) == 300_000
    assert first.result(4)[3:5] == ["exit", 0]
    assert first.result(5)[3] == "unstarted"
    assert first.result(6)[3:5] == ["exit", 0]
    first.result(7)
    ignored, group, pid = first.stdout(7).splitlines()
    assert (int(ignored.split()[1], 16) & ~(3 << 31), group) == (0, pid)
    first.run({8: b"sleep 1000"})
    first.pump(lambda: (8, 1) in first.started(), "a start")
    os.kill(first.agent_pid(), 9)
    second = connect(python=str(tmp_path / "bin" / "python3"))
    second.start(connection=2, post="echo bye")
    assert second.inventory()[8, 1][0] == "lost"
    second.send({"t": "want", "jobs": [[3, 1, 100_000, 0]]})
    second.output[3, 1] = (bytearray(100_000), bytearray())
    assert second.result(3)[:13] == first.results[3, 1][:13]
    second.ack(*[(job, 1) for job in range(1, 8)])
    second.send({"t": "finish"})
    assert second.wait("done")["left"] == 0
    second.wait_eof()
    assert second.stdout(-2) == b"bye\n"
    assert not second.agent_home.exists()


def test_the_source_is_for_python_3_6() -> None:
    vermin = shutil.which("vermin", path=os.path.dirname(sys.executable)) or shutil.which("vermin")
    assert vermin, "vermin is one of the test requirements"
    exclusions = [word for name in ("os.posix_spawn", "os.POSIX_SPAWN_DUP2") for word in ("--exclude", name)]
    command = [vermin, "--no-config-file", "-q", "--no-tips", "--violations", "-t=3.6-", *exclusions, str(AGENT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_starting_imports_nothing_slow() -> None:
    """`typing` and its like cost each first connection milliseconds."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import agent.daemon, agent.attach; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-I", "-S", "-c", code, str(AGENT.parent)], capture_output=True, text=True, check=True)
    slow = {"typing", "subprocess", "dataclasses", "logging", "threading", "hashlib", "shutil", "inspect", "ast", "traceback"}
    assert not slow & set(said.stdout.split())
