"""A million jobs are read in seconds: held to here with fewer, and room for a slow machine.  `speed` measures the real thing."""

from __future__ import annotations

from tests.session.speed import measure


def test_twenty_thousand_jobs() -> None:
    speed = measure(20_000)
    assert speed.bytes_each < 200, speed
    assert speed.replayed < 2, speed
    assert speed.megabytes < 12, speed
