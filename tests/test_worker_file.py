"""The file of workers: lines with facts, read and written; whatever else is in one is a clear error."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudtask.kinds import Scene
from cloudtask.model import Address
from cloudtask.settings import BUILT_IN
from cloudtask.worker_file import (
    WorkerLine,
    instance_alias,
    parse_lines,
    parse_workers,
    read_worker_file,
    write_address,
)


def blob(kind: str, size: int = 32) -> str:
    """A host key's base64."""
    return base64.b64encode(len(kind).to_bytes(4, "big") + kind.encode() + bytes(size)).decode()


KEY = f"ssh-ed25519:{blob('ssh-ed25519')}"
LINE = f"root@198.51.100.7:2222 #: provider=ec2 region=us-east-1 id=i-0123 hostkey={KEY}"


def test_a_line_gives_all_that_it_takes_to_reach_the_machine() -> None:
    line = WorkerLine.parse(LINE)
    assert line.address == Address(host="198.51.100.7", user="root", port=2222, alias="cloudtask-i-0123", host_key=KEY.replace(":", " "))
    assert dict(line.facts) == {"provider": "ec2", "region": "us-east-1", "id": "i-0123", "hostkey": KEY}
    assert line.line == LINE and line.format() == LINE


def test_a_transport_of_its_own() -> None:
    line = WorkerLine.parse("2/3f2a #: provider=docker id=3f2a transport=docker  # mine")
    assert line.address == Address(host="3f2a", slots=2, transport="docker", alias="cloudtask-3f2a")
    assert line.format() == "2/3f2a #: provider=docker id=3f2a transport=docker"


def test_an_alias_stands_in_its_own_name_where_no_id_gives_it() -> None:
    address = Address(host="h", alias="cloudtask-x", host_key=KEY.replace(":", " "))
    assert write_address(address) == f"h #: hostkey={KEY} alias=cloudtask-x"
    assert WorkerLine.parse(f"h #: id=i-1 hostkey={KEY} alias=other").address.alias == "other"


@pytest.mark.parametrize("text", ["host", "4/user@host:22", "local", "host # a comment: id=x", "host\t", "host #comment #: id=x"])
def test_plain_lines_are_what_they_were(text: str) -> None:
    line = WorkerLine.parse(text)
    assert not line.facts and line.address == parse_workers([text.split()[0]], "/")[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("#: id=i-1", "no worker stands before"),
        ("a b #: id=i-1", "'a b' is more than one worker"),
        ("host #: junk", "'junk' behind #: is not name=value"),
        ("host #:id", "'id' behind #:"),
        ("host #: id=i-1 and more", "'and' behind #:"),
        ("host #: ID=x", "'ID=x'"),
        ("host #: =x", "'=x'"),
        ("host #: id=", "id='' says nothing"),
        ("host #: id=a id=b", "id stands twice"),
        ("host #: id=%0a", "characters that cannot be printed"),
        ("host #: id=%e2%80%ae", "characters that cannot be printed"),
        ("host #: id=%ff", "UTF-8"),
        ("host #: id=%f", "not name=value"),
        ("host #: id=ü", "not name=value"),
        ("host #: id=a\x1bb", "not name=value"),
        ("host #: hostkey=x", "hostkey='x' is no host key"),
        (f"host #: hostkey=ssh-rsa:{blob('ssh-ed25519')}", "is no host key"),
        (f"host #: hostkey={KEY}=", "is no host key"),
        ("host #: hostkey=ssh-ed25519:" + "A" * 17, "is no host key"),
        ("host #: transport=../x", "is no name of a transport"),
        ("host #: alias=*", "no name for a host key"),
        ("host #: alias=a,b", "no name for a host key"),
        ("local #: id=i-1", "this machine"),
        ("local #: transport=ssh", "this machine"),
        ("$(x) #: id=i-1", "is no name of a host"),
        ("host #: x=" + "y" * 20000, "too long"),
    ],
)
def test_junk_is_named(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        WorkerLine.parse(text)
    assert words in str(caught.value) and len(str(caught.value)) < 1000 and str(caught.value).isprintable()
    file = tmp_path / "workers"
    file.write_text(f"good\n{text}\n")
    with pytest.raises(ValueError) as named:
        parse_workers(str(file), "/")
    assert str(named.value).startswith(f"{file}, line 2: ")


def test_a_file_is_read_with_its_facts(tmp_path: Path) -> None:
    file = tmp_path / "workers"
    file.write_text(f"# made by cloudtask-launch-workers\n{LINE}\n\n  plain:22 # mine\n # indented\n")
    assert parse_workers("workers", str(tmp_path)) == (WorkerLine.parse(LINE).address, Address(host="plain", port=22))
    lines = read_worker_file(str(file))
    assert [line.facts.get("id") for line in lines] == ["i-0123", None]
    assert parse_lines(file.read_text(), "-") == lines


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        read_worker_file(str(tmp_path / "none"))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not text in UTF-8"):
        read_worker_file(str(tmp_path / "bytes"))


def test_what_could_not_be_read_again_is_not_written() -> None:
    for address in (Address(host="a b"), Address(host="local"), Address(host="h", transport="x y"), Address(host="h", host_key="x")):
        with pytest.raises(ValueError):
            write_address(address)
    for facts in ({"a b": "x"}, {"id": "a\nb"}, {"id": ""}):
        with pytest.raises(ValueError):
            WorkerLine(address=Address(host="h"), facts=facts).format()


def test_conf_yaml_brings_the_addresses_back() -> None:
    row = BUILT_IN.find("workers")
    assert row
    addresses = (WorkerLine.parse(LINE).address, Address(host="c", transport="docker"), Address(host="local", local=True, slots=3))
    saved = row.write(addresses)
    assert isinstance(saved, list) and all(isinstance(word, str) for word in saved)
    assert row.parse(saved, Scene(folder="/", environ={})) == addresses


def test_addresses_in_a_template_are_checked_like_words() -> None:
    address = WorkerLine.parse(LINE).address
    assert parse_workers([address, "b"], "/") == (address, Address(host="b"))
    with pytest.raises(ValueError):
        parse_workers([Address(host="-oProxyCommand=x")], "/")


# --- any input ---------------------------------------------------------------------------------------------------------

HOSTS = st.sampled_from(["host", "10.0.0.1", "::1", "fe80::1%eth0", "a-b.example.com.", "3f2a99"])
FACTS = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9_-]{0,12}", fullmatch=True).filter(lambda name: name not in ("hostkey", "transport", "alias")),
    st.text(min_size=1, max_size=30).filter(lambda text: text.isprintable() and not any("\ud800" <= c <= "\udfff" for c in text)),
    max_size=5,
)
ADDRESSES = st.builds(
    Address,
    host=HOSTS,
    user=st.none() | st.sampled_from(["root", "me", "user@corp"]),
    port=st.none() | st.integers(1, 65535),
    slots=st.none() | st.integers(1, 999999),
    transport=st.none() | st.from_regex(r"[a-z][a-z0-9_-]{0,12}", fullmatch=True),
    alias=st.none() | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    host_key=st.none() | st.builds(lambda size: f"ssh-rsa {blob('ssh-rsa', size)}", st.integers(12, 300)),
)


@given(ADDRESSES, FACTS)
def test_what_is_written_is_read_back(address: Address, facts: dict[str, str]) -> None:
    if "id" in facts and address.alias is None:
        address = replace(address, alias=instance_alias(facts["id"]))
    text = WorkerLine(address=address, facts=facts).format()
    assert "\n" not in text and text.isascii()
    line = WorkerLine.parse(text)
    assert line.address == address
    assert facts.items() <= line.facts.items()
    assert line.format() == text
    assert parse_lines(f"# x\n{text}\n", "f") == [line]


@given(ADDRESSES)
def test_an_address_is_saved_whole(address: Address) -> None:
    assert parse_workers([write_address(address)], "/") == (address,)


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), max_size=60))
def test_any_line_is_a_worker_or_nothing_or_a_clear_error(text: str) -> None:
    for line in (text, f"host #: {text}"):
        try:
            found = parse_lines(line, "f")
        except ValueError as error:
            assert str(error).startswith("f, line 1: ")
            continue
        assert len(found) <= 1
        for each in found:
            assert parse_lines(each.format(), "f")[0].address == each.address


@given(st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=200))
def test_any_id_gives_a_name_for_its_host_key(id: str) -> None:
    alias = instance_alias(id)
    assert WorkerLine.parse(f"host #: alias={alias}").address.alias == alias
    assert alias == alias.lower()


def test_ids_that_look_alike_have_names_of_their_own() -> None:
    ids = ["i-1", "I-1", "i/1", "i:1", "i-1-", "qemu:///system/x", "qemu:///system/X"]
    assert len({instance_alias(id) for id in ids}) == len(ids)
    assert instance_alias("i-0abc") == "cloudtask-i-0abc"
