"""Speed and size of cloudtask beside ``xargs``, ``parallel`` and ``ssh``, on this machine: ``make bench``, ``python -m tests.bench``."""
