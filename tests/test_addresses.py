"""Workers as people name them, and which of them a run gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudtask.addresses import parse_address, str_with_slots
from cloudtask.allocation import allocate
from cloudtask.errors import UsageError
from cloudtask.model import Address
from cloudtask.settings import Settings
from cloudtask.settings_sources import Values
from cloudtask.worker_file import parse_workers

GOOD = {
    "host": Address(host="host"),
    "4/user@host:2222": Address(host="host", user="user", port=2222, slots=4),
    "[::1]:22": Address(host="::1", port=22),
    "[::1]": Address(host="::1"),
    "::1": Address(host="::1"),
    "2001:db8::7": Address(host="2001:db8::7"),
    "root@fe80::1%eth0": Address(host="fe80::1%eth0", user="root"),
    "user@corp@host": Address(host="host", user="user@corp"),
    "CORP\\me@host.example.com.": Address(host="host.example.com.", user="CORP\\me"),
    "10.0.0.1:2200": Address(host="10.0.0.1", port=2200),
    "local": Address(host="local", local=True),
    "4/local": Address(host="local", local=True, slots=4),
    "my_host-1": Address(host="my_host-1"),
    "_gateway": Address(host="_gateway"),
}

BAD = [
    "-oProxyCommand=x", "user@-host", "-user@host", "host:", "host:0", "host:65536", "host:x", "host:22:", "0/host",
    "/host", "x/host", "-1/host", "4/", "4/4/host", "@host", "user@", "[::1", "[::1]22", "[host]:22", "[::1]:", ":::1",
    "1:2:3", "ho st", "host\n", "ho\x1b[31mst", "h;ost", "$(x)@host", "us`er@host", "host|x", "", "½/host", "host:٣",
    "99999999999/host",
]  # fmt: skip


@pytest.mark.parametrize("word", GOOD)
def test_good_address(word: str) -> None:
    assert parse_address(word) == GOOD[word]


@pytest.mark.parametrize("word", BAD)
def test_bad_address_is_named(word: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_address(word)
    assert repr(word) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("word", GOOD)
def test_address_is_written_as_it_is_read(word: str) -> None:
    assert parse_address(str_with_slots(GOOD[word])) == GOOD[word]


@given(st.text(max_size=12))
def test_any_text_is_an_address_or_a_clear_error(word: str) -> None:
    try:
        address = parse_address(word)
    except ValueError:
        return
    assert not address.host.startswith("-") and address.host
    assert parse_address(str_with_slots(address)) == address


def test_same_host_twice_is_two_workers() -> None:
    assert parse_workers("a 2/a", "/") == (Address(host="a"), Address(host="a", slots=2))


def test_file_of_workers(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("# ours\n\n4/one  # the big one\n  two:22\t\nlocal\n")
    assert parse_workers("hosts", str(tmp_path)) == (
        Address(host="one", slots=4),
        Address(host="two", port=22),
        Address(host="local", local=True),
    )
    assert parse_workers(f" {tmp_path}/hosts ", "/") == parse_workers("hosts", str(tmp_path))


def test_file_of_workers_names_the_bad_line(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("one\ntwo:x\n")
    with pytest.raises(ValueError, match=rf"^{file}, line 2: 'two:x'"):
        parse_workers(str(file), "/")
    file.write_text("one\n\none two\n")
    with pytest.raises(ValueError, match=rf"^{file}, line 3: .*more than one"):
        parse_workers(str(file), "/")


@pytest.mark.parametrize("value", ["", "  ", [], ["a", 3], 4, "./nothing", "/nowhere/at/all", ["hosts"]])
def test_what_names_no_worker_is_an_error(value: object, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("# none\n")
    if value == ["hosts"]:
        assert parse_workers(value, str(tmp_path)) == (Address(host="hosts"),)  # a list never names a file
        value = "hosts"
    with pytest.raises(ValueError):
        parse_workers(value, str(tmp_path))


# --- which workers a run gets ----------------------------------------------------------------------------------------


def chosen(source: str = "command line", **values: Any) -> Values:
    if isinstance(workers := values.get("workers"), str):
        values["workers"] = parse_workers(workers, "/")
    return Values(settings=Settings(**values), sources={name.replace("_", "-"): source for name in values})


def names(addresses: tuple[Address, ...]) -> list[str]:
    return [str_with_slots(address) for address in addresses]


@pytest.mark.parametrize(
    ("values", "workers", "spares"),
    [
        ({}, ["0/local"], []),
        ({"split": 3}, ["3/local"], []),
        ({"slots": 2}, ["2/local"], []),
        ({"slots": 0}, ["0/local"], []),
        ({"workers": "a 4/b local 2/local"}, ["1/a", "4/b", "0/local", "2/local"], []),
        ({"workers": "a 4/b local", "slots": 3}, ["3/a", "4/b", "3/local"], []),
        ({"workers": "a b c", "split": 2}, ["1/a", "1/b"], ["1/c"]),
        ({"workers": "a b", "slots": 0}, ["0/a", "0/b"], []),
        ({"workers": "a b", "split": 2, "hub_apikey": "K"}, ["1/a", "1/b"], []),
        ({"workers": "a", "backup_id": 3}, ["1/a"], []),
    ],
)
def test_workers_and_spares(values: dict[str, Any], workers: list[str], spares: list[str]) -> None:
    allocation = allocate(chosen(**values))
    assert (names(allocation.workers), names(allocation.spares)) == (workers, spares)


def test_a_key_alone_does_not_move_a_session_to_the_hub() -> None:
    assert names(allocate(chosen(hub_apikey="K"), again=True).workers) == ["0/local"]
    assert allocate(chosen(hub_apikey="K", backup_id=1), again=True).provider == "hub"


@pytest.mark.parametrize(
    ("values", "listed", "provider", "split"),
    [
        ({"provider": "ec2"}, [], "ec2", 1),
        ({"provider": "ec2", "split": 15, "workers": "a b c d e"}, ["1/a", "1/b", "1/c", "1/d", "1/e"], "ec2", 15),
        ({"provider": "ec2", "workers": "a b"}, ["1/a", "1/b"], "ec2", 2),
        ({"hub_apikey": "SECRET"}, [], "hub", 1),
        ({"backup_id": 1, "split": 2}, [], "hub", 2),
        ({"workers": "a", "split": 2, "snapshot_id": "x"}, ["1/a"], "hub", 2),
        ({"provider": "docker", "ami_id": "x", "slots": 3, "workers": "a"}, ["3/a"], "docker", 1),
    ],
)
def test_what_is_missing_is_launched(values: dict[str, Any], listed: list[str], provider: str, split: int) -> None:
    allocation = allocate(chosen(**values))
    assert (names(allocation.workers), allocation.provider, allocation.split) == (listed, provider, split)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"workers": "a b", "split": 3}, "--split=3 .*2"),
        ({"split": 2, "slots": 2}, "--split and --slots"),
        ({"provider": "ec2", "split": 2, "min_split": 3}, "--min-split=3 .*--split=2"),
        ({"overlay": "/tmp"}, "--overlay"),
        ({"overlay": "/tmp", "workers": "a local"}, "--overlay"),
        ({"overlay": "/tmp", "workers": "a local", "split": 1}, "--overlay"),
    ],
)
def test_workers_that_cannot_be_had(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        allocate(chosen(**values))
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"workers": "a", "split": 2}, r"^--split=2 \(from the environment\) is more"),
        ({"split": 2, "slots": 2}, r"^--split \(from the environment\) and --slots \(from the environment\) mean"),
        ({"overlay": "/tmp"}, r"^--overlay \(from the environment\) cannot"),
    ],
)
def test_what_stands_in_the_way_is_named_with_its_place(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        allocate(chosen("environment", **values))
