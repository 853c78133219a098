"""``conf.yaml``: the settings that the session's last run had, without secrets, with where each value came from.

YAML by ``safe_load`` and ``safe_dump`` only.  Values are what those know: None, booleans, numbers, strings (with surrogates for raw
bytes), bytes, lists and mappings; a tuple comes back as a list.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from cloudtask.errors import SessionError
from cloudtask.session.journal import unwritable
from cloudtask.session.layout import read_inside, write_inside

_HEADING = """\
# The settings of this session's last run, and where each value came from.
# A resume begins with them; options on its command line override them. Secrets are never saved: they are looked up afresh.
"""


def dump(values: Mapping[str, object], sources: Mapping[str, str]) -> bytes:
    """The file's text.  Raises yaml.YAMLError on a value that is not plain data."""
    import yaml

    content = {"settings": dict(values), "sources": dict(sources)}
    text: str = yaml.safe_dump(content, default_flow_style=False, sort_keys=False, width=140)
    return (_HEADING + text).encode()


def save(path: str, values: Mapping[str, object], sources: Mapping[str, str]) -> None:
    """Write ``path``, whole or not at all.  Raises StorageError."""
    data = dump(values, sources)
    root, name = os.path.split(path)
    try:
        write_inside(root, name, data)
    except OSError as error:
        raise unwritable(path, error) from error


def load(path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """(values, sources) as they were saved.  Raises SessionError naming file and line."""
    import yaml

    try:
        content = yaml.safe_load(read_inside(*os.path.split(path)))
    except OSError as error:
        raise SessionError(f"{path} cannot be read: {error.strerror}; restore it from a copy") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SessionError(f"{_place(path, error)}: not YAML that cloudtask wrote ({_problem(error)}); correct it by hand") from error
    values, sources = (content.get("settings"), content.get("sources", {})) if isinstance(content, dict) else (None, None)
    for part in (values, sources):
        if not isinstance(part, dict) or not all(isinstance(name, str) for name in part):
            raise SessionError(f"{path}, line 1: must have a mapping 'settings' and a mapping 'sources' of names; correct it by hand")
    assert isinstance(values, dict) and isinstance(sources, dict)
    return values, {name: str(source) for name, source in sources.items()}


def _place(path: str, error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f"{path}, line {mark.line + 1}"
    position = getattr(error, "position", None)
    return path if position is None else f"{path}, byte {position}"


def _problem(error: Exception) -> str:
    return str(getattr(error, "problem", None) or getattr(error, "reason", None) or type(error).__name__)
