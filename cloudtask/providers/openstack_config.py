"""Who we are for an OpenStack: from our own file, from OpenStack's ``clouds.yaml``, or from the variables ``OS_*``.

Our file names ``auth_url`` with ``username``, ``password``, ``project`` (and ``user_domain``, ``project_domain_id``), or with
``application_credential_id`` and ``application_credential_secret``; or ``os_cloud``, an entry of OpenStack's file.  Without any of
these ``OS_CLOUD`` counts, then ``OS_AUTH_URL`` and its like.  OpenStack's files are looked for where its own tools do
(https://docs.openstack.org/openstacksdk/latest/user/config/configuration.html).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from cloudtask.errors import UsageError
from cloudtask.providers.libcloud_config import Cloud, load_yaml

_FROM_OPENSTACK = {
    "auth_url": "auth_url",
    "username": "username",
    "password": "password",
    "project": "project_name",
    "user_domain": "user_domain_name",
    "user_domain_id": "user_domain_id",
    "project_domain": "project_domain_name",
    "project_domain_id": "project_domain_id",
    "application_credential_id": "application_credential_id",
    "application_credential_secret": "application_credential_secret",
    "region": "region_name",
    "cacert": "cacert",
}
"""Our word -> that of OpenStack's files; in capitals behind ``OS_`` that of its variables."""

DEFAULT_DOMAIN = ("default", "Default")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Where Keystone is (without ``/v3``), and who we are there.  Without a project it is an application credential."""

    auth_url: str
    user: str
    secret: str = field(repr=False)
    project: str | None = None
    user_domain: str = "Default"
    project_domain_id: str = "default"
    region: str | None = None
    cacert: str | None = None

    def words(self) -> dict[str, str]:
        """What libcloud's driver is told."""
        words = {"ex_force_auth_url": self.auth_url, "ex_force_auth_version": "3.x_appcred"}
        if self.project is not None:
            words |= {
                "ex_force_auth_version": "3.x_password",
                "ex_tenant_name": self.project,
                "ex_domain_name": self.user_domain,
                "ex_tenant_domain_id": self.project_domain_id,
            }
        return words


def read_identity(cloud: Cloud, environ: Mapping[str, str]) -> Identity:
    """Who we are.  Raises UsageError naming what is missing."""
    said, where = _said(cloud, environ)
    url = said.get("auth_url") or cloud.endpoint
    if not url:
        raise cloud.error(f"no credentials: set OS_CLOUD or OS_AUTH_URL and its like, or put them into {cloud.place}")
    region, cacert = cloud.region or said.get("region"), cloud.cacert or said.get("cacert")
    if user := said.get("application_credential_id"):
        secret = _need(cloud, said, "application_credential_secret", where)
        return Identity(auth_url=_root(url), region=region, cacert=cacert, user=user, secret=secret)
    return Identity(
        auth_url=_root(url),
        region=region,
        cacert=cacert,
        user=_need(cloud, said, "username", where),
        secret=_need(cloud, said, "password", where),
        project=_need(cloud, said, "project", where),
        user_domain=_user_domain(cloud, said),
        project_domain_id=_project_domain(cloud, said),
    )


def _said(cloud: Cloud, environ: Mapping[str, str]) -> tuple[Mapping[str, str], str]:
    """What is said, and where: all of it comes from one place."""
    if "auth_url" in cloud.text or (cloud.endpoint and "os_cloud" not in cloud.text):
        return cloud.text, cloud.place
    if name := cloud.text.get("os_cloud") or environ.get("OS_CLOUD"):
        return _from_file(name, environ)
    found = {ours: environ.get(f"OS_{theirs.upper()}", "") for ours, theirs in _FROM_OPENSTACK.items()}
    found["project"] = found["project"] or environ.get("OS_TENANT_NAME", "")
    return {key: value for key, value in found.items() if value}, "the variables OS_*"


def _from_file(name: str, environ: Mapping[str, str]) -> tuple[Mapping[str, str], str]:
    path = next(filter(os.path.isfile, _paths(environ)), None)
    if path is None:
        raise UsageError(f"openstack: no clouds.yaml for the cloud {name!r}: name the file with OS_CLIENT_CONFIG_FILE")
    entry = _entry(path, name)
    if entry is None:
        raise UsageError(f"{path}: there is no cloud {name!r}: see OS_CLOUD, or os_cloud in our own file")
    hidden = _entry(os.path.join(os.path.dirname(path), "secure.yaml"), name) or {}
    return {**entry, **hidden}, f"{path}: {name}"


def _paths(environ: Mapping[str, str]) -> list[str]:
    named = environ.get("OS_CLIENT_CONFIG_FILE")
    folders = (".", os.path.expanduser("~/.config/openstack"), "/etc/openstack")
    return [named] if named else [os.path.join(folder, name) for folder in folders for name in ("clouds.yaml", "clouds.yml")]


def _entry(path: str, name: str) -> dict[str, str] | None:
    try:
        with open(path, encoding="utf-8") as file:
            clouds = load_yaml(path, file.read()).get("clouds")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'it is no UTF-8'}") from None
    entry = clouds.get(name) if isinstance(clouds, dict) else None
    if entry is None:
        return None
    auth = entry.get("auth", {}) if isinstance(entry, dict) else None
    if not isinstance(auth, dict):
        raise UsageError(f"{path}: {name}: must be a mapping with one called auth")
    flat = {**{key: value for key, value in entry.items() if key != "auth"}, **auth}
    return {ours: str(flat[theirs]) for ours, theirs in _FROM_OPENSTACK.items() if flat.get(theirs)}


def _need(cloud: Cloud, said: Mapping[str, str], key: str, where: str) -> str:
    if not said.get(key):
        raise cloud.error(f"no {key.replace('_', ' ')} in {where}")
    return said[key]


def _root(url: str) -> str:
    """Without the version, which libcloud adds by itself."""
    if not re.match(r"https?://[^/@?#]+", url):
        raise UsageError("openstack: auth_url: not an address like https://cloud.example.org:5000/v3")
    return re.sub(r"/(v2\.0|v3)?/*\Z", "", url)


def _user_domain(cloud: Cloud, said: Mapping[str, str]) -> str:
    if said.get("user_domain"):
        return said["user_domain"]
    if said.get("user_domain_id", "default") not in DEFAULT_DOMAIN:
        raise cloud.error("libcloud wants the user's domain by its name: set OS_USER_DOMAIN_NAME, or user_domain")
    return "Default"


def _project_domain(cloud: Cloud, said: Mapping[str, str]) -> str:
    if said.get("project_domain_id"):
        return said["project_domain_id"]
    if said.get("project_domain", "Default") not in DEFAULT_DOMAIN:
        raise cloud.error("libcloud wants the project's domain by its id: set OS_PROJECT_DOMAIN_ID, or project_domain_id")
    return "default"
