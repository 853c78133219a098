"""What the documents tell a reader to do exists, and does what they say."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from docutils import nodes
from docutils.core import publish_doctree

from cloudtask import options
from cloudtask.cli.template_file import load_template
from cloudtask.command import Command
from cloudtask.kinds import Scene
from cloudtask.providers import settings_table
from cloudtask.settings_sources import template_layer
from cloudtask.task import attributes
from tests.test_man import known_options

ROOT = Path(__file__).parent.parent
README = ROOT / "README.rst"
PAGES = sorted((ROOT / "docs" / "man").glob("*.rst"))
MAN = ROOT / "docs" / "man" / "cloudtask.8.rst"
OTHERS = [ROOT / name for name in ("CONTRIBUTING.rst", "CHANGELOG.rst", "docs/architecture.rst", "docs/write-your-own-provider.rst")]
DOCUMENTS = [README, *PAGES, *OTHERS]
ALL = settings_table()

_TARGET = re.compile(r"(?m)^([a-z][a-z0-9-]*):(?!=)")
_MAKE = re.compile(r"(?:``|^|\n\s*)make ([a-z][a-z0-9-]+)")
_OPTION = re.compile(r"(?<![\w/-])--[a-z][a-z0-9-]*[a-z0-9]")
_ROOMS = "cloudtask|docs|tests|templates|bin|cli|agent|session|transports|workers|scheduler"
_PROJECT_PATH = re.compile(rf"^(?:{_ROOMS})/[\w./-]*$|^[\w./-]+\.(?:py|rst|cfg)$")
_CALL = re.compile(r"(?:^|[|$/ ])cloudtask (?!\()")

# Options of other programs, and what options look like.
FOREIGN = {"--name", "--sign", "--quiet", "--sshlogin", "--joblog", "--lab-url", "--mount", "--seeds"}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree_of(path: Path) -> nodes.document:
    settings = {"report_level": 1, "halt_level": 1, "warning_stream": False}
    return publish_doctree(path.read_text(encoding="utf-8"), source_path=str(path), settings_overrides=settings)


def literal_blocks(path: Path) -> list[str]:
    return [node.astext() for node in tree_of(path).findall(nodes.literal_block)]


def literals(path: Path) -> list[str]:
    return [node.astext() for node in tree_of(path).findall(nodes.literal)]


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Each call of cloudtask in README and manual page: the document's line, and cloudtask's arguments."""
    for path in (README, *PAGES):
        for line in "\n".join(literal_blocks(path)).splitlines():
            words = shlex.split(line, comments=True) if _CALL.search(line) and not line.startswith("20") else []
            programs = [number for number, word in enumerate(words) if word.rpartition("/")[2] == "cloudtask"]
            if programs and "import" not in words:
                end = next((number for number, word in enumerate(words) if number > programs[0] and word in ("<", "|", ">")), len(words))
                yield line, words[programs[0] + 1 : end]


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_document_builds_without_a_complaint(path: Path) -> None:
    assert tree_of(path).astext()


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_make_targets_exist(path: Path) -> None:
    targets = set(_TARGET.findall((ROOT / "Makefile").read_text(encoding="utf-8")))
    named = set(_MAKE.findall("\n".join([*literal_blocks(path), *(f"``{text}" for text in literals(path))])))
    assert named <= targets


def test_readme_names_the_two_commands() -> None:
    assert {"demo", "test"} <= set(_MAKE.findall("\n".join(literal_blocks(README))))


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_options_exist(path: Path) -> None:
    assert set(_OPTION.findall(path.read_text(encoding="utf-8"))) <= known_options() | FOREIGN


@pytest.mark.parametrize("path", [README, *OTHERS], ids=relative)
def test_files_exist(path: Path) -> None:
    named = {text for text in literals(path) if _PROJECT_PATH.match(text)}
    # The architecture names what is not there, and why.
    missing = {text for text in named if not exists(text)} - {"workers/queue.py", "scheduler.py"}
    assert not missing


def exists(name: str) -> bool:
    """A path from one of the folders that documents count from, or a module that is named without its room."""
    here = any((folder / name).exists() for folder in (ROOT, ROOT / "cloudtask", ROOT / "tests"))
    return here or ("/" not in name and any((ROOT / "cloudtask").glob(f"*/{name}")))


def test_readme_shows_what_was_seen() -> None:
    """What it prints and how fast it is are pasted from real runs before anything is released."""
    assert "TO-BE-" not in README.read_text(encoding="utf-8")


def test_there_are_examples() -> None:
    assert len(list(command_lines())) >= 15


@pytest.mark.parametrize(("line", "arguments"), list(command_lines()), ids=lambda value: value if isinstance(value, str) else "")
def test_example_is_accepted(line: str, arguments: list[str]) -> None:
    parsed = options.parse(arguments, ALL)
    for name, raw in parsed.values.items():
        row = ALL.find(name)
        if row and name != "overlay":  # a folder that the reader has
            row.parse(raw, Scene(folder=str(ROOT), environ={}))
    if parsed.words:
        Command([word.encode() for word in parsed.words])


@pytest.mark.parametrize("path", [README, MAN], ids=relative)
def test_template_example_is_a_template(path: Path, tmp_path: Path) -> None:
    sources = [text for text in literal_blocks(path) if "from cloudtask import Task" in text]
    assert sources
    for source in sources:
        file = tmp_path / "example"
        file.write_text(source)
        template = load_template(str(file))
        layer = template_layer(ALL, attributes(template), str(tmp_path))
        assert layer.values
        for name, raw in layer.values.items():
            row = ALL.find(name)
            assert row
            row.parse(raw, Scene(folder=str(tmp_path), environ={}))
