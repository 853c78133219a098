"""The process that supervisors are forked from: it has loaded the transport once, so each costs 7 MB and no import.

Not ``multiprocessing``'s: that one runs the main program's file again in each child, and a task template is a main program
without a guard; it also brings a second helper process.  It leaves when the main process's end of its socket closes;
the supervisors see their own pipes close.
"""

from __future__ import annotations

import array
import gc
import importlib
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence

_HEADER = struct.Struct(">I")
_BOOT = (
    "import sys; sys.path[:] = eval(sys.argv[2]); from cloudtask.workers import forkserver;forkserver.serve(int(sys.argv[1]), sys.argv[3:])"
)


class ForkServer:
    """The main process's handle.  Start it early: it loads its modules while the jobs are read."""

    def __init__(self, preload: Sequence[str]) -> None:
        self._preload = preload
        self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        self._socket = ours
        command = [sys.executable, "-c", _BOOT, str(theirs.fileno()), repr(sys.path), *self._preload]
        # Its own session: a Ctrl-C at the terminal is for the main process alone to act on.
        self._process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
        )
        theirs.close()

    def fork(self, spec: object) -> socket.socket:
        """Start a supervisor for ``spec`` (pickled); returns our end of its pipe.  A server that was killed is started again."""
        data = pickle.dumps(spec)
        try:
            return self._request(data)
        except (BrokenPipeError, ConnectionResetError):
            self.close()
            self._start()
            return self._request(data)

    def _request(self, data: bytes) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs.fileno()]))]
            try:
                self._socket.sendmsg([_HEADER.pack(len(data))], ancillary)
                self._socket.sendall(data)
            except OSError:
                ours.close()
                raise
        return ours

    def close(self) -> None:
        """Let the server go; running supervisors are not touched."""
        self._socket.close()
        self._process.wait()


def serve(descriptor: int, preload: Sequence[str]) -> None:
    """The server's main: load, then fork for each request until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The kernel reaps the supervisors; nobody waits for them, their pipes say when they die.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # paramiko does without invoke (it wants it for Match exec in its own reading of ssh_config, which `ssh -G` does for us), and
    # importing it takes a third of the time and of the memory.
    sys.modules.setdefault("invoke", None)  # type: ignore[arg-type]  # None: an import raises ImportError (importlib's manual)
    for module in ("cloudtask.workers.supervisor", *preload):
        importlib.import_module(module)
    # What is loaded now stays shared with the children: the collector must not write to it.
    gc.freeze()
    control = socket.socket(fileno=descriptor)
    while (request := _receive(control)) is not None:
        data, child_end = request
        if os.fork() == 0:
            control.close()
            _become_supervisor(data, child_end)
        child_end.close()
    # Nothing is to be saved, and taking the interpreter down would keep the main process waiting.
    os._exit(0)


def _receive(control: socket.socket) -> tuple[bytes, socket.socket] | None:
    header, descriptors, _, _ = socket.recv_fds(control, _HEADER.size, 1)
    if not header:
        return None
    (length,) = _HEADER.unpack(header)
    data = bytearray()
    while len(data) < length:
        piece = control.recv(length - len(data))
        if not piece:
            return None
        data += piece
    return bytes(data), socket.socket(fileno=descriptors[0])


def _become_supervisor(data: bytes, child_end: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    supervise = importlib.import_module("cloudtask.workers.supervisor").supervise
    status = 1
    try:
        supervise(pickle.loads(data), child_end)
        status = 0
    finally:
        # Threads of the transport may hang in a dead connection: nothing may keep this process.
        os._exit(status)
