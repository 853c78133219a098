"""The agent: the small program that cloudtask starts on a worker.  Standard library only, Python 3.6 to 3.14.

Its modules are shipped as text over the connection (see `cloudtask.wire`) and import each other only.  Read them in this order:

``codec``      frames on the wire                       ``keys``       the session's line in authorized_keys
``system``     what the kernel says: /proc, memory      ``runner``     queue, slots, starting and reaping
``home``       the directory, its identity, its lock    ``ending``     TERM, grace, KILL, and looking whether it worked
``journal``    what survives a kill of the agent        ``link``       one connection: bytes in, frames out
``spool``      the output of attempts                   ``courier``    what is told to the controller, and when
``attempt``    one try at running a job                 ``departure``  abort, finish, the end of the lease
``store``      all attempts: memory, journal, spool     ``verbs``      what each frame from the controller does
``guardian``   ends the jobs when the agent dies        ``agent``      the loop
``attach``     runs once for each connection: finds the agent or starts one, and hands it the connection

Annotations are strings, so that no worker spends time on importing ``typing`` and Python 3.6 need not understand them.
"""
