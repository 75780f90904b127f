"""`mmllm list`: the parts, recipes and published models that names on the command line can mean."""

from __future__ import annotations

import dataclasses
import json as json_text
from typing import TYPE_CHECKING, Annotated

import tyro

from mmllm import registry
from mmllm.errors import InputError
from mmllm.fields import closest

if TYPE_CHECKING:
    from rich.console import Console

KINDS = {kind.removesuffix("y") + ("ies" if kind.endswith("y") else "s"): kind for kind in registry.KINDS}
"""What is listed, as it is called on the command line -> the kind of part."""
LISTS = (*KINDS, "recipes", "presets")


def list_parts(kind: Annotated[str, tyro.conf.Positional] = "all", json: bool = False) -> None:
    """List the parts that models are made of, with their settings, the recipes, and published models by short name.

    Args:
        kind: which to list: encoders, reducers, tokenizers, paths, times, modalities, trainings, recipes,
            presets, or all.
        json: one JSON object instead of tables.
    """
    if kind not in ("all", *LISTS):
        raise InputError(f"there is no list of {kind!r}; {closest(kind, ('all', *LISTS))}")
    chosen = {name: _rows(name) for name in LISTS if kind in ("all", name)}
    if json:
        print(json_text.dumps(chosen, indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for name, rows in chosen.items():
        if name == "presets":
            _print_presets(console, rows)
            continue
        columns = ["what it is" if column == "summary" else column for column in rows[0]]
        table = Table(*columns, title=name, title_justify="left", box=box.SIMPLE_HEAD)
        for row in rows:
            table.add_row(*row.values())
        console.print(table)


def _print_presets(console: Console, rows: list[dict[str, str]]) -> None:
    """A name and a source a line, as they are to be typed; how it is used and what was checked are below it."""
    from rich.padding import Padding

    console.print("presets\n")
    for row in rows:
        console.print(f"  {row['name']:<22} {row['source']}", highlight=False, soft_wrap=True)
        template = f", template {row['template']}" if row["template"] else ""
        used = f"{row['kind']}, read as {row['adapter']}, {row['input_size']} pixels{template}; {row['licence']}"
        for line in (used, f"checked: {row['verified']}"):
            console.print(Padding(line, (0, 0, 0, 6)), highlight=False)


def _rows(kind: str) -> list[dict[str, str]]:
    if kind == "presets":
        from mmllm.hub.presets import PRESETS

        return [
            {"name": name, **{field: str(value) for field, value in vars(preset).items()}}
            for name, preset in PRESETS.items()
        ]
    if kind == "recipes":
        from mmllm.train.recipes import RECIPES

        return [
            {"name": name, "summary": (make.__doc__ or "").split("\n")[0], "settings": f"seed={make().seed}"}
            for name, make in RECIPES.items()
        ]
    return [
        {
            "name": part.name,
            "summary": part.summary,
            "settings": ", ".join(f"{key}={_short(value)}" for key, value in _defaults(part.config).items()),
        }
        for part in registry.parts(KINDS[kind]).values()
    ]


def _defaults(config: type) -> dict[str, object]:
    """Each setting with the value it has if it is not given."""
    values: dict[str, object] = {}
    for field in dataclasses.fields(config):
        factory = field.default_factory
        values[field.name] = field.default if factory is dataclasses.MISSING else factory()
    return values


def _short(value: object) -> str:
    if value is dataclasses.MISSING:
        return "(to be given)"
    return "+".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
