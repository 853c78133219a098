"""The settings of the last run: what is saved comes back, and what was broken by hand is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudtask.errors import SessionError, StorageError
from cloudtask.session import conf

# Any text at all, with the surrogates that stand for raw bytes.
TEXT = st.text(st.characters() | st.integers(0xDC80, 0xDCFF).map(chr))
VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT | st.binary(), st.lists, max_leaves=8)
NAMES = st.from_regex(r"[a-z_]{1,12}", fullmatch=True)


@given(st.dictionaries(NAMES, VALUES), st.dictionaries(NAMES, TEXT))
def test_what_is_saved_comes_back(tmp_path_factory: pytest.TempPathFactory, values: dict[str, object], sources: dict[str, str]) -> None:
    path = str(tmp_path_factory.getbasetemp() / "conf.yaml")
    conf.save(path, values, sources)
    assert conf.load(path) == (values, sources)


def test_for_people(tmp_path: Path) -> None:
    path = tmp_path / "conf.yaml"
    conf.save(str(path), {"timeout": 3600.0, "user": "root", "pre": "a\nb", "workers": ("h1", "h2")}, {"timeout": "--timeout"})
    text = path.read_text()
    assert text.startswith("# ") and "Secrets are never saved" in text and text.isascii()
    assert "\n  timeout: 3600.0\n  user: root\n" in text
    assert "sources:\n  timeout: --timeout\n" in text
    assert conf.load(str(path))[0]["workers"] == ["h1", "h2"]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (b"settings:\n  a: 1\n  b: [1\nsources: {}\n", "line 4"),
        (b"settings:\n  a: *nobody\n", "line 2"),
        (b"settings: !!python/object/apply:os.system ['true']\n", "line 1"),
        (b"a: 1\nb: 2\n", "line 1"),
        (b"- 1\n", "line 1"),
        (b"", "line 1"),
        (b"settings: {1: 2}\nsources: {}\n", "line 1"),
        (b"settings: {}\nsources: []\n", "line 1"),
        (b"settings: \xff\n", "byte 10"),
        (b"settings: 2024-99-99\n", "conf.yaml: not YAML"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: bytes, place: str) -> None:
    (tmp_path / "conf.yaml").write_bytes(text)
    with pytest.raises(SessionError, match=place) as caught:
        conf.load(str(tmp_path / "conf.yaml"))
    assert "\n" not in str(caught.value) and "conf.yaml" in str(caught.value)


def test_a_file_from_a_stranger_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / "conf.yaml").write_text(f"settings: {{a: !!python/object/apply:os.mkdir ['{tmp_path}/made']}}\nsources: {{}}\n")
    with pytest.raises(SessionError, match="line 1: not YAML that cloudtask wrote"):
        conf.load(str(tmp_path / "conf.yaml"))
    assert not (tmp_path / "made").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match=r"conf\.yaml cannot be read: No such file"):
        conf.load(str(tmp_path / "conf.yaml"))


def test_a_failed_save_leaves_the_old_one(tmp_path: Path) -> None:
    path = str(tmp_path / "conf.yaml")
    conf.save(path, {"a": 1}, {})
    os.mkdir(path + ".new")
    with pytest.raises(StorageError, match=r"conf\.yaml cannot be written"):
        conf.save(path, {"a": 2}, {})
    assert conf.load(path) == ({"a": 1}, {})
