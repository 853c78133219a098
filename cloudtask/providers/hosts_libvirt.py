"""Hosts that are libvirt domains: started, resumed and shut down."""

from __future__ import annotations

import contextlib
from typing import Any

from cloudtask.errors import ProviderBusyError, ProviderRefusedError
from cloudtask.printable import sanitize
from cloudtask.providers.base import InstanceState
from cloudtask.providers.hosts_power import Standing, Switch


class LibvirtPower:
    """See `cloudtask.providers.hosts_power.Power`.  A paused domain is resumed, and then somebody else's to end."""

    certain = True

    def __init__(self, switch: Switch) -> None:
        import libvirt  # type: ignore[import-not-found,import-untyped,unused-ignore]  # it has no types

        self._libvirt = libvirt
        self._switch = switch
        self._connection: Any = None
        libvirt.registerErrorHandler(lambda context, error: None, None)  # it would print them

    def look(self) -> Standing:
        """See `Power`."""
        lib = self._libvirt
        try:
            state = self._domain().state()[0]
        except lib.libvirtError as error:
            if error.get_error_code() == lib.VIR_ERR_NO_DOMAIN:
                return Standing(InstanceState.ABSENT, note=f"no domain {self._switch.options['domain']!r}")
            raise self._trouble(error) from None
        stopped, asleep = (lib.VIR_DOMAIN_SHUTOFF, lib.VIR_DOMAIN_CRASHED), (lib.VIR_DOMAIN_PAUSED, lib.VIR_DOMAIN_PMSUSPENDED)
        if state in stopped or state in asleep:
            note = "shut off" if state in stopped else "paused"
            return Standing(InstanceState.STOPPED, self._switch.address, paused=state in asleep, note=note)
        if state == lib.VIR_DOMAIN_SHUTDOWN:
            return Standing(InstanceState.LEAVING, self._switch.address, note="in shutdown")
        return Standing(InstanceState.RUNNING, self._switch.address, note="running")

    def start(self) -> None:
        """See `Power`."""
        lib = self._libvirt
        try:
            domain = self._domain()
            state = domain.state()[0]
            if state == lib.VIR_DOMAIN_PAUSED:
                domain.resume()
            elif state == lib.VIR_DOMAIN_PMSUSPENDED:
                domain.pMWakeup()
            elif state in (lib.VIR_DOMAIN_SHUTOFF, lib.VIR_DOMAIN_CRASHED):
                domain.create()
        except lib.libvirtError as error:
            raise self._trouble(error) from None

    def stop(self, waited: float) -> None:
        """See `Power`: in good order; where ``force_after`` is set, by cutting its power once it has ignored that for so long."""
        lib, force = self._libvirt, self._switch.options.get("force_after")
        try:
            domain = self._domain()
            if force is not None and waited >= force and domain.isActive():
                domain.destroy()
            elif domain.isActive():
                domain.shutdown()
                if self._connection.getType() == "LXC":
                    # A container's init may have no initctl, which libvirt does not notice; systemd takes TERM for a harmless order.
                    domain.shutdownFlags(lib.VIR_DOMAIN_SHUTDOWN_SIGNAL)
        except lib.libvirtError as error:
            if error.get_error_code() not in (lib.VIR_ERR_NO_DOMAIN, lib.VIR_ERR_OPERATION_INVALID):
                raise self._trouble(error) from None

    def _domain(self) -> Any:
        options = self._switch.options
        if self._connection is None:
            self._connection = self._libvirt.open(options["uri"])
        try:
            return self._connection.lookupByName(options["domain"])
        except self._libvirt.libvirtError as error:
            if error.get_error_code() != self._libvirt.VIR_ERR_NO_DOMAIN:
                with contextlib.suppress(self._libvirt.libvirtError):
                    self._connection.close()
                self._connection = None
            raise

    def _trouble(self, error: Exception) -> ProviderRefusedError | ProviderBusyError:
        """libvirt names what cannot be by its code; a connection that fails, or an answer that does not come, may be otherwise soon."""
        lib = self._libvirt
        refused = (lib.VIR_ERR_NO_DOMAIN, lib.VIR_ERR_AUTH_FAILED, lib.VIR_ERR_ACCESS_DENIED, lib.VIR_ERR_CONFIG_UNSUPPORTED)
        said = " ".join(sanitize(str(error)).split())
        kind = ProviderRefusedError if getattr(error, "get_error_code", lambda: None)() in refused else ProviderBusyError
        return kind(f"hosts: {self._switch.name}: libvirt: {said}")
