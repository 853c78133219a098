"""Whom we trust: known_hosts files read and written, against real servers where the keys are real."""

from __future__ import annotations

import base64
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cloudtask.errors import RefusedError
from cloudtask.model import Address
from cloudtask.transports import Connection, find
from cloudtask.transports.hostkeys import HostKeys
from cloudtask.transports.sshconfig import HostConfig
from tests.conftest import MakeSshd
from tests.sshd import ClientKeys, Sshd, keygen

KEY, OTHER = b"\x00" * 20, b"\x01" * 20
KIND = "ssh-ed25519"


def login(server: Sshd, keys: ClientKeys, name: str = "ssh", **changes: object) -> None:
    connection: Connection = find(name).connect(Address(host=server.host, user=server.user, port=server.port), keys.options(**changes))
    assert connection.alive()
    connection.close()


def line(names: str, key: bytes = KEY, kind: str = KIND) -> str:
    return f"{names} {kind} {base64.b64encode(key).decode()} a comment\n"


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., None]:
    """Checks the key of one host against one known_hosts file; nothing unknown is accepted."""

    def judge(text: str, *, host: str = "host.example", port: int = 22, key: bytes = KEY, alias: str | None = None) -> None:
        file = tmp_path / "known_hosts"
        file.write_text(text)
        config = HostConfig(name=host, host=host, port=port, user="u", alias=alias, strict="yes", user_known_hosts=(str(file),))
        HostKeys(config, str(tmp_path / "ours")).check(KIND, key)

    return judge


@pytest.mark.parametrize(
    "names",
    ["host.example", "other,host.example", "HOST.example", "*.example", "h?st.example", "*", "!bad.example,*.example"],
)
def test_names_and_patterns_match(names: str, check: Callable[..., None]) -> None:
    check(f"# a comment\n\nnonsense\n{line('another')}{line(names)}")


@pytest.mark.parametrize(
    "names", ["xhost.example", "host.example.com", "host.exampl", "*.example,!host.example", "!host.example,*", "[host.example]:22"]
)
def test_names_and_patterns_that_do_not_match(names: str, check: Callable[..., None]) -> None:
    with pytest.raises(RefusedError, match="not known and StrictHostKeyChecking"):
        check(line(names))


def test_a_port_of_its_own_is_part_of_the_name(check: Callable[..., None]) -> None:
    check(line("[host.example]:2222"), port=2222)
    check(line("[*.example]:2222"), port=2222)
    check(line("host.example"), port=2222)  # like ssh: a key known under the bare name will do
    with pytest.raises(RefusedError, match="not known"):
        check(line("host.example", OTHER), port=2222)  # but another one there proves nothing
    with pytest.raises(RefusedError, match="not known"):
        check(line("[host.example]:2222"))


def test_hashed_names_match(tmp_path: Path, check: Callable[..., None]) -> None:
    file = tmp_path / "hashed"
    public = Path(f"{keygen(tmp_path / 'k')}.pub").read_text().split()[1]
    file.write_text(f"host.example {KIND} {public}\n[host.example]:2222 {KIND} {public}\n")
    subprocess.run(["ssh-keygen", "-H", "-f", file], check=True, capture_output=True)
    text = file.read_text()
    assert text.startswith("|1|")
    check(text, key=base64.b64decode(public))
    check(text, key=base64.b64decode(public), port=2222)
    with pytest.raises(RefusedError, match="not known"):
        check(text, key=base64.b64decode(public), host="other.example")


def test_an_alias_stands_for_name_and_port(check: Callable[..., None]) -> None:
    check(line("thealias"), alias="theAlias", port=2222)
    with pytest.raises(RefusedError, match=r"thealias: .* not known"):
        check(line("host.example"), alias="theAlias")


def test_a_changed_key_is_refused_with_file_line_and_remedy(tmp_path: Path, check: Callable[..., None]) -> None:
    with pytest.raises(RefusedError, match=rf"has changed, see {tmp_path}/known_hosts:2.*ssh-keygen -R 'host.example' -f"):
        check(line("x") + line("host.example", OTHER))


def test_one_right_key_among_others_will_do(check: Callable[..., None]) -> None:
    check(line("host.example", OTHER) + line("host.example"))


def test_a_key_of_another_type_than_the_known_one_is_refused(check: Callable[..., None]) -> None:
    with pytest.raises(RefusedError, match="another type"):
        check(line("host.example", OTHER, "ssh-rsa"))


def test_a_revoked_key_is_refused_even_where_it_is_known(check: Callable[..., None]) -> None:
    with pytest.raises(RefusedError, match=r"revoked .*known_hosts:2"):
        check(line("host.example") + "@revoked " + line("*"))
    check(line("host.example") + "@revoked " + line("*", OTHER))


def test_a_host_with_a_certificate_authority_points_to_openssh(check: Callable[..., None]) -> None:
    with pytest.raises(RefusedError, match="--transport=openssh"):
        check("@cert-authority " + line("*.example", OTHER))
    with pytest.raises(RefusedError, match="not known"):
        check("@cert-authority " + line("*.elsewhere", OTHER))


def test_torn_and_senseless_lines_are_passed_over(check: Callable[..., None]) -> None:
    torn = "host.example\nhost.example ssh-ed25519 %%%\n|1|x|y ssh-ed25519 AAAA\n|1|only ssh-ed25519 AAAA\n@revoked\n\xff\xfe\n"
    check(torn + line("host.example"))


def test_fifty_thousand_lines_take_no_time(tmp_path: Path) -> None:
    file = tmp_path / "big"
    hashed = "|1|F1E1KeoE/eEWhi10WpGv4OdiO6Y=|3988QV0VE8wmZL7suNrYQLITLCg= ssh-rsa " + "A" * 372 + "\n"
    file.write_text("".join(line(f"host{number}.example,10.1.2.3", OTHER) + hashed for number in range(25_000)) + line("host.example"))
    config = HostConfig(name="host.example", host="host.example", port=22, user="u", strict="yes", user_known_hosts=(str(file),))
    began = time.process_time()
    HostKeys(config, str(tmp_path / "ours")).check(KIND, KEY)
    assert time.process_time() - began < 2.0


def test_known_types_are_offered_first_and_only_those_allowed(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(line("host", kind="ecdsa-sha2-nistp256"))
    supported = ["ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512", "rsa-sha2-256"]
    config = HostConfig(name="host", host="host", port=22, user="u", user_known_hosts=(str(file),))
    assert HostKeys(config, "/nonexistent").algorithms(supported)[0] == "ecdsa-sha2-nistp256"
    only = replace(config, algorithms=("x", "rsa-sha2-256", "ssh-ed25519"))
    assert HostKeys(only, "/nonexistent").algorithms(supported) == ["rsa-sha2-256", "ssh-ed25519"]
    none = replace(config, algorithms=("x",))
    with pytest.raises(RefusedError, match="HostKeyAlgorithms"):
        HostKeys(none, "/nonexistent").algorithms(supported)


def test_an_unknown_host_is_accepted_once_and_remembered(sshd: MakeSshd, client_keys: ClientKeys) -> None:
    server = sshd()
    login(server, client_keys)
    assert client_keys.accepted.read_text() == server.known_hosts_line()
    assert client_keys.accepted.stat().st_mode & 0o777 == 0o600
    assert client_keys.known_hosts.read_text() == ""
    login(server, client_keys)
    assert client_keys.accepted.read_text() == server.known_hosts_line()


def test_a_strict_user_is_obeyed(sshd: MakeSshd, client_keys: ClientKeys) -> None:
    server = sshd()
    client_keys.configure("StrictHostKeyChecking yes")
    with pytest.raises(RefusedError, match=f"ssh-keyscan -p {server.port} 127.0.0.1"):
        login(server, client_keys)
    assert not client_keys.accepted.exists()
    client_keys.known_hosts.write_text(server.known_hosts_line())
    login(server, client_keys)


@pytest.mark.parametrize("name", ["ssh", "openssh"])
@pytest.mark.parametrize("strict", ["ask", "no", "accept-new"])
def test_a_changed_host_is_refused_whatever_the_configuration_says(name: str, strict: str, sshd: MakeSshd, client_keys: ClientKeys) -> None:
    server = sshd(host_keys=["ed25519"])
    client_keys.configure(f"StrictHostKeyChecking {strict}")
    other = Path(f"{keygen(client_keys.home / 'other')}.pub").read_text().split()[1]
    client_keys.known_hosts.write_text(f"# one\n[127.0.0.1]:{server.port} {KIND} {other}\n")
    with pytest.raises(RefusedError, match=rf"HOST KEY has changed.*{client_keys.known_hosts}:2"):
        login(server, client_keys, name)


@pytest.mark.parametrize("name", ["ssh", "openssh"])
def test_a_host_known_by_its_second_key_is_asked_for_that(name: str, sshd: MakeSshd, client_keys: ClientKeys) -> None:
    server = sshd()
    client_keys.configure("StrictHostKeyChecking yes")
    client_keys.known_hosts.write_text(server.known_hosts_line("ecdsa"))
    login(server, client_keys, name)


def test_rsa_host_keys_are_checked_by_their_type(sshd: MakeSshd, client_keys: ClientKeys) -> None:
    server = sshd(host_keys=["rsa", "ed25519"])
    client_keys.configure("StrictHostKeyChecking yes")
    client_keys.known_hosts.write_text(server.known_hosts_line("rsa"))
    login(server, client_keys)


def test_two_who_meet_a_host_at_once_write_one_line(tmp_path: Path) -> None:
    ours = tmp_path / "deep" / "known_hosts"
    config = HostConfig(name="host", host="host", port=2222, user="u")
    judges = [HostKeys(config, str(ours)) for _ in range(8)]  # all have read the file before any writes it
    errors: list[RefusedError] = []

    def check(judge: HostKeys, key: bytes) -> None:
        try:
            judge.check(KIND, key)
        except RefusedError as error:
            errors.append(error)

    threads = [threading.Thread(target=check, args=(judge, KEY if number else OTHER)) for number, judge in enumerate(judges)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ours.read_text().count("\n") == 1
    assert len(errors) in (1, 7)  # those with the key that came second


def test_a_torn_last_line_is_not_run_into(tmp_path: Path) -> None:
    ours = tmp_path / "known_hosts"
    ours.write_text("other ssh-ed25519 AAAA")
    HostKeys(HostConfig(name="host", host="host", port=22, user="u"), str(ours)).check(KIND, KEY)
    assert ours.read_text().splitlines()[1].startswith("host ssh-ed25519 ")


def test_a_key_that_cannot_be_remembered_is_not_accepted(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    judge = HostKeys(HostConfig(name="host", host="host", port=22, user="u"), str(tmp_path / "file" / "known_hosts"))
    with pytest.raises(RefusedError, match="cannot be remembered"):
        judge.check(KIND, KEY)


def test_a_host_certificate_works_with_openssh_only(sshd: MakeSshd, client_keys: ClientKeys, tmp_path: Path) -> None:
    authority = keygen(tmp_path / "ca")
    server = sshd(host_keys=["ed25519"])
    server.stop()
    key = server.host_keys[0]
    sign = ["ssh-keygen", "-q", "-s", str(authority), "-I", "host", "-h", "-n", "127.0.0.1", f"{key}.pub"]
    subprocess.run(sign, check=True, capture_output=True)
    server.config += [f"HostCertificate {key}-cert.pub"]
    server.start()
    client_keys.configure("StrictHostKeyChecking yes")
    client_keys.known_hosts.write_text(f"@cert-authority [127.0.0.1]:* {Path(f'{authority}.pub').read_text()}")
    login(server, client_keys, "openssh")
    with pytest.raises(RefusedError, match=r"authority .*--transport=openssh"):
        login(server, client_keys, "ssh")
