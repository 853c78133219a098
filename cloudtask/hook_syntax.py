"""``--report``: what a reporting hook may look like.  Parsed and checked before anything starts; run elsewhere.

::

    mail: from@example.com to@example.com ...     sh: command     py: file, or code     http: URL
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from urllib.parse import urlsplit


def check_hook(text: str, folder: str) -> str:
    """The hook, cleaned of blanks around it.  ``folder`` is what the file of a ``py:`` hook counts from.  Raises ValueError."""
    name, colon, expression = (part.strip() for part in text.partition(":"))
    if name not in _HANDLERS or not colon:
        raise ValueError(f"{text!r}: no {name!r} in the supported reporting handlers ({', '.join(_HANDLERS)}); write HANDLER: EXPRESSION")
    if not expression:
        raise ValueError(f"{text!r}: nothing after {name}:")
    return f"{name}: {_HANDLERS[name](expression, folder)}"


def _mail(expression: str, folder: str) -> str:
    try:
        addresses = shlex.split(expression)
    except ValueError as error:
        raise ValueError(f"mail: {expression}: {error}") from None
    if len(addresses) < 2:
        raise ValueError(f"mail: {expression}: give the sender and then one or more recipients")
    for address in addresses:
        _check_address(address)
    return expression


def _check_address(text: str) -> None:
    bare = text.rpartition("<")[2].removesuffix(">") if text.endswith(">") else text
    user, at, domain = bare.rpartition("@")
    if (
        not (user and at and domain)
        or any(c.isspace() or not c.isprintable() or c in "<>()," for c in bare)
        or domain[0] in ".-"
        or ".." in domain
    ):
        raise ValueError(f"mail: {text!r} is no e-mail address")
    if not text.isprintable():
        raise ValueError(f"mail: {text!r} has a control character in it")


def _shell(expression: str, folder: str) -> str:
    return expression


def _python(expression: str, folder: str) -> str:
    path = os.path.join(folder, os.path.expanduser(expression))
    is_file = "\0" not in path and "\n" not in path and os.path.isfile(path)
    if not is_file and expression.endswith(".py") and not any(c.isspace() for c in expression):
        raise ValueError(f"py: no file {path}")
    try:
        compile(_read_code(path) if is_file else expression, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        place = f"{path}, line {getattr(error, 'lineno', None) or 1}" if is_file else expression
        raise ValueError(f"py: {place}: neither an existing file nor Python code ({getattr(error, 'msg', error)})") from None
    return path if is_file else expression


def _read_code(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from None


def _http(expression: str, folder: str) -> str:
    try:
        url = urlsplit(expression)
        valid = url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        valid = False
    if not valid or any(c.isspace() or not c.isprintable() for c in expression):
        raise ValueError(f"http: {expression}: not a URL that begins with http:// or https://")
    return expression


_HANDLERS: dict[str, Callable[[str, str], str]] = {"mail": _mail, "sh": _shell, "py": _python, "http": _http}
