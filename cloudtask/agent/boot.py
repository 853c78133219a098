"""Shipped first, and not as a module: its text is followed by a call of `enter` with the texts of all other modules.

A module is compiled when it is first imported, so a connection to an agent that already runs costs little.  `a` and `z` in the
caller's text are the arguments and the packed program itself, see `cloudtask.wire`.
"""

import sys
from importlib.machinery import ModuleSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

PACKAGE = "cloudtask_agent"


class Shipped:
    """Finder and loader of the shipped modules (see `importlib`)."""

    def __init__(self, sources: "dict[str, str]") -> None:
        self._sources = sources

    def find_spec(self, name: str, path: object = None, target: object = None) -> "ModuleSpec | None":
        """The import system's question: is this module yours?"""
        package, _, module = name.rpartition(".")
        if name == PACKAGE or (package == PACKAGE and module in self._sources):
            return ModuleSpec(name, self, is_package=name == PACKAGE)  # type: ignore[arg-type]  # a loader by its methods
        return None

    def create_module(self, spec: ModuleSpec) -> None:
        """An ordinary module will do."""

    def exec_module(self, module: "ModuleType") -> None:
        """Run the module's text."""
        name = module.__name__.rpartition(".")[2]
        exec(compile(self._sources.get(name, ""), "<agent/%s.py>" % name, "exec"), module.__dict__)


def enter(sources: "dict[str, str]", arguments: "list[str]", packed: bytes) -> None:
    """``attach KEY``: find or start the agent and hand it this connection.  ``serve ...``: be the agent, see `daemon`."""
    sys.meta_path.insert(0, Shipped(sources))
    sys.dont_write_bytecode = True

    def launch(home: object) -> None:
        load("daemon").launch(home, packed)  # type: ignore[attr-defined]  # mypy cannot see shipped modules

    if arguments[0] == "serve":
        load("daemon").serve_in_scope(arguments[1:])  # type: ignore[attr-defined]  # mypy cannot see shipped modules
    else:
        load("attach").main(arguments[1], launch)  # type: ignore[attr-defined]  # the same


def load(name: str) -> object:
    """Import a shipped module."""
    full = PACKAGE + "." + name
    __import__(full)
    return sys.modules[full]
