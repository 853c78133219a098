"""The example of docs/write-your-own-provider.rst is a provider: installed as a stranger's package, it keeps the contract.

Its lab is an HTTP server here, and the lab's machines are those of the fake provider, with real sshd's.
"""

from __future__ import annotations

import configparser
import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from docutils import nodes
from docutils.core import publish_doctree

from cloudtask.errors import UsageError
from cloudtask.kinds import Scene as Place
from cloudtask.providers import find, names, settings_table
from cloudtask.providers.base import InstanceState, Order, Provider, Tags
from cloudtask.providers.fake import FakeProvider
from tests.providers.contract import BaseScene, ProviderContract, settings_with

PAGE = Path(__file__).parent.parent.parent / "docs" / "write-your-own-provider.rst"
STATES = {InstanceState.PENDING: "booting", InstanceState.RUNNING: "up", InstanceState.LEAVING: "leaving"}


def blocks(language: str) -> list[str]:
    """The page's code in one language."""
    settings = {"report_level": 1, "halt_level": 1, "warning_stream": False}
    tree = publish_doctree(PAGE.read_text(encoding="utf-8"), source_path=str(PAGE), settings_overrides=settings)
    return [node.astext() for node in tree.findall(nodes.literal_block) if language in node["classes"]]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder on the path in which the example is, as pip would have put it there."""
    folder = tmp_path / "site"
    metadata = folder / "lab-1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / "lab.py").write_text(blocks("python")[0])
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lab\nVersion: 1.0\n")
    setup = configparser.ConfigParser()
    setup.read_string(blocks("ini")[0])
    entries = "".join(f"[{group}]{lines}\n" for group, lines in setup["options.entry_points"].items())
    (metadata / "entry_points.txt").write_text(entries)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("lab", None)


class Lab(ThreadingHTTPServer):
    """The service.  ``trouble`` is what it does in place of a right answer: a status, ``garbage``, ``full`` (nothing more is made), or
    ``lost`` (made, and no answer, once).
    """

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Desk)
        self.fake = FakeProvider(settings_with(fake_state=str(root / "state")))
        self.notes: dict[str, str] = {}
        self.turn = threading.Lock()
        self.trouble: int | str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def list_all(self) -> list[dict[str, object]]:
        found = self.fake.describe(list(self.notes))
        rows: list[dict[str, object]] = [{"id": each.id, "host": each.host, "port": each.port, "user": each.user} for each in found]
        words: list[dict[str, object]] = [{"state": STATES.get(each.state), "note": self.notes[each.id]} for each in found]
        return [row | word for row, word in zip(rows, words, strict=True) if word["state"]]

    def make(self, note: str, user_data: str) -> list[dict[str, object]]:
        tags = Tags(session="lab", controller="lab", token=uuid.uuid4().hex, expires=0)
        [machine] = self.fake.launch(Order(count=1, tags=tags, user_data=user_data)).instances
        self.notes[machine.id] = note
        return [row for row in self.list_all() if row["id"] == machine.id]


class Desk(BaseHTTPRequestHandler):
    """Who answers."""

    server: Lab

    def do_GET(self) -> None:
        self._serve(lambda: self.server.list_all())

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._serve(lambda: self.server.make(asked["note"], asked["user_data"]))

    def do_DELETE(self) -> None:
        id = self.path.rpartition("/")[2]

        def end() -> list[dict[str, object]]:
            self.server.fake.destroy([id])
            return []

        self._serve(end, 200 if id in self.server.notes else 404)

    def _serve(self, act: Callable[[], list[dict[str, object]]], status: int = 200) -> None:
        trouble = self.server.trouble
        if trouble == "full" and self.command == "POST":
            status = 409
        elif isinstance(trouble, int):
            status = trouble
        elif trouble == "garbage":
            status = 200
        with self.server.turn:
            found = act() if status == 200 and trouble != "garbage" else []
        if trouble == "lost" and self.command == "POST":
            self.server.trouble = None
            self.close_connection = True
            return
        self._answer(status, b'{"machines": [{"id": 7}]}' if trouble == "garbage" else json.dumps({"machines": found}).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class LabScene(BaseScene):
    """The lab and its users."""

    def __init__(self, lab: Lab) -> None:
        super().__init__()
        self.lab = lab

    def make(self) -> Provider:
        return find("lab")(settings_with(lab_url=self.lab.url))

    def foreign_id(self) -> str:
        return str(self.lab.make("mail server, do not touch", "")[0]["id"])

    def broken(self) -> Iterable[Provider]:
        for port in (1, self.lab.server_port):
            yield find("lab")(settings_with(lab_url=f"http://me:pa55word@127.0.0.1:{port}"))
        yield find("lab")(settings_with(lab_url="http://127.0.0.1:1"))
        for self.lab.trouble in (500, 401, 429, "garbage"):
            yield self.make()

    def secrets(self) -> Iterable[str]:
        return ("pa55word",)

    def refusing(self) -> Provider:
        self.lab.trouble = "full"
        return self.make()

    def lose_answer(self) -> bool:
        self.lab.trouble = "lost"
        return True

    def clean(self) -> None:
        self.lab.trouble = None
        super().clean()
        self.lab.fake.destroy(list(self.lab.notes))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A lab that is open."""
    with Lab(tmp_path) as lab:
        thread = threading.Thread(target=lab.serve_forever, args=(0.01,))
        thread.start()
        yield lab
        lab.shutdown()
        thread.join()


@pytest.fixture
def scene(lab: Lab, installed: Path, private_home: Path) -> Iterator[LabScene]:
    """The lab, seen through the example."""
    scene = LabScene(lab)
    yield scene
    scene.clean()


class TestTheExample(ProviderContract):
    """It keeps the contract."""


def test_it_is_found_by_name(installed: Path) -> None:
    assert "lab" in names()
    with pytest.raises(UsageError, match="--lab-url"):
        find("lab")(settings_with())


def test_its_rows_are_settings(installed: Path) -> None:
    """For who asks for strangers' rows too, without the class."""
    assert settings_table().find("lab_url") is None
    table = settings_table(strangers=True)
    row = table.find("lab_url")
    assert row and (row.option, row.variable) == ("--lab-url", "CLOUDTASK_LAB_URL")
    typed = row.parse("http://lab", Place(folder="/", environ={}))
    assert find("lab")(table.settings({"lab_url": typed})).offer().rows == {"lab-url": "http://lab"}


def test_another_process_finds_it(installed: Path) -> None:
    code = "import sys; from cloudtask.providers import find, names; sys.stdout.write(f'{find(sys.argv[1]).__name__} {names()}')"
    run = subprocess.run(
        [sys.executable, "-c", code, "lab"],
        capture_output=True,
        text=True,
        check=True,
        cwd=PAGE.parent.parent,
        env={"PYTHONPATH": str(installed)},
    )
    assert run.stdout.startswith("LabProvider ") and "'lab'" in run.stdout


def test_it_is_as_short_as_it_says() -> None:
    lines = [line for line in blocks("python")[0].splitlines() if line.strip()]
    assert len(lines) <= 70


def test_the_scene_of_the_page_is_one() -> None:
    """What it shows of the tests runs: the names are there."""
    compile(blocks("python")[1], str(PAGE), "exec")
    assert "ProviderContract" in blocks("python")[1]
