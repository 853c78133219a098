"""What holds for the project as a whole: what setup.cfg promises, what the house style asks of every file, and how quick a start is."""

from __future__ import annotations

import ast
import configparser
import importlib
import os
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

import cloudtask
from cloudtask import providers, transports
from cloudtask.settings import Row

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cloudtask"
TESTS = ROOT / "tests"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TEST_SOURCES = sorted(TESTS.rglob("*.py"))
LONGEST_MODULE = 500

HEAVY = ("paramiko", "rich", "yaml", "cryptography", "multiprocessing", "asyncio", "importlib.metadata")


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def entry_points() -> dict[str, dict[str, str]]:
    return {
        group: dict(re.split(r"\s*=\s*", line, maxsplit=1) for line in text.strip().splitlines())
        for group, text in setup_cfg()["options.entry_points"].items()
    }


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def in_agent(path: Path) -> bool:
    return PACKAGE / "agent" in path.parents


# --- setup.cfg -------------------------------------------------------------------------------------------------------


def test_version_is_the_packages() -> None:
    module, _, name = setup_cfg()["metadata"]["version"].removeprefix("attr:").strip().rpartition(".")
    assert getattr(importlib.import_module(module), name) == cloudtask.__version__


@pytest.mark.parametrize(("group", "name"), [(group, name) for group, found in entry_points().items() for name in found])
def test_entry_point_leads_somewhere(group: str, name: str) -> None:
    module, _, attribute = entry_points()[group][name].partition(":")
    found = getattr(importlib.import_module(module), attribute)
    assert all(isinstance(row, Row) for row in found) and found if group == providers.SETTINGS_GROUP else callable(found)


def test_built_in_transports_come_by_the_strangers_door() -> None:
    assert entry_points()[transports.GROUP] == transports.BUILT_IN


def test_built_in_providers_come_by_the_strangers_door() -> None:
    assert entry_points()[providers.GROUP] == providers.BUILT_IN
    assert entry_points()[providers.SETTINGS_GROUP] == providers.SETTINGS


def test_extras_are_there() -> None:
    assert {"ec2", "libcloud", "docker", "libvirt", "test"} <= set(setup_cfg()["options.extras_require"])


def test_pytest_is_strict() -> None:
    section = setup_cfg()["tool:pytest"]
    assert section["filterwarnings"].split() == ["error"]
    assert 0 < int(section["timeout"]) <= 60


def test_agents_source_is_readable_as_text() -> None:
    shipped = [file for file in files("cloudtask.agent").iterdir() if file.name.endswith(".py")]
    assert len(shipped) > 1
    assert all(file.read_text(encoding="utf-8").startswith('"""') for file in shipped if file.name != "__init__.py")


def test_bin_is_thin() -> None:
    script = ROOT / "bin" / "cloudtask"
    assert os.access(script, os.X_OK)
    code = [line for line in script.read_text().splitlines() if line.strip() and not line.startswith("#")]
    assert len(code) <= 8


# --- the agent -------------------------------------------------------------------------------------------------------


def test_agent_runs_on_python_3_6() -> None:
    command = [str(Path(sys.executable).parent / "vermin"), str(PACKAGE / "agent")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# --- a quick start ---------------------------------------------------------------------------------------------------


HELP = "import runpy; sys.argv = ['cloudtask', '--help']; run()"


@pytest.mark.parametrize("statement", ["import cloudtask", "from cloudtask import Task", HELP])
def test_nothing_heavy_is_loaded_early(statement: str) -> None:
    script = f"""
import sys
def run():
    try:
        runpy.run_module("cloudtask", run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code
{statement}
print("LOADED", *sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.rpartition("LOADED")[2].split())
    assert not loaded & set(HEAVY)


# --- the house style -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_module_says_what_it_is_for(path: Path) -> None:
    tree = tree_of(path)
    if not tree.body:
        return
    assert ast.get_docstring(tree), "no docstring"
    if not in_agent(path) and any(not isinstance(node, ast.Expr) for node in tree.body):
        assert "from __future__ import annotations" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_public_names_have_docstrings(path: Path) -> None:
    missing = [f"{relative(path)}:{node.lineno} {name}" for name, node in public_definitions(tree_of(path)) if not documented(node)]
    assert not missing, "\n" + "\n".join(missing)


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public_definitions(tree: ast.Module) -> Iterator[tuple[str, Definition]]:
    """Public functions and classes of a module, and public methods of public classes."""
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) and not inner.name.startswith("_"):
                        yield f"{node.name}.{inner.name}", inner


def documented(node: Definition) -> bool:
    if ast.get_docstring(node) is not None:
        return True
    # A docstring taken from elsewhere is one as well: `__doc__ = ...` in a class.
    return any(isinstance(inner, ast.Assign) and ast.unparse(inner.targets[0]) == "__doc__" for inner in node.body)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_module_is_not_too_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_MODULE


def test_names_say_something() -> None:
    empty = re.compile(r"(^|_)(utils?|helpers?|common|misc|manager)(_|$)")
    wrong = [relative(path) for path in SOURCES + TEST_SOURCES if empty.search(path.stem)]
    assert not wrong


@pytest.mark.parametrize("path", SOURCES + TEST_SOURCES, ids=relative)
def test_nothing_is_left_to_do_and_suppressions_give_reasons(path: Path) -> None:
    wrong = []
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type != tokenize.COMMENT:
                continue
            text = token.string
            if re.search(r"\b(TODO|FIXME|XXX)\b", text):
                wrong.append(f"{relative(path)}:{token.start[0]}: {text}")
            # The code is in brackets, the reason in a comment of its own behind it.
            if "type: ignore" in text and not re.search(r"type: ignore\[[\w, -]+\]\s+#\s*\S+", text):
                wrong.append(f"{relative(path)}:{token.start[0]}: {text}")
            if re.search(r"#\s*noqa", text) and not re.search(r"noqa: [A-Z0-9, ]+\s+(#\s*)?\S+", text):
                wrong.append(f"{relative(path)}:{token.start[0]}: {text}")
    assert not wrong, "\n" + "\n".join(wrong)


def is_plain(value: ast.expr) -> bool:
    """A number or a text: a limit made smaller, or a place moved.  What the code does stays as it is."""
    return isinstance(value, ast.Constant) or (isinstance(value, ast.Call) and ast.unparse(value.func) == "str")


# A benchmark measures over a time; a test waits for a condition.
@pytest.mark.parametrize("path", [path for path in TEST_SOURCES if TESTS / "bench" not in path.parents], ids=relative)
def test_tests_wait_for_conditions_and_patch_nothing(path: Path) -> None:
    tree = tree_of(path)
    in_loops = {inner for loop in ast.walk(tree) if isinstance(loop, ast.While | ast.For) for inner in ast.walk(loop)}
    wrong = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("time.sleep", "sleep") and node not in in_loops:
                wrong.append(f"{relative(path)}:{node.lineno}: sleeps for a time instead of waiting for a condition")
            if called == "monkeypatch.setattr" and not is_plain(node.args[-1]):
                wrong.append(f"{relative(path)}:{node.lineno}: patches")
        if isinstance(node, ast.Import | ast.ImportFrom) and "unittest.mock" in ast.unparse(node):
            wrong.append(f"{relative(path)}:{node.lineno}: mocks")
    assert not wrong, "\n" + "\n".join(wrong)
