"""Hosts that are EC2 instances: started and stopped by id.  A stopped one costs its disks only; its address changes with each start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cloudtask.errors import ProviderBusyError, ProviderRefusedError
from cloudtask.printable import sanitize
from cloudtask.providers.base import InstanceState
from cloudtask.providers.hosts_power import Standing, Switch

STATES = {
    "pending": InstanceState.PENDING,
    "running": InstanceState.RUNNING,
    "stopping": InstanceState.LEAVING,
    "stopped": InstanceState.STOPPED,
    "shutting-down": InstanceState.GONE,
    "terminated": InstanceState.GONE,
}
"""The words of DescribeInstances; what is being terminated never will run again."""

LATER = ("RequestLimitExceeded", "Throttling", "InsufficientInstanceCapacity", "IncorrectInstanceState", "InternalError", "Unavailable")
"""Codes of refusals that another time may not see."""


class Ec2Power:
    """See `cloudtask.providers.hosts_power.Power`."""

    certain = True

    def __init__(self, switch: Switch) -> None:
        self._switch = switch
        self._made: Any = None

    def look(self) -> Standing:
        """See `Power`."""
        with self._talk():
            # A filter: an id that is unknown is no error then, and one that is none at all neither.
            answer = self._client().describe_instances(Filters=[{"Name": "instance-id", "Values": [self._switch.options["id"]]}])
            found = [instance for reservation in answer["Reservations"] for instance in reservation["Instances"]]
            if not found:
                return Standing(InstanceState.ABSENT, note=f"no instance {self._switch.options['id']}")
            word = found[0]["State"]["Name"]
        address = self._switch.address or found[0].get("PublicIpAddress") or found[0].get("PrivateIpAddress")
        return Standing(STATES.get(word, InstanceState.PENDING), address, note=sanitize(str(word)))

    def start(self) -> None:
        """See `Power`."""
        with self._talk():
            self._client().start_instances(InstanceIds=[self._switch.options["id"]])

    def stop(self, waited: float) -> None:
        """See `Power`."""
        with self._talk():
            self._client().stop_instances(InstanceIds=[self._switch.options["id"]])

    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        if self._made is None:
            options = self._switch.options
            # A session of its own: the default one is not for several threads.
            session = boto3.session.Session(profile_name=options.get("profile"), region_name=options.get("region"))
            limits = Config(connect_timeout=10, read_timeout=20, retries={"max_attempts": 2, "mode": "standard"})
            self._made = session.client("ec2", config=limits)
        return self._made

    @contextmanager
    def _talk(self) -> Iterator[None]:
        """The errors of Amazon, and of those who carry the questions there, in our words."""
        from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

        try:
            yield
        except ClientError as error:
            found, status = error.response.get("Error", {}), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
            refused = 400 <= status < 500 and found.get("Code") not in LATER
            raise self._trouble(f"{found.get('Code')}: {found.get('Message')}", refused) from None
        except (ConnectionError, HTTPClientError) as error:
            raise self._trouble(error, False) from None
        except BotoCoreError as error:  # no region, no credentials, no such profile
            raise self._trouble(error, True) from None
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise self._trouble(f"an answer that makes no sense ({error})", False) from None

    def _trouble(self, said: object, refused: bool) -> ProviderRefusedError | ProviderBusyError:
        kind = ProviderRefusedError if refused else ProviderBusyError
        return kind(f"hosts: {self._switch.name}: ec2: {' '.join(sanitize(str(said)).split())[:300]}")
