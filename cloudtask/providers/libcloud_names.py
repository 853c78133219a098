"""The names of apache-libcloud's compute drivers (3.9), known without loading it: each is the name of a provider too."""

from __future__ import annotations

_NAMES = """
abiquo aliyun_ecs aurora_compute azure azure_arm brightbox cloudscale cloudsigma cloudstack digitalocean dimensiondata
equinixmetal eucalyptus exoscale gandi gce gig_g8 gridscale ikoula internetsolutions kamatera ktucloud kubevirt linode maxihost
nimbus ntta nttcis onapp opennebula openstack outscale outscale_inc outscale_sas ovh rackspace rackspace_first_gen rimuhosting
scaleway terremark upcloud vcl vcloud vpsnet vsphere vultr
"""

DRIVERS = frozenset(_NAMES.split())
"""All but ``dummy``, which launches nothing, and ``ec2`` and ``libvirt``, which are providers of our own."""
