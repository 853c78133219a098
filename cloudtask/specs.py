"""What a supervisor is told of its worker, from the run's settings."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from cloudtask.fleet import Fleet, Member
from cloudtask.session import keys
from cloudtask.session.session import Session
from cloudtask.settings import Settings
from cloudtask.transports import ConnectOptions
from cloudtask.workers import messages as m

_BY_SSH = ("ssh", "openssh")


@dataclass(kw_only=True)
class Specs:
    """Makes each worker's spec.  ``public_key`` is the session's key line, None where no worker is reached by ssh; ``timer`` the script
    of the timer for launched machines whose provider cannot start one at boot."""

    settings: Settings
    session: Session
    public_key: str | None = None
    timer: str | None = None

    def make(self, member: Member, *, epoch: int, transport: str) -> m.WorkerSpec:
        """The spec of a supervisor that is started now."""
        settings, session, address = self.settings, self.session, member.address
        return m.WorkerSpec(
            number=member.number,
            address=address,
            transport=transport,
            connect=self._connect(member),
            session=session.uid,
            directory=session.paths.root,
            epoch=epoch,
            first_connection=Fleet.first_connection(member),
            slots=address.slots if address.slots is not None else settings.slots,
            timeout=settings.timeout,
            setup_timeout=settings.setup_timeout,
            kill_grace=settings.kill_grace,
            lease=settings.lease,
            heartbeat=settings.heartbeat,
            lost_timeout=settings.lost_timeout,
            max_output=settings.max_output,
            prefetch=not settings.at_most_once,
            cautious=bool(settings.strikes),
            tell_output=settings.output == "line",
            env=tuple(item if "=" in item else f"{item}={os.environ[item]}" for item in settings.env),
            workdir=settings.workdir,
            pre=settings.pre,
            post=settings.post,
            overlay=settings.overlay,
            public_key=self.public_key if transport in _BY_SSH else None,
            ask_only=member.ask_only,
            known=member.known,
            boot_timeout=self._boot_timeout(member),
            timer=self.timer if member.instance else None,
        )

    @staticmethod
    def _boot_timeout(member: Member) -> float | None:
        if member.known or member.boot_deadline is None:
            return None
        return max(1.0, member.boot_deadline - time.monotonic())

    def _connect(self, member: Member) -> ConnectOptions:
        settings, local = self.settings, member.address.local
        return ConnectOptions(
            user=settings.user,
            identity=settings.ssh_identity,
            ssh_config=settings.ssh_config,
            session_key=None if local else keys.key_path(self.session.uid),
            heartbeat=settings.heartbeat,
            directory=os.getcwd() if local else None,
        )
