"""The command line that starts an agent, its greeting, and frames."""

from __future__ import annotations

import random
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudtask import wire
from tests.agent.conftest import Connect

SHELLS = [name for name in ("sh", "dash", "bash", "busybox", "zsh", "ksh", "mksh", "csh", "tcsh", "fish") if shutil.which(name)]


def shell_argv(name: str) -> list[str]:
    return ["busybox", "sh", "-c"] if name == "busybox" else [name, "-c"]


@pytest.mark.parametrize("shell", SHELLS)
def test_any_login_shell_starts_it(connect: Connect, shell: str) -> None:
    client = connect(shell=shell_argv(shell))
    client.start()
    client.run({1: b"echo fine"})
    client.result(1)
    assert client.stdout(1) == b"fine\n"


def test_the_command_line_is_tame() -> None:
    command = wire.launch_command("s1.1", wire.new_nonce())
    assert not set(command) & set("!\n\\`$%") - {"%"}
    inner = command.removeprefix("exec /bin/sh -c '").removesuffix("'")
    assert "'" not in inner
    assert len(command) < 1500


@pytest.mark.parametrize("key", ["", "a b", "../x", "x;y", "x'y", "-x", "x\n", "é.1"])
def test_a_key_that_is_no_name_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="no name for an agent"):
        wire.launch_command(key, ("a", "b"))


def test_what_login_scripts_print_is_passed_over(connect: Connect, tmp_path: Path) -> None:
    noise = tmp_path / "noise"
    noise.write_text("set -xv; exec 2>&1; echo welcome to the machine; printf 'no newline'\n")
    client = connect(shell=["/bin/sh", "-c", f'. {shlex.quote(str(noise))}; echo "about to run: $1"; eval "$1"', "sh"])
    client.start()
    client.run({1: b"echo fine"})
    client.result(1)
    assert client.stdout(1) == b"fine\n"


@pytest.mark.parametrize("traced", [False, True])
def test_a_machine_without_python3_says_so(tmp_path: Path, traced: bool) -> None:
    nonce = wire.new_nonce()
    (tmp_path / "bin").mkdir()
    command = wire.launch_command("s1.1", nonce)
    trace = "set -xv; exec 2>&1; " if traced else ""
    shell = ["/bin/sh", "-c", f"{trace}echo {shlex.quote(command)}; eval {shlex.quote(command)}"]
    said = subprocess.run(shell, env={"PATH": str(tmp_path / "bin")}, stdin=subprocess.DEVNULL, capture_output=True, timeout=20).stdout
    greeting = wire.Greeting(nonce)
    assert greeting.feed(said) == ("nopython", b"")


def test_an_old_python3_counts_as_none(tmp_path: Path) -> None:
    nonce = wire.new_nonce()
    fake = tmp_path / "python3"
    script = 'shift 3; code=$1; shift\nexec /usr/bin/python3 -I -S -c "import sys; sys.version_info = (3, 5, 2); $code" "$@"'
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    shell = ["/bin/sh", "-c", wire.launch_command("s1.1", nonce)]
    done = subprocess.run(shell, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
    assert wire.Greeting(nonce).feed(done.stdout) == ("nopython", b"")


def test_a_python3_that_is_not_all_there_counts_as_none(tmp_path: Path) -> None:
    """Debian's python3-minimal has no json."""
    nonce = wire.new_nonce()
    hides = "class Hiding: find_spec = staticmethod(lambda name, path=None: None if name == 'json' else known(name, path))"
    fake = tmp_path / "python3"
    code = f"import sys; known = sys.meta_path[-1].find_spec\n{hides}\nsys.meta_path[-1] = Hiding\n$code"
    fake.write_text(f'#!/bin/sh\nshift 3; code=$1; shift\nexec /usr/bin/python3 -I -S -c "{code}" "$@"\n')
    fake.chmod(0o755)
    shell = ["/bin/sh", "-c", wire.launch_command("s1.1", nonce)]
    done = subprocess.run(shell, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
    assert wire.Greeting(nonce).feed(done.stdout) == ("nopython", b""), done.stderr


def test_a_python3_that_cannot_start_leaves_a_complaint(tmp_path: Path) -> None:
    nonce = wire.new_nonce()
    fake = tmp_path / "python3"
    fake.write_text("#!/bin/sh\necho broken >&2; exit 1\n")
    fake.chmod(0o755)
    shell = ["/bin/sh", "-c", wire.launch_command("s1.1", nonce)]
    done = subprocess.run(shell, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
    assert wire.Greeting(nonce).feed(done.stdout) is None
    assert done.stderr == b"broken\n"


@pytest.mark.parametrize("kind", ["agent", "nopython"])
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_the_mark_is_found_however_it_is_cut(kind: str, size: int) -> None:
    nonce = wire.new_nonce()
    mark = "".join(nonce) if kind == "agent" else "CLOUDTASK-NOPYTHON"
    stream = b"motd " + nonce[0].encode() + b" " + nonce[1].encode() + b"\xff\n" + mark.encode() + b"\n" + b"rest of it"
    greeting = wire.Greeting(nonce)
    found, used = None, 0
    while found is None:
        found = greeting.feed(stream[used : used + size])
        used += size
    assert found[0] == kind
    assert found[1] + stream[used:] == b"rest of it"
    assert greeting.noise.startswith(b"motd ")
    assert greeting.noise.endswith(b"\xff\n")


def test_noise_is_not_kept_without_end() -> None:
    greeting = wire.Greeting(wire.new_nonce())
    for _ in range(100):
        assert greeting.feed(random.randbytes(10_000)) is None
    assert len(greeting.noise) == wire.NOISE_KEPT


def test_the_program_is_small_and_its_length_is_right() -> None:
    payload = wire.agent_payload()
    assert len(payload) == 8 + int(payload[:8])
    assert len(payload) < 64 << 10


def test_bytes_after_the_program_are_not_swallowed(connect: Connect) -> None:
    """The supervisor may send its first frames without waiting."""
    client = connect()
    assert client.greet() == "agent"
    client.hello()


values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5)
headers = st.dictionaries(st.text(max_size=5), values, max_size=4)
frames = st.lists(st.tuples(headers.map(lambda header: {**header, "t": "x"}), st.binary(max_size=300)), max_size=5)


@given(frames, st.integers(1, 50))
def test_frames_come_out_as_they_went_in(sent: list[tuple[dict[str, object], bytes]], size: int) -> None:
    stream = b"".join(wire.pack(header, payload) for header, payload in sent)
    unpacker = wire.Unpacker()
    received = [frame for start in range(0, len(stream), size) for frame in unpacker.feed(stream[start : start + size])]
    assert received == sent


@given(st.binary(max_size=2000), st.integers(1, 300))
def test_garbage_is_a_protocol_error_or_waits_for_more(data: bytes, size: int) -> None:
    unpacker = wire.Unpacker()
    try:
        for start in range(0, len(data), size):
            for header, _ in unpacker.feed(data[start : start + size]):
                assert isinstance(header["t"], str)
    except wire.ProtocolError:
        pass


def test_a_frame_that_is_too_long_is_not_made() -> None:
    with pytest.raises(ValueError, match="too long"):
        wire.pack({"t": "code"}, bytes(wire.MAX_FRAME))


def test_bytes_in_headers_survive() -> None:
    (frame,) = wire.Unpacker().feed(wire.pack({"t": "hello", "env": {"A": "\udcff"}}))
    assert frame[0]["env"] == {"A": "\udcff"}
