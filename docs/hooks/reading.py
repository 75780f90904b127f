"""How griffe reads the package: rooms without `__init__.py`, and arguments that are described together."""

import re
from pathlib import Path
from typing import Any

import griffe

TOGETHER = re.compile(
    r"^(?P<indent> +)(?P<names>(?:\*{0,2}\w+,\s+)+\*{0,2}\w+):(?P<text>.*(?:\n(?P=indent) +.*)*)$", re.MULTILINE
)
"""`height, width: of the image in pixels.` with its indented lines below."""


class Rooms(griffe.Extension):
    """Adds a module for each folder of the package that has none of its own, so that its files find a parent."""

    def on_module_members(self, *, mod: griffe.Module, **kwargs: Any) -> None:
        """Called when the top of the package has been read, before its other files are."""
        if mod.parent is not None or mod.name != "mmllm":
            return
        assert not isinstance(mod.filepath, list)
        _add_rooms(mod, mod.filepath.parent)


def _add_rooms(parent: griffe.Module, folder: Path) -> None:
    """Adds the folders inside a folder to its module, and those inside of them."""
    for inner in folder.iterdir():
        if any(inner.glob("*.py")) and not (inner / "__init__.py").exists():
            room = griffe.Module(
                inner.name,
                filepath=inner / "__init__.py",
                lines_collection=parent.lines_collection,
                modules_collection=parent.modules_collection,
            )
            parent.set_member(inner.name, room)
            _add_rooms(room, inner)


class ArgumentsTogether(griffe.Extension):
    """Gives each of several arguments that are described in one entry an entry of its own."""

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        """Called for every function."""
        if func.docstring:
            func.docstring.value = apart(func.docstring.value)


def apart(docstring: str) -> str:
    """The docstring with `a, b: text` in its section of arguments as `a: text` and `b: text`."""
    before, section, rest = docstring.partition("\nArgs:\n")
    arguments, blank, after = rest.partition("\n\n")

    def entries(entry: re.Match[str]) -> str:
        return "\n".join(f"{entry['indent']}{name.strip()}:{entry['text']}" for name in entry["names"].split(","))

    return f"{before}{section}{TOGETHER.sub(entries, arguments)}{blank}{after}"
