"""Where settings come from, and how they become typed values.

Order: command line, template, environment, ``config.yaml``, default; on a resume command line, then the session's saved values.
Every value goes through its row's parser wherever it stood, and an error names that place.  An empty environment variable counts as not
set; an empty ``CLOUDTASK_WORKERS`` is an error, since jobs that were meant for other machines would run on this one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cloudtask.errors import SettingError, UsageError
from cloudtask.kinds import Scene
from cloudtask.settings import HUB_VARIABLE, JOB_VARIABLES, OTHER_VARIABLES, PREFIX, Row, Settings, Table, get

COMMAND_LINE = "command line"
TEMPLATE = "template"
ENVIRONMENT = "environment"
CONFIG = "config file"
SAVED = "session"
DEFAULT = "default"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One source: raw values by the row's name.

    ``folder`` is what its relative paths count from; ``label`` says how an error names a value of it; ``origins`` holds, by key,
    where a saved value came from in the first place.
    """

    source: str
    values: Mapping[str, object]
    folder: str
    label: Callable[[Row, object], str]
    origins: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Values:
    """Typed settings, and for each key (``lost-timeout``) the source that it came from."""

    settings: Settings
    sources: Mapping[str, str]

    def said(self, key: str, value: object = None) -> str:
        """A setting as an error names it: ``--split=3 (from the environment)``, so that its user finds where to change it."""
        source = self.sources.get(key, DEFAULT)
        origin = "" if source in (DEFAULT, COMMAND_LINE) else f" (from the {source})"
        return f"--{key}" + ("" if value is None else f"={value}") + origin


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """``; did you mean X?``, or nothing where no name is near."""
    import difflib

    known = sorted(names)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6) or [word for word in known if len(name) > 4 and word.startswith(name)]
    return f"; did you mean {near[0]}?" if near else ""


# --- the sources -----------------------------------------------------------------------------------------------------


def command_line_layer(values: Mapping[str, object], folder: str) -> Layer:
    """The options as parsed, by row name; paths count from ``folder``, the current directory."""
    return Layer(source=COMMAND_LINE, values=values, folder=folder, label=_option_label)


def _option_label(row: Row, value: object) -> str:
    if not row.has_option:
        return f"the {row.key}"
    return f"{row.option}={value}" if isinstance(value, str) and not row.secret else row.option


def template_layer(table: Table, attributes: Mapping[str, object], folder: str) -> Layer:
    """A template's attributes in capitals; None counts as not set.  Raises UsageError on one that is no setting."""
    by_attribute = {row.attribute: row for row in table}
    for name in attributes:
        if name not in by_attribute:
            hint = did_you_mean(name, by_attribute) or "; attributes in capitals are settings, name your own _LIKE_THIS"
            raise UsageError(f"template attribute {name}: no such setting{hint}")
    values = {by_attribute[name].name: value for name, value in attributes.items() if value is not None}
    return Layer(source=TEMPLATE, values=values, folder=folder, label=_attribute_label)


def _attribute_label(row: Row, value: object) -> str:
    return f"template attribute {row.attribute}" + ("" if row.secret else f" = {value!r}")


def environment_layer(table: Table, environ: Mapping[str, str], folder: str) -> tuple[Layer, list[str]]:
    """``CLOUDTASK_*``, and a warning for each of these variables that is no setting."""
    by_variable = {row.variable: row for row in table if row.has_option}
    values: dict[str, object] = {}
    if environ.get(HUB_VARIABLE):
        values["hub_apikey"] = environ[HUB_VARIABLE]
    warnings = []
    for name in sorted(name for name in environ if name.startswith(PREFIX)):
        if name in by_variable:
            if environ[name] or by_variable[name].name == "workers":
                values[by_variable[name].name] = environ[name]
        elif name not in JOB_VARIABLES | OTHER_VARIABLES:
            warnings.append(f"warning: {name} in the environment is no setting{did_you_mean(name, by_variable)}")
    return Layer(source=ENVIRONMENT, values=values, folder=folder, label=_variable_label), warnings


def _variable_label(row: Row, value: object) -> str:
    return row.variable + ("" if row.secret else f"={value}")


def config_path(environ: Mapping[str, str]) -> str:
    """``config.yaml`` in the user's configuration directory (XDG Base Directory Specification: a relative one is ignored)."""
    base = environ.get("XDG_CONFIG_HOME", "")
    return os.path.join(base if os.path.isabs(base) else os.path.expanduser("~/.config"), "cloudtask", "config.yaml")


def config_layer(table: Table, path: str) -> Layer:
    """The configuration file, empty where there is none.  Raises UsageError naming file and line, or the unknown key."""
    content = _read_yaml(path)
    return _keyed_layer(table, content, Layer(source=CONFIG, values={}, folder=os.path.dirname(path), label=_key_label(path)), path)


def saved_layer(table: Table, content: Mapping[str, object], origins: Mapping[str, str], path: str) -> Layer:
    """What :func:`saved` gave, read back from ``path``."""
    return _keyed_layer(table, content, Layer(source=SAVED, values={}, folder="/", label=_key_label(path), origins=origins), path)


def _key_label(path: str) -> Callable[[Row, object], str]:
    return lambda row, value: f"{path}: {row.key}" + ("" if row.secret else f": {value}")


def _keyed_layer(table: Table, content: Mapping[str, object], empty: Layer, path: str) -> Layer:
    by_key = {row.key: row for row in table if row.has_option or empty.source == SAVED}
    for key in content:
        if key not in by_key:
            raise UsageError(f"{path}: key {key!r} is no setting{did_you_mean(str(key), by_key)}")
    values = {by_key[key].name: value for key, value in content.items() if value is not None}
    return Layer(source=empty.source, values=values, folder=empty.folder, label=empty.label, origins=empty.origins)


def _read_yaml(path: str) -> Mapping[str, object]:
    if not os.path.exists(path):
        return {}
    import yaml

    try:
        with open(path, "rb") as file:
            content = yaml.safe_load(file)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark else path
        raise UsageError(f"{place}: not YAML: {getattr(error, 'problem', None) or 'it cannot be read as text'}") from None
    if content is not None and not isinstance(content, dict):
        raise UsageError(f"{path}: must hold 'setting: value' lines")
    return content or {}


# --- from raw values to settings -------------------------------------------------------------------------------------


def resolve(table: Table, layers: Sequence[Layer], environ: Mapping[str, str]) -> Values:
    """Each setting from the first of ``layers`` that has it, else its default.  Raises SettingError."""
    return _resolve(table, lambda row: layers, environ)


def resolve_again(table: Table, layers: Sequence[Layer], saved_values: Layer, environ: Mapping[str, str]) -> Values:
    """The settings of a session that is taken up again; ``layers[0]`` is the command line.  Raises SettingError."""
    choices = {"saved": (layers[0], saved_values), "afresh": layers, "once": layers[:1]}
    return _resolve(table, lambda row: choices[row.afterwards], environ)


def _resolve(table: Table, layers_of: Callable[[Row], Sequence[Layer]], environ: Mapping[str, str]) -> Values:
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for row in table:
        layer = next((layer for layer in layers_of(row) if row.name in layer.values), None)
        if layer is None:
            values[row.name], sources[row.key] = _default(row), DEFAULT
        else:
            values[row.name], sources[row.key] = _parse(row, layer, environ), layer.origins.get(row.key, layer.source)
    return Values(settings=table.settings(values), sources=sources)


def _default(row: Row) -> Any:
    return os.path.expanduser(row.default) if isinstance(row.default, str) and row.default.startswith("~/") else row.default


def _parse(row: Row, layer: Layer, environ: Mapping[str, str]) -> Any:
    value = layer.values[row.name]
    try:
        return row.parse(value, Scene(folder=layer.folder, environ=environ))
    except ValueError as error:
        raise SettingError(f"{layer.label(row, value)}: {error}") from None


def saved(table: Table, settings: Settings) -> dict[str, object]:
    """What a session keeps of its settings, by key, as plain YAML values: no secrets, nothing that concerns one run only."""
    rows = [row for row in table if row.afterwards == "saved" and not row.secret]
    return {row.key: row.write(get(settings, row)) for row in rows}
