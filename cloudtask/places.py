"""Where launched machines may be: providers, each with the settings that say which region, account or engine is meant.

They come from a command line with its environment and configuration, and from the sessions that launched machines.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from dataclasses import dataclass

import cloudtask.settings_sources as sources
from cloudtask import providers
from cloudtask.errors import CloudtaskError
from cloudtask.instances.sessions_here import SessionsHere
from cloudtask.providers import Provider
from cloudtask.providers.libcloud_names import DRIVERS
from cloudtask.settings import Settings
from cloudtask.task import Request, read_layers, read_settings, saved_settings

HUB = "hub"
_EC2 = ("ec2", HUB)
_CLOUDS = ("linode", "openstack", "libcloud", *DRIVERS)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A provider, and the settings that it is made with."""

    provider: str
    settings: Settings

    def make(self) -> Provider:
        """A fresh object.  Raises UsageError."""
        return providers.find(self.provider)(self.settings)

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for places that are the same, as far as settings tell."""
        settings = self.settings
        region = (settings.ec2_region, settings.hub_apikey) if self.provider in _EC2 else ()
        return self.provider, region, repr(sorted((name, value) for name, value in settings.extra.items() if value))

    def __str__(self) -> str:
        return f"{self.provider} {self.settings.ec2_region}" if self.provider in _EC2 else self.provider


class Places:
    """Makes places.  ``warnings`` are about the environment.  Raises UsageError for settings that cannot be read."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._layers, self.warnings = read_layers(request)
        values = read_settings(request, self._layers)
        self._settings = values.settings
        # Who destroys by hand does not wait for a host's idle time.
        self._idle = 0.0 if values.sources.get("idle-timeout") != sources.COMMAND_LINE else values.settings.idle_timeout

    @property
    def sessions(self) -> str:
        """The directory of sessions."""
        return self._settings.sessions

    def named(self, provider: str, region: str = "") -> Place:
        """A provider as command line, environment and configuration have it; ``region`` is where its machine was launched."""
        changes: dict[str, object] = {"provider": provider, "idle_timeout": self._idle}
        if region and provider in _EC2:
            changes["ec2_region"] = region
        elif region and provider in _CLOUDS:
            changes["extra"] = {**self._settings.extra, "cloud_region": region}
        return Place(provider=provider, settings=dataclasses.replace(self._settings, **changes))  # type: ignore[arg-type]  # by name

    def configured(self) -> list[Place]:
        """The provider that is configured; none where none is."""
        provider = self._settings.provider or (HUB if self._settings.hub_apikey else None)
        return [self.named(provider)] if provider else []

    def of_session(self, root: str, provider: str) -> Place:
        """The provider of the session in the directory ``root``, as that session used it.  Raises CloudtaskError."""
        given = {**self._request.parsed.values, "sessions": os.path.dirname(root)}
        layers = [sources.command_line_layer(given, self._request.folder), *self._layers[1:]]
        _, values = saved_settings(self._request, layers, os.path.basename(root))
        return Place(provider=provider, settings=dataclasses.replace(values.settings, provider=provider, idle_timeout=self._idle))

    def all_known(self, here: SessionsHere) -> tuple[list[Place], list[str]]:
        """The configured one and those of the sessions here, each once; and why some cannot be had."""
        found, complaints = self.configured(), []
        for root, provider in here.customers():
            try:
                found.append(self.of_session(root, provider))
            except CloudtaskError as error:
                complaints.append(f"{root}: {error}")
        return unique(found), complaints


def unique(places: Iterable[Place]) -> list[Place]:
    """Each place once."""
    return list({place.key: place for place in places}.values())
