"""The floors of the house: who may import whom, and who may print, import late or catch broadly.

``FLOORS`` is the one table.  A new module goes into the row of its floor, to the right of every module of that floor that it imports;
a new room (a folder) may have a row of its own within a floor.  Rows are in order: a module may import what stands above its row,
and what stands left of it in its row.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent / "cloudtask"

# A package's own name stands for its __init__.py; "cloudtask" itself is the façade, which hands names out lazily.
FLOORS = """
L1   version errors units printable
L2   states model
L3   hook_syntax addresses worker_file kinds settings settings_sources settings_checks allocation
L3   shellwords placeholders shellquotes shellcode command jobs
L3   agent.codec wire
L4   scheduler.actions scheduler.policy scheduler.backlog scheduler.roster scheduler.fates scheduler.balance
L4   scheduler.core scheduler
L5   session session.ranges session.layout session.lock session.keys session.journal session.bookings session.records session.conf
L5   session.state session.replay session.session session.hold
L6   transports.base transports transports.socket_end transports.program transports.dial transports.docker_engine transports.docker_wire
L6   transports.docker_stream transports.docker transports.fake transports.handshakes transports.sshconfig transports.hostkeys
L6   transports.identities transports.inbox transports.local transports.pinning transports.verdict transports.openssh transports.own_key
L6   transports.stream transports.session transports.ssh
L6   providers.base providers.libcloud_names providers providers.docker_containers providers.docker_sshd providers.docker_making
L6   providers.docker_pull providers.docker providers.docker_settings providers.ec2_answers providers.ec2_api providers.ec2_order
L6   providers.price_table providers.prices providers.ec2 providers.ec2_settings providers.fake_faults providers.fake_processes
L6   providers.timer providers.userdata providers.fake_machine providers.fake_store providers.fake providers.fake_settings
L6   providers.web_address providers.web
L6   providers.hosts_power providers.hosts_claims providers.hosts_inventory providers.hosts_store providers.hosts_commands
L6   providers.hosts_tending providers.hosts providers.hosts_docker providers.hosts_ec2 providers.hosts_libvirt providers.hosts_linode
L6   providers.hosts_settings providers.hosts_wake providers.hub_api providers.hub_settings providers.hub providers.libcloud_choice
L6   providers.libcloud_config providers.libcloud_tags providers.libcloud_dialects providers.libcloud_errors providers.libcloud_nodes
L6   providers.libcloud_sdk providers.libcloud providers.libcloud_settings providers.libvirt_calls providers.libvirt_marks
L6   providers.libvirt_xml providers.libvirt_disks providers.libvirt_domains providers.libvirt_root providers.libvirt_making
L6   providers.libvirt providers.libvirt_settings providers.linode providers.openstack_config providers.openstack
L6   reports
L7   workers workers.worker_log workers.ledger workers.appetite workers.messages workers.last_words workers.shell_scripts
L7   workers.shell_channel workers.shell_attempt workers.shell_frames workers.shell_jobs workers.shell_agent workers.shell_peer
L7   workers.peer workers.contact workers.conversation workers.errands workers.forkserver workers.intake workers.remote_command
L7   workers.machine_timer workers.mailbox workers.rsh workers.overlay_rsync workers.overlay_tar workers.setup workers.preparation
L7   workers.reunion workers.supervisor
L8   turn instances instances.calls instances.costs instances.demand instances.machine instances.orders instances.ordering
L8   instances.looking instances.ending instances.pool instances.launches instances.reaper
L8   instances.machine_file instances.knocking instances.leaked instances.sessions_here instances.razing instances.notes
L8   reconcile fleet
L9   front options plan relay delivery undurable labels signals specs conductor enlistment closing launching launch_only engine
L10  task places leaks targets watchdog
L12  cli cli.streams cli.arguments cli.bar cli.progress cli.confirm cli.template_file cli.watch cli.main cli.program cli.watchdog
L12  cli.launch_workers cli.destroy_workers
L13  cloudtask __main__
"""

# Plug-ins are found by name through entry points, so nothing names them in an import; what they may use themselves is less than
# their floor allows, so that a stranger's plug-in can do what ours do.
PLUGINS = (
    *(f"transports.{name}" for name in ("local", "ssh", "openssh", "docker", "fake")),
    *(f"providers.{name}" for name in ("docker", "ec2", "fake", "hosts", "hub", "libcloud", "libvirt", "linode", "openstack")),
)
PLUGIN_FLOORS = ("L1", "L2", "L3", "L6")

# The places that may catch everything, and how often: where a bug of one worker, one command, the agent, one frame or a provider ends.
BROAD_EDGES = {"workers.supervisor": 1, "cli.main": 1, "agent.daemon": 1, "agent.agent": 1, "instances.calls": 1}

# What the scheduler may import of the standard library: nothing that does I/O, knows the time or throws dice.
PURE = {
    "__future__", "array", "bisect", "collections", "dataclasses", "enum", "functools", "heapq", "itertools", "math", "operator",
    "types", "typing",
}  # fmt: skip

AGENT = "agent"
# Who knows the agent's source: its frames are ours too, and someone must ship it.
AGENT_READERS = ("wire",)


class Place(NamedTuple):
    """Where a module stands: its floor's number, the row in the table and the position in the row."""

    floor: int
    row: int
    position: int


class Import(NamedTuple):
    """One import of a module of the project."""

    target: str
    line: int
    late: bool


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "cloudtask"


@functools.cache
def modules() -> dict[str, ast.Module]:
    return {name_of(path): ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in sorted(ROOT.rglob("*.py"))}


def house() -> dict[str, ast.Module]:
    """All modules but the agent's, which live on the workers and not on a floor."""
    return {name: tree for name, tree in modules().items() if not in_agent(name)}


def in_agent(name: str) -> bool:
    return name.split(".")[0] == AGENT


@functools.cache
def places() -> dict[str, Place]:
    found: dict[str, Place] = {}
    for row, line in enumerate(filter(None, FLOORS.splitlines())):
        floor, *names = line.split()
        for position, name in enumerate(names):
            assert name not in found, f"{name} stands twice in the table"
            found[name] = Place(int(floor.removeprefix("L")), row, position)
    return found


def late_nodes(tree: ast.Module) -> set[ast.AST]:
    """All that stands inside a function."""
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))]
    return {inner for function in functions for inner in ast.walk(function)}


def imports(name: str, tree: ast.Module) -> Iterator[Import]:
    """What a module imports of the project.  Imports for type checkers count too: they are as much a dependency of the mind."""
    late = late_nodes(tree)
    for node in ast.walk(tree):
        for target in targets(name, node):
            if target == "cloudtask" or target.startswith("cloudtask."):
                yield Import(target.removeprefix("cloudtask."), node.lineno, node in late)  # type: ignore[attr-defined]  # only imports have targets


def targets(name: str, node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        is_package = (ROOT / Path(*name.split(".")) / "__init__.py").exists() if name != "cloudtask" else True
        parts = ["cloudtask", *name.split(".")] if name != "cloudtask" else ["cloudtask"]
        parts = parts[: len(parts) - node.level + (1 if is_package else 0)]
        base = ".".join([*parts, *filter(None, [base])])
    known = {f"cloudtask.{module}" for module in modules()}
    return [full if (full := f"{base}.{alias.name}") in known else base for alias in node.names]


@functools.cache
def edges() -> list[tuple[str, Import]]:
    return [(name, found) for name, tree in house().items() for found in imports(name, tree)]


def is_broad(kind: ast.expr | None) -> bool:
    names = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return any(name is None or (isinstance(name, ast.Name) and name.id in ("Exception", "BaseException")) for name in names)


def broad_catches(tree: ast.Module) -> Iterator[int]:
    """Lines that swallow everything.  A handler that ends in a ``raise`` swallows nothing: it tidies up, or names a foreign error."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and is_broad(node.type):
            if not isinstance(node.body[-1], ast.Raise):
                yield node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "suppress":
            yield from (node.lineno for argument in node.args if is_broad(argument))


def describe(found: list[str]) -> str:
    return "\n" + "\n".join(sorted(found))


def test_every_module_has_a_place() -> None:
    missing = sorted(name for name in house() if name not in places())
    assert not missing, f"not in the table of floors: {', '.join(missing)}"


def test_every_place_has_a_module() -> None:
    later = {"task", "providers", "reports"}  # rooms whose doors stand ready, or that came under another name
    empty = sorted(name for name in places() if name not in modules() and name not in later)
    assert not empty, f"in the table of floors, but not there: {', '.join(empty)}"


def test_no_import_goes_upward() -> None:
    """Neither to a higher floor nor, on one floor, to what is listed later.  So there is no cycle either."""
    wrong = []
    for name, found in edges():
        here, there = places().get(name), places().get(found.target)
        # The façade's own name is also that of its constants; only the floors below may not lean on what it loads.
        if name == "cloudtask" or here is None or there is None:
            continue
        if there >= here:
            wrong.append(f"cloudtask.{name}:{found.line} (L{here.floor}) imports {found.target} (L{there.floor})")
    assert not wrong, describe(wrong)


def test_table_leaves_no_room_for_a_cycle() -> None:
    """A floor's rows stand together and floors rise, so "to the left or above" is an order."""
    floors = [place.floor for place in sorted(places().values(), key=lambda place: place.row)]
    assert floors == sorted(floors)


def test_no_project_import_inside_a_function() -> None:
    wrong = [f"cloudtask.{name}:{found.line} imports {found.target} late" for name, found in edges() if found.late]
    assert not wrong, describe(wrong)


def test_plugins_are_found_by_name_only() -> None:
    named = [(name, found) for name, found in edges() if found.target in PLUGINS]
    # A plug-in may be built on another one.
    wrong = [f"cloudtask.{name}:{found.line} names the plug-in {found.target}" for name, found in named if name not in PLUGINS]
    assert not wrong, describe(wrong)


def test_plugins_use_little_of_the_house() -> None:
    floors = {int(floor.removeprefix("L")) for floor in PLUGIN_FLOORS}
    rooms = {plugin.split(".")[0] for plugin in PLUGINS}
    wrong = []
    for name, found in edges():
        there = places().get(found.target)
        if name.split(".")[0] in rooms and there and there.floor not in floors:
            wrong.append(f"cloudtask.{name}:{found.line} imports {found.target} (L{there.floor})")
    assert not wrong, describe(wrong)


def test_scheduler_is_pure() -> None:
    """No I/O, no clock, no randomness: it may import nothing that has any."""
    wrong = []
    for name, tree in house().items():
        if name.split(".")[0] != "scheduler":
            continue
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            wrong += [f"cloudtask.{name} imports {target}" for target in names if target.split(".")[0] not in {*PURE, "cloudtask"}]
    assert not wrong, describe(wrong)


def test_agent_stands_alone() -> None:
    """Standard library and siblings by relative import: it runs where nothing of the project is."""
    wrong = []
    for name, tree in modules().items():
        if not in_agent(name):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                if node.level != 1:
                    wrong.append(f"cloudtask.{name}:{node.lineno} leaves its folder")
                continue
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong += [f"cloudtask.{name}: {target}" for target in found if target.split(".")[0] not in sys.stdlib_module_names]
    assert not wrong, describe(wrong)


def test_only_the_wire_knows_the_agents_code() -> None:
    readers = [(name, found) for name, found in edges() if in_agent(found.target) and name not in AGENT_READERS]
    wrong = [f"cloudtask.{name}:{found.line} imports {found.target}" for name, found in readers]
    assert not wrong, describe(wrong)


def test_only_the_command_line_prints() -> None:
    wrong = []
    for name, tree in modules().items():
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        wrong += [f"cloudtask.{name}:{call.lineno}" for call in calls if ast.unparse(call.func) == "print" and name.split(".")[0] != "cli"]
    assert not wrong, describe(wrong)


def test_everything_is_caught_at_the_edges_only() -> None:
    wrong = []
    for name, tree in modules().items():
        lines = list(broad_catches(tree))
        if len(lines) > BROAD_EDGES.get(name, 0):
            wrong += [f"cloudtask.{name}:{line}" for line in lines]
    assert not wrong, describe(wrong)


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("try:\n    f()\nexcept Exception:\n    pass", [3]),
        ("try:\n    f()\nexcept:\n    pass", [3]),
        ("try:\n    f()\nexcept (OSError, BaseException):\n    g()", [3]),
        ("with contextlib.suppress(Exception):\n    f()", [1]),
        ("try:\n    f()\nexcept BaseException:\n    g()\n    raise", []),
        ("try:\n    f()\nexcept Exception as error:\n    raise OSError from error", []),
        ("try:\n    f()\nexcept OSError:\n    pass", []),
    ],
)
def test_broad_catches_are_recognised(source: str, lines: list[int]) -> None:
    assert list(broad_catches(ast.parse(source))) == lines


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import cloudtask.errors", [Import("errors", 1, False)]),
        ("from cloudtask import errors", [Import("errors", 1, False)]),
        ("from cloudtask.errors import UsageError", [Import("errors", 1, False)]),
        ("from . import layout", [Import("session.layout", 1, False)]),
        ("def f():\n    from cloudtask import model", [Import("model", 2, True)]),
        ("import json", []),
    ],
)
def test_imports_are_recognised(source: str, expected: list[Import]) -> None:
    assert list(imports("session.lock", ast.parse(source))) == expected
