"""The settings of the docker provider."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from cloudtask import kinds
from cloudtask.settings import Row

GROUP = "Launched workers: docker"

_CPUS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,9})?")
_VOLUME = re.compile(r"(?P<source>[^:]+):(?P<target>/[^:]*)(:(?P<mode>ro|rw))?")
_VOLUME_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def cpus(value: object, scene: kinds.Scene) -> float:
    """How many CPUs, or parts of them: ``2``, ``0.5``."""
    said = str(value).strip() if isinstance(value, (str, int, float)) and not isinstance(value, bool) else ""
    if not _CPUS.fullmatch(said) or not float(said):
        raise ValueError("not a number of CPUs (2, 0.5)")
    return float(said)


def volumes(value: object, scene: kinds.Scene) -> tuple[str, ...]:
    """``HOST:CONTAINER`` or ``HOST:CONTAINER:ro`` for each; HOST is a path (made absolute) or the name of a volume."""
    items: object = [value] if isinstance(value, str) else value
    if not isinstance(items, Sequence) or not all(isinstance(item, str) for item in items):
        raise ValueError("must be text or a list of texts")
    return tuple(_volume(item, scene.folder) for item in items if item)


def _volume(item: str, folder: str) -> str:
    match = _VOLUME.fullmatch(item)
    if not match or "\0" in item:
        raise ValueError(f"{item!r} is not HOST:CONTAINER or HOST:CONTAINER:ro, with CONTAINER an absolute path")
    source = match["source"]
    if source.startswith(("/", "~", ".")):
        source = os.path.abspath(os.path.join(folder, os.path.expanduser(source)))
    elif not _VOLUME_NAME.fullmatch(source):
        raise ValueError(f"{item!r}: {source!r} is neither a volume's name nor a path that begins with /, ~ or .")
    return f"{source}:{match['target']}" + (":ro" if match["mode"] == "ro" else "")


ROWS = [
    Row(
        name="docker_image",
        parse=kinds.word,
        default=None,
        help="image to launch, such as debian:12; pulled once",
        metavar="IMAGE",
        group=GROUP,
    ),
    Row(
        name="docker_cpus",
        parse=cpus,
        default=None,
        help="CPUs that a container may use",
        metavar="NUM",
        group=GROUP,
        shown_default="all of the engine's",
    ),
    Row(
        name="docker_memory",
        parse=kinds.size,
        default=None,
        help="memory that a container may use; it gets no swap beyond it",
        metavar="SIZE",
        group=GROUP,
        shown_default="all of the engine's",
    ),
    Row(
        name="docker_volume",
        parse=volumes,
        default=(),
        help="path or volume of the engine's machine to mount; can be given again",
        metavar="HOST:CONTAINER[:ro]",
        group=GROUP,
        repeatable=True,
    ),
    Row(
        name="docker_network",
        parse=kinds.word,
        default=None,
        help="network for the containers: bridge, host, none or a name",
        metavar="NAME",
        group=GROUP,
        shown_default="the engine's default",
    ),
    Row(
        name="docker_ssh",
        parse=kinds.flag,
        default=False,
        help="start the image's sshd and log in by ssh, rather than by exec",
        metavar="",
        group=GROUP,
    ),
]
