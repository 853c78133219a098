"""All connections and what else wakes the agent: one `poll` over them, the socket on which `attach` calls, and the SIGCHLD pipe."""

import os
import select
import signal
import socket
import time

from . import codec, home
from .link import Gone, Link, receive_descriptors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .home import Home

_GREETING_LIMIT = 120.0
_FAREWELL_LIMIT = 10.0


class Switchboard:
    """``on_frame(link, header, payload)``, ``on_gone(link)`` and ``on_child()`` are called from `wait`.

    Whatever a peer sends ends at most its own connection.
    """

    def __init__(self, of: "Home", listener: "socket.socket") -> None:
        self._home = of
        self.on_frame: "Callable[[Link, dict[str, object], bytes], None]" = _no_frames
        self.on_gone: "Callable[[Link], None]" = _nobody
        self.on_child: "Callable[[], None]" = _nothing
        self._poll = select.poll()
        self._links: "dict[int, Link]" = {}
        self._callers: "dict[int, socket.socket]" = {}
        """Those that have not handed over anything yet."""
        self._listener = listener
        self._socket_mark: "tuple[int, int] | None" = None
        self.hung_up = False
        """SIGHUP has come: somebody cannot find the socket."""
        self._watched_fd = -1
        self._on_watched: "Callable[[], None]" = _nothing
        self._wake_fd = self._catch_signals()
        self._watch_listener()

    def _catch_signals(self) -> int:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.signal(signal.SIGHUP, self._on_hangup)
        self._poll.register(reader, select.POLLIN)
        return reader

    def _on_hangup(self, number: int, frame: object) -> None:
        self.hung_up = True

    def watch(self, fd: int, call: "Callable[[], None]") -> None:
        """Call when there is something to read."""
        if fd != self._watched_fd:
            self._watched_fd, self._on_watched = fd, call
            self._poll.register(fd, select.POLLIN)

    @property
    def links(self) -> "set[Link]":
        """All connections, whether they have said hello or not."""
        return set(self._links.values())

    def wait(self, milliseconds: int) -> None:
        """Wait for something to happen, and see to it."""
        for fd, _ in self._poll.poll(milliseconds):
            if fd == self._wake_fd:
                self._on_signal()
            elif fd == self._listener.fileno():
                self._on_caller()
            elif fd in self._callers:
                self._on_hand_over(self._callers.pop(fd))
            elif fd in self._links:
                self._on_link(self._links[fd], fd)
            elif fd == self._watched_fd:
                self._on_watched()

    def _on_signal(self) -> None:
        try:
            os.read(self._wake_fd, 4096)
        except BlockingIOError:
            pass
        self.on_child()

    # --- connections -------------------------------------------------------------------------------------------------

    def _on_caller(self) -> None:
        """`attach` has connected."""
        try:
            caller, _ = self._listener.accept()
        except OSError:
            return
        self._callers[caller.fileno()] = caller
        self._poll.register(caller.fileno(), select.POLLIN)

    def _on_hand_over(self, caller: "socket.socket") -> None:
        """It hands over a controller's connection."""
        self._poll.unregister(caller.fileno())
        try:
            home.check_peer(caller)
            fds = receive_descriptors(caller)
            if fds:
                self._add(Link(fds[0], fds[1], caller))
                caller.send(b"+")
                return
        except OSError:
            pass
        caller.close()

    def _add(self, link: Link) -> None:
        link.leave_by = time.monotonic() + _GREETING_LIMIT
        for fd in (link.read_fd, link.control.fileno()):
            self._links[fd] = link
            self._poll.register(fd, select.POLLIN)

    def _on_link(self, link: Link, fd: int) -> None:
        try:
            if fd == link.control.fileno():
                link.check_control()
            elif fd == link.write_fd:
                self._go_on_writing(link)
            else:
                for header, payload in link.read():
                    if not link.leaving:
                        self.on_frame(link, header, payload)
        except Gone:
            self.drop(link)
        except codec.ProtocolError as error:
            self.refuse(link, str(error))

    def _go_on_writing(self, link: Link) -> None:
        link.write()
        if not link.blocked:
            self._forget(link.write_fd)
        if link.leaving and link.empty:
            raise Gone("all is said")

    def write(self, link: Link) -> None:
        """Send what is queued; what the kernel does not take now follows by itself.  Raises Gone."""
        link.write()
        if link.blocked and link.write_fd not in self._links:
            self._links[link.write_fd] = link
            self._poll.register(link.write_fd, select.POLLOUT)

    def refuse(self, link: Link, reason: str) -> None:
        """Say why, and close."""
        link.tell({"t": "note", "text": "protocol error: %.500s" % reason})
        self.dismiss(link)

    def dismiss(self, link: Link) -> None:
        """Send what is queued, then close; nothing more is read."""
        self.on_gone(link)
        link.leaving, link.leave_by = True, time.monotonic() + _FAREWELL_LIMIT
        self._forget(link.read_fd)
        try:
            self.write(link)
        except Gone:
            pass
        if not link.blocked:
            self.drop(link)

    def drop(self, link: Link) -> None:
        """Close at once."""
        self.on_gone(link)
        link.leaving = True
        for fd in (link.read_fd, link.write_fd, link.control.fileno()):
            self._forget(fd)
        link.close()

    def _forget(self, fd: int) -> None:
        if self._links.pop(fd, None):
            self._poll.unregister(fd)

    def drop_the_late(self, now: float) -> None:
        """Close what does not say hello, and what does not take its last words."""
        for link in self.links:
            if link.leave_by and now >= link.leave_by:
                self.drop(link)

    def close(self, last: "Link | None", seconds: float) -> None:
        """The agent leaves: wait for ``last`` to take its frames, then close everything."""
        deadline = time.monotonic() + seconds
        try:
            while last and not last.empty and time.monotonic() < deadline:
                last.write()
                if last.blocked:
                    select.select([], [last.write_fd], [], 1)
        except Gone:
            pass
        self._listener.close()
        for link in self.links:
            link.close()

    # --- the socket --------------------------------------------------------------------------------------------------

    def check_socket(self) -> None:
        """Make the socket again where somebody cleaned it away."""
        self.hung_up = False
        if self._socket_mark and self._socket_on_disk() == self._socket_mark:
            return
        try:
            listener = self._home.listen()
        except OSError:
            return
        self._poll.unregister(self._listener.fileno())
        self._listener.close()
        self._listener = listener
        self._watch_listener()

    def _watch_listener(self) -> None:
        self._listener.setblocking(False)
        self._poll.register(self._listener.fileno(), select.POLLIN)
        self._socket_mark = self._socket_on_disk()

    def _socket_on_disk(self) -> "tuple[int, int] | None":
        try:
            found = os.stat(self._listener.getsockname())
        except OSError:
            return None
        return found.st_ino, found.st_dev


def _no_frames(link: Link, header: "dict[str, object]", payload: bytes) -> None:
    pass


def _nobody(link: Link) -> None:
    pass


def _nothing() -> None:
    pass
