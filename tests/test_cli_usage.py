"""The command line as a user meets it, as far as no worker is needed: a real process each time."""

from __future__ import annotations

import fcntl
import os
import pty
import resource
import select
import signal
import stat
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from cloudtask.version import VERSION

REPOSITORY = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-m", "cloudtask")
HEAVY = (
    "paramiko",
    "rich",
    "yaml",
    "multiprocessing",
    "logging",
    "difflib",
    "asyncio",
    "typing_extensions",
    "cryptography",
    "importlib.metadata",
)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment with a home of the test's own."""
    home = tmp_path / "home"
    home.mkdir()
    return {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(REPOSITORY), "TERM": "xterm", "PYTHONDONTWRITEBYTECODE": "1"}


Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def run(environ: dict[str, str], tmp_path: Path) -> Run:
    """Runs ``cloudtask`` with these words in the test's directory."""

    def start(*words: str, jobs: bytes = b"a b\nc\n", command: Sequence[str] = COMMAND, **extra: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*command, *words], input=jobs, capture_output=True, env=environ | extra, cwd=tmp_path, timeout=30, check=False
        )

    return start


def complaint(done: subprocess.CompletedProcess[bytes], status: int = 2) -> str:
    """The one line that an expected error is."""
    said = done.stderr.decode()
    assert (done.returncode, done.stdout) == (status, b""), said
    assert said.count("\n") == 1 and said.startswith("cloudtask: "), said
    return said.removeprefix("cloudtask: ").strip()


def no_session(tmp_path: Path) -> bool:
    return not (tmp_path / "home" / ".cloudtask").exists()


# --- help ------------------------------------------------------------------------------------------------------------


def test_help_and_version(run: Run) -> None:
    done = run("--help")
    assert done.returncode == 0 and b"--lost-timeout=DURATION" in done.stdout and not done.stderr
    assert run("-h").stdout == done.stdout
    assert run("--version").stdout == f"cloudtask {VERSION}\n".encode()


def test_the_executable_in_bin_is_the_same(run: Run) -> None:
    executable = REPOSITORY / "bin" / "cloudtask"
    assert executable.stat().st_mode & stat.S_IXUSR
    assert run("--help", command=[sys.executable, str(executable)], PYTHONPATH="").stdout == run("--help").stdout


def test_help_loads_nothing_heavy(run: Run) -> None:
    script = "import sys; from cloudtask.cli.main import main; main(['--help']); print(*sys.modules, sep='\\n', file=sys.stderr)"
    loaded = run(command=[sys.executable, "-c", script]).stderr.decode().split()
    assert "cloudtask.options" in loaded
    assert not [name for name in loaded if name in HEAVY]


def test_a_template_costs_nothing_heavy(run: Run) -> None:
    script = "import sys; from cloudtask import Task; print(*sys.modules, sep='\\n')"
    assert not set(run(command=[sys.executable, "-c", script]).stdout.decode().split()) & set(HEAVY)


def test_help_is_quick(environ: dict[str, str]) -> None:
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*COMMAND, "--help"], env=environ, stdout=subprocess.DEVNULL, timeout=30, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    del environ["PYTHONDONTWRITEBYTECODE"]
    # Other work on the machine makes some runs dearer, never cheaper.
    assert min(seconds() for _ in range(5)) < 0.15


# --- wrong use -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--splt=2"], "unknown option --splt; did you mean --split?; --help lists them all"),
        (["--split=0", "echo"], "--split=0: not a whole number from 1"),
        (["--resume=1", "--retry=1"], "--resume and --retry exclude each other"),
        (["--resume=1", "--dry-run"], "--dry-run and --resume exclude each other"),
        (["--retry=1", "echo"], "--retry is incompatible with a command (echo)"),
        (["--resume=7"], "no session 7"),
        (["--resume=last"], "no last session"),
        (["--workers=a", "--split=2", "echo"], "--split=2 is more workers than are listed (1)"),
        (["--workers=", "echo"], "--workers=: names no worker"),
        (["--provider=nosuch", "echo"], "there is no provider 'nosuch': use one of"),
        (["--provider=fake", "--fake-kind=local", "--split=2", "--min-split=3", "echo"], "--min-split=3 is more than --split=2"),
        (["--overlay=.", "echo"], "--overlay cannot be laid over this machine"),
        (["--template=nothing"], "it cannot be read: No such file or directory"),
        (["echo '{}'"], "quotes"),
        ([""], "the command: is empty"),
    ],
)
def test_wrong_use_is_one_line_and_leaves_nothing(words: list[str], said: str, run: Run, tmp_path: Path) -> None:
    assert said in complaint(run(*words))
    assert no_session(tmp_path)


@pytest.mark.parametrize(("jobs", "said"), [(b"a\n'b\n", "line 2 of the jobs"), (b"a\nb\0c\n", "line 2 of the jobs has a NUL byte")])
def test_bad_input_is_one_line_and_leaves_nothing(jobs: bytes, said: str, run: Run, tmp_path: Path) -> None:
    assert said in complaint(run("echo", jobs=jobs))
    assert no_session(tmp_path)


def test_errors_name_variable_and_file(run: Run, tmp_path: Path) -> None:
    assert complaint(run("echo", CLOUDTASK_TIMEOUT="x")).startswith("CLOUDTASK_TIMEOUT=x: 'x' is not a duration")
    config = tmp_path / "config" / "cloudtask" / "config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("splot: 3\n")
    assert complaint(run("echo", XDG_CONFIG_HOME=str(tmp_path / "config"))) == f"{config}: key 'splot' is no setting; did you mean split?"


def test_what_is_typed_does_not_reach_the_terminal_live(run: Run) -> None:
    assert r"\x1b[31m" in complaint(run("--workers=\x1b[31mx", "echo"))


def test_unknown_variable_is_a_warning(run: Run) -> None:
    done = run("--dry-run", "echo", CLOUDTASK_SPLITS="3", CLOUDTASK_JOB="1")
    assert done.returncode == 0 and done.stdout == b"echo a b\necho c\n"
    assert done.stderr == b"cloudtask: warning: CLOUDTASK_SPLITS in the environment is no setting; did you mean CLOUDTASK_SPLIT?\n"


@pytest.mark.parametrize("jobs", [b"", b"\n  \n# nothing\n"])
def test_no_jobs_is_fine(jobs: bytes, run: Run, tmp_path: Path) -> None:
    done = run("echo", jobs=jobs)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"no jobs, nothing to do\n")
    assert no_session(tmp_path)


def test_closed_input(run: Run) -> None:
    closed = run(command=["sh", "-c", '"$0" "$@" <&-', *COMMAND, "echo"])
    assert (closed.returncode, closed.stderr) == (0, b"no jobs, nothing to do\n")


def test_standard_output_that_cannot_be_written(run: Run) -> None:
    for way in (">/dev/full", ">&-"):
        assert "standard output cannot be written" in complaint(run("--help", command=["sh", "-c", f'"$0" "$@" {way}', *COMMAND]))


def test_a_directory_that_is_gone(run: Run) -> None:
    script = 'mkdir gone; cd gone; rmdir ../gone; exec "$0" "$@"'
    assert "the current directory cannot be used" in complaint(
        run("echo", command=["sh", "-c", script, sys.executable, "-Pm", "cloudtask"])
    )


def test_closed_standard_error(run: Run) -> None:
    assert run("--splt", command=["sh", "-c", '"$0" "$@" 2>&-', *COMMAND]).returncode == 2


# --- dry run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "jobs", "expected"),
    [
        (["echo", "x y"], b"a 'b c'\n", b"echo 'x y' a 'b c'\n"),
        (["echo {2} {1}"], b"a b\n", b"echo b a\n"),
        (["--literal", "echo", "{}"], b"a\n", b"echo '{}' a\n"),
        (["--input=line", "echo"], b"a  $b\n", b"echo 'a  $b'\n"),
        (["-0", "echo"], b"a\nb\0c\0", b"echo 'a\nb'\necho c\n"),
        ([], b"ls | wc\n", b"ls | wc\n"),
        (["echo"], b"\xff\n", b"echo '\xff'\n"),
    ],
)
def test_dry_run_shows_the_exact_code(words: list[str], jobs: bytes, expected: bytes, run: Run, tmp_path: Path) -> None:
    done = run("--dry-run", *words, jobs=jobs)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, b"")
    assert no_session(tmp_path)


def test_a_closed_standard_output_is_quiet(run: Run) -> None:
    script = '"$0" "$@" | head -n 1; echo "${PIPESTATUS[0]}"'
    done = run(command=["bash", "-c", script, *COMMAND, "--dry-run", "echo"], jobs=b"".join(b"%d\n" % n for n in range(100_000)))
    assert (done.stdout, done.stderr) == (b"echo 0\n141\n", b"")


# --- at a terminal ---------------------------------------------------------------------------------------------------


class Terminal:
    """A process whose three streams and controlling terminal are a new terminal, but for stdin where ``jobs`` are given."""

    def __init__(self, words: Sequence[str], environ: dict[str, str], folder: Path, jobs: bytes | None = None) -> None:
        self.master, slave = pty.openpty()
        # setsid of util-linux makes the terminal the controlling one, so that /dev/tty is this one.
        self.process = subprocess.Popen(
            [
                "setsid",
                "--ctty",
                "--wait",
                "sh",
                "-c",
                'exec "$@" 0<"$0"' if jobs is not None else 'exec "$@"',
                self._file(folder, jobs),
                *words,
            ],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environ,
            cwd=folder,
        )
        os.close(slave)
        self.screen = b""

    @staticmethod
    def _file(folder: Path, jobs: bytes | None) -> str:
        (folder / "jobs").write_bytes(jobs or b"")
        return str(folder / "jobs")

    def read_until(self, text: bytes | None, seconds: float = 20) -> str:
        """Read the screen until it shows ``text`` (None: to the end)."""
        deadline = time.monotonic() + seconds
        while text is None or text not in self.screen:
            left = deadline - time.monotonic()
            assert left > 0, f"never showed {text!r}: {self.screen!r}"
            if select.select([self.master], [], [], left)[0]:
                try:
                    piece = os.read(self.master, 65536)
                except OSError:  # the last process closed the terminal
                    piece = b""
                self.screen += piece
                if not piece:
                    assert text is None, f"ended without {text!r}: {self.screen!r}"
                    break
        return self.screen.replace(b"\r\n", b"\n").decode()

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def finish(self) -> tuple[int, str]:
        """Its exit status and all that the screen showed."""
        return self.process.wait(20), self.read_until(None)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)


OpenTerminal = Callable[..., Terminal]


@pytest.fixture
def terminal(environ: dict[str, str], tmp_path: Path) -> Iterator[OpenTerminal]:
    """Runs ``cloudtask`` at a terminal, in the test's directory."""
    opened: list[Terminal] = []

    def start(*words: str, jobs: bytes | None = None, **extra: str) -> Terminal:
        opened.append(Terminal([*COMMAND, *words], environ | extra, tmp_path, jobs))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def test_usage_where_input_is_a_terminal(terminal: OpenTerminal, tmp_path: Path) -> None:
    status, screen = terminal("echo").finish()
    assert status == 2 and screen.startswith("usage: cat jobs | cloudtask [options] [command ...]\n")
    assert "--help" in screen and no_session(tmp_path)


def test_dry_run_is_harmless_on_a_terminal(terminal: OpenTerminal) -> None:
    assert terminal("--dry-run", "echo", jobs=b"\x1b[31m\xc3\xa9\n").finish() == (0, "echo '\\x1b[31mé'\n")


QUESTION = """\
About to execute 3 jobs (hello .. hello world) on 2 workers:

  Parameter       Value
  ---------       -----

  split           2
  command         echo 'executed by:'
  hub-apikey      set
  workers         a 2/b
  timeout         3600
  retries         1
  env             TOKEN

Is this really what you want? [yes/no] """


@pytest.mark.parametrize("answer", [b"no\n", b"y\n", b"\n\nnever\n", b"\x04"])
def test_the_question_declined(answer: bytes, terminal: OpenTerminal, tmp_path: Path) -> None:
    words = ["--confirm", "--workers=a 2/b", "--retries=1", "--env=TOKEN=SECRET", "echo", "executed by:"]
    asked = terminal(*words, jobs=b"hello\nworld\nhello world\n", HUB_APIKEY="SECRET")
    assert asked.read_until(b"[yes/no] ") == QUESTION
    asked.type(answer)
    status, screen = asked.finish()
    assert status == 2 and screen.endswith("You didn't answer 'yes'. Aborting!\n") and "SECRET" not in screen
    assert screen.count("[yes/no]") == (3 if answer.startswith(b"\n\n") else 1)
    assert no_session(tmp_path)


def test_interrupted_while_reading_is_quiet(environ: dict[str, str], tmp_path: Path) -> None:
    with subprocess.Popen([*COMMAND, "echo"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environ, cwd=tmp_path) as process:
        assert process.stdin and process.stderr
        process.stdin.write(b"a\n")
        process.stdin.flush()
        deadline = time.monotonic() + 20
        while unread(process.stdin.fileno()):
            assert time.monotonic() < deadline, "it never began to read"
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130 and process.stderr.read() == b"" and no_session(tmp_path)


def unread(pipe: int) -> int:
    """How many bytes stand in a pipe."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4), sys.byteorder)


# --- templates -------------------------------------------------------------------------------------------------------

TEMPLATES = sorted(path for path in (REPOSITORY / "templates").iterdir() if path.is_file() and path.suffix != ".py")


def template_run(run: Run, path: Path, *words: str, way: str) -> subprocess.CompletedProcess[bytes]:
    if way == "shebang":
        return run(*words, command=[str(path)], PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return run(f"--template={path}", *words)


def test_there_are_templates() -> None:
    assert len(TEMPLATES) >= 3
    assert all(path.stat().st_mode & stat.S_IXUSR for path in TEMPLATES)


@pytest.mark.parametrize("way", ["shebang", "option"])
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_template_is_a_program(path: Path, way: str, run: Run) -> None:
    helped = template_run(run, path, "--help", way=way)
    assert helped.returncode == 0 and not helped.stdout.startswith(b"Runs a command once"), helped.stderr
    assert b"usage: cat jobs | " + path.name.encode() in helped.stdout
    shown = template_run(run, path, "--dry-run", way=way)
    assert shown.returncode == 0 and b"a b" in shown.stdout and not shown.stderr


def test_a_template_lists_its_own_jobs_at_a_terminal(terminal: OpenTerminal, tmp_path: Path) -> None:
    (tmp_path / "old.log").touch()
    status, screen = terminal(f"--template={REPOSITORY / 'templates' / 'compress-logs'}", "--dry-run").finish()
    assert status == 0 and "f=./old.log" in screen


def test_a_template_inherits_and_counts_paths_from_its_folder(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "templates"
    (folder / "files").mkdir(parents=True)
    (folder / "mine.py").write_text("from cloudtask import Task\nclass Base(Task):\n    WORKERS = 'a'\n    OVERLAY = 'files'\n")
    template = folder / "task"
    template.write_text("from mine import Base\nclass Mine(Base):\n    COMMAND = 'ls'\nMine.main()\n")
    assert run(f"--template={template}", "--dry-run", "--", "-l").stdout == b"ls -l a b\nls -l c\n"
    (folder / "files").rmdir()
    assert complaint(run(f"--template={template}", "--dry-run")) == f"template attribute OVERLAY = 'files': no directory {folder}/files"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("class T(Task):\n    SPLITS = 1\nT.main()\n", "template attribute SPLITS: no such setting; did you mean SPLIT?"),
        ("raise ValueError('bad day')\n", "line 2: ValueError: bad day"),
        ("raise BrokenPipeError('a pipe of its own')\n", "line 2: BrokenPipeError: a pipe of its own"),
        ("class T(Task\n", "line 2: "),
        ("x = 1\n", "defines no class"),
    ],
)
def test_a_wrong_template_is_one_line(body: str, said: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "task").write_text(f"from cloudtask import Task\n{body}")
    assert said in complaint(run("--template=task"))


def test_a_template_does_not_run_another(run: Run) -> None:
    assert "this is a template already" in complaint(run("--template=x", command=[sys.executable, str(TEMPLATES[0])]))
