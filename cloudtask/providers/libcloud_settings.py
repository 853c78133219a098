"""The settings of all that goes through apache-libcloud: which cloud, and what is launched there."""

from __future__ import annotations

from cloudtask import kinds
from cloudtask.settings import Row

GROUP = "Launched workers: linode, openstack, digitalocean and other clouds"

ROWS = [
    Row(
        name="libcloud_config",
        parse=kinds.readable_file,
        default=None,
        help="clouds and their credentials (see cloudtask-providers)",
        metavar="FILE",
        group=GROUP,
        shown_default="~/.config/cloudtask/clouds.yaml",
        afterwards="afresh",
    ),
    Row(
        name="cloud",
        parse=kinds.word,
        default=None,
        help="which cloud of that file",
        metavar="NAME",
        group=GROUP,
        shown_default="the provider's name",
    ),
    Row(
        name="cloud_region",
        parse=kinds.word,
        default=None,
        help="region for launched machines",
        metavar="REGION",
        group=GROUP,
        shown_default="the file's; linode: us-east",
    ),
    Row(
        name="cloud_image",
        parse=kinds.text,
        default=None,
        help="image, by id or name",
        metavar="IMAGE",
        group=GROUP,
        shown_default="the file's; linode: the newest Debian",
    ),
    Row(
        name="cloud_size",
        parse=kinds.word,
        default=None,
        help="size, by id or name",
        metavar="SIZE",
        group=GROUP,
        shown_default="the cheapest that has the least CPUs and memory",
    ),
    Row(
        name="cloud_network",
        parse=kinds.word,
        default=None,
        help="network, by id or name (openstack)",
        metavar="NETWORK",
        group=GROUP,
        shown_default="the project's only one",
    ),
    Row(
        name="min_cpus",
        parse=kinds.whole(1),
        default=None,
        help="choose the cheapest size with so many CPUs",
        metavar="NUM",
        group=GROUP,
        shown_default="1",
    ),
    Row(
        name="min_memory",
        parse=kinds.size,
        default=None,
        help="choose the cheapest size with so much memory",
        metavar="SIZE",
        group=GROUP,
        shown_default="1G",
    ),
]
