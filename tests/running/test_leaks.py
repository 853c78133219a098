"""No machine is left, whatever dies: 200 runs on fake machines, each killed at a journal step while the provider fails at random.

Any number more: ``make chaos``.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.chaos import leaks

AT_ONCE = 12
GROUPS = range(0, 200, 25)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("first", GROUPS)
def test_nothing_is_left_after_a_kill_at_any_step(first: int) -> None:
    cases = [leaks.case(seed) for seed in range(first, first + 25)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        wrong = [f"{case}\n{said}" for case, said in zip(cases, pool.map(leaks.run, cases), strict=True) if said]
    assert not wrong, "\n\n".join(wrong)


def test_every_journal_step_is_killed_at() -> None:
    """The 200 seeds meet each step, before and after."""
    met = {(case.step, case.moment) for case in map(leaks.case, range(200))}
    assert len(met) > 2 * leaks.MOST_STEPS * 0.85
    assert {step for step, _ in met} == set(range(1, leaks.MOST_STEPS + 1))
