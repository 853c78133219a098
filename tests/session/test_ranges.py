"""Job sets in few bytes."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudtask.session import ranges


@given(st.sets(st.integers(1, 60)))
def test_what_is_encoded_comes_back(numbers: set[int]) -> None:
    decoded = list(ranges.decode(json.loads(json.dumps(ranges.encode(numbers)))))
    assert [number for first, last in decoded for number in range(first, last + 1)] == sorted(numbers)
    assert all(later[0] > earlier[1] + 1 for earlier, later in pairwise(decoded)), "neighbours belong in one range"


def test_short_where_it_can_be() -> None:
    assert ranges.encode([9, 1, 2, 3, 5, 4]) == [[1, 5], 9]
    assert ranges.describe([3, 1, 2, 9]) == "1-3, 9"
    assert ranges.describe([]) == "none"


@pytest.mark.parametrize("wrong", [[[5, 1]], [[1]], [[1, 2, 3]], ["1"], [[1.5, 2]], [None]])
def test_what_encode_could_not_have_written(wrong: list[int | list[int]]) -> None:
    with pytest.raises((ValueError, TypeError)):
        list(ranges.decode(wrong))
