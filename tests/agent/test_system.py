"""What the agent finds out about its machine."""

from __future__ import annotations

import pytest

from cloudtask.agent import system


@pytest.mark.parametrize(
    ("text", "whole"),
    [("max 100000", 0), ("100000 100000", 1), ("150000 100000", 2), ("50000 100000", 1), ("", 0), ("x y", 0), ("100 0", 0), ("1 2 3", 0)],
)
def test_a_share_of_cpus_is_rounded_up(text: str, whole: int) -> None:
    assert system.cpu_quota(text) == whole


def test_there_is_a_processor() -> None:
    assert system.processors() >= 1
