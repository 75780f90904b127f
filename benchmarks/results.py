"""Results of a benchmark as JSON, in one shape, and the options that all scripts share.

A file holds no date, and one object:

    command   the command line that made it
    machine   processor, cores, threads, card and the versions of packages, as far as they are known
    note      anything else that bears on the numbers; may be missing
    tables    name of each table -> its rows

A row is an object:

    labels    name -> text that says what the row is
    numbers   name -> a number of six digits, or {"middle", "low", "high"}, which may have the single "values", too.
              Names end in their unit. Numbers that were not measured are left out
    command   the row's command, if it is another than that of the file; may be missing

`benchmarks.layouts` says how each table looks, `benchmarks.tables` writes them into the docs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from benchmarks.intervals import Interval
from mmllm.errors import InputError

Number = float | Interval


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    labels: Mapping[str, str]
    numbers: Mapping[str, Number]
    command: str = ""
    """The row's command, if it is another than that of the file."""

    def __post_init__(self) -> None:
        if twice := self.labels.keys() & self.numbers.keys():
            raise InputError(f"{sorted(twice)} name both a label and a number of one row; each name is allowed once")

    def to_json(self) -> dict[str, Any]:
        """The row as JSON values."""
        numbers = {name: _to_json(number) for name, number in self.numbers.items()}
        return {"labels": dict(self.labels), "numbers": numbers, **({"command": self.command} if self.command else {})}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        _refuse_others(row, {"labels", "numbers"}, {"command"}, "a row")
        numbers = {name: _number(name, value) for name, value in row["numbers"].items()}
        return cls(row["labels"], numbers, row.get("command", ""))


@dataclass
class Results:
    """The results of a script."""

    command: str
    machine: dict[str, Any]
    note: str = ""
    tables: dict[str, list[Row]] = field(default_factory=dict)

    def add(self, table: str, labels: Mapping[str, str], numbers: Mapping[str, Number]) -> Row:
        """Puts a row at the end of a table, and returns it."""
        row = Row(labels, numbers)
        self.tables.setdefault(table, []).append(row)
        return row

    def save(self, file: Path | None) -> None:
        """Writes the file, a row a line; does nothing without one."""
        if file is None:
            return
        head = {"command": self.command, "machine": self.machine, **({"note": self.note} if self.note else {})}
        lines = [f" {json.dumps(key)}: {_line(value)}," for key, value in head.items()]
        tables = []
        for name, rows in self.tables.items():
            written = ",\n".join(f"   {_line(row.to_json())}" for row in rows)
            tables.append(f"  {json.dumps(name)}: [\n{written}\n  ]")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(["{", *lines, ' "tables": {', ",\n".join(tables), " }", "}"]) + "\n")

    @classmethod
    def read(cls, file: Path) -> Self:
        """The results in a file.

        Raises:
            InputError: if the file is missing, or has another shape.
        """
        try:
            content = json.loads(file.read_text())
            _refuse_others(content, {"command", "machine", "tables"}, {"note"}, "the file")
            tables = {name: [Row.from_json(row) for row in rows] for name, rows in content["tables"].items()}
        except (OSError, ValueError, AttributeError, TypeError) as problem:
            raise InputError(f"{file} holds no results as benchmarks/results.py describes them: {problem}") from problem
        return cls(content["command"], content["machine"], content.get("note", ""), tables)


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _to_json(number: Number) -> Any:
    if isinstance(number, int):
        return number
    if not isinstance(number, Interval):
        return float(f"{number:.6g}")  # further digits are noise
    parts = {name: _to_json(getattr(number, name)) for name in ("middle", "low", "high")}
    return parts | ({"values": [_to_json(value) for value in number.values]} if number.values else {})


def _number(name: str, value: Any) -> Number:
    if isinstance(value, dict):
        _refuse_others(value, {"middle", "low", "high"}, {"values"}, name)
        return Interval(value["middle"], value["low"], value["high"], tuple(value.get("values", ())))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{name} is {value!r}, which is no number")
    return value


def _refuse_others(given: dict[str, Any], needed: set[str], allowed: set[str], what: str) -> None:
    if not needed <= given.keys() <= needed | allowed:
        raise InputError(f"{what} has {sorted(given)}; needed: {sorted(needed)}, allowed beside: {sorted(allowed)}")


def machine(*packages: str, threads: int | None = None) -> dict[str, Any]:
    """The machine: processor, cores, threads, graphics card, and versions of Python and of `packages`."""
    torch = sys.modules.get("torch")
    if threads is None and torch is not None:
        threads = torch.get_num_threads()
    card = torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None
    hardware = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    hardware |= {name: value for name, value in (("threads", threads), ("card", card)) if value is not None}
    return {**hardware, "python": platform.python_version(), **{name: version(name) for name in packages}}


def command_line(script: str, arguments: Sequence[str] | None) -> str:
    """The command that runs a script (its `__file__`) with these arguments; with those of this process if None."""
    given = sys.argv[1:] if arguments is None else arguments
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *given])


def option_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with `--json`, which every script has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write results there; benchmarks/results.py says how")
    return parser
