"""The tests.  `tests.sshd` has real sshd processes for all of them."""
