"""The settings of the libvirt provider."""

from __future__ import annotations

from cloudtask import kinds
from cloudtask.settings import Row

GROUP = "Launched workers: libvirt"

ROWS = [
    Row(
        name="libvirt_uri",
        parse=kinds.word,
        default="qemu:///system",
        help="libvirt to use: qemu:///system, lxc:///system, qemu+ssh://HOST/system",
        metavar="URI",
        group=GROUP,
    ),
    Row(name="libvirt_base", parse=kinds.word, default=None, help="domain to clone; it must be shut off", metavar="NAME", group=GROUP),
    Row(
        name="libvirt_xml",
        parse=kinds.readable_file,
        default=None,
        help="domain XML to make machines of, with {name} {uuid} {mac} {port} {token} {index} to be filled in",
        metavar="FILE",
        group=GROUP,
    ),
    Row(
        name="libvirt_pool",
        parse=kinds.word,
        default=None,
        help="storage pool (a directory) for the machines' disks",
        metavar="NAME",
        group=GROUP,
        shown_default="that of the base's disk, else default",
    ),
    Row(name="libvirt_user", parse=kinds.word, default=None, help="login of the base's image", metavar="NAME", group=GROUP),
    Row(
        name="libvirt_seed",
        parse=kinds.choice("yes", "no"),
        default="yes",
        help="no: the base needs nothing of cloudtask; it lets the user's own key in, and shows a host key that is known",
        metavar="yes|no",
        group=GROUP,
    ),
]
