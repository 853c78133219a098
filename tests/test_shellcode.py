"""No value breaks out of any command that is accepted: random commands, hostile values, real shells.

The hostile values would print 49 times a mark if any part of them ran; they contain the multiplication, never its result.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cloudtask.command import Command
from cloudtask.errors import CloudtaskError, UsageError
from cloudtask.shellcode import check_closed, scan_code
from cloudtask.shellwords import UnbalancedError, enclose

_RUNS = b"echo RAN$((7*7))TIMES"
_PROOF = b"RAN49TIMES"
HOSTILE = [
    form.replace(b"@", _RUNS)
    for form in (
        *(b"';@;'", b'";@;"', b"$(@)", b"`@`", b"\n@\n", b"'\n@\n'", b"\nE\n@\n", b"};@;", b");@;", b"));@;((("),
        *(b";;esac;@", b"a[$(@)]", b"x=$(@)", b"\\", b"#", b"E"),
    )
]
_FRAGMENTS = [
    *("{}", "{}", "{}", "{1}", "{#}", "'", '"', "`", "\\", "\\'", '\\"', "\\`", "\\\n", "#", " #", "\n", " ", " ", "\t", "$'"),
    *("$(", '"$(', ")", ')"', "(", "((", "$((", "))", "$[", "[", "]", "${x:-", "${y#", "}", "{ ", "; }", "<<E", "<<-'E'", "\nE\n"),
    *(";", "|", "&", "<", ">", ">&", "<<<", "<(", "=", "x=", "~", "!", "*", "$", "a", "2", "E", "[[ ", " ]]", "f() ", "echo "),
    *("case x in ", " ;; ", " esac ", "if true; then ", "; fi "),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where code runs: not there before, and gone afterwards."""
    return tmp_path_factory.mktemp("shellcode") / "folder"


@pytest.fixture(scope="module")
def shells(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """/bin/sh as it may be on a worker: dash, bash under the name of sh (which is not the same as bash), busybox."""
    found = [["/bin/sh"]]
    if bash := shutil.which("bash"):
        sh = tmp_path_factory.mktemp("bash") / "sh"
        sh.symlink_to(bash)
        found.append([str(sh)])
    if busybox := shutil.which("busybox"):
        found.append([busybox, "sh"])
    return found


def _ran(shell: list[str], code: bytes, folder: Path) -> bool:
    """True if something of a hostile value ran: it shows in what is printed, or in the name of a file."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [*shell, "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=20,
        cwd=folder,
        env={"PATH": "/usr/bin:/bin"},
        check=False,
    )
    names = b"\n".join(map(os.fsencode, os.listdir(folder)))
    shutil.rmtree(folder)
    return _PROOF in done.stdout + done.stderr + names


def test_a_value_that_breaks_out_is_noticed(shells: list[list[str]], folder: Path) -> None:
    for shell in shells:
        assert _ran(shell, b"echo '" + HOSTILE[0] + b"'", folder)
        assert _ran(shell, b'echo hi >"' + HOSTILE[2] + b'"', folder)
        assert not _ran(shell, b"echo " + enclose(HOSTILE[0]), folder)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_nothing_breaks_out_of_an_accepted_command(shells: list[list[str]], folder: Path, data: st.DataObject) -> None:
    template = "".join(data.draw(st.lists(st.sampled_from(_FRAGMENTS), min_size=1, max_size=10)))
    words = data.draw(st.lists(st.sampled_from(HOSTILE), min_size=1, max_size=3))
    try:
        code = Command([template]).render(b" ".join(map(enclose, words)), 1)
    except CloudtaskError:
        assume(False)
    for shell in shells:
        assert not _ran(shell, code, folder), (shell, code)


@pytest.mark.parametrize("code", ["x >&{}", "x >&", "x 2>& {1}"])
def test_what_bash_expands_twice_is_refused(code: str) -> None:
    with pytest.raises(CloudtaskError):
        Command([code])


@pytest.mark.parametrize(
    "code",
    [
        b"echo {} 2>&1 | tee {1}.log && ls",
        b"if test -e {}; then rm {}; fi",
        b"for i in 1 2; do echo $i {}; done",
        b"case {} in *.gz) gunzip {};; *) cat {};; esac",
        b"(cd /tmp && echo {})",
        b"{ echo {}; } > out",
        b"x=$((1 << 2)); y=$(( (x+1)*2 )); echo {}",
        b'echo "it\'s `date`" {}',
        b'echo "${x:-"a b"}" ${y#\'}\'} {}',
        b"cat <<E | grep {}\nit's $(date) `date` ${x}\nE",
        b"cat <<'E' <<-F; echo {}\n$(it's\nE\n\t'\n\tF\necho {}",
        b'a="$(cat <<E\n"\nE\n)"; echo {}',
        b"f() { echo {}; }; f # it's",
        b"diff <(sort {1}) <(sort {2})",
        b"grep '#' {} # 'x",
        b'echo "$(echo "$(echo {})" \'x\')" {}',
    ],
)
def test_everyday_code_is_followed_to_its_end(code: bytes) -> None:
    scan = scan_code(code)
    assert (scan.doubt, scan.unclosed) == (None, None)
    assert len(scan.markers) == code.count(b"{}") + code.count(b"{1}") + code.count(b"{2}")
    assert not [marker for marker in scan.markers if marker.refusal]


def test_code_that_is_closed() -> None:
    check_closed(b"""echo "$(echo '"')" """)
    with pytest.raises(UnbalancedError, match="a ' is never closed"):
        check_closed(b"echo 'x")


def test_nesting_has_a_limit_with_a_clear_error() -> None:
    assert Command(["x {1} " + '"$(' * 9 + "{1}" + ')"' * 9]).render(b"a", 1).count(b"a") == 2
    for code in ("$(" * 5000, '"${x:-' * 5000 + "{}"):
        with pytest.raises(UsageError, match="inside each other"):
            Command([code])
