"""The kinds of values that settings have: each turns what a source holds into its type.

A parser takes the raw value (text from the command line and the environment, any plain value from a template or YAML) and the
:class:`Scene` it is read in; it returns the typed value or raises ValueError with what is wrong, without saying where: the caller knows
which setting it was and where the value stood.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloudtask.hook_syntax import check_hook
from cloudtask.model import Halt
from cloudtask.units import parse_duration, parse_size
from cloudtask.worker_file import parse_workers

YES = ("yes", "true", "1", "on")
NO = ("no", "false", "0", "off")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HALT = re.compile(r"(now|soon),fail=(\d{1,9})(%?)")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a value may refer to: the folder that its relative paths count from, and the environment that names are looked up in."""

    folder: str
    environ: Mapping[str, str]


Parser = Callable[[object, Scene], Any]


def text(value: object, scene: Scene) -> str | None:
    """Any text but NUL; empty text is None, so that ``--pre=`` takes back what a template sets."""
    if not isinstance(value, str):
        raise ValueError("must be text")
    if "\0" in value:
        raise ValueError("has a NUL byte in it")
    return value or None


def word(value: object, scene: Scene) -> str | None:
    """A name without blanks and control characters, that no program takes for an option."""
    found = text(str(value) if isinstance(value, int) and not isinstance(value, bool) else value, scene)
    if found and (found.startswith("-") or not found.isprintable() or any(c.isspace() for c in found)):
        raise ValueError("must be one word without blanks that does not begin with '-'")
    return found


def flag(value: object, scene: Scene) -> bool:
    """yes or no, in the usual ways to say it."""
    if isinstance(value, bool):
        return value
    said = str(value).strip().lower() if isinstance(value, (str, int)) else ""
    if said in YES:
        return True
    if said in NO:
        return False
    raise ValueError("neither yes nor no (yes, true, 1; no, false, 0)")


def whole(least: int) -> Parser:
    """A whole number of at least ``least``."""

    def parse(value: object, scene: Scene) -> int:
        number = value if isinstance(value, int) and not isinstance(value, bool) else _digits(value)
        if number is None or number < least:
            raise ValueError(f"not a whole number from {least}")
        return number

    return parse


def _digits(value: object) -> int | None:
    stripped = value.strip() if isinstance(value, str) else ""
    return int(stripped) if re.fullmatch(r"[+-]?[0-9]{1,18}", stripped) else None


def slots(value: object, scene: Scene) -> int:
    """A whole number from 1, or ``auto``, which is 0 here: one for each CPU."""
    if value == "auto":
        return 0
    number = value if isinstance(value, int) and not isinstance(value, bool) else _digits(value)
    if number is None or number < 1:
        raise ValueError("neither a whole number from 1 nor 'auto'")
    return number


def write_slots(value: int | None) -> object:
    """What :func:`slots` reads."""
    return "auto" if value == 0 else value


def duration(value: object, scene: Scene) -> float:
    """Seconds, from ``90``, ``90s``, ``15m``, ``2h``, ``1d``; numbers of a template or of YAML are seconds."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if value < 0 or not math.isfinite(value):
            raise ValueError("not a duration: must be 0 or more seconds")
        return float(value)
    if not isinstance(value, str):
        raise ValueError("not a duration (90, 90s, 15m, 2h, 1d)")
    return float(parse_duration(value))


def some_duration(value: object, scene: Scene) -> float:
    """A duration that cannot be none."""
    seconds = duration(value, scene)
    if seconds <= 0:
        raise ValueError("must be longer than 0")
    return seconds


def size(value: object, scene: Scene) -> int:
    """Bytes, from ``4096``, ``100K``, ``1G``."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if not isinstance(value, str):
        raise ValueError("not a size (4096, 100K, 20M, 1G)")
    return int(parse_size(value))


def money(value: object, scene: Scene) -> float:
    """US dollars: ``5``, ``0.25``, ``$5``; more than none."""
    said = str(value).strip().removeprefix("$") if isinstance(value, (str, int, float)) and not isinstance(value, bool) else ""
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", said) or not float(said):
        raise ValueError("not an amount of dollars (5, 0.25)")
    return float(said)


def choice(*words: str) -> Parser:
    """One of ``words``."""

    def parse(value: object, scene: Scene) -> str:
        if value not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return str(value)

    return parse


def halt(value: object, scene: Scene) -> Halt | None:
    """``now,fail=N``, ``soon,fail=N%``, or ``never`` (None)."""
    if value in ("never", "", False):
        return None
    match = _HALT.fullmatch(value.replace(" ", "")) if isinstance(value, str) else None
    if not match:
        raise ValueError("not a halt policy: never, or now|soon,fail=N or N%, as in soon,fail=10%")
    number, percent = int(match[2]), bool(match[3])
    if number < 1 or (percent and number > 100):
        raise ValueError("the limit of failures must be 1 or more" + (", and at most 100%" if percent else ""))
    return Halt(now=match[1] == "now", count=None if percent else number, percent=float(number) if percent else None)


def write_halt(value: Halt) -> str:
    """The text that :func:`halt` reads."""
    limit = f"{value.percent:g}%" if value.percent is not None else str(value.count)
    return f"{'now' if value.now else 'soon'},fail={limit}"


def workers(value: object, scene: Scene) -> Any:
    """See :mod:`cloudtask.worker_file`."""
    return parse_workers(value, scene.folder)


def _texts(value: object) -> Sequence[str]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
        raise ValueError("must be text or a list of texts")
    return [item for item in items if item]


def hooks(value: object, scene: Scene) -> tuple[str, ...]:
    """Reporting hooks; see :mod:`cloudtask.hook_syntax`."""
    return tuple(check_hook(item, scene.folder) for item in _texts(value))


def variables(value: object, scene: Scene) -> tuple[str, ...]:
    """``NAME=VALUE`` for each; a bare ``NAME`` is looked up now.  A mapping of a template or of YAML is taken too."""
    if isinstance(value, Mapping):
        value = [name if content is None else f"{name}={content}" for name, content in value.items()]
    return tuple(_variable(item, scene.environ) for item in _texts(value))


def _variable(item: str, environ: Mapping[str, str]) -> str:
    name, equals, content = item.partition("=")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a variable")
    if name.startswith("CLOUDTASK_"):
        raise ValueError(f"{name} is not yours to set: jobs get CLOUDTASK_* from cloudtask")
    if "\0" in content:
        raise ValueError(f"{name} has a NUL byte in it")
    if not equals and name not in environ:
        raise ValueError(f"{name} is not set in the environment; set it, or give {name}=VALUE")
    # A bare name stays one: its value may be a secret, and is looked up when a run begins, never saved.
    return item


def _path(value: object, scene: Scene) -> str | None:
    given = text(os.fspath(value) if isinstance(value, os.PathLike) else value, scene)
    return os.path.abspath(os.path.join(scene.folder, os.path.expanduser(given))) if given else None


def path(value: object, scene: Scene) -> str:
    """Where something is or will be: absolute, ``~`` expanded."""
    found = _path(value, scene)
    if not found:
        raise ValueError("must name a directory")
    return found


def directory(value: object, scene: Scene) -> str | None:
    """An existing directory."""
    found = _path(value, scene)
    if found and not os.path.isdir(found):
        raise ValueError(f"no directory {found}")
    return found


def new_file(value: object, scene: Scene) -> str | None:
    """A file that does not exist yet, in a directory that does."""
    found = _path(value, scene)
    if found and os.path.lexists(found):
        raise ValueError(f"{found} exists already; name a new file")
    if found and not os.path.isdir(os.path.dirname(found)):
        raise ValueError(f"no directory {os.path.dirname(found)}")
    return found


def readable_file(value: object, scene: Scene) -> str | None:
    """An existing file that can be read."""
    found = _path(value, scene)
    if found and not os.path.isfile(found):
        raise ValueError(f"no file {found}")
    if found and not os.access(found, os.R_OK):
        raise ValueError(f"{found} cannot be read; check who owns it and its mode")
    return found


@dataclass(frozen=True, kw_only=True)
class CommandWords:
    """A command's words; ``code`` says that the first one is shell code, and those behind it are words that are added to it."""

    words: tuple[str, ...]
    code: bool


def command(value: object, scene: Scene) -> CommandWords:
    """Text is shell code, and so is a list of one; a list of several is words.  A mapping has ``code`` and ``words`` behind it."""
    words = _command_words(value)
    if any("\0" in item for item in words):
        raise ValueError("has a NUL byte in it")
    if not any(item.strip() for item in words):
        raise ValueError("is empty")
    return CommandWords(words=tuple(words), code=isinstance(value, (str, Mapping)) or len(words) == 1)


def _command_words(value: object) -> list[str]:
    words: object = [value] if isinstance(value, str) else value
    if isinstance(value, Mapping) and value.keys() == {"code", "words"} and isinstance(value["words"], (list, tuple)):
        words = [value["code"], *value["words"]]
    if not isinstance(words, (list, tuple)) or not all(isinstance(item, str) for item in words):
        raise ValueError("must be text (shell code) or a list of words")
    return list(words)


def write_command(value: CommandWords) -> object:
    """The plain value that :func:`command` reads."""
    if not value.code:
        return list(value.words)
    return value.words[0] if len(value.words) == 1 else {"code": value.words[0], "words": list(value.words[1:])}
