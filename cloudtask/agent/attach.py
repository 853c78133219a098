"""Runs on the worker once for each connection: finds the agent or starts one, hands it stdin and stdout, and stays.

It copies nothing.  It stays because sshd ends a program's stdin when the program exits; the agent lets it go by closing the socket.
"""

import os
import socket
import struct
import sys
import time

from . import home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = 90.0
"""Seconds to wait for an agent that holds the lock and does not answer: a guardian may be ending its jobs."""
_STARTS = 3


def main(key: str, launch: "Callable[[home.Home], None]") -> None:
    """``launch`` starts an agent for a home whose lock is held.  Exits with one line on stderr where no agent can be had."""
    if not home.valid_key(key):
        sys.exit("cloudtask: %r is no name for an agent" % key)
    try:
        stay(connect(key, launch))
    except OSError as error:
        sys.exit("cloudtask: no agent on this machine: %s" % error)


def connect(key: str, launch: "Callable[[home.Home], None]") -> "socket.socket":
    """A connection to the agent that has taken our stdin and stdout.  Raises OSError."""
    deadline = time.monotonic() + PATIENCE
    starts, pause = 0, 0.02
    while True:
        place = home.find(key)
        connection = place.connect()
        if connection is None and place.try_lock():
            if starts == _STARTS:
                raise OSError("it does not stay; %s may say why" % place.file("trouble"))
            starts += 1
            launch(place)
            connection = place.connect()
        if connection is not None and hand_over(connection):
            return connection
        if time.monotonic() > deadline:
            raise OSError("%s is locked, and whoever holds it does not answer" % place.path)
        place.nudge_agent()
        time.sleep(pause)
        pause = min(0.5, pause * 1.5)


def hand_over(connection: "socket.socket") -> bool:
    """Give the agent our stdin and stdout; True when it has said that it has them."""
    try:
        connection.sendmsg([b"fds"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("ii", 0, 1))])
        taken = connection.recv(1) == b"+"
    except OSError:
        taken = False
    if not taken:
        connection.close()
    return taken


def stay(connection: "socket.socket") -> None:
    """Wait until the agent closes the connection."""
    try:
        while connection.recv(64):
            pass
    except OSError:
        pass
    os._exit(0)
