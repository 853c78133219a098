"""Machines that a session launches: ordered, watched while they boot, handed over as workers, destroyed, and proven to be gone.

``pool.Pool`` is the door for who runs a session; ``reaper`` destroys what a dead one left.
"""
