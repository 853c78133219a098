"""The first examples of README and manual page, typed as they are printed: only the names of the hosts are those of sshd's here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import MakeSshd
from tests.running.program import REPOSITORY, Controller
from tests.sshd import ClientKeys, Sshd
from tests.test_docs import MAN, README, literal_blocks

PROVIDERS = MAN.with_name("cloudtask-providers.7.rst")

Type = Callable[[str], "subprocess.CompletedProcess[str]"]

_GREET = """#!/bin/sh
mkdir "failed-$1" 2>/dev/null && [ "$1" = 3 ] && exit 1
echo "hello $1"
"""


@pytest.fixture
def type_in(controller: Controller, client_keys: ClientKeys) -> Type:
    """Types a line into a shell that finds ``cloudtask`` and ``.venv/bin/cloudtask``."""
    for folder in (controller.directory / "bin", controller.directory / ".venv" / "bin"):
        folder.mkdir(parents=True)
        (folder / "cloudtask").write_text(f'#!/bin/sh\nexec {sys.executable} -m cloudtask "$@"\n')
        (folder / "cloudtask").chmod(0o755)
    (controller.directory / "templates").symlink_to(REPOSITORY / "templates")
    environment = controller.environment(
        PATH=f"{controller.directory / 'bin'}:{os.environ['PATH']}", CLOUDTASK_SSH_CONFIG=str(client_keys.config)
    )

    def run(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", line], env=environment, cwd=controller.directory, capture_output=True, text=True, timeout=60, check=False
        )

    return run


def example(document: Path, start: str) -> str:
    """The first line of an example that begins like this, without its prompt."""
    lines = [line.strip().removeprefix("$ ") for block in literal_blocks(document) for line in block.splitlines()]
    found = next((line for line in lines if line.startswith(start)), None)
    assert found, f"{document.name} has no example {start!r}"
    return found


def on(line: str, **hosts: Sshd) -> str:
    """The line with these servers in the place of its hosts, users and ports."""
    for name, server in hosts.items():
        line, count = re.subn(rf"(?<![\w.])(\w+@)?{name}(\.example\.com)?(:\d+)?(?![\w.])", server.address, line)
        assert count == 1, f"{name} in {line}"
    return line


def figures(done: subprocess.CompletedProcess[str]) -> str:
    found: list[str] = re.findall(r"seconds\): (.*)", done.stderr)
    assert found, done.stderr
    return found[-1]


def test_on_this_machine(type_in: Type) -> None:
    done = type_in(example(MAN, "seq 3 | cloudtask"))
    assert (done.returncode, sorted(done.stdout.splitlines())) == (0, ["number 1", "number 2", "number 3"]), done.stderr


def test_on_two_hosts(type_in: Type, sshd: MakeSshd) -> None:
    first, second = sshd(), sshd()
    done = type_in(on(example(MAN, "seq 10 | cloudtask"), build1=first, build2=second))
    assert sorted(done.stdout.splitlines()) == sorted(f"number {number}" for number in range(1, 11)), done.stderr
    assert figures(done) == "0/10 !OK - 0 pending, 0 timeouts, 0 errors, 10 OK"


def test_on_hosts_of_your_own(type_in: Type, sshd: MakeSshd) -> None:
    first, second = sshd(), sshd()
    done = type_in(on(example(README, "seq 10 | .venv/bin/cloudtask"), host1=first, host2=second))
    assert sorted(done.stdout.splitlines()) == sorted(f"hello {number}" for number in range(1, 11)), done.stderr


def test_what_the_readme_shows(type_in: Type, sshd: MakeSshd) -> None:
    alpha, beta = sshd(), sshd()
    greet = alpha.account.home / "greet"
    greet.write_text(_GREET)
    greet.chmod(0o755)
    block = next(block for block in literal_blocks(README) if "./greet" in block)
    line, *shown = block.splitlines()
    done = type_in(on(line.removeprefix("$ "), alpha=alpha, beta=beta))
    assert sorted(done.stdout.splitlines()) == sorted(text for text in shown if text.startswith("hello")), done.stderr
    assert figures(done) == shown[-1].partition("seconds): ")[2]
    kinds = (r"using existing worker", r"exit 1 # \./greet 3", r"will retry \(1 of 1\)", r"exit 0 # \./greet \d")
    for kind in kinds:
        assert len(re.findall(rf"\): {kind}\n", done.stderr)) == len(re.findall(rf"\): {kind}\n", block)), f"{kind}: {done.stderr}"


def test_a_template_from_the_checkout(type_in: Type) -> None:
    done = type_in(example(README, "seq 3 | .venv/bin/cloudtask --template"))
    assert (done.returncode, done.stdout) == (0, "hello 1\nhello 2\nhello 3\n"), done.stderr


def test_compressing_files(type_in: Type, controller: Controller) -> None:
    logs = controller.directory / "logs"
    logs.mkdir()
    for name in ("a.log", "b c.log", "d\ne.log"):
        (logs / name).write_text(name)
    done = type_in(example(MAN, "find logs"))
    assert done.returncode == 0 and {path.name for path in logs.iterdir()} == {"a.log.gz", "b c.log.gz", "d\ne.log.gz"}, done.stderr


def test_the_rehearsal_that_the_readme_shows(type_in: Type) -> None:
    block = next(block for block in literal_blocks(README) if "--fake-kind=local" in block)
    line, *shown = block.splitlines()
    done = type_in(line.removeprefix("$ "))
    assert sorted(done.stdout.splitlines()) == sorted(text for text in shown if text.startswith("hello")), done.stderr
    assert figures(done) == next(text.partition("seconds): ")[2] for text in shown if "seconds): " in text)
    assert done.stderr.splitlines()[-1] == shown[-1]
    # Not "launched worker": the first machine that is ready may have done it all.
    for kind in (r"# booting instance f-\w+ \.\.\.", r"destroyed worker f-\w+"):
        assert len(re.findall(rf"(?m)^{kind}$", done.stderr)) == len(re.findall(rf"(?m)^{kind}$", block)), f"{kind}: {done.stderr}"


@pytest.mark.slow
def test_the_rehearsal_with_faults(type_in: Type) -> None:
    done = type_in(f"{example(PROVIDERS, 'export CLOUDTASK_FAKE_FAULTS')}; {example(PROVIDERS, 'seq 9 | cloudtask --provider=fake')}")
    assert sorted(done.stdout.split()) == [str(number) for number in range(1, 10)], done.stderr
    created, gone = re.findall(r"# machines: created (\d+), confirmed gone (\d+), ", done.stderr)[-1]
    assert created == gone and int(created) >= 3, done.stderr
    assert "(lost-answer)" in done.stderr
