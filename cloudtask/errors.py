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
    │   ├── RefusedError                refused key, host key or user: another try would end the same
    │   └── SetupError                  overlay or pre-command failed
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


class SetupError(WorkerError):
    """Setting up a worker failed."""


class OvertakenError(CloudtaskError):
    """Somebody else runs this session."""

    exit_status = 3


class StorageError(CloudtaskError):
    """The session cannot be written."""

    exit_status = 3
