"""What a provider is: where machines come from, and the contract that each one keeps.

A provider is a class made with the run's settings, ``Provider(settings)``, found by name through the entry point group
``cloudtask.providers`` (see `cloudtask.providers.find`).  Making one is cheap and asks nobody; it raises UsageError where settings
are missing or wrong, or where a package that it needs is not installed (naming the package).  An object is used by one thread at a
time; the main process has several objects, and one of them may be in the middle of a slow call for ever.

**The contract.**

* Everything that was made carries its `Tags`, in the call that makes it: a machine that exists without them is a machine that leaks.
* ``launch`` is idempotent by the order's token: asked again with an equal order it makes only what is missing of it, and answers
  with all of it.  Where the provider's API cannot do that, ``launch`` first looks for what carries the token.
* Machines are known by the provider's id, never by address.  An id may be written down, read by another process a week later, and
  asked for on another day: it says all that is needed to find the machine again with the same settings.
* An answer is either certain, or an exception.  ``GONE`` means that the provider says that the machine is destroyed, and costs
  nothing any more; ``ABSENT`` that the provider knows nothing of that id.  A machine just made may be absent for
  `Abilities.settles` seconds, so absent is gone only after that.
* ``destroy`` asks for destruction and returns at once.  It is silent about what is gone or being destroyed already, and goes through
  all ids before it raises for one.  Disks, addresses and names that were made with the machine go with it.
* Errors: ProviderRefusedError where the provider said no (credentials, quota, no such size) and nothing was done; everything else
  (no answer, a time limit, throttling, HTTP 5xx, an answer that makes no sense) is ProviderBusyError: the thing may have been done.
  Nothing else is raised.  A message is one line that names the provider and its own words, and never holds a credential.
* Every call ends within a minute or so: SDKs are told their time limits.  Providers do not retry for longer than some seconds
  themselves; who called them does.
* What a provider answers is not trusted: ids, addresses and tags are checked before they get here (`Instance` refuses what is none).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from cloudtask.errors import ProviderRefusedError

TAG = "cloudtask"
"""The tag that every machine of ours carries; its value is the session's unique id."""

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,62}", re.ASCII)
_ID = re.compile(r"[!-~]{1,200}", re.ASCII)
_HOST = re.compile(r"(?:::)?[A-Za-z0-9_][A-Za-z0-9_.:%-]{0,252}", re.ASCII)
_HOST_KEY = re.compile(r"[a-z0-9@.-]{1,60} [A-Za-z0-9+/]{16,2000}={0,3}", re.ASCII)


class InstanceState(enum.Enum):
    """Where a machine stands, as its provider says."""

    PENDING = "pending"
    """Being made or started."""
    RUNNING = "running"
    """It runs; it may still be booting.  It has an address, now or soon."""
    STOPPED = "stopped"
    """It exists and does not run; what that costs is the provider's affair."""
    LEAVING = "leaving"
    """It is being destroyed."""
    GONE = "gone"
    """It is destroyed."""
    ABSENT = "absent"
    """The provider knows no such id, now."""


@dataclass(frozen=True, kw_only=True)
class Tags:
    """What is written on a machine: whose it is, and until when.

    ``session`` is the session's unique id, ``controller`` the machine that runs it, ``token`` the order's; letters, digits and dashes,
    63 at most.  ``expires`` is in seconds since 1970: nobody else touches the machine before an hour after that.
    """

    session: str
    controller: str
    token: str
    expires: int

    def __post_init__(self) -> None:
        for part in (self.session, self.controller, self.token):
            if not _PART.fullmatch(part):
                raise ValueError(f"not a tag's value: {part!r}")

    def as_dict(self) -> dict[str, str]:
        """As tags or labels: ``{"cloudtask": session, "cloudtask-controller": .., "cloudtask-token": .., "cloudtask-expires": "17.."}``."""
        rest = {"controller": self.controller, "token": self.token, "expires": str(self.expires)}
        return {TAG: self.session} | {f"{TAG}-{key}": value for key, value in rest.items()}

    @classmethod
    def from_dict(cls, found: Mapping[str, str]) -> Tags | None:
        """Of a machine's tags; None where they are not ours, or not whole."""
        try:
            return cls(
                session=found[TAG],
                controller=found[f"{TAG}-controller"],
                token=found[f"{TAG}-token"],
                expires=int(found[f"{TAG}-expires"]),
            )
        except (KeyError, ValueError, TypeError):
            return None

    def as_text(self) -> str:
        """In one word, for providers that have a name or a note only: ``cloudtask.SESSION.CONTROLLER.TOKEN.EXPIRES``."""
        return ".".join((TAG, self.session, self.controller, self.token, str(self.expires)))

    @classmethod
    def from_text(cls, text: str) -> Tags | None:
        """Of a text that begins with what `as_text` made (more may follow behind a blank or ``.``); None where it does not."""
        parts = text.split(" ", 1)[0].split(".")
        if len(parts) < 5 or parts[0] != TAG:
            return None
        return cls.from_dict({TAG: parts[1], f"{TAG}-controller": parts[2], f"{TAG}-token": parts[3], f"{TAG}-expires": parts[4]})


@dataclass(frozen=True, kw_only=True)
class Order:
    """So many machines, all alike.  Equal orders have equal tokens, and the other way round.

    ``label`` is for people (``Cloudtask: command``).  ``public_key`` is the key line to be authorised for the login; ``user_data`` is
    cloud-init's ``#cloud-config`` text that does so, gives the machine its host key and starts its timer.  ``host_key`` is the public
    half of that host key (``ssh-ed25519 AAAA...``), and ``timer`` the timer's shell script, for providers that start it in another way.
    """

    count: int
    tags: Tags
    label: str = "Cloudtask"
    public_key: str | None = None
    host_key: str | None = None
    user_data: str = ""
    timer: str = ""

    @property
    def token(self) -> str:
        """What makes it one order."""
        return self.tags.token


@dataclass(frozen=True, kw_only=True)
class Instance:
    """A machine as its provider describes it.  Raises ValueError on what can be no id, address or key.

    ``host`` is None until there is an address; ``transport`` names the transport that reaches it where ssh does not; ``user`` is the
    login of its image where the provider knows it.  ``host_key`` is the only key that it may show, where the provider vouches for
    it.  ``reclaimed`` says why the provider is about to take it away or took it; ``note`` is the provider's own word on its state.
    ``created`` is in seconds since 1970, 0 where unknown.  ``slots`` is how many jobs it takes at a time, where the provider knows.
    """

    id: str
    state: InstanceState
    host: str | None = None
    port: int | None = None
    user: str | None = None
    transport: str | None = None
    host_key: str | None = None
    tags: Tags | None = None
    region: str = ""
    size: str = ""
    created: float = 0.0
    reclaimed: str = ""
    note: str = ""
    slots: int | None = None

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise ValueError(f"not an instance's id: {self.id!r}")
        if self.host is not None and not _HOST.fullmatch(self.host):
            raise ValueError(f"not an address: {self.host!r}")
        if self.host_key is not None and not _HOST_KEY.fullmatch(self.host_key):
            raise ValueError(f"not a host key: {self.host_key[:60]!r}")

    @property
    def exists(self) -> bool:
        """It is there, in whatever state."""
        return self.state not in (InstanceState.GONE, InstanceState.ABSENT)


class Launched(NamedTuple):
    """The answer to an order: the machines it has, all of them.

    ``refusal`` says why they are fewer than ordered and no more will come.  ``certain`` is False where more may have been made than
    these: the order stays open and is asked for again.
    """

    instances: list[Instance]
    refusal: str = ""
    certain: bool = True


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """What a provider can do.  What it cannot is said in the confirmation table, and made up for where that is possible.

    ``idempotent``: the provider itself makes an order once however often it gets it (else the caller waits ``settles`` seconds before
    it asks again).  ``tags``: machines carry their tags from the create call on; ``retags``: they can be changed afterwards.
    ``host_key``: the machine gets the host key of the order (or is reached without one, as a container is); ``console_key``: its host
    keys can be read from its console.  ``timer``: the machine ends itself when nobody uses it.  ``power_off_ends_billing``: that is
    the end of the costs too.  ``settles``: seconds for which a new machine may be absent from answers.  ``destroys``: False where
    machines are stopped, later perhaps, and not destroyed.
    """

    idempotent: bool = False
    tags: bool = True
    retags: bool = False
    host_key: bool = False
    console_key: bool = False
    timer: bool = False
    power_off_ends_billing: bool = False
    settles: float = 0.0
    doubt: float = 900.0
    destroys: bool = True


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What one machine will be.  ``price`` is US dollars an hour, None where unknown; ``minimum`` the seconds billed at least, and
    ``quantum`` the seconds billed at a time; ``rows`` are further lines for the confirmation table."""

    size: str = ""
    region: str = ""
    price: float | None = None
    minimum: float = 60.0
    quantum: float = 1.0
    rows: Mapping[str, str] = field(default_factory=dict)
    transport: str = "ssh"


class Provider(Protocol):
    """See the module for the contract."""

    name: str
    abilities: Abilities

    def offer(self) -> Offer:
        """What ``launch`` would make, from settings and tables; asks the provider at most what is free and quick.

        Raises UsageError for settings that cannot be (a size that is none), ProviderError.
        """

    def launch(self, order: Order) -> Launched:
        """Make the machines of an order.  Raises ProviderRefusedError (none is made), ProviderBusyError (some may be)."""

    def describe(self, ids: Sequence[str]) -> list[Instance]:
        """How each of ``ids`` stands, in their order and in one call where the provider can; unknown ones are ABSENT."""

    def destroy(self, ids: Sequence[str]) -> None:
        """Ask for the end of these machines and all that was made with them."""

    def find(self, session: str | None = None) -> list[Instance]:
        """Every machine that exists with the tag of ``session``, or (None) with any tag of ours, all pages of it.  The provider's truth."""

    def renew(self, ids: Sequence[str], tags: Tags) -> None:
        """Write new tags on machines; ``token`` of each stays what it is.  Only asked of providers that ``retags``."""

    def console_keys(self, id: str) -> list[str]:
        """The host keys (``ssh-ed25519 AAAA...``) that the machine's console shows so far.  Only asked where ``console_key``."""


def shortcomings(abilities: Abilities) -> list[str]:
    """What a provider cannot do, in words for people; empty where it can do it all."""
    said = [
        (abilities.idempotent, "an order whose answer is lost is looked for before it is given again"),
        (abilities.tags, "machines carry no tags: they are known by what is written down here only"),
        (abilities.retags, "tags cannot be renewed: another controller's machines are listed, never destroyed"),
        (abilities.host_key or abilities.console_key, "the host key is not verified at first contact, and pinned then"),
        (abilities.timer, "the timer that ends a machine which nobody uses starts at first contact, and as root only"),
        (abilities.power_off_ends_billing, "a machine that is powered off still costs, until it is destroyed"),
    ]
    return [text for can, text in said if not can]


def chosen(found: Iterable[Instance], session: str | None) -> list[Instance]:
    """Of what a provider lists, what exists and carries the tag of ``session``, or (None) any tag of ours."""
    return [each for each in found if each.exists and each.tags and session in (None, each.tags.session)]


def absent(provider: str, id: str) -> Instance:
    """The answer for an id that a provider knows nothing of.  Raises ProviderRefusedError where it can be none (a file said it)."""
    try:
        return Instance(id=id, state=InstanceState.ABSENT)
    except ValueError as error:
        raise ProviderRefusedError(f"{provider}: {error}") from None
