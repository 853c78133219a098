"""What is taken from the user's ssh configuration, asked of the real `ssh -G`, and of the second best where there is no ssh."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloudtask.errors import RefusedError
from cloudtask.model import Address
from cloudtask.transports.sshconfig import Hop, HostConfig, home, resolve


@pytest.fixture(params=["ssh -G", "no ssh"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Both ways to read a configuration."""
    if request.param == "no ssh":
        monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return str(request.param)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config"


def ask(
    config: Path, text: str, host: str = "web", *, user: str | None = None, port: int | None = None, option: str | None = None
) -> HostConfig:
    config.write_text(text)
    return resolve(Address(host=host, user=user, port=port), option, str(config))


@pytest.mark.parametrize(
    ("text", "address", "option", "expected"),
    [
        ("Host web\n User conf\n", "addr", "opt", "addr"),
        ("Host web\n User conf\n", None, "opt", "opt"),
        ("Host web\n User conf\n", None, None, "conf"),
        ("Host other\n User conf\n", None, None, "root"),
        ("", None, None, "root"),
        ("Host other\n User no\nHost *\n User last\n", None, None, "last"),
        ("Host web\n Port 2\nHost nothing", None, None, "root"),  # ends inside a block, without a newline
    ],
)
def test_who_logs_in(text: str, address: str | None, option: str | None, expected: str, config: Path, reader: str) -> None:
    assert ask(config, text, user=address, option=option).user == expected


def test_host_port_and_the_rest_are_read(config: Path, reader: str) -> None:
    found = ask(
        config,
        "Host web\n HostName 192.0.2.7\n Port 2222\n HostKeyAlias thealias\n StrictHostKeyChecking yes\n IdentitiesOnly yes\n"
        " UserKnownHostsFile /tmp/a /tmp/b\n GlobalKnownHostsFile none\n IdentityFile /k/%h-%p-%r\n ConnectTimeout 7\n",
    )
    assert (found.name, found.host, found.port, found.user, found.alias) == ("web", "192.0.2.7", 2222, "root", "thealias")
    assert (found.strict, found.identities_only, found.timeout) == ("yes", True, 7.0)
    assert found.user_known_hosts == ("/tmp/a", "/tmp/b")
    assert found.global_known_hosts == ()
    assert found.identities == ("/k/192.0.2.7-2222-root",)


def test_the_port_of_the_address_wins(config: Path, reader: str) -> None:
    assert ask(config, "Port 2222\n", port=2022).port == 2022
    assert ask(config, "").port == 22


def test_what_nobody_configured(config: Path, reader: str) -> None:
    found = ask(config, "")
    assert found.strict == "ask"
    assert not found.identities_only
    assert (found.proxy_command, found.jumps, found.alias, found.agent, found.timeout) == (None, (), None, None, None)
    assert f"{home()}/.ssh/id_ed25519" in found.identities
    assert found.user_known_hosts[0] == f"{home()}/.ssh/known_hosts"


def test_tokens_of_a_proxy_command_are_put_in(config: Path, reader: str) -> None:
    assert ask(config, "Host web\n HostName real\n ProxyCommand nc -X 5 %h %p 100%%\n").proxy_command == "nc -X 5 real 22 100%"
    assert ask(config, "ProxyCommand none\n").proxy_command is None


def test_jump_hosts_are_read_in_order(config: Path) -> None:
    found = ask(config, "ProxyJump a,bob@b:2200,ssh://c:22,[::1]:23\n")
    assert found.jumps == (Hop("a", None, None), Hop("b", "bob", 2200), Hop("c", None, 22), Hop("::1", None, 23))


def test_include_and_match_are_followed(config: Path, tmp_path: Path) -> None:
    (tmp_path / "more").write_text("Host web\n  User included\n")
    assert ask(config, f"Include {tmp_path}/more\nHost *\n Port 2022\n").login == "included@web:2022"
    assert ask(config, "Match exec true\n User matched\n").user == "matched"
    assert ask(config, "Match user root\n Port 2023\n").port == 2023  # the default user counts as one
    assert ask(config, "Match user root\n Port 2023\n", user="bob").port == 22


def test_file_names_with_blanks_survive(config: Path) -> None:
    assert ask(config, 'UserKnownHostsFile "/tmp/a b" ~/c\n').user_known_hosts == ("/tmp/a b", f"{home()}/c")


def test_the_agent_is_found(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    monkeypatch.setenv("MY_AGENT", "/run/mine")
    assert ask(config, "").agent == "/run/agent"
    assert ask(config, "IdentityAgent none\n").agent is None
    assert ask(config, "IdentityAgent $MY_AGENT\n").agent == "/run/mine"
    assert ask(config, "IdentityAgent ~/agent\n").agent == f"{home()}/agent"


def test_without_a_configuration_file_the_usual_ones_count(reader: str) -> None:
    assert resolve(Address(host="192.0.2.1"), None, None).login == "root@192.0.2.1:22"
    assert resolve(Address(host="::1", port=23), None, "none").login == "root@[::1]:23"


@pytest.mark.parametrize("host", ["-oProxyCommand=x", "a b", "a\nb", "a;b", "$(id)", "`id`", "a'b", "", "a|b", "\x00"])
def test_host_names_that_are_none_are_refused(host: str, config: Path) -> None:
    with pytest.raises(RefusedError, match="cannot be a host name"):
        ask(config, "", host=host)


@pytest.mark.parametrize("user", ["-l", "a b", "$(id)", "a;b"])
def test_user_names_that_are_none_are_refused(user: str, config: Path) -> None:
    with pytest.raises(RefusedError, match="cannot be a user name"):
        ask(config, "", user=user)


def test_a_configuration_that_ssh_rejects_is_shown(config: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"ssh rejects its configuration.*nonsense"):
        ask(config, "Nonsense yes\n")
    with pytest.raises(RefusedError, match="missing cannot be read"):
        resolve(Address(host="web"), None, str(tmp_path / "missing"))


def test_no_process_and_no_file_is_left_behind(config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    ask(config, "")
    assert os.listdir(tmp_path / "tmp") == []
