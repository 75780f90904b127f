"""How the package is laid out: who imports whom, few files at the top, short files, short functions."""

import ast
import statistics
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = {"encoders", "pruning", "tokenizers", "paths", "times", "modalities"}
HELPERS = {"preprocessing", "modeling", "llm", "times"}
"""Rooms that a part may use."""


def modules() -> dict[str, Path]:
    """Dotted name -> file."""
    return {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in ROOT.glob("mmllm/**/*.py")}


def imports() -> dict[str, set[str]]:
    """Module -> modules of ours that it imports anywhere: in functions and for type checkers, too."""
    files = modules()
    graph: dict[str, set[str]] = {}
    for name, file in files.items():
        graph[name] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mmllm":
                graph[name] |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
            elif isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names}
        graph[name] &= set(files)
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Names on a circle, from its beginning to the same name again; empty if there is none."""
    done: set[str] = set()

    def walk(name: str, above: list[str]) -> list[str]:
        if name in above:
            return [*above[above.index(name) :], name]
        if name not in done:
            for used in sorted(graph.get(name, ())):
                if closed := walk(used, [*above, name]):
                    return closed
            done.add(name)
        return []

    return next((closed for name in sorted(graph) if (closed := walk(name, []))), [])


def room(module: str) -> str:
    """The room of a module; a file at the top is a room of its own."""
    return module.split(".")[1]


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_two_files_import_each_other():
    assert circle(imports()) == []


def test_no_two_rooms_import_each_other():
    rooms: dict[str, set[str]] = defaultdict(set)
    for name, used in imports().items():
        if name.count(".") > 1:
            rooms[room(name)] |= {room(other) for other in used if other.count(".") > 1} - {room(name)}
    assert circle(rooms) == []


def test_a_part_imports_no_other_room_of_parts():
    for name, used in imports().items():
        if room(name) in PARTS:
            others = {room(other) for other in used if other.count(".") > 1} - {room(name)}
            assert others <= HELPERS, f"{name} imports {sorted(others - HELPERS)}"


def test_few_files_are_at_the_top():
    assert len(list((ROOT / "mmllm").glob("*.py"))) <= 12


def test_most_files_are_short():
    assert statistics.median(len(file.read_text().splitlines()) for file in modules().values()) < 150


def test_functions_are_short_or_say_why_not():
    """A longer one has a comment `# long: the reason` in the line before it."""
    for name, file in modules().items():
        lines = file.read_text().splitlines()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 80:
                assert "# long:" in lines[node.lineno - 2], f"{name}.{node.name}: {node.end_lineno - node.lineno + 1}"
