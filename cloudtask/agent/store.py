"""All attempts that this home has ever known, in memory, in the journal and in the spool."""

import json
import os

from . import codec, journal, spool
from .attempt import ENDED, LOST, QUEUED, Attempt, key_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from .home import Home


class Store:
    """What is known of attempts.  ``unacked`` holds those that the controller has not on its disk, ``acked`` the rows of all others.

    ``trouble`` is why nothing could be written when that was last tried, or empty.
    """

    def __init__(self, home: "Home") -> None:
        self._home = home
        self.unacked: "dict[int, Attempt]" = {}
        self.acked: "dict[int, str]" = {}
        self.trouble = ""
        self._staged: "dict[int, bool]" = {}
        self.past = journal.Past(home.file("journal"))
        self.journal = journal.Journal(home.file("journal"), home.file("reserve"))
        self.spool = spool.Spool(home.file("spool"))
        self._take_over(self.past)

    def _take_over(self, past: journal.Past) -> None:
        for job, number in past.open:
            self._lose(job, number)
        needed = set()
        for (job, number), (result, places) in past.ended.items():
            attempt = self._restore(job, number, result, places)
            if self._believable(attempt):
                self.unacked[attempt.key] = attempt
                for stream in (attempt.out, attempt.err):
                    if stream.place is not None:
                        name = stream.name if stream.place == 0 else self.spool.segments.path(stream.place[0])
                        needed.add(os.path.basename(name))
            else:
                self.journal.add('["broken",%d,%d]' % (job, number))
                self._lose(job, number)
        for (job, number), acked in past.acked.items():
            self.acked[key_of(job, number)] = "null" if acked is None else codec.dump(acked + [0, 0])
        self.spool.tidy(needed)
        for name in os.listdir(self._home.file("code")):
            spool.remove(self._home.file("code", name))
        past.ended, past.acked = {}, {}

    def _lose(self, job: int, number: int) -> None:
        attempt = Attempt(job, number, 0.0, None, 0)
        attempt.state = LOST
        self.unacked[attempt.key] = attempt

    def _restore(self, job: int, number: int, result: "list[Any]", places: "Any") -> Attempt:
        attempt = Attempt(job, number, 0.0, None, 0)
        attempt.state, attempt.slot = ENDED, result[2]
        name = "%d.%d." % (job, number)
        out, err = places or (None, None)
        attempt.out = self.spool.restore(name + "1", result[8], result[10], out)
        attempt.err = self.spool.restore(name + "2", result[9], result[11], err)
        attempt.base = json.dumps(result, separators=(",", ":"))[:-1]
        return attempt

    def _believable(self, attempt: Attempt) -> bool:
        """An earlier agent's result, of this boot if its output is there, of an earlier one if it is there bit by bit."""
        check = self.spool.whole if self._home.rebooted else self.spool.there
        return check(attempt.out) and check(attempt.err)

    def knows(self, key: int) -> bool:
        """True when the attempt was here before."""
        return key in self.unacked or key in self.acked

    def admit(self, attempt: Attempt) -> None:
        """A new attempt, queued.  Nothing is written: sent is not started."""
        self.unacked[attempt.key] = attempt

    def forget(self, attempt: Attempt) -> None:
        """It never was started and never will be."""
        del self.unacked[attempt.key]
        if attempt.code is None:
            spool.remove(self.code_path(attempt.job, attempt.number))

    def code_path(self, job: int, number: int) -> str:
        """Where a code stands that is too long for a command line."""
        return self._home.file("code", "%d.%d" % (job, number))

    def stage(self, job: int, number: int, piece: bytes) -> None:
        """The next piece of a long code.  Where one cannot be written, `staged` will say so."""
        key = key_of(job, number)
        if self._staged.get(key) is False:
            return
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | (0 if key in self._staged else os.O_TRUNC)
            fd = os.open(self.code_path(job, number), flags, 0o600)
            try:
                while piece:
                    piece = piece[os.write(fd, piece) :]
            finally:
                os.close(fd)
            self._staged[key] = True
        except OSError as error:
            self._staged[key] = False
            self.trouble = error.strerror or str(error)

    def staged(self, key: int) -> bool:
        """True when all pieces of a code have been written.  Its file now belongs to the attempt."""
        return self._staged.pop(key, False)

    def forget_staged(self) -> None:
        """A new connection sends its codes from the beginning."""
        for key in self._staged:
            spool.remove(self.code_path(key >> 32, key & 0xFFFFFFFF))
        self._staged = {}

    def begin(self, attempts: "Iterable[Attempt]", epoch: int) -> bool:
        """Put on record that these are about to start.  False when that cannot be written: then they may not start."""
        for attempt in attempts:
            self.journal.add('["start",%d,%d,%d]' % (attempt.job, attempt.number, epoch))
        if self.flush():
            return True
        for attempt in attempts:
            self.take_back(attempt)
        return False

    def take_back(self, attempt: Attempt) -> None:
        """It is on record as started, but could not be."""
        self.journal.add('["returned",%d,%d]' % (attempt.job, attempt.number))

    def end(self, attempt: Attempt) -> None:
        """Queue the record of a concluded attempt; it is on disk after `flush`."""
        self.journal.add('["ended",%s],%s]' % (attempt.base, attempt.places()))
        if attempt.code is None:
            spool.remove(self.code_path(attempt.job, attempt.number))
        else:
            attempt.code = b""

    def flush(self) -> bool:
        """Write outputs, then the lines that speak of them.  False where that fails; what was queued stays queued."""
        try:
            self.spool.segments.flush()
            self.journal.flush()
        except OSError as error:
            self.trouble = error.strerror or str(error)
            return False
        self.trouble = ""
        return True

    def acknowledge(self, keys: "Iterable[int]") -> None:
        """The controller has these results on its disk: their output goes, the bare row stays."""
        gone = []
        for key in keys:
            attempt = self.unacked.get(key)
            if attempt is None or attempt.state not in (ENDED, LOST):
                continue
            del self.unacked[key]
            self.acked[key] = attempt.base + ",0,0]" if attempt.base else "null"
            gone.append(attempt)
        if not gone:
            return
        self.journal.add('["acked",[%s]]' % ",".join("[%d,%d]" % (attempt.job, attempt.number) for attempt in gone))
        self.flush()
        for attempt in gone:
            self.spool.drop(attempt.out)
            self.spool.drop(attempt.err)

    def left(self) -> int:
        """How many results of jobs nobody has fetched and acknowledged.  Set-up and clean-up commands do not count."""
        return sum(1 for attempt in self.unacked.values() if attempt.state not in (QUEUED, LOST) and attempt.job > 0)

    def rows(self, acked: bool) -> "Iterator[str]":
        """The inventory, as JSON rows."""
        for key, result in self.acked.items() if acked else ():
            job, number = key >> 32, key & 0xFFFFFFFF
            yield '[%d,%d,"acked",%s]' % (job, number, result)
        for attempt in self.unacked.values():
            yield attempt.row()

    def row(self, key: int) -> str:
        """One attempt's inventory row, as JSON."""
        if key in self.acked:
            return '[%d,%d,"acked",%s]' % (key >> 32, key & 0xFFFFFFFF, self.acked[key])
        return self.unacked[key].row()
