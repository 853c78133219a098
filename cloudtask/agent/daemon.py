"""Becoming the agent: a process of its own that a logout does not end.

Where logind ends what a logout leaves behind (``KillUserProcesses=yes`` and the user not exempt, see logind.conf(5)) the agent is
started in a scope of the user's own service manager by ``systemd-run --user --scope``, which runs a program in place.
"""

import os
import re
import socket
import sys

from . import agent, guardian, home, system

_UNPACK = "import sys,zlib;z=open(int(sys.argv[1]),'rb').read();a=sys.argv[2:];exec(zlib.decompress(z))"
_SCOPE_LIMIT = 10
_LOGIND = ["busctl", "get-property", "org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"]


def launch(of: home.Home, packed: bytes) -> None:
    """Start the agent for a home whose lock we hold, and let go of the lock.  ``packed``: the shipped program.  Raises OSError."""
    listener = of.listen()
    doomed = logout_kills()
    if not doomed or not _launch_in_scope(of, listener, packed):
        _launch_here(of, listener, not doomed)
    listener.close()
    of.unlock()


def _launch_here(of: home.Home, listener: "socket.socket", survives: bool) -> None:
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    serve(of, listener, survives)


def serve(of: home.Home, listener: "socket.socket", survives: bool) -> None:
    """Be the agent.  Does not return."""
    status = 1
    try:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        guardian.close_others({of.lock_fd, listener.fileno()})
        system.call_yourself("cloudtask-agent")
        of.move_in()
        server = agent.Agent(of, listener, survives, _here())
        server.begin()
        os.dup2(0, 2)
        server.run()
        status = 0
    except OSError as error:
        os.write(2, ("cloudtask agent: cannot start: %s\n" % error).encode("utf-8", "replace"))
        agent.complain(of)
    except BaseException:
        agent.complain(of)  # a bug; the guardian ends the jobs
        raise
    finally:
        os._exit(status)


def _here() -> str:
    """The directory of the login, which is where jobs run."""
    try:
        return os.getcwd()
    except OSError:
        return os.environ.get("HOME") or "/"


# --- logind ----------------------------------------------------------------------------------------------------------


def logout_kills() -> bool:
    """True where logind will end this user's processes when the login that we belong to is over."""
    if not re.search(r"/session-[^/]*\.scope$", system.read_text("/proc/self/cgroup"), re.MULTILINE):
        return False
    user = _user_name()
    killed, exempt, only = (_answer(name) for name in ("KillUserProcesses", "KillExcludeUsers", "KillOnlyUsers"))
    if "true" not in killed or user in exempt[2:] or (len(only) > 2 and user not in only[2:]):
        return False
    return not os.path.exists("/var/lib/systemd/linger/" + user)


def _answer(name: str) -> "list[str]":
    """What logind says of one property, in words: `b true`, or `as 1 "root"`."""
    import subprocess  # only where logind manages this login

    quiet = subprocess.DEVNULL
    try:
        said = subprocess.run(_LOGIND + [name], stdout=subprocess.PIPE, stderr=quiet, stdin=quiet, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return said.decode("utf-8", "replace").replace('"', "").split()


def _user_name() -> str:
    import pwd  # only where logind manages this login

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _launch_in_scope(of: home.Home, listener: "socket.socket", packed: bytes) -> bool:
    """Start the agent through systemd-run; False where that is not there or not allowed."""
    import subprocess  # the same

    source, sink = os.pipe()
    told, tell = os.pipe()
    numbers = [of.lock_fd, listener.fileno(), tell]
    command = ["systemd-run", "--user", "--scope", "--quiet", "--", sys.executable, "-I", "-S", "-c", _UNPACK, str(source), "serve", of.key]
    try:
        process = subprocess.Popen(
            command + [str(fd) for fd in numbers], pass_fds=numbers + [source], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    except OSError:
        process = None
    os.close(source)
    os.close(tell)
    started = process is not None and _feed(sink, packed) and _wait_for(told)
    os.close(told)
    if process is not None:
        if not started:
            process.kill()
            process.wait()
        process.returncode = 0  # it is to outlive us
    return started


def _feed(sink: int, packed: bytes) -> bool:
    try:
        with os.fdopen(sink, "wb") as pipe:
            pipe.write(packed)
        return True
    except OSError:
        return False


def _wait_for(told: int) -> bool:
    import select  # the same

    readable, _, _ = select.select([told], [], [], _SCOPE_LIMIT)
    return bool(readable) and os.read(told, 1) == b"+"


def serve_in_scope(arguments: "list[str]") -> None:
    """The agent's first step in its scope.  ``arguments``: key, and the descriptors of lock, socket, and the pipe on which to say so."""
    key, lock, listener, tell = arguments[0], int(arguments[1]), int(arguments[2]), int(arguments[3])
    of = home.find(key.partition("~")[0])
    of.lock_fd = lock
    for fd in (lock, listener):
        os.set_inheritable(fd, False)
    os.write(tell, b"+")
    os.close(tell)
    serve(of, socket.socket(fileno=listener), True)
