"""``--template=FILE``: finds the task template in a file without running it as a program."""

from __future__ import annotations

import os
import sys
import types

from cloudtask.errors import UsageError
from cloudtask.task import Template, loading

_MODULE = "cloudtask_template"


def load_template(path: str) -> type[Template]:
    """The template in ``path``: that whose ``main()`` the file calls first, else the only one defined in it.

    The file's folder comes first in ``sys.path``, as if the file were run.  Raises UsageError where it is no template, and what the
    file itself raises.
    """
    path = os.path.realpath(path)
    module = types.ModuleType(_MODULE)
    module.__file__ = path
    sys.modules[_MODULE] = module
    sys.path.insert(0, os.path.dirname(path))
    noted: list[type[Template]] = []
    token = loading.set(noted)
    try:
        exec(_compile(path), module.__dict__)
    finally:
        loading.reset(token)
    return noted[0] if noted else _defined(module, path)


def _compile(path: str) -> types.CodeType:
    try:
        with open(path, "rb") as file:
            return compile(file.read(), path, "exec", dont_inherit=True)
    except OSError as error:
        raise UsageError(f"--template={path}: it cannot be read: {error.strerror}") from None
    except SyntaxError as error:
        raise UsageError(f"--template={path}, line {error.lineno}: {error.msg}") from None
    except ValueError as error:
        raise UsageError(f"--template={path}: {error}") from None


def place_in_template(error: BaseException) -> str | None:
    """``file, line 3``: the last line of a template that led to the error; None where no template had a part in it."""
    place = None
    trace = error.__traceback__
    while trace:
        code = trace.tb_frame.f_code
        if trace.tb_frame.f_globals.get("__name__") in (_MODULE, "__main__"):
            place = f"{code.co_filename}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _defined(module: types.ModuleType, path: str) -> type[Template]:
    own = {v for v in vars(module).values() if isinstance(v, type) and issubclass(v, Template) and v.__module__ == _MODULE}
    leaves = [cls for cls in own if not any(other is not cls and issubclass(other, cls) for other in own)]
    if len(leaves) == 1:
        return leaves[0]
    if leaves:
        names = ", ".join(sorted(cls.__name__ for cls in leaves))
        raise UsageError(f"--template={path}: defines {names}; let the one to run call main() at the end of the file")
    raise UsageError(f"--template={path}: defines no class that inherits cloudtask.Task")
