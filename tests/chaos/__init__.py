"""Runs that are killed at chosen steps while everything around them goes wrong, and what must be true afterwards.

``python -m tests.chaos --seeds 1000`` (``make chaos``) runs any number; the test suite runs 200.
"""
