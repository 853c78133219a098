"""The option parser and the text of --help."""

from __future__ import annotations

import pytest

from cloudtask import kinds
from cloudtask.errors import UsageError
from cloudtask.options import ACTIONS, Parsed, help_text, parse, usage
from cloudtask.settings import BUILT_IN, Row


def read(*argv: str) -> Parsed:
    return parse(argv, BUILT_IN)


def test_value_after_an_equals_sign_or_a_blank() -> None:
    assert read("--split=2", "echo").values == read("--split", "2", "echo").values == {"split": "2"}
    assert read("--pre=a=b").values == {"pre": "a=b"}
    assert read("--pre", "--post").values == {"pre": "--post"}
    assert read("--pre=").values == {"pre": ""}


def test_options_stop_at_the_first_word() -> None:
    parsed = read("--split=2", "ls", "--retries=3", "-h")
    assert parsed.values == {"split": "2"} and parsed.words == ("ls", "--retries=3", "-h") and not parsed.actions


def test_two_dashes_end_the_options() -> None:
    assert read("--tag", "--", "--retries=3").words == ("--retries=3",)
    assert read("--", "--").words == ("--",)
    assert read("-", "x").words == ("-", "x")


def test_flags() -> None:
    assert read("--tag", "--keep-order=no").values == {"tag": True, "keep_order": "no"}


def test_nul_input() -> None:
    assert read("-0").values == read("--input=nul").values


def test_the_last_one_counts_but_for_those_that_add_up() -> None:
    parsed = read("--split=1", "--env=A=1", "--split=2", "--env", "B=2")
    assert parsed.values == {"split": "2", "env": ("A=1", "B=2")}
    assert read("--env=A=1", "--env=", "--env=C=3").values == {"env": ("C=3",)}


def test_actions() -> None:
    assert read("--resume=last", "--dry-run", "-h").actions == {"resume": "last", "dry-run": "", "help": ""}
    assert read("--retry", "3").actions == {"retry": "3"}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--splt=2"], "unknown option --splt; did you mean --split"),
        (["--time=2"], "unknown option --time; did you mean --timeout"),
        (["--resum=2"], "did you mean --resume"),
        (["--command=x"], "unknown option --command"),
        (["-x"], "unknown option -x;"),
        (["-0h"], "unknown option -0h"),
        (["--split"], "--split needs a value: --split=NUM"),
        (["--resume"], "--resume needs a value"),
        (["--help=x"], "--help takes no value"),
        (["--lost"], "unknown option --lost; did you mean --"),
    ],
)
def test_errors(argv: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read(*argv)


def test_help_has_every_option_once_and_no_long_line() -> None:
    text = help_text(BUILT_IN, "cloudtask", "What it is.\n\nMore of it.")
    assert text.startswith("What it is.\n\nMore of it.\n\nusage: ")
    assert max(map(len, text.splitlines())) <= 80
    heads = [line.split()[0].rstrip(",").partition("=")[0] for line in text.splitlines() if line.startswith("  -")]
    expected = [row.option for row in BUILT_IN if row.has_option] + [action.short or action.option for action in ACTIONS]
    assert sorted(heads) == sorted(expected)
    assert "(default: 5m)" in text and "--help" in text and "-0" in text


def test_help_shows_a_plug_ins_group() -> None:
    row = Row(name="moon_phase", parse=kinds.whole(0), default=7, help="phase of the moon", metavar="N", group="Moon")
    text = help_text(BUILT_IN.extended([row]), "cloudtask", "x")
    assert "\nMoon:\n  --moon-phase=N          phase of the moon (default: 7)\n" in text
    assert parse(["--moon-phase=3"], BUILT_IN.extended([row])).values == {"moon_phase": "3"}


def test_usage_names_the_program() -> None:
    assert usage("my-task").count("my-task") == 3
