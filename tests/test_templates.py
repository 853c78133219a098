"""Each of the task templates in ``templates/`` runs for real, on this machine, and does what its description says.

They run as a user would: as programs found by their ``#!`` line, with a home of the test's own.
"""

from __future__ import annotations

import gzip
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.test_cli_usage import TEMPLATES, Terminal

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = REPOSITORY / "templates"

Execute = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """The interpreter that has cloudtask comes first in PATH, as in an activated ``.venv``; sessions are the home's."""
    home = tmp_path / "home"
    home.mkdir()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(home), "PYTHONPATH": str(REPOSITORY), "TERM": "xterm", "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """The current directory of a template."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.fixture
def execute(environ: dict[str, str], work: Path) -> Execute:
    """``execute("hello-world", "--tag", jobs="a\\n")`` runs a template with these jobs to its end."""

    def run(name: str, *words: str, jobs: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [FOLDER / name, *words], input=jobs, capture_output=True, text=True, env=environ, cwd=work, timeout=60, check=False
        )

    return run


@pytest.fixture
def at_terminal(environ: dict[str, str], work: Path) -> Iterator[Callable[[str], tuple[int, str]]]:
    """Runs a template with nothing but a terminal, so that it makes its own jobs; gives its status and what the screen showed."""
    opened: list[Terminal] = []

    def run(name: str) -> tuple[int, str]:
        opened.append(Terminal([str(FOLDER / name)], environ, work))
        screen = opened[-1].read_until(None, 60)
        return opened[-1].process.wait(20), screen

    yield run
    for each in opened:
        each.close()


def figures(done: subprocess.CompletedProcess[str]) -> str:
    """The numbers of the last line."""
    found = re.findall(r":: session \d+ \(\d+ seconds\): (.*)", done.stderr)
    assert found, done.stderr
    return str(found[-1])


def test_each_template_has_its_test() -> None:
    tested = {name.removeprefix("test_").split("__")[0].replace("_", "-") for name in globals() if "__" in name}
    assert {path.name for path in TEMPLATES} <= tested


# --- hello-world -----------------------------------------------------------------------------------------------------


def test_hello_world__greets_each_in_the_order_of_the_input(execute: Execute) -> None:
    done = execute("hello-world", jobs="world\n'you two' $HOME\n")
    assert (done.returncode, done.stdout) == (0, "hello world\nhello you two $HOME\n"), done.stderr
    assert figures(done) == "0/2 !OK - 0 pending, 0 timeouts, 0 errors, 2 OK"


def test_hello_world__resumes(execute: Execute) -> None:
    assert execute("hello-world", "dear", jobs="a\n").stdout == "hello dear a\n"
    again = execute("hello-world", "--resume=last", jobs="")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "session 1 finished\n")


# --- compress-logs ---------------------------------------------------------------------------------------------------


def test_compress_logs__finds_its_own_jobs_at_a_terminal(work: Path, at_terminal: Callable[[str], tuple[int, str]]) -> None:
    (work / "sub dir").mkdir()
    for name in ("old.log", "sub dir/it's $HOME.log", "notes.txt"):
        (work / name).write_text(name * 1000)
    (work / "link.log").symlink_to("notes.txt")
    (work / "old.log").chmod(0o640)
    os.utime(work / "old.log", (1e9, 1e9))
    status, screen = at_terminal("compress-logs")
    assert status == 0, screen
    left = sorted(str(path.relative_to(work)) for path in work.rglob("*") if path.is_file())
    assert [name for name in left if name != "jobs"] == ["link.log", "notes.txt", "old.log.gz", "sub dir/it's $HOME.log.gz"]
    assert gzip.decompress((work / "old.log.gz").read_bytes()) == b"old.log" * 1000
    kept = (work / "old.log.gz").stat()
    assert (kept.st_mode & 0o777, kept.st_mtime) == (0o640, 1e9)


def test_compress_logs__replaces_no_older_archive(work: Path, execute: Execute) -> None:
    (work / "app.log").write_text("new")
    (work / "app.log.gz").write_bytes(gzip.compress(b"old"))
    done = execute("compress-logs", jobs="app.log\n")
    assert done.returncode == 1 and "app.log.gz already" in done.stderr
    assert (work / "app.log").read_text() == "new"
    assert gzip.decompress((work / "app.log.gz").read_bytes()) == b"old"


@pytest.mark.skipif(shutil.which("fuser") is None, reason="only fuser (psmisc) tells which files are in use")
def test_compress_logs__leaves_alone_what_is_in_use(work: Path, execute: Execute) -> None:
    with (work / "busy.log").open("w") as writer:
        done = execute("compress-logs", jobs="busy.log\n")
        assert (done.returncode, done.stdout) == (0, "in use: busy.log\n"), done.stderr
        assert Path(writer.name).exists()


# --- run-tests -------------------------------------------------------------------------------------------------------

_PASSES = "import unittest\nclass T(unittest.TestCase):\n    def test_passes(self): pass\n"
_FAILS = "import unittest\nclass T(unittest.TestCase):\n    def test_fails(self): self.fail('so it is')\n"


def test_run_tests__finds_each_file_and_fails_with_any(work: Path, at_terminal: Callable[[str], tuple[int, str]]) -> None:
    (work / "parts").mkdir()
    (work / "test_a.py").write_text(_PASSES)
    (work / "parts" / "test_b.py").write_text(_FAILS)
    status, screen = at_terminal("run-tests")
    assert status == 1 and "so it is" in screen and "1/2 !OK" in screen, screen


def test_run_tests__hands_words_to_the_runner(work: Path, execute: Execute) -> None:
    (work / "test_a.py").write_text(_PASSES)
    done = execute("run-tests", "--", "-v", jobs="test_a.py\n")
    assert done.returncode == 0 and "test_passes" in done.stderr, done.stderr


# --- check-urls ------------------------------------------------------------------------------------------------------


class _Site(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """``/good`` is there, all else is not."""
        self.send_response(200 if self.path.startswith("/good") else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def site() -> Iterator[str]:
    """The address of a web server on this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.skipif(shutil.which("curl") is None, reason="check-urls runs curl")
def test_check_urls__tells_the_dead_links_however_many(site: str, execute: Execute) -> None:
    dead = [f"{site}/dead?number={number}&x=$HOME" for number in range(6)]
    done = execute("check-urls", "--retry-delay=0", jobs="".join(f"{url}\n" for url in [*dead, f"{site}/good"]))
    assert done.returncode == 1 and figures(done) == "6/7 !OK - 0 pending, 0 timeouts, 6 errors, 1 OK", done.stderr
    told = dict(line.split("\t") for line in done.stdout.splitlines())
    assert {url: said.split()[0] for url, said in told.items()} == {f"{site}/good": "200", **dict.fromkeys(dead, "404")}
