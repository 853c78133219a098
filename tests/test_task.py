"""Templates as classes and as files, and how a run's plan is put together.  Nothing is started here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from cloudtask import Task
from cloudtask.cli.template_file import load_template, place_in_template
from cloudtask.errors import InputError, SessionError, UnknownSessionError, UsageError
from cloudtask.model import Address
from cloudtask.options import parse
from cloudtask.plan import Plan
from cloudtask.session import conf, layout
from cloudtask.settings import BUILT_IN
from cloudtask.task import Request, Template, attributes, folder_of, own_jobs, plan_again, plan_new, read_layers, read_settings


class Base(Task):
    RETRIES = 2
    HUB_APIKEY = "K"
    PRE: str | None = "base"


class Mixin:
    STRIKES = 9


class Derived(Mixin, Base):
    DESCRIPTION = "What it does"
    COMMAND = "echo hello | cat -"
    PRE = None
    WORKERS = "a b"
    _OWN = "not a setting"
    other = "neither is this"


def request(template: type[Template], *argv: str, folder: str = "/", environ: Mapping[str, str] | None = None) -> Request:
    config = {"XDG_CONFIG_HOME": "/nowhere"}
    return Request(table=BUILT_IN, parsed=parse(argv, BUILT_IN), template=template, environ={**config, **(environ or {})}, folder=folder)


def plan(template: type[Template], *argv: str, jobs: bytes = b"a\nb c\n", environ: Mapping[str, str] | None = None) -> Plan:
    asked = request(template, *argv, environ=environ)
    layers, _ = read_layers(asked)
    return plan_new(asked, read_settings(asked, layers), jobs)


# --- classes ---------------------------------------------------------------------------------------------------------


def test_attributes_are_inherited_and_taken_back() -> None:
    assert attributes(Derived) == {"RETRIES": 2, "HUB_APIKEY": "K", "PRE": None, "COMMAND": "echo hello | cat -", "WORKERS": "a b"}
    assert attributes(Task) == {}


def test_unknown_attribute_is_an_error() -> None:
    class Wrong(Task):
        TIMEOUTS = 3

    with pytest.raises(UsageError, match=r"template attribute TIMEOUTS: .*did you mean TIMEOUT\?"):
        plan(Wrong)


def test_plan_of_a_template() -> None:
    made = plan(Derived, "--split=1", "--retries=5")
    assert (made.workers, made.spares) == ((Address(host="a", slots=1),), (Address(host="b", slots=1),))
    assert (made.kind, made.session, made.lines) == ("new", None, [b"a", b"b c"])
    assert (made.settings.retries, made.settings.pre, made.settings.hub_apikey) == (5, None, "K")
    assert (made.sources["retries"], made.sources["workers"], made.sources["timeout"]) == ("command line", "template", "default")
    assert "hub-apikey" not in made.saved and "K" not in made.saved.values()


@pytest.mark.parametrize(
    ("command", "words", "expected"),
    [
        ("echo hello | cat -", (), b"echo hello | cat - b c"),
        ("echo hello | cat -", ("x y", "*"), b"echo hello | cat - 'x y' '*' b c"),
        ("echo", ("--to={2}", "{1}"), b"echo --to=c b"),
        (["echo", "a b"], ("c d",), b"echo 'a b' 'c d' b c"),
        (None, ("ls | cat",), b"ls | cat b c"),
        (None, ("ls", "*"), b"ls '*' b c"),
        (None, (), b"b c"),
    ],
)
def test_words_of_the_command_line_go_behind_the_templates_command(command: object, words: Sequence[str], expected: bytes) -> None:
    made = plan(type("Some", (Task,), {"COMMAND": command}), "--", *words, jobs=b"b c\n")
    assert made.lines is not None
    assert made.command.render(made.lines[-1], 2) == expected


def test_bad_commands_and_lines_are_found_before_anything_starts() -> None:
    with pytest.raises(UsageError, match="quotes"):
        plan(Task, "echo '{}'")
    with pytest.raises(InputError, match="job 1 "):
        plan(Task, "echo {2}")
    with pytest.raises(InputError, match="line 2 "):
        plan(Task, "echo", jobs=b"a\n'b\n")


def test_environment_is_below_the_template() -> None:
    environ = {"CLOUDTASK_RETRIES": "9", "CLOUDTASK_LEASE": "2h"}
    settings = plan(Derived, environ=environ).settings
    assert (settings.retries, settings.lease) == (2, 7200)


def test_folder_of_a_template_is_that_of_its_real_file() -> None:
    assert folder_of(Derived, "/x") == os.path.dirname(os.path.realpath(__file__))
    assert folder_of(Template, "/x").endswith("cloudtask")
    assert folder_of(type("Made", (Task,), {"__module__": "nowhere"}), "/x") == "/x"


# --- jobs() ----------------------------------------------------------------------------------------------------------


def with_jobs(*lines: object) -> type[Template]:
    class Lister(Task):
        def jobs(self) -> Iterator[str | bytes]:
            yield from lines  # type: ignore[misc]  # wrong ones on purpose

    return Lister


def test_jobs_of_a_template() -> None:
    assert own_jobs(Task, "words") is None
    assert own_jobs(with_jobs("a b", b"\xff", "c\n", "\udcfe"), "words") == b"a b\n\xff\nc\n\xfe\n"
    assert own_jobs(with_jobs("a\nb", "c"), "nul") == b"a\nb\0c\0"
    assert own_jobs(with_jobs(), "words") == b""


@pytest.mark.parametrize(("lines", "mode"), [(("a\nb",), "words"), (("a\0b",), "nul"), ((3,), "words"), ((None,), "line")])
def test_what_is_no_job_line(lines: Sequence[object], mode: str) -> None:
    with pytest.raises(InputError, match=r"jobs\(\), line 1: "):
        own_jobs(with_jobs(*lines), mode)


# --- resume ----------------------------------------------------------------------------------------------------------


def again(
    sessions: Path, *argv: str, which: str = "last", template: type[Template] = Task, environ: Mapping[str, str] | None = None
) -> Plan:
    asked = request(template, f"--sessions={sessions}", *argv, environ=environ)
    layers, _ = read_layers(asked)
    return plan_again(asked, layers, "resume", which)


@pytest.fixture
def sessions(tmp_path: Path) -> Path:
    """A directory with one session, as far as a plan looks into it."""
    made = plan(Derived, "--timeout=5m", "--slots=auto")
    paths = layout.Paths(str(tmp_path / "1"))
    os.mkdir(paths.root)
    Path(paths.journal).touch()
    conf.save(paths.conf, made.saved, made.sources)
    return tmp_path


def test_a_session_keeps_its_settings(sessions: Path) -> None:
    made = again(sessions, "--retries=0", environ={"CLOUDTASK_TIMEOUT": "9", "CLOUDTASK_PRE": "no"})
    assert (made.kind, made.session, made.lines) == ("resume", 1, None)
    assert (made.settings.timeout, made.settings.retries, made.settings.pre) == (300, 0, None)
    assert made.workers == (Address(host="a", slots=0), Address(host="b", slots=0))
    assert made.command.render(b"x", 1) == b"echo hello | cat - x"
    assert (made.sources["timeout"], made.sources["workers"], made.sources["retries"]) == ("command line", "template", "command line")


def test_secrets_are_looked_up_afresh(sessions: Path) -> None:
    assert again(sessions, environ={"HUB_APIKEY": "L"}).settings.hub_apikey == "L"
    assert again(sessions, template=Derived).settings.hub_apikey == "K"
    assert again(sessions).settings.hub_apikey is None


def test_what_a_resume_refuses(sessions: Path) -> None:
    with pytest.raises(UsageError, match=r"--resume is incompatible with a command \(echo 'a b'\)"):
        again(sessions, "echo", "a b")
    with pytest.raises(UnknownSessionError):
        again(sessions, which="7")
    with pytest.raises(UsageError, match="--split=3"):
        again(sessions, "--split=3")
    Path(sessions, "1", "conf.yaml").write_text("settings: {splt: 3}\nsources: {}\n")
    with pytest.raises(UsageError, match=r"conf\.yaml: key 'splt' .*split"):
        again(sessions)
    Path(sessions, "1", "conf.yaml").unlink()
    with pytest.raises(SessionError):
        again(sessions)


# --- files -----------------------------------------------------------------------------------------------------------


def write_template(folder: Path, body: str) -> str:
    file = folder / "template"
    file.write_text(f"#!/usr/bin/env python3\nfrom cloudtask import Task\n{body}")
    return str(file)


def test_the_class_whose_main_is_called(tmp_path: Path) -> None:
    path = write_template(tmp_path, "class A(Task):\n    SPLIT = 2\nclass B(Task):\n    SPLIT = 3\nB.main()\nA.main()\n")
    template = load_template(path)
    assert template.__name__ == "B" and folder_of(template, "/") == str(tmp_path)


def test_the_most_derived_class_where_main_is_not_called(tmp_path: Path) -> None:
    body = "class A(Task):\n    pass\nclass B(A):\n    pass\nif __name__ == '__main__':\n    B.main()\n"
    assert load_template(write_template(tmp_path, body)).__name__ == "B"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", "defines no class that inherits cloudtask.Task"),
        ("class A(Task): pass\nclass B(Task): pass\n", "defines A, B; let the one to run call main"),
        ("class A(Task)\n", "template, line 3: "),
    ],
)
def test_files_that_are_no_template(body: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        load_template(write_template(tmp_path, body))
    with pytest.raises(UsageError, match="it cannot be read"):
        load_template(str(tmp_path / "missing"))


def test_an_error_in_a_template_is_placed(tmp_path: Path) -> None:
    path = write_template(tmp_path, "import json\njson.loads('x')\n")
    with pytest.raises(ValueError) as caught:
        load_template(path)
    assert place_in_template(caught.value) == f"{path}, line 4"
    with pytest.raises(ValueError) as elsewhere:
        int("x")
    assert place_in_template(elsewhere.value) is None
