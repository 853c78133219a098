"""The session on disk, format 1: `<sessions>/<number>/` with its journal, the truth about every job.

``session.Session`` is the door: it makes, opens, locks and writes a session.  Behind it: ``layout`` (names, numbers, files that
are opened safely), ``lock``, ``journal`` (append-only lines, synced in groups), ``records`` (what the lines say), ``replay`` (the
fold of the lines to a state), ``conf`` (the settings that a run had), ``keys`` (the private key, kept elsewhere) and ``ranges``.
Supervisors may use ``layout`` for their worker logs; viewers use ``layout.find``, ``journal.read`` and ``replay.replay``, which
take no lock; nobody but the main process writes.
"""
