"""Starting `/bin/sh` for an attempt: in a process group of its own, stdin /dev/null, signals as in a fresh login."""

import os
import signal

SHELL = "/bin/sh"


def _ignored() -> "list[int]":
    """Signals that this process ignores, which a job must not inherit.  Handlers are gone after exec anyway."""
    numbers = []
    for number in range(1, signal.NSIG):
        try:
            if signal.getsignal(number) == signal.SIG_IGN and number not in (signal.SIGKILL, signal.SIGSTOP):
                numbers.append(number)
        except (ValueError, OSError):
            continue
    return numbers


class Starter:
    """Starts shells.  Make it after the signal handlers of the agent are in place."""

    def __init__(self) -> None:
        self._ignored = _ignored()
        self.start = self._posix_spawn if hasattr(os, "posix_spawn") else self._popen
        """``start(arguments, environment, out, err)`` returns the pid, which is the group's too.  Raises OSError or ValueError."""

    def _posix_spawn(self, arguments: "list[bytes]", environment: "dict[bytes, bytes]", out: int, err: int) -> int:
        return os.posix_spawn(
            SHELL,
            arguments,
            environment,
            file_actions=((os.POSIX_SPAWN_DUP2, out, 1), (os.POSIX_SPAWN_DUP2, err, 2)),
            setpgroup=0,
            setsigmask=(),
            setsigdef=self._ignored,
        )

    def _popen(self, arguments: "list[bytes]", environment: "dict[bytes, bytes]", out: int, err: int) -> int:
        import subprocess  # 5 ms that only Python 3.6 and 3.7 need

        process = subprocess.Popen(
            arguments, executable=SHELL, env=environment, stdout=out, stderr=err, restore_signals=False, preexec_fn=self._prepare
        )
        process.returncode = 0  # the loop reaps it: keep the object from doing so
        return process.pid

    def _prepare(self) -> None:
        os.setpgid(0, 0)
        for number in self._ignored:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
