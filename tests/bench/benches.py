"""The benches: each takes a site and gives the rows of its table.  ``quick`` runs are for a look at whether all works."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from statistics import median

from tests.bench import proc
from tests.bench.site import Run, Site
from tests.bench.table import Row, at_least, at_most

_PATIENCE = 120.0


def rate(site: Site, quick: bool) -> list[Row]:
    """`true` jobs: cloudtask over four sshd's with 2 slots each, beside xargs without ssh and parallel over the same sshd's."""
    many, some, few = (1000, 40, 16) if quick else (20_000, 400, 60)
    logins = [f"--sshlogin=2/{server.address}" for server in site.servers]
    plain = ["parallel", "--will-cite", "--ssh", f"ssh -F {site.keys.config}", *logins, "true"]
    master = ["parallel", "--will-cite", "--ssh", f"ssh -F {site.master_config}", *logins, "true"]
    steady: list[float] = []

    def ours() -> float:
        run = site.cloudtask(site.workers(2), "true", jobs=_lines(many))
        steady.append(many / _span(run))
        return many / run.seconds

    found = _interleaved(
        1 if quick else 3,
        xargs=lambda: many / site.run(["xargs", "-P2", "-n1", "sh", "-c", "true"], many).seconds,
        cloudtask=ours,
        master=lambda: some / site.run(master, some).seconds,
        plain=lambda: few / site.run(plain, few).seconds,
    )
    site.close_masters()
    mine = found["cloudtask"]
    return [
        Row(f"xargs -P2 sh -c true, {many} jobs", _rate(found["xargs"])),
        Row(f"cloudtask, {many} jobs, from its start to its end", _rate(mine)),
        Row("  of these, from the first start to the last end", _rate(median(steady))),
        Row(f"parallel --sshlogin with ControlMaster, {some} jobs", _rate(found["master"])),
        Row(f"parallel --sshlogin, {few} jobs", _rate(found["plain"])),
        at_least(0.8).row("cloudtask : xargs", mine / found["xargs"], f"{mine / found['xargs']:.2f}"),
        at_least(20).row("cloudtask : parallel with ControlMaster", mine / found["master"], f"{mine / found['master']:.0f}"),
        at_least(100).row("cloudtask : parallel", mine / found["plain"], f"{mine / found['plain']:.0f}"),
    ]


def single(site: Site, quick: bool) -> list[Row]:
    """One job on one host, beside `ssh host true`."""
    server = site.servers[0]
    ssh = ["ssh", "-F", str(site.keys.config), "-p", str(server.port), f"{server.user}@{server.host}", "true"]
    found = _interleaved(
        2 if quick else 7,
        ssh=lambda: site.run(ssh).seconds,
        cloudtask=lambda: site.cloudtask(server.address, jobs=b"true\n").seconds,
    )
    ratio = found["cloudtask"] / found["ssh"]
    return [
        Row("ssh host true", f"{found['ssh']:.2f} s"),
        Row("echo true | cloudtask --workers=host", f"{found['cloudtask']:.2f} s"),
        at_most(2.5).row("cloudtask : ssh", ratio, f"{ratio:.2f}"),
    ]


def many(site: Site, quick: bool) -> list[Row]:
    """A hundred times as many jobs: memory of the main process, and what a job costs."""
    small, large = (500, 5000) if quick else (1000, 100_000)
    peaks: list[float] = []
    cpu: dict[int, list[float]] = {small: [], large: []}

    def cost(jobs: int) -> float:
        run = site.cloudtask(site.workers(2), "true", jobs=_lines(jobs), watch=True)
        cpu[jobs].append(run.watch.cpu / jobs * 1e6)
        if jobs == large:
            peaks.append(run.watch.peak)
        return _span(run) / jobs * 1e3

    # The small ones on both sides of the large one: the machine may be busier by then.
    before = _interleaved(1 if quick else 3, small=lambda: cost(small))["small"]
    large_cost = cost(large)
    after = _interleaved(1 if quick else 3, small=lambda: cost(small))["small"]
    small_cost = median([before, after])
    ratio = large_cost / small_cost
    return [
        at_most(200, " MB").row(f"peak memory of the main process, {large} jobs", max(peaks), f"{max(peaks):.0f} MB"),
        Row(f"a job, of {small}, from the first start to the last end", f"{small_cost:.3f} ms"),
        Row(f"a job, of {large}", f"{large_cost:.3f} ms"),
        at_most(1.1).row(f"a job of {large} : a job of {small}", ratio, f"{ratio:.2f}"),
        Row(f"main process's CPU time a job, start included, of {small}", f"{median(cpu[small]):.0f} us"),
        Row(f"main process's CPU time a job, start included, of {large}", f"{median(cpu[large]):.0f} us"),
    ]


def idle(site: Site, quick: bool) -> list[Row]:
    """Twenty workers, each with a job that only sleeps: what the connections cost."""
    workers, seconds = (4, 5.0) if quick else (20, 30.0)
    since = proc.began(os.getpid())
    process = site.start(site.workers(1, workers // len(site.servers)), jobs=b"sleep 600\n" * workers)
    try:
        _wait_for(lambda: _running_sleeps(site) >= workers, f"{workers} jobs running")
        time.sleep(3)  # not waiting for something, but measuring once the bustle of the start is over
        here, there = proc.family(process.pid), _agents(site, since)
        watched = here | there
        before = {pid: proc.cpu_seconds(pid) for pid in watched}
        began = time.perf_counter()
        time.sleep(seconds)  # the measurement
        spent = {pid: proc.cpu_seconds(pid) - before[pid] for pid in watched}
        elapsed = time.perf_counter() - began
    finally:
        process.terminate()
        process.wait(_PATIENCE)

    def share(*pids: int) -> float:
        return sum(spent[pid] for pid in pids) / elapsed * 100

    return [
        Row("processes looked at: main, forkserver, supervisors, agents", str(len(watched))),
        at_most(0.5, " %").row(
            f"{workers} idle connections, share of a core over {seconds:g} s", share(*watched), f"{share(*watched):.2f} %"
        ),
        Row("  of this the main process", f"{share(process.pid):.2f} %"),
        Row("  the supervisors", f"{share(*here - {process.pid}):.2f} %"),
        Row("  the agents, each with a job that it follows", f"{share(*there - here):.2f} %"),
    ]


ALL: dict[str, Callable[[Site, bool], list[Row]]] = {"rate": rate, "single": single, "many": many, "idle": idle}


def _interleaved(rounds: int, **ways: Callable[[], float]) -> dict[str, float]:
    """The median of each, measured in turns so that a busy minute hits all of them."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(way())
    return {name: median(values) for name, values in found.items()}


def _lines(jobs: int) -> bytes:
    return b"".join(b"%d\n" % number for number in range(1, jobs + 1))


def _rate(value: float) -> str:
    return f"{value:,.0f} jobs/s" if value >= 100 else f"{value:.1f} jobs/s"


def _span(run: Run) -> float:
    """Seconds from the first job started to the last one ended, as the session's journal has it."""
    assert run.session
    started, ended = 0.0, 0.0
    with (run.session / "journal.jsonl").open("rb") as journal:
        for line in journal:
            record = json.loads(line)
            if "started" in record and not started:
                started = record["time"]
            elif "ended" in record and "worker" in record:
                ended = record["time"]
    return ended - started


def _running_sleeps(site: Site) -> int:
    return sum(proc.command_line(pid).strip() == "sleep 600" for pid in proc.all_pids() if proc.owner(pid) == site.account.uid)


def _agents(site: Site, since: float) -> set[int]:
    """All that agents are made of: python processes of the account that are not older than this bench, nor this bench."""
    ours = (pid for pid in proc.all_pids() if pid != os.getpid() and proc.owner(pid) == site.account.uid and proc.began(pid) >= since)
    return {pid for pid in ours if "python" in proc.command_line(pid)}


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {_PATIENCE:g} s: {what}"
        time.sleep(0.1)
