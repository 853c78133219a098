"""The agent: the small program that cloudtask starts on a worker.  Standard library only, Python 3.6 to 3.14.

Its modules are shipped as text over the connection (see `cloudtask.wire`) and import each other only.  Read them in this order:

``codec``       frames on the wire                        ``runner``       queue, slots, starting and reaping
``system``      what the kernel says: /proc, memory       ``ending``       TERM, grace, KILL, and looking whether it worked
``home``        the directory, its identity, its lock     ``link``         one connection: bytes in, frames out
``journal``     what survives a kill of the agent         ``switchboard``  all connections, and what else wakes the agent
``spool``       the output of attempts                    ``courier``      what is told to the controller, and when
``attempt``     one try at running a job                  ``departure``    abort, finish, the end of the lease
``store``       all attempts: memory, journal, spool      ``config``       the settings in a hello
``processes``   starting a shell                          ``verbs``        what each frame from the controller does
``guardian``    ends the jobs when the agent dies         ``agent``        who is obeyed, what is due, one turn of the loop
``keys``        the line in authorized_keys               ``stillness``    the kernel says when silent jobs write
``rooms``       what the parts share                      ``disk``, ``lease``  what may stop the work

``boot``        the importer of what was shipped
``attach``      runs once for each connection: finds the agent or has one started, and hands it the connection
``daemon``      becoming the agent, out of a logout's reach

Annotations are strings, so that no worker spends time on importing ``typing`` and Python 3.6 need not understand them.
"""
