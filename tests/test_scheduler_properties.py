"""Whatever order events come in: no job is lost, none runs twice at once but in the lost-contact race, every job ends."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from cloudtask.model import Attempt, Halt
from cloudtask.scheduler import Action, Policy, Scheduler, Send
from cloudtask.states import Ending
from tests.scheduler_world import FAILURES, News, Site, World

_MOST_WORKERS = 5
_ANY = st.integers(0, 99)
_HALTS = st.one_of(st.none(), st.none(), st.builds(Halt, now=st.booleans(), count=st.integers(1, 4)))


class Storm(RuleBasedStateMachine):
    """Everything that may go wrong goes wrong; then the sky clears, and all must end."""

    world: World

    @initialize(total=st.integers(1, 14), retries=st.integers(0, 2), strikes=st.integers(0, 3), once=st.booleans(), halt=_HALTS)
    def begin(self, total: int, retries: int, strikes: int, once: bool, halt: Halt | None) -> None:
        policy = Policy(retries=0 if once else retries, strikes=strikes, retry_delay=4, at_most_once=once, halt=halt)
        self.world = World(policy, total)
        self.pull(self.world.join().number, 3)

    def site(self, index: int) -> Site | None:
        sites = list(self.world.sites.values())
        return sites[index % len(sites)] if sites else None

    # --- good weather ------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.world.sites) < _MOST_WORKERS)
    @rule(count=st.integers(0, 4))
    def join(self, count: int) -> None:
        site = self.world.join()
        if count:
            self.world.pull(site, count)

    @rule(index=_ANY, count=st.integers(1, 4))
    def pull(self, index: int, count: int) -> None:
        if (site := self.site(index)) and site.credit < 8:
            self.world.pull(site, count)

    @rule(index=_ANY, most=st.integers(1, 3))
    def start(self, index: int, most: int) -> None:
        """The agent begins some of what it has; the news of it wait."""
        if site := self.site(index):
            for attempt in site.queue[:most]:
                site.queue.remove(attempt)
                site.running.append(attempt)
                site.news.append(News("started", attempt))

    @rule(index=_ANY, which=_ANY, ending=st.sampled_from(FAILURES), value=st.sampled_from([0, 0, 1]))
    def end(self, index: int, which: int, ending: Ending, value: int) -> None:
        """A job ends; the news of it wait."""
        if (site := self.site(index)) and site.running:
            attempt = site.running.pop(which % len(site.running))
            site.news.append(News("ended", attempt, Ending.EXIT if value == 0 else ending, value))

    @rule(index=_ANY, which=st.lists(_ANY, min_size=1, max_size=6))
    def deliver(self, index: int, which: list[int]) -> None:
        """News arrive, in any order that keeps those of one attempt in theirs."""
        if (site := self.site(index)) and not site.silent:
            for choice in which:
                if site.news and site.number in self.world.sites:
                    chosen = site.news[choice % len(site.news)]
                    first = next(news for news in site.news if news.attempt == chosen.attempt)
                    site.news.remove(first)
                    self.world.tell(site, first)

    @rule(seconds=st.floats(0.1, 5))
    def wait(self, seconds: float) -> None:
        self.world.tick(seconds)

    # --- bad weather -------------------------------------------------------------------------------------------------

    @rule(index=_ANY, which=_ANY)
    def say_twice(self, index: int, which: int) -> None:
        if (site := self.site(index)) and site.told:
            self.world.tell(site, site.told[which % len(site.told)])

    @rule(index=_ANY, job=st.integers(1, 14), number=st.integers(1, 4), what=st.sampled_from(["started", "ended", "returned"]))
    def lie(self, index: int, job: int, number: int, what: str) -> None:
        """A worker speaks of what it never had."""
        if (site := self.site(index)) and Attempt(job, number) not in site.flights:
            self.world.tell(site, News(what, Attempt(job, number)))

    @rule(index=_ANY)
    def lose_contact(self, index: int) -> None:
        if (site := self.site(index)) and not site.silent:
            site.silent = True
            self.world.act(self.world.scheduler.contact_lost(site.number, self.world.now))

    @rule(index=_ANY)
    def hear_again(self, index: int) -> None:
        if (site := self.site(index)) and site.silent:
            self.world.hear_again(site)

    @rule(index=_ANY, counts=st.booleans())
    def kill_agent(self, index: int, counts: bool) -> None:
        """What it had finished is delivered by its successor, all else is lost."""
        if site := self.site(index):
            finished = {news.attempt for news in site.news if news.what == "ended"}
            site.news = [news for news in site.news if news.attempt in finished]
            self.world.lose(site, [attempt for attempt in site.flights if attempt not in finished], counts)

    @rule(index=_ANY)
    def kill_supervisor(self, index: int) -> None:
        """What was on its way to the agent never arrives; its successor finds that out."""
        if (site := self.site(index)) and not site.silent:
            site.credit = 0
            self.world.act(self.world.scheduler.worker_restarted(site.number, self.world.now))
            dropped, site.queue = site.queue[-2:], site.queue[:-2]
            site.news += [News("returned", attempt) for attempt in dropped]

    @rule(index=_ANY)
    def retire(self, index: int) -> None:
        if (site := self.site(index)) and not site.draining:
            self.world.retire(site)

    @rule(index=_ANY, counts=st.booleans())
    def destroy(self, index: int, counts: bool) -> None:
        """The machine is gone with all that it had."""
        if site := self.site(index):
            self.world.retire(site)
            self.world.lose(site, list(site.flights), counts)
            self.world.leave(site)

    @rule(index=_ANY)
    def let_go(self, index: int) -> None:
        """A released worker leaves."""
        if (site := self.site(index)) and site.released and (self.world.finished or not site.flights):
            self.world.leave(site)

    @precondition(lambda self: not self.world.stopped)
    @rule(abort=st.booleans(), sure=_ANY)
    def stop(self, abort: bool, sure: int) -> None:
        if sure > 80:
            scheduler, now = self.world.scheduler, self.world.now
            self.world.stopped = True
            self.world.act(scheduler.abort(now) if abort else scheduler.drain(now))

    @precondition(lambda self: not self.world.stopped and not self.world.finished)
    @rule(silent=st.sets(st.integers(1, 20)))
    def kill_main_process(self, silent: set[int]) -> None:
        """A resume: the journal knows what was settled, used up and in flight; no worker is asked for more before all answered."""
        world = self.world
        known = {number: job for number, job in world.jobs.items() if job.outcome is None}
        world.scheduler = Scheduler(
            world.policy,
            len(world.jobs),
            [(number, job.outcome) for number, job in world.jobs.items() if job.outcome is not None],
            {number: job.highest for number, job in world.jobs.items()},
            failures={number: job.failures for number, job in known.items()},
            losses={number: job.losses for number, job in known.items()},
        )
        world.scheduler.hold()
        world.alarm = None
        world.failed_here = 0
        for job in known.values():
            job.failed_on = None
        actions = [action for site in list(world.sites.values()) for action in self.take_up(site, site.number in silent)]
        assert not any(isinstance(action, Send) for action in actions)
        world.act([*actions, *world.scheduler.release(world.now)])

    def take_up(self, site: Site, silent: bool) -> list[Action]:
        """The journal's word on what a worker has; then it answers, or does not."""
        scheduler, now = self.world.scheduler, self.world.now
        site.credit = site.strikes = 0
        site.silent, site.draining, site.released, site.alone = silent, False, False, None
        site.joined = not silent
        site.cancelled.clear()
        actions = scheduler.adopted(site.number, list(site.flights.items()), now)
        return actions + (scheduler.contact_lost(site.number, now) if silent else scheduler.worker_joined(site.number, now))

    # --- and then all must end ---------------------------------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        rounds = 0
        while not self.world.finished:
            rounds += 1
            assert rounds < 40 + 12 * len(self.world.jobs), "it does not end"
            self.sunny_day()
        world = self.world
        assert world.stopped or all(job.outcome is not None for job in world.jobs.values())
        assert world.scheduler.needs_workers == 0

    def sunny_day(self) -> None:
        """Everything works for a while."""
        world = self.world
        if world.scheduler.needs_workers and not any(site.usable for site in world.sites.values()):
            world.join()
        for site in list(world.sites.values()):
            if site.silent:
                world.hear_again(site)
            if site.credit < 2:
                world.pull(site, 2)
            site.news += [News("started", attempt) for attempt in site.queue]
            site.running, site.queue = site.running + site.queue, []
            site.news += [News("ended", attempt) for attempt in site.running]
            site.running = []
            while site.news:
                world.tell(site, site.news.pop(0))
        world.tick(5)
        world.act(world.scheduler.tick(world.now))


Storm.TestCase.settings = settings(max_examples=300, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TestStorm = Storm.TestCase


def blow(seed: int, steps: int) -> None:
    """A long storm with more good weather than hypothesis would give it, so that jobs get far; the same seed blows the same."""
    dice = random.Random(seed)
    storm = Storm()
    halt = Halt(now=dice.random() < 0.5, count=dice.randint(1, 9)) if dice.random() < 0.1 else None
    storm.begin(dice.randint(1, 40), dice.randint(0, 2), dice.choice([0, 0, 3, 5]), dice.random() < 0.2, halt)
    faults: list[Callable[[int], None]] = [
        storm.lose_contact,
        storm.hear_again,
        storm.kill_supervisor,
        storm.retire,
        storm.let_go,
        lambda index: storm.say_twice(index, dice.randrange(99)),
        lambda index: storm.lie(index, dice.randint(1, 40), dice.randint(1, 6), dice.choice(["started", "ended", "returned"])),
        lambda index: storm.kill_agent(index, dice.random() < 0.8),
        lambda index: storm.destroy(index, dice.random() < 0.8),
        lambda index: storm.kill_main_process(set(dice.sample(range(20), 5))) if not storm.world.stopped else None,
        lambda index: storm.stop(dice.random() < 0.5, dice.randrange(83)) if not storm.world.stopped else None,
    ]
    weights = [9, 9, 3, 1, 9, 3, 3, 9, 1, 1, 1]
    for _ in range(steps):
        index = dice.randrange(99)
        if storm.world.finished:
            break
        if len(storm.world.sites) < _MOST_WORKERS and dice.random() < 0.2:
            storm.join(dice.randint(0, 4))
        if dice.random() < 0.15:
            dice.choices(faults, weights)[0](index)
        storm.pull(index, dice.randint(1, 4))
        storm.start(index, 1)
        if dice.random() < 0.4:
            storm.end(index, index, dice.choice(FAILURES), int(dice.random() < 0.3))
        storm.deliver(index, [dice.randrange(99) for _ in range(dice.randint(1, 3))])
        storm.wait(dice.random() / 4)
    storm.teardown()


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_long_storms(first: int) -> None:
    for seed in range(first, first + 100):
        try:
            blow(seed, steps=400)
        except AssertionError as error:
            raise AssertionError(f"storm {seed}: {error}") from error


def test_speed_for_the_record() -> None:
    """Prints what an event costs; asserts only that all jobs ended."""
    total, batch = 20_000, 50
    scheduler = Scheduler(Policy(retries=0, strikes=0, retry_delay=1, at_most_once=False, halt=None), total)
    boxes: dict[int, list[Attempt]] = {number: [] for number in range(1, 5)}
    began = time.perf_counter()
    pending = [action for number in boxes for action in scheduler.worker_joined(number, 0.0) + scheduler.pull(number, batch, 0.0)]
    while not scheduler.finished:
        for action in pending:
            if isinstance(action, Send):
                boxes[action.worker] += action.attempts
        pending = []
        for number, attempts in boxes.items():
            boxes[number] = []
            pending += scheduler.started(number, attempts, 0.0)
            for attempt in attempts:
                pending += scheduler.ended(number, attempt, Ending.EXIT, 0, 0.0)
            pending += scheduler.pull(number, len(attempts), 0.0)
    print(f"{(time.perf_counter() - began) / total * 1e6:.1f} microseconds a job for three events")
    assert scheduler.succeeded == total
