"""What is told to the controller, and when.

Starts and results are gathered for some milliseconds while there is more to do, and sent at once when a slot waits for work.
Output is read from the spool only when the connection has room for it, so a slow connection costs disk, not memory; an attempt's
result follows the last of its output.
"""

from collections import deque

from . import codec, spool
from .attempt import ENDED, RUNNING, Attempt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .link import Link
    from .store import Store

GATHER = 0.05
"""Seconds that starts and results may wait for company."""
_ROWS = 2000
_CROWD = 200
_INLINE = 32 * 1024
_BATCH = 192 * 1024


class Courier:
    """Speaks to ``link``, the current connection, or keeps quiet while there is none."""

    def __init__(self, store: "Store") -> None:
        self._store = store
        self.link: "Link | None" = None
        self.serial = 0
        """Rises with each connection.  An attempt is told of when its `wanted` equals it."""
        self.oldest = 0.0
        """When the first of the starts or results that wait came up; 0: none."""
        self._started: "list[str]" = []
        self._results: "deque[Attempt]" = deque()
        self._outputs: "deque[Attempt]" = deque()
        self._queued: "set[int]" = set()

    def connect(self, link: "Link") -> None:
        """From now on this is the connection.  What was not asked for by it, or brought by it, is not told."""
        self.link = link
        self.serial += 1
        self.oldest = 0.0
        self._started = []
        self._results.clear()
        self._outputs.clear()
        self._queued.clear()

    def disconnect(self) -> None:
        """The connection is gone; what is to be told is worked out again with the next one."""
        self.link = None

    # --- control frames ----------------------------------------------------------------------------------------------

    def tell(self, header: "dict[str, object]") -> None:
        """A control frame, if anybody listens."""
        if self.link:
            self.link.tell(header)

    def note(self, text: str) -> None:
        """A line for the worker's log."""
        self.tell({"t": "note", "text": text[:2000]})

    def inventory(self, acked: bool = True) -> None:
        """All rows, in frames of at most 2000; without those of acknowledged attempts where the controller says so."""
        rows: "list[str]" = []
        for row in self._store.rows(acked):
            if len(rows) == _ROWS:
                self._tell_rows(rows, False)
                rows = []
            rows.append(row)
        self._tell_rows(rows, True)

    def _tell_rows(self, rows: "list[str]", last: bool) -> None:
        assert self.link
        self.link.tell_text('{"t":"inventory","rows":[%s],"last":%s}' % (",".join(rows), "true" if last else "false"))

    def refused(self, attempts: "list[tuple[int, int, int]]") -> None:
        """Attempts (job, number, key) that were here before, with their rows."""
        for start in range(0, len(attempts), _ROWS) if self.link else ():
            some = attempts[start : start + _ROWS]
            self.tell({"t": "refused", "jobs": [[job, number] for job, number, _ in some]})
            self._tell_rows([self._store.row(key) for _, _, key in some], True)

    def returned(self, attempts: "list[Attempt]", why: str) -> None:
        """These never will start."""
        for start in range(0, len(attempts), 5000):
            jobs = [[attempt.job, attempt.number] for attempt in attempts[start : start + 5000]]
            self.tell({"t": "returned", "jobs": jobs, "why": why})

    def stuck(self, attempt: Attempt) -> None:
        """It cannot be ended."""
        self.tell({"t": "stuck", "jobs": [[attempt.job, attempt.number]]})

    # --- starts, results, output -------------------------------------------------------------------------------------

    def started(self, attempt: Attempt) -> None:
        """It runs."""
        if attempt.wanted == self.serial and self.link:
            self._started.append("[%d,%d,%d]" % (attempt.job, attempt.number, attempt.slot))
            self.oldest = self.oldest or attempt.began

    def ended(self, attempt: Attempt) -> None:
        """Its result is there."""
        if attempt.wanted != self.serial or not self.link or attempt.key in self._queued:
            return
        if attempt.out.unsent + attempt.err.unsent <= _INLINE:
            self._results.append(attempt)
            self.oldest = self.oldest or attempt.began + attempt.seconds
        else:
            self._queue_output(attempt)

    def written(self, attempt: Attempt) -> None:
        """A running attempt may have more output."""
        if attempt.wanted == self.serial and self.link and attempt.out.unsent + attempt.err.unsent:
            self._queue_output(attempt)

    def _queue_output(self, attempt: Attempt) -> None:
        if attempt.key not in self._queued:
            self._queued.add(attempt.key)
            self._outputs.append(attempt)

    def want(self, attempt: Attempt, out: int, err: int) -> None:
        """The connection wants an old attempt, and has that much of its output."""
        attempt.wanted = self.serial
        attempt.out.sent = min(out, attempt.out.length)
        attempt.err.sent = min(err, attempt.err.length)
        if attempt.state == RUNNING:
            self.started(attempt)
            self.written(attempt)
        elif attempt.state == ENDED:
            self.ended(attempt)

    @property
    def quiet(self) -> bool:
        """Nothing waits to be told."""
        return not self.link or not (self._started or self._results or self._outputs)

    def due(self, now: float, hungry: bool) -> bool:
        """True when something should be sent now.  ``hungry``: a slot is free, and the controller should know soon."""
        if not self.link or not self.link.room:
            return False
        if self._outputs:
            return True
        return bool(self._started or self._results) and (hungry or now >= self.oldest + GATHER or len(self._results) >= _CROWD)

    def due_at(self) -> float:
        """When `due` becomes true by itself."""
        return self.oldest + GATHER if self.link and self.link.room and (self._started or self._results) else float("inf")

    def flush(self) -> None:
        """Put starts, results and output into frames, as much as the connection has room for."""
        link = self.link
        if not link:
            return
        while self._started:
            link.tell_text('{"t":"started","jobs":[%s]}' % ",".join(self._started[:_ROWS]))
            del self._started[:_ROWS]
        while self._results and link.room:
            self._send_results(link)
        while self._outputs and link.room:
            self._send_output(link)
        while self._results and link.room:
            self._send_results(link)
        if not self._results:
            self.oldest = 0.0

    def _send_results(self, link: "Link") -> None:
        rows, payload, size = [], [], 0
        while self._results and size < _BATCH:
            attempt = self._results.popleft()
            if attempt.key not in self._store.unacked:
                continue  # acknowledged before it was told: the controller has it from an earlier connection
            out, err = attempt.out.unsent, attempt.err.unsent
            rows.append("%s,%d,%d]" % (attempt.base, out, err))
            size += 160 + out + err
            for stream in (attempt.out, attempt.err):
                if stream.unsent:
                    payload.append(self._store.spool.read(stream, stream.sent, stream.unsent))
                    stream.sent = stream.length
                    self._store.spool.forget(stream)
        if rows:
            link.add(codec.pack_text('{"t":"ended","jobs":[%s]}' % ",".join(rows), b"".join(payload)))

    def _send_output(self, link: "Link") -> None:
        """One piece of one attempt's output, turn by turn."""
        attempt = self._outputs.popleft()
        if attempt.key not in self._store.unacked:
            return
        stream, number = (attempt.out, 1) if attempt.out.unsent else (attempt.err, 2)
        piece = self._store.spool.read(stream, stream.sent, min(spool.CHUNK, stream.unsent))
        head = '{"t":"out","job":%d,"attempt":%d,"stream":%d,"position":%d}' % (attempt.job, attempt.number, number, stream.sent)
        link.add(codec.pack_text(head, piece))
        if attempt.state == RUNNING and stream.summed == stream.sent:
            self._store.spool.sum_sent(stream, piece)
        stream.sent += len(piece)
        left = attempt.out.unsent + attempt.err.unsent
        if attempt.state == ENDED and left <= _INLINE:
            self._queued.discard(attempt.key)
            self._results.append(attempt)
        elif left:
            self._outputs.append(attempt)
        else:
            self._queued.discard(attempt.key)
