"""A command and a line make shell code: what the code is, and that real shells get exactly the words."""

from __future__ import annotations

import shutil
import subprocess
import timeit
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudtask.command import Command
from cloudtask.errors import InputError, UsageError
from cloudtask.shellwords import enclose, quote

SHELLS = [shell for shell in ("dash", "bash") if shutil.which(shell)] or ["sh"]


@pytest.mark.parametrize(
    ("words", "line", "code"),
    [
        # one argument is code, several are words; the job's words are data
        (["echo hello"], b"a 'b c'", b"echo hello a 'b c'"),
        (["echo $HOME *;"], b"a", b"echo $HOME *; a"),
        (["echo", "$HOME", "a b"], b"x", b"echo '$HOME' 'a b' x"),
        (["echo"], b"$HOME * ; ~ a=b --a=b it\\'s", b"echo '$HOME' '*' ';' '~' 'a=b' --a=b 'it'\\''s'"),
        (["echo"], b"a   b  # no word", b"echo a b"),
        (["echo"], b"if '' do", b"echo 'if' '' 'do'"),
        (["echo"], b"caf\xe9 \xff", b"echo 'caf\xe9' '\xff'"),
        (["cd x &&"], b"ls", b"cd x && ls"),
        # placeholders
        (["mv {} {}.bak"], b"'a b'", b"mv 'a b' 'a b'.bak"),
        (["mv {1} {2}"], b"a b c", b"mv a b"),
        (["x {.} {/} {//} {/.}"], b"d.e/f.tar.gz", b"x d.e/f.tar f.tar.gz d.e f.tar"),
        (["x {2.} {2/} {2//} {2/.}"], b"a d/f.gz", b"x d/f f.gz d f"),
        (["echo {#}"], b"a", b"echo 7 a"),
        (["echo {%} {}"], b"a", b'echo "${CLOUDTASK_SLOT}" a'),
        (["echo", "{#}-{%}.png"], b"a", b'echo 7-"${CLOUDTASK_SLOT}".png a'),
        (["gzip", "-o{}", "--to={/}", "x{}y"], b"d/a", b"gzip -o'd/a' --to=a x'd/a'y"),
        (['echo "$(basename {})" $(x {/})'], b"d/a", b'echo "$(basename d/a)" $(x a)'),
        # what looks like one and is none
        (["awk '{print $1}'"], b"a", b"awk '{print $1}' a"),
        (["f() { echo ${1} ${#} {foo} {0} {}x; }; f"], b"a", b"f() { echo ${1} ${#} {foo} {0} 'a'x; }; f"),
        (["sh -c 'echo ${1}' sh"], b"a", b"sh -c 'echo ${1}' sh a"),
        (["sh", "-c", "echo ${1}", "sh"], b"a", b"sh -c 'echo ${1}' sh a"),
        (["find -exec x \\{} \\;"], b"a", b"find -exec x \\{} \\; a"),
        # what stands beside a placeholder must not change what its value is
        (["echo $HOME{} {}>f ~{} {1}=x"], b"2", b"echo $HOME'2' '2'>f ~'2' '2'=x"),
        # words go behind the last thing that is code
        (["echo a # note"], b"x", b"echo a x  # note"),
        (["cat - <<E\n'\nE\n"], b"x", b"cat - <<E x \n'\nE\n"),
        (["echo a \\\n\n"], b"x", b"echo a x  \\\n\n"),
        (["echo a\\ "], b"x", b"echo a\\  x"),
        (["-x"], b"a", b" -x a"),
    ],
)
def test_code(words: list[str], line: bytes, code: bytes) -> None:
    assert Command(words).render(line, 7) == code


@pytest.mark.parametrize("none", [(), None])
def test_without_a_command_a_line_is_code_as_it_stands(none: tuple[str, ...] | None) -> None:
    command = Command(none)
    assert command.render(b"echo {} $HOME | cat # x", 1) == b"echo {} $HOME | cat # x"
    assert command.render(b"-i", 1) == b" -i", "a line must not be taken for an option of sh"


def test_literal_has_no_placeholders() -> None:
    assert Command(["awk '{}' \"{#}\""], literal=True).render(b"a b", 1) == b"awk '{}' \"{#}\" a b"
    assert Command(["sh", "-c", "x {}"], literal=True).render(b"a", 1) == b"sh -c 'x {}' a"


@pytest.mark.parametrize("mode", ["line", "nul"])
def test_a_whole_line_is_one_word(mode: str) -> None:
    command = Command(["echo"], mode=mode)
    assert command.render(b"# it's $x", 1) == b"echo '# it'\\''s $x'"
    assert Command(["echo {/.}"], mode=mode).render(b"a b/c d.e", 1) == b"echo 'c d'"
    with pytest.raises(InputError, match=r"asks for \{2\}"):
        Command(["echo {2}"], mode=mode).check(b"a b", 1)


def test_code_with_words_behind_it() -> None:
    assert Command(["cd x && y", "a b"], code=True).render(b"c", 1) == b"cd x && y 'a b' c"
    assert Command(["y # note", "{}", "$z"], code=True).render(b"c", 1) == b"y c '$z'  # note"
    assert Command("y {2}").render(b"a b", 1) == b"y b"


REFUSED = [
    ("echo '{}'", 7, "single quotes"),
    ('echo "a {1}"', 9, "double quotes"),
    ("echo a # {}", 10, "comment"),
    ("cat <<E\n{}\nE", 1, "here-document"),
    ("cat <<-'E'\n\t{/}\n\tE\n", 2, "here-document"),
    ("cat <<\\E\nE \n{}\nE\n", 1, "here-document"),
    ("echo $'a {}'", 10, "$'..'"),
    ("echo `x {}`", 9, "`..`"),
    ('echo "`x {}`"', 10, "`..`"),
    ("echo ${x:-{}}", 11, "${..}"),
    ('echo "${x#{.}}"', 11, "${..}"),
    ("echo ${}", 7, "${..}"),
    ("echo $((1+{}))", 11, "arithmetic"),
    ("((x={}))", 5, "(("),
    ("a[{}]=1", 3, "array's index"),
    ('echo "$(x "{}")"', 12, "double quotes"),
    ("echo \"$(x '{}')\"", 12, "single quotes"),
    ("sh -c 'rm {}'", 11, "single quotes"),
    ('eval "rm {}"', 10, "double quotes"),
    ("x=$(case y in y) echo a;; esac); echo {}", 39, "behind `case`"),
    ("echo $'\\' {}'", 11, "behind \\'"),
    ("echo \"${x:-'}'}\" {}", 18, "behind quotes inside"),
    ("echo hi >&{}", 11, "behind >&"),
    ("é '{}'", 4, "single quotes"),
]


@pytest.mark.parametrize(("code", "column", "place"), REFUSED)
def test_a_placeholder_that_could_be_broken_out_of_is_refused(code: str, column: int, place: str) -> None:
    with pytest.raises(UsageError) as caught:
        Command([code])
    message = str(caught.value)
    assert f"column {column} of the command: {{" in message
    assert place in message.split(", where its value")[0]
    assert "--literal" in message and "\n" not in message


def test_the_way_out_for_numbers_in_double_quotes() -> None:
    with pytest.raises(UsageError, match=r'write "\$CLOUDTASK_JOB"'):
        Command(['echo "{#}"'])
    with pytest.raises(UsageError, match=r'write "\$CLOUDTASK_SLOT"'):
        Command(['echo "{%}"'])


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("echo 'x", "column 6 of the command: a ' is never closed"),
        ("a\nb $(c \\)", "line 2, column 3 of the command: a $( is never closed"),
        ('x "$(y)', 'column 3 of the command: a " is never closed'),
        ("x `y", "column 3 of the command: a ` is never closed"),
        ("x ${y", "column 3 of the command: a ${ is never closed"),
        ("x \\", "column 3 of the command: a backslash stands last"),
        ("cat <<E", "column 5 of the command: a here-document never ends"),
        ("cat <<E\n E\n", "column 5 of the command: a here-document never ends"),
        ("((1 | (2)) ", "cannot be appended safely behind (("),
        ("echo hi >& \n", "cannot be appended safely behind >&"),
        ("x $[1]", "cannot be appended safely behind $["),
        ("$(case x in x) y;; esac)", "cannot be appended safely behind `case`"),
        ("", "the command is empty"),
        (" # x", "the command is empty"),
        ("a\0b", "NUL byte"),
    ],
)
def test_a_command_that_words_cannot_be_appended_to_is_refused(code: str, what: str) -> None:
    with pytest.raises(UsageError) as caught:
        Command([code])
    assert what in str(caught.value)


@pytest.mark.parametrize("words", [["sh", "-c", "rm {}"], ["env", "X=1", "/bin/bash", "-ec", "rm {1} x"], ["eval", "rm {}"]])
def test_a_placeholder_amid_nested_shell_code_is_refused(words: list[str]) -> None:
    with pytest.raises(UsageError, match="shell code with a placeholder inside"):
        Command(words)


def test_nested_shell_code_may_get_values_as_arguments() -> None:
    assert Command(["sh", "-c", 'rm "$1"', "sh", "{}"]).render(b"a", 1) == b"sh -c 'rm \"$1\"' sh a"


@pytest.mark.parametrize(
    ("code", "line", "what"),
    [
        ("mv {1} {3}", b"a b", "job 4 has 2 words but the command asks for {3}: a b"),
        ("x {2}", b"a\x1b", "job 4 has 1 word but the command asks for {2}: a\\x1b"),
        ("x {.}", b"a b", "job 4 has 2 words but {.} takes one"),
        ("x={}; y $x", b"a b", "job 4 has 2 words but {} takes one"),
        ("y > {}", b"a rm", "job 4 has 2 words but {} takes one"),
        ("wc -l <", b"a b", "job 4 has 2 words but {} takes one"),
    ],
)
def test_a_line_with_too_few_or_too_many_words_is_refused_before_anything_starts(code: str, line: bytes, what: str) -> None:
    command = Command([code])
    with pytest.raises(InputError) as caught:
        command.check(line, 4)
    assert what in str(caught.value)
    good = b"a b c" if "{3}" in code else b"a b" if "{2}" in code else b"a"
    with pytest.raises(InputError) as caught:
        command.check_all([good, good, good, line])
    assert what in str(caught.value)
    with pytest.raises(InputError):
        command.render(line, 4)


def test_the_parts_of_a_word_are_those_of_gnu_parallel() -> None:
    words = [b"foo", b"a/b/", b".bashrc", b"x/.b", b"foo.", b"/", b"a//b", b"//a", b"a.b/c", b"foo.tar.gz"]
    expected = {  # printed by GNU parallel 20221122
        "{.}": "foo|a/b/||x/|foo|/|a//b|//a|a.b/c|foo.tar",
        "{/}": "foo||.bashrc|.b|foo.||b|a|c|foo.tar.gz",
        "{//}": ".|a|.|x|.|/|a|/|a.b|.",
        "{/.}": "foo||||foo||b|a|c|foo.tar",
    }
    for form, parts in expected.items():
        command = Command(["echo " + form], mode="line")
        assert [command.render(word, 1)[5:] for word in words] == [quote(part.encode()) for part in parts.split("|")]


def test_what_status_lines_and_tags_show() -> None:
    command = Command(["echo executed:"])
    assert command.describe(b"hello world", 1) == "echo executed: hello world"
    assert command.describe(b"'\x1b[2J\xff'", 1) == r"echo executed: '\x1b[2J\xff'"
    assert len(command.describe(b"x" * 1_000_000, 1)) == 4000
    assert command.label(b"a  'b c' # d") == b"a b c"
    assert Command(["x"], mode="nul").label(b"a\nb\t\xff") == b"a\\x0ab\\x09\xff"
    assert Command(None).label(b"""echo "$(x '"')" """) == b"""echo "$(x '"')\""""


@pytest.mark.parametrize("words", [["echo"], ["echo {}"], ["echo", "x"]])
def test_rendering_is_fast(words: list[str]) -> None:
    command = Command(words)
    seconds = min(timeit.repeat(lambda: command.render(b"file-000001.txt --opt value", 1), number=2000, repeat=5)) / 2000
    assert seconds < 10e-6, "0.5 us on a machine of 2020"


# Real shells, which must hand exactly the words to the program.

_NASTY = st.sampled_from(
    [bytes([byte]) for byte in b"'\"$`\\;|&*~=!#{}()<>?[] \t\n\r-+%@^,:/."] + [b"\xff", b"\xc3\xa9", b"if", b"a", b"0", b"2", b"$("]
)
_WORD = st.one_of(st.lists(_NASTY, max_size=8).map(b"".join), st.binary(max_size=12).map(lambda word: word.replace(b"\0", b"")))
_LINES = st.lists(st.lists(_WORD, min_size=1, max_size=4), min_size=1, max_size=20)
_SHOW = b'show() { printf \'%s\\0\' "$#" "$@"; }\n'

TEMPLATES: list[tuple[list[str], str]] = [
    (["show"], "appended"),
    (["show", "$x `y` 'z'"], "behind"),
    (["show {}"], "appended"),
    (["show", "{}"], "appended"),
    (["show # it's"], "appended"),
    (["{ show {}; }"], "appended"),
    (["show - <<E {}\n' $x \nE"], "here"),
    (["show {1}"], "first"),
    (["show", "{1}"], "first"),
    (['x={1}; show "$x"'], "first"),
    (['for x in {1}; do show "$x"; done'], "first"),
    (["case x in x) show {1};; esac"], "first"),
    (["y=$(printf '%s.' {1}); show \"${y%.}\""], "first"),
    (["show \"$(printf '%s.' {1})\""], "dotted"),
    (["show", "--to={1}"], "to"),
    (["show --to={1}"], "to"),
    (["show a{1}b"], "glued"),
    (["show", "a{1}b"], "glued"),
    (["x=; show $x{1}"], "first"),
]


def _expected(how: str, words: Sequence[bytes]) -> list[bytes]:
    first = words[0]
    return {
        "appended": [*words],
        "behind": [b"$x `y` 'z'", *words],
        "here": [b"-", *words],
        "first": [first],
        "dotted": [first + b"."],
        "to": [b"--to=" + first],
        "glued": [b"a" + first + b"b"],
    }[how]


def _run(shell: str, codes: Iterable[bytes]) -> list[list[bytes]]:
    script = b"LC_ALL=C\n" + _SHOW + b"".join(code + b"\n" for code in codes)
    done = subprocess.run([shell], input=script, capture_output=True, timeout=30, check=True)
    assert not done.stderr, done.stderr
    items, found = done.stdout.split(b"\0")[:-1], []
    while items:
        count = int(items[0])
        found.append(items[1 : count + 1])
        del items[: count + 1]
    return found


@pytest.mark.parametrize("shell", SHELLS)
@settings(max_examples=40, deadline=None)
@given(lines=_LINES)
def test_a_shell_gets_exactly_the_words(shell: str, lines: list[list[bytes]]) -> None:
    codes, expected = [], []
    for template, how in TEMPLATES:
        command = Command(template)
        codes += [command.render(b" ".join(map(enclose, words)), 1) for words in lines]
        expected += [_expected(how, words) for words in lines]
    assert _run(shell, codes) == expected


@pytest.mark.parametrize("shell", SHELLS)
@settings(max_examples=40, deadline=None)
@given(words=st.lists(_WORD, min_size=1, max_size=40))
def test_a_shell_gets_a_whole_line_as_one_word(shell: str, words: list[bytes]) -> None:
    command = Command(["show {}"], mode="nul")
    assert _run(shell, [command.render(word, 1) for word in words]) == [[word] for word in words]


@settings(max_examples=60, deadline=None)
@given(words=st.lists(_WORD, min_size=1, max_size=4))
def test_sh_c_gets_exactly_the_words(words: list[bytes]) -> None:
    code = Command(["printf", r"%s\0"]).render(b" ".join(map(enclose, words)), 1)
    assert subprocess.run(["/bin/sh", "-c", code], capture_output=True, check=True, timeout=20).stdout.split(b"\0")[:-1] == words


def test_a_word_of_a_megabyte() -> None:
    word = b"it's " * 200_000
    assert _run(SHELLS[0], [Command(["show"]).render(enclose(word), 1)]) == [[word]]
