"""Tests of whole runs: the real program as a process, real agents, real sshd's; everything is judged from outside."""
