"""The settings of the ``fake`` provider."""

from __future__ import annotations

from typing import Any

from cloudtask import kinds
from cloudtask.kinds import Scene
from cloudtask.providers.fake_faults import parse_faults
from cloudtask.settings import Row

GROUP = "Launched workers: fake"


def _faults(value: object, scene: Scene) -> str | None:
    """The text as it stands, once it can be read."""
    text = kinds.text(value, scene)
    parse_faults(text or "")
    return text


def _row(name: str, parse: kinds.Parser, default: Any, metavar: str, help: str, *, shown: str = "") -> Row:
    return Row(name=name, parse=parse, default=default, metavar=metavar, help=help, group=GROUP, shown_default=shown)


ROWS = [
    _row("fake_kind", kinds.choice("ssh", "local"), "ssh", "ssh|local", "machines are private sshd's, or reached without ssh"),
    _row("fake_state", kinds.path, None, "PATH", "where the machines are kept", shown="~/.local/state/cloudtask/fake"),
    _row(
        "fake_faults",
        _faults,
        None,
        "FAULTS",
        "what goes wrong: slow-boot=30s,never-boots=1,... (see cloudtask-providers)",
        shown="nothing",
    ),
    _row("fake_price", kinds.money, None, "DOLLARS", "what a machine costs an hour, as it were", shown="nothing"),
    _row("fake_capacity", kinds.whole(0), None, "NUM", "how many machines there can be", shown="as many as are asked for"),
    _row("fake_settles", kinds.duration, 0.0, "DURATION", "for how long a new machine is absent from answers", shown="0s"),
    _row("fake_forgetful", kinds.flag, False, "", "launching is not idempotent: an order asked for again is not recognised by its token"),
    _row(
        "fake_host_key",
        kinds.choice("order", "console", "none"),
        "order",
        "order|console|none",
        "the host key: the chosen one, one that the console shows, or one that nobody tells",
    ),
]
