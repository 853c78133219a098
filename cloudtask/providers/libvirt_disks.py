"""Disks of machines as volumes of libvirt's storage pools: overlays, and the seed that carries user data to cloud-init.

All goes through libvirt, so that it works for a libvirt on another machine too.  An overlay is a qcow2 file that has its own changes
only, and is made at once; the base must not change while there are any.  A seed is cloud-init's NoCloud data source: a file system
labelled ``cidata`` with ``user-data`` and ``meta-data``.
"""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree
from importlib import import_module
from typing import Any
from xml.sax.saxutils import escape

from cloudtask.errors import UsageError
from cloudtask.providers.libvirt_calls import Calls
from cloudtask.providers.libvirt_marks import Disk, Seed
from cloudtask.providers.libvirt_xml import Identity, Source

_DIRECTORIES = ("dir", "fs", "netfs")
"""Types of pools whose volumes are files of a directory."""


def seed_image(identity: Identity, user_data: str) -> bytes:
    """An ISO 9660 image, with Rock Ridge and Joliet names.  Equal arguments may give different times in it."""
    image = io.BytesIO()
    iso = _pycdlib().PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    meta_data = f"instance-id: {identity.uuid}\nlocal-hostname: {identity.name}\n"
    for short, name, text in (("/USERDATA.;1", "user-data", user_data), ("/METADATA.;1", "meta-data", meta_data)):
        data = text.encode()
        iso.add_fp(io.BytesIO(data), len(data), short, rr_name=name, joliet_path=f"/{name}")
    iso.write_fp(image)
    iso.close()
    return image.getvalue()


def check_seed() -> None:
    """Raises UsageError where seeds cannot be made."""
    _pycdlib()


def _pycdlib() -> Any:
    try:
        return import_module("pycdlib")
    except ImportError as error:
        raise UsageError(f"--provider=libvirt needs pycdlib ({error}): pip install 'cloudtask[libvirt]', or --libvirt-seed=no") from None


class Disks:
    """The disks of one libvirt.  ``pool`` is where they are made; None: where the base's are, else in ``default``."""

    def __init__(self, calls: Calls, pool: str | None) -> None:
        self._calls = calls
        self._pool = pool

    def plan(self, identity: Identity, source: Source) -> Disk:
        """The overlay that a machine will have over a disk of the base."""
        volume = self._base_volume(source)
        backing: str = self._calls.ask(volume.path) if volume is not None else source.path
        capacity = int(self._calls.ask(volume.info)[1]) if volume is not None else 0
        pool = self._pool or self._pool_of(volume) or "default"
        return Disk(pool=pool, name=f"{identity.name}-{source.target}.qcow2", backing=backing, format=source.format, capacity=capacity)

    def plan_seed(self, identity: Identity, beside: list[Disk]) -> Seed:
        """The volume for the user data, in the pool of the machine's first disk."""
        return Seed(pool=beside[0].pool if beside else self._pool or "default", name=f"{identity.name}-seed.iso")

    def path(self, volume: Disk | Seed) -> str:
        """Where it is or will be.  Raises ProviderRefusedError where its pool is no directory."""
        tree = ElementTree.fromstring(self._calls.ask(self._open_pool(volume.pool).XMLDesc))
        folder = tree.findtext("target/path")
        if tree.get("type") not in _DIRECTORIES or not folder:
            raise self._calls.refused(f"pool {volume.pool} is of type {tree.get('type')}: name one that is a directory with --libvirt-pool")
        return f"{folder.rstrip('/')}/{volume.name}"

    def make(self, disk: Disk) -> None:
        """Makes the overlay where it is not there yet."""
        capacity = f"<capacity unit='bytes'>{disk.capacity}</capacity>" if disk.capacity else ""
        self._create(
            disk,
            f"<volume><name>{escape(disk.name)}</name>{capacity}<allocation>0</allocation>"
            f"<target><format type='qcow2'/></target><backingStore><path>{escape(disk.backing)}</path>"
            f"<format type='{escape(disk.format)}'/></backingStore></volume>",
        )

    def make_seed(self, seed: Seed, image: bytes) -> None:
        """Makes the volume where it is not there yet, and writes the image."""
        self._create(
            seed,
            f"<volume><name>{escape(seed.name)}</name><capacity unit='bytes'>{len(image)}</capacity>"
            f"<target><format type='raw'/></target></volume>",
        )
        self._calls.ask(self._upload, self._open_pool(seed.pool), seed.name, image)

    def delete(self, volume: Disk | Seed) -> None:
        """Deletes it; silent where it is not there."""
        pool = self._open_pool(volume.pool)
        found = self._calls.ask(pool.storageVolLookupByName, volume.name, none_for=("NO_STORAGE_VOL",))
        if found is not None:
            self._calls.ask(found.delete, 0, none_for=("NO_STORAGE_VOL",))

    def _create(self, volume: Disk | Seed, text: str) -> None:
        pool = self._open_pool(volume.pool)
        if self._calls.ask(pool.storageVolLookupByName, volume.name, none_for=("NO_STORAGE_VOL",)) is None:
            self._calls.ask(pool.createXML, text, 0, none_for=("STORAGE_VOL_EXIST",), certain=True)

    def _upload(self, pool: Any, name: str, image: bytes) -> None:
        """In a thread of `Calls`."""
        stream = pool.connect().newStream(0)
        pool.storageVolLookupByName(name).upload(stream, 0, len(image), 0)
        sent = 0
        while sent < len(image):
            sent += stream.send(image[sent : sent + 65536])
        stream.finish()

    def _open_pool(self, name: str) -> Any:
        return self._calls.on("storagePoolLookupByName", name)

    def _base_volume(self, source: Source) -> Any:
        """None where the disk is in no pool."""
        if source.pool:
            return self._calls.ask(self._open_pool(source.pool).storageVolLookupByName, source.volume)
        return self._calls.on("storageVolLookupByPath", source.path, none_for=("NO_STORAGE_VOL", "NO_SUPPORT"))

    def _pool_of(self, volume: Any) -> str | None:
        if volume is None:
            return None
        pool = self._calls.ask(volume.storagePoolLookupByVolume)
        kind = ElementTree.fromstring(self._calls.ask(pool.XMLDesc)).get("type")
        return str(pool.name()) if kind in _DIRECTORIES else None
