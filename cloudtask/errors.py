"""Every expected error, and the exit status that it ends a command with.

::

    CloudtaskError                      exit 2 unless said otherwise
    ├── UsageError                      wrong options, settings or template
    │   └── SettingError                a value that cannot be parsed; names where it came from
    ├── InputError                      a job line that cannot be read; names its line
    ├── SessionError                    a session that cannot be opened
    │   ├── UnknownSessionError
    │   ├── SessionBusyError            another process runs it
    │   └── JournalError                garbage in the middle of a journal
    ├── DeclinedError                   the user answered no
    ├── WorkerError                     one worker cannot be used; the run goes on without it
    │   ├── ConnectError                no contact; worth another try
    │   ├── RefusedError                refused key or user: another try would end the same
    │   │   └── HostKeyError            the host showed another key than it must have
    │   └── SetupError                  overlay or pre-command failed
    ├── ProviderError                   a provider cannot do what it was asked
    │   ├── ProviderRefusedError        it said no: nothing was done, and another try would end the same
    │   └── ProviderBusyError           it gave no answer, or none that settles it: it may have been done; ask again
    ├── OvertakenError                  somebody else runs this session (exit 3)
    └── StorageError                    the controller cannot write the session (exit 3)

The class docstring is the default message. A message names the thing, what was being done, and the way out, on one line.
"""

from __future__ import annotations


class CloudtaskError(Exception):
    """Something went wrong."""

    exit_status = 2

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip())


class UsageError(CloudtaskError):
    """Wrong use."""


class SettingError(UsageError):
    """A setting has a value that cannot be used."""


class InputError(CloudtaskError):
    """The jobs cannot be read."""


class SessionError(CloudtaskError):
    """The session cannot be opened."""


class UnknownSessionError(SessionError):
    """There is no such session."""


class SessionBusyError(SessionError):
    """Another process runs this session."""


class JournalError(SessionError):
    """The session's journal cannot be read."""


class DeclinedError(CloudtaskError):
    """You didn't answer 'yes'. Aborting!"""


class WorkerError(CloudtaskError):
    """A worker cannot be used."""


class ConnectError(WorkerError):
    """A worker cannot be reached."""


class RefusedError(WorkerError):
    """A worker refused us, or we refused it."""


class HostKeyError(RefusedError):
    """A worker showed another host key than it must have."""


class SetupError(WorkerError):
    """Setting up a worker failed."""


class ProviderError(CloudtaskError):
    """A provider cannot do what it was asked."""


class ProviderRefusedError(ProviderError):
    """A provider said no."""


class ProviderBusyError(ProviderError):
    """A provider gave no answer that settles it."""


class OvertakenError(CloudtaskError):
    """Somebody else runs this session."""

    exit_status = 3


class StorageError(CloudtaskError):
    """The session cannot be written."""

    exit_status = 3
