"""Where logind ends what a logout leaves behind: the agent is started in a scope of the user's own, or says that it cannot be."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest

from tests.agent.client import Client, processes_of
from tests.agent.conftest import Connect

NOT_SET = {"KillUserProcesses": "b true", "KillExcludeUsers": 'as 1 "someone"', "KillOnlyUsers": "as 0"}
SYSTEMD_RUN = """#!/bin/sh
echo "$@" > "$HOME/scope"
test "$1 $2 $3 $4" = "--user --scope --quiet --" || exit 1
shift 4
exec "$@"
"""


def logind(folder: Path, answers: dict[str, str], systemd_run: str) -> dict[str, str]:
    """An environment in which this login belongs to a logind session with these settings."""
    (folder / "root/proc/self").mkdir(parents=True)
    (folder / "root/proc/self/cgroup").write_text("0::/user.slice/user-1000.slice/session-7.scope\n")
    (folder / "bin").mkdir()
    cases = "".join(f"*\\ {name}) echo '{value}';;\n" for name, value in answers.items())
    for name, text in (("busctl", f'#!/bin/sh\ncase "$*" in\n{cases}esac\n'), ("systemd-run", systemd_run)):
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    return {"CLOUDTASK_AGENT_PROC_ROOT": str(folder / "root")}


def start(connect: Connect, tmp_path: Path, answers: dict[str, str], systemd_run: str = SYSTEMD_RUN) -> tuple[Client, bool]:
    env = logind(tmp_path, answers, systemd_run)
    client = connect(env={**env, "PATH": f"{tmp_path}/bin:/root/.pyenv/versions/3.11.7/bin:/usr/bin:/bin"})
    survives = client.start()["survives"]
    client.run({1: b"echo fine"})
    client.result(1)
    assert client.stdout(1) == b"fine\n"
    return client, survives


def test_in_a_scope(connect: Connect, tmp_path: Path, home: Path) -> None:
    client, survives = start(connect, tmp_path, NOT_SET)
    assert survives is True
    assert (home / "scope").exists()
    assert len(processes_of(home)) == 3, "attach, agent, guardian"
    pid = client.agent_pid()
    client.close()
    client.process.wait(10)
    again = connect(env={"CLOUDTASK_AGENT_PROC_ROOT": str(tmp_path / "root")})
    assert again.start(connection=2)["pid"] == pid


HANGS = pytest.param("#!/bin/sh\nexec sleep 1000\n", id="hangs", marks=pytest.mark.slow)


@pytest.mark.parametrize("systemd_run", [pytest.param("#!/bin/sh\nexit 1\n", id="refused"), HANGS])
def test_where_no_scope_can_be_had_the_log_says_so(connect: Connect, tmp_path: Path, systemd_run: str) -> None:
    client, survives = start(connect, tmp_path, NOT_SET, systemd_run)
    assert survives is False
    assert "will not survive" in client.wait("note")["text"]


@pytest.mark.parametrize(
    "answers",
    [
        {"KillUserProcesses": "b false"},
        {"KillExcludeUsers": f'as 2 "someone" "{getpass.getuser()}"'},
        {"KillOnlyUsers": 'as 1 "someone"'},
        {"KillUserProcesses": ""},
    ],
    ids=["off", "excluded", "others only", "no answer"],
)
def test_no_scope_where_none_is_needed(connect: Connect, tmp_path: Path, home: Path, answers: dict[str, str]) -> None:
    _, survives = start(connect, tmp_path, {**NOT_SET, **answers})
    assert survives is True
    assert not (home / "scope").exists()
