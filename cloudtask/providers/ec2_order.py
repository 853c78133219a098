"""An order as EC2's RunInstances wants it: which image, which security groups, disks that go with their machine, tags in the call.

The same order must make the same request each time: EC2 refuses a client token that comes with other words.  All is settled by the
settings but the newest image; see `Ec2Provider.launch` for the day on which a new one comes out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloudtask.errors import ProviderRefusedError, UsageError
from cloudtask.printable import sanitize
from cloudtask.providers.base import Order
from cloudtask.providers.ec2_api import Ec2Api, Ec2RefusedError, nonsense
from cloudtask.settings import Settings

SIZE = "t3.small"
DEBIAN = "136693071363"
"""The account that publishes Debian's images (https://wiki.debian.org/Cloud/AmazonEC2Image)."""
RELEASE = "debian-12"
EBS, INSTANCE_STORE = "ebs", "instance-store"
STORED = {"c1", "c3", "d2", "i2", "m1", "m2", "m3", "r3", "x1"}
"""The families that start from an instance-store image (EC2 User Guide, Root device type)."""
BURSTABLE = ("t3.", "t3a.", "t4g.")

_ARM = re.compile(r"(?:a1|[a-z]+[0-9]+[a-z-]*g[a-z-]*)\..*", re.ASCII)
_DEBIAN_WORDS = {"x86_64": "amd64", "arm64": "arm64"}
_NAME_LIMIT = 255


@dataclass(frozen=True, kw_only=True)
class Image:
    """What a machine is made from.  ``disks`` are the device names of the volumes that come with it, the root device's first."""

    id: str
    name: str
    architecture: str
    root_type: str
    disks: tuple[str, ...]
    created: str


class Recipe:
    """From settings to requests.  Images and groups are looked up once."""

    def __init__(self, api: Ec2Api, settings: Settings) -> None:
        if settings.ami_id and settings.snapshot_id:
            raise UsageError("ec2: --ami-id and --snapshot-id exclude each other: a machine is made from one of them")
        if settings.ec2_type == "s3" and not settings.ami_id:
            raise UsageError("ec2: --ec2-type=s3 needs the --ami-id of an instance-store image: Debian's and those of snapshots are ebs")
        if settings.backup_id is not None:
            raise UsageError("ec2: --backup-id is for --provider=hub: only the TurnKey Hub restores backups")
        self.size = settings.ec2_size or SIZE
        self.spot: bool | float = settings.extra.get("ec2_spot") or False
        self._api = api
        self._settings = settings
        self._subnet: str | None = settings.extra.get("ec2_subnet")
        self._groups: tuple[str, ...] = tuple(settings.extra.get("ec2_security_group") or ())
        self._image: Image | None = None
        self._group_ids: list[str] | None = None

    def request(self, order: Order) -> dict[str, Any]:
        """The parameters of RunInstances.  Raises UsageError, ProviderError."""
        image = self.image()
        parts: dict[str, Any] = {
            "ImageId": image.id,
            "InstanceType": self.size,
            "MinCount": 1,
            "MaxCount": order.count,
            "ClientToken": order.token,
            "UserData": order.user_data,
            # No other request than one with a session token gets at user data and roles: IMDSv2. Two hops: from a container as well.
            "MetadataOptions": {"HttpEndpoint": "enabled", "HttpTokens": "required", "HttpPutResponseHopLimit": 2},
            "TagSpecifications": [{"ResourceType": kind, "Tags": _tags(order)} for kind in self._tagged(image)],
        }
        if image.root_type == EBS:
            # Instance-store machines can do nothing but end, and EC2 refuses to be told so.
            parts["InstanceInitiatedShutdownBehavior"] = "terminate"
            parts["BlockDeviceMappings"] = [{"DeviceName": disk, "Ebs": {"DeleteOnTermination": True}} for disk in image.disks]
        if self._subnet:
            parts["SubnetId"] = self._subnet
        if self._groups:
            parts["SecurityGroupIds"] = self.group_ids()
        if self.spot:
            parts["InstanceMarketOptions"] = _market(self.spot)
        return parts

    def rows(self) -> dict[str, str]:
        """For the confirmation table."""
        image = self.image()
        rows = {"image": f"{image.id} ({image.name})" if image.name else image.id}
        rows["security group"] = ", ".join(self._groups) or "the VPC's default (ssh from here must be allowed in it)"
        if self._subnet:
            rows["subnet"] = self._subnet
        if self.spot:
            rows["market"] = "spot" if self.spot is True else f"spot, at most ${self.spot:g} an hour"
        if self.size.startswith(BURSTABLE):
            rows["cpu credits"] = "use above the size's baseline is billed beside the price"
        return rows

    def image(self) -> Image:
        """What will be launched: the one named, or the snapshot's, or the newest Debian.  Raises UsageError, ProviderError."""
        if self._image is None:
            found = self._named(self._settings.ami_id) if self._settings.ami_id else self._newest_debian()
            self._image = _checked(found, self._settings.ec2_type, self.size)
            if self._settings.snapshot_id:
                self._image = self._of_snapshot(self._settings.snapshot_id, self._image)
        return self._image

    def group_ids(self) -> list[str]:
        """The security groups' ids; names are looked up.  Raises ProviderError."""
        if self._group_ids is None:
            self._group_ids = [each if each.startswith("sg-") else self._group_id(each) for each in self._groups]
        return self._group_ids

    def _tagged(self, image: Image) -> list[str]:
        return ["instance", *(["volume"] if image.disks else []), *(["spot-instances-request"] if self.spot else [])]

    def _group_id(self, name: str) -> str:
        filters = [where("group-name", name)]
        if self._subnet:
            filters.append(where("vpc-id", self._vpc(self._subnet)))
        ids = [str(group.get("GroupId")) for group in self._api.listed("describe_security_groups", "SecurityGroups", Filters=filters)]
        if len(ids) != 1:
            many = f"{len(ids)} security groups are" if ids else "no security group is"
            raise ProviderRefusedError(f"ec2: {many} called {name!r} in {self._api.region}: name one by its id (sg-...)")
        return ids[0]

    def _vpc(self, subnet: str) -> str:
        found = [str(each.get("VpcId")) for each in self._api.listed("describe_subnets", "Subnets", SubnetIds=[subnet])]
        if len(found) != 1:
            raise nonsense("describe_subnets")
        return found[0]

    def _named(self, ami: str) -> Image:
        found = [_image(each) for each in self._api.listed("describe_images", "Images", ImageIds=[ami])]
        if len(found) != 1:
            raise ProviderRefusedError(f"ec2: there is no image {ami} in {self._api.region}")
        return found[0]

    def _newest_debian(self) -> Image:
        architecture = self.architecture()
        name = f"{RELEASE}-{_DEBIAN_WORDS[architecture]}-*"
        filters = [where("name", name), where("state", "available"), where("root-device-type", EBS)]
        found = [_image(each) for each in self._api.listed("describe_images", "Images", Owners=[DEBIAN], Filters=filters)]
        if not found:
            raise ProviderRefusedError(f"ec2: no image of Debian's ({name}) in {self._api.region}: name one with --ami-id")
        return max(found, key=lambda image: (image.created, image.id))

    def architecture(self) -> str:
        """``x86_64`` or ``arm64``, as EC2 says of the size; by the size's name where one may not ask.  Raises UsageError, ProviderError."""
        try:
            found = list(self._api.listed("describe_instance_types", "InstanceTypes", InstanceTypes=[self.size]))
        except Ec2RefusedError as error:
            if error.code in ("InvalidInstanceType", "InvalidParameterValue"):
                raise UsageError(f"ec2: there is no size {self.size!r} in {self._api.region}: see --ec2-size") from error
            if error.code != "UnauthorizedOperation":
                raise
            return "arm64" if _ARM.fullmatch(self.size) else "x86_64"
        if not found:
            raise UsageError(f"ec2: there is no size {self.size!r} in {self._api.region}: see --ec2-size")
        can = (found[0].get("ProcessorInfo") or {}).get("SupportedArchitectures") or []
        for architecture in _DEBIAN_WORDS:
            if architecture in can:
                return architecture
        raise UsageError(f"ec2: {self.size} runs no image of Debian's ({', '.join(map(str, can))}): name one with --ami-id")

    def _of_snapshot(self, snapshot: str, like: Image) -> Image:
        """An image whose root disk is the snapshot, registered once for all and found by its name after that.

        RunInstances takes no other snapshot for a root device than its image's.  An image costs nothing beside its snapshot, and stays.
        """
        name = f"cloudtask-{snapshot}-{like.architecture}"
        for found in self._api.listed("describe_images", "Images", Owners=["self"], Filters=[where("name", name)]):
            return _image(found)
        answer = self._api.call(
            "register_image",
            Name=name,
            Description="Made by cloudtask from a snapshot (--snapshot-id)",
            Architecture=like.architecture,
            RootDeviceName=like.disks[0],
            BlockDeviceMappings=[{"DeviceName": like.disks[0], "Ebs": {"SnapshotId": snapshot, "DeleteOnTermination": True}}],
            VirtualizationType="hvm",
            EnaSupport=True,
        )
        made = answer.get("ImageId")
        if not isinstance(made, str) or not made:
            raise nonsense("register_image")
        return Image(id=made, name=name, architecture=like.architecture, root_type=EBS, disks=like.disks[:1], created="")


def _image(found: Mapping[str, Any]) -> Image:
    """As DescribeImages has it.  Raises ProviderBusyError."""
    id, root = found.get("ImageId"), found.get("RootDeviceName")
    mappings = found.get("BlockDeviceMappings") or []
    if not isinstance(id, str) or not id or not isinstance(mappings, list):
        raise nonsense("describe_images")
    disks = [str(each.get("DeviceName")) for each in mappings if isinstance(each, dict) and isinstance(each.get("Ebs"), dict)]
    rooted = [root] if isinstance(root, str) and root and found.get("RootDeviceType") != INSTANCE_STORE else []
    return Image(
        id=id,
        name=sanitize(str(found.get("Name") or ""))[:100],
        architecture=str(found.get("Architecture") or "x86_64"),
        root_type=str(found.get("RootDeviceType") or EBS),
        disks=tuple(dict.fromkeys([*rooted, *disks])),
        created=str(found.get("CreationDate") or ""),
    )


def _checked(image: Image, wanted: str | None, size: str) -> Image:
    """Raises UsageError where it has not the root disk that was asked for."""
    types = {"s3": INSTANCE_STORE, "ebs": EBS}
    if wanted and image.root_type != types[wanted]:
        raise UsageError(f"ec2: --ec2-type={wanted}, but the root disk of {image.id} is {image.root_type}: leave --ec2-type out")
    if image.root_type == INSTANCE_STORE and size.partition(".")[0] not in STORED:
        raise UsageError(
            f"ec2: {image.id} is an instance-store image (s3), and {size} starts from ebs only: choose a size such as m3.medium"
        )
    return image


def _tags(order: Order) -> list[dict[str, str]]:
    """Ours, and the name that Amazon's console shows."""
    tags = {**order.tags.as_dict(), "Name": sanitize(order.label)[:_NAME_LIMIT]}
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def _market(spot: bool | float) -> dict[str, Any]:
    options: dict[str, str] = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
    if spot is not True:
        options["MaxPrice"] = f"{spot:.9f}".rstrip("0").rstrip(".")
    return {"MarketType": "spot", "SpotOptions": options}


def where(name: str, *values: str) -> dict[str, Any]:
    """A filter as Describe calls take it: any of ``values``."""
    return {"Name": name, "Values": list(values)}
