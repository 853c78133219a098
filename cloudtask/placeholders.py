"""The placeholders of a command, in GNU parallel's notation, and what a word's parts are.

``{}`` all words; ``{2}`` the second; ``{.}`` without extension, ``{/}`` base name, ``{//}`` directory, ``{/.}`` base name without
extension of the only word, ``{2.}`` .. of the second; ``{#}`` the job's number; ``{%}`` its slot.  Nothing else in braces is one,
and ``${1}`` and ``${#}`` are the shell's own, in quotes too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

_FORM = rb"\{(?:(?P<nth>[1-9][0-9]{0,5})?(?P<part>\.|//|/\.|/)?|(?P<about>[#%]))\}"
PLACEHOLDER = re.compile(rb"(?!(?<=\$)\{(?:[1-9][0-9]*|#)\})" + _FORM)


class Placeholder(NamedTuple):
    """One parsed form.  ``nth`` counts from 1, 0 means: the only word (with a ``part``), or all of them."""

    nth: int
    part: bytes
    about: bytes

    @property
    def is_whole(self) -> bool:
        """True for ``{}``."""
        return not (self.nth or self.part or self.about)


def parse_placeholder(form: re.Match[bytes]) -> Placeholder:
    """What a match of :data:`PLACEHOLDER` asks for."""
    return Placeholder(int(form["nth"] or 0), form["part"] or b"", form["about"] or b"")


def _stem(word: bytes) -> bytes:
    dot = word.rfind(b".")
    return word[:dot] if dot > word.rfind(b"/") else word


def _base(word: bytes) -> bytes:
    return word[word.rfind(b"/") + 1 :]


def _directory(word: bytes) -> bytes:
    """As dirname(1)."""
    word = word.rstrip(b"/") or word[:1]
    if b"/" not in word:
        return b"."
    return word[: word.rfind(b"/")].rstrip(b"/") or b"/"


def _base_stem(word: bytes) -> bytes:
    return _stem(_base(word))


PARTS: dict[bytes, Callable[[bytes], bytes]] = {b".": _stem, b"/": _base, b"//": _directory, b"/.": _base_stem, b"": bytes}
"""From a word to its part, as GNU parallel 20221122 does: ``.bashrc`` is all extension, ``a/`` has an empty base name."""
