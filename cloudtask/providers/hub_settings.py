"""The hub's own setting beside the common ones: where it is, for tests and for who runs one of his own."""

from __future__ import annotations

from cloudtask import kinds
from cloudtask.providers.web_address import checked_url
from cloudtask.settings import Row

DEFAULT_URL = "https://hub.turnkeylinux.org/api/"


def hub_url(value: object, scene: kinds.Scene) -> str | None:
    """An address of the web with a slash at its end.  The API key travels there: without TLS to this machine only."""
    text = kinds.word(value, scene)
    if text is None:
        return None
    return f"{checked_url(text)}/"


ROWS = [
    Row(
        name="hub_url",
        parse=hub_url,
        default=None,
        help="address of the TurnKey Hub's API",
        metavar="URL",
        group="Launched workers: hub",
        shown_default="the Hub's own",
    ),
    Row(
        name="install_updates",
        parse=kinds.flag,
        default=False,
        help="let the Hub install security updates at the first boot",
        metavar="",
        group="Launched workers: hub",
    ),
]
