"""`mmllm list`: the names of parts, recipes and published models that the command line takes."""

from __future__ import annotations

import dataclasses
import json as json_text
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from mmllm import registry
from mmllm.errors import InputError
from mmllm.fields import closest

if TYPE_CHECKING:
    from rich.console import Console

KINDS = {kind.removesuffix("y") + ("ies" if kind.endswith("y") else "s"): kind for kind in registry.KINDS}
"""Name of a list on the command line -> kind of part in the registry."""
LISTS = (*KINDS, "recipes", "tokenizer-recipes", "presets")
_TABLE_COLUMNS = ("name", "summary", "settings")
"""A list whose rows have more than these is printed in blocks: a table would have too narrow columns."""
_ORIGIN_COLUMNS = ("original", "checked against")
_UNTRAINED = "training-free"


def list_parts(kind: Annotated[str, tyro.conf.Positional] = "all", json: bool = False) -> None:
    """List the parts of models with their settings, the recipes, and the short names of published models.

    Args:
        kind: the list to print: encoders, reducers, tokenizers, paths, codecs, contexts, decodings, drafts, times,
            modalities, trainings, recipes, presets, or all.
        json: print one JSON object instead of tables.
    """
    if kind not in ("all", *LISTS):
        raise InputError(f"there is no list of {kind!r}; {closest(kind, ('all', *LISTS))}")
    rows_by_list = {name: rows_of(name) for name in LISTS if kind in ("all", name)}
    if json:
        print(json_text.dumps(rows_by_list, indent=2))
        return
    from rich.console import Console

    console = Console()
    for name, rows in rows_by_list.items():
        if name == "presets":
            _print_blocks(console, name, map(_preset_block, rows))
        elif rows[0].keys() > set(_TABLE_COLUMNS):
            _print_blocks(console, name, map(_part_block, rows))
        else:
            _print_table(console, name, rows)


def _print_table(console: Console, title: str, rows: list[dict[str, str]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in rows[0]:
        heading = "what it is" if column == "summary" else column
        table.add_column(heading, no_wrap=column == "name", overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    console.print(table)


class _Block(NamedTuple):
    """What is printed of one entry of a list."""

    head: str
    """Its first line, which is never broken: names and sources are copied from it."""
    lines: list[str]
    """Text below it, broken to the terminal's width."""
    last: str = ""
    """A line that is never broken, below the text."""


def _print_blocks(console: Console, title: str, blocks: Iterable[_Block]) -> None:
    """Prints a line for each entry of a list, and below it what else is said of it."""
    from rich.padding import Padding
    from rich.text import Text

    console.print(f"{title}\n")
    for block in blocks:
        console.print(f"  {block.head}", highlight=False, soft_wrap=True, markup=False)
        for line in filter(None, block.lines):
            console.print(Padding(Text(line), (0, 0, 0, 6)), highlight=False)
        if block.last:
            console.print(f"      {block.last}", highlight=False, soft_wrap=True)
    console.print()


def _part_block(row: dict[str, str]) -> _Block:
    """A part: its name; what it is, its facts, what it reproduces and how that was checked, its settings."""
    facts = [
        f"{key}: {value}" for key, value in row.items() if value and key not in (*_TABLE_COLUMNS, *_ORIGIN_COLUMNS)
    ]
    last = [f"{key}: {row[key]}" for key in (*_ORIGIN_COLUMNS, "settings") if row.get(key)]
    return _Block(head=row["name"], lines=[row["summary"], "; ".join(facts), *last])


def _preset_block(row: dict[str, str]) -> _Block:
    """A preset: its name and source; how it is read, its package, what was checked; its encoder."""
    template = f", template {row['template']}" if row["template"] else ""
    pixels = "" if row["input_size"] == "0" else f", {row['input_size']} pixels"
    kind = row["kind"].replace("_", " ")
    usage = f"{kind}, read as {row['adapter']}{pixels}{template}; {row['licence']}"
    package = f"in the package {row['package'].partition('/')[0].removeprefix('pypi:')}" if row["package"] else ""
    return _Block(
        head=f"{row['name']:<22} {row['source']}",
        lines=[usage, package, f"checked: {row['verified']}"],
        last=f"encoder: {row['encoder']}" if row["encoder"] else "",
    )


def rows_of(kind: str) -> list[dict[str, str]]:
    """The rows of one of `LISTS`; each maps column names to texts."""
    if kind == "presets":
        from mmllm.hub.presets import PRESETS

        return [
            {"name": name, **{field: str(value) for field, value in vars(preset).items()}}
            for name, preset in PRESETS.items()
        ]
    if kind in ("recipes", "tokenizer-recipes"):
        from mmllm.train.recipes import RECIPES
        from mmllm.train.tokenizer_recipe import TOKENIZER_RECIPES

        recipes: Mapping[str, Callable[[], Any]] = RECIPES if kind == "recipes" else TOKENIZER_RECIPES
        return [
            {"name": name, "summary": (make.__doc__ or "").split("\n")[0], "settings": f"seed={make().seed}"}
            for name, make in recipes.items()
        ]
    return [
        {
            "name": part.name,
            **_about_reducer(part.cls),
            **_about_context(part.cls),
            "summary": part.summary,
            "settings": ", ".join(f"{key}={_short(value)}" for key, value in _defaults(part.config).items()),
        }
        for part in registry.parts(KINDS[kind]).values()
    ]


def _about_reducer(cls: type) -> dict[str, str]:
    """Where a reducer acts, what it needs, whether it reads the question, whether its count follows from a video's
    shape, what is trained, what it reproduces, and how that was checked; nothing for another part."""
    from mmllm.interfaces import TokenReducer
    from mmllm.pruning.needs import counts_by_shape, is_question_aware, what_it_needs, where_it_acts

    if not issubclass(cls, TokenReducer):
        return {}
    return {
        "where": where_it_acts(cls),
        "needs": what_it_needs(cls),
        "question-aware": is_question_aware(cls),
        "count by shape": counts_by_shape(cls),
        "training": f"learns {cls.learns}" if cls.learns else _UNTRAINED,
        "original": cls.origin.original if cls.origin else "",
        "checked against": f"{cls.origin.compared_with}: {cls.origin.equal}" if cls.origin else "",
    }


def _about_context(cls: type) -> dict[str, str]:
    """What a policy of the cache does, and whether it looks at the question; nothing for another part."""
    from mmllm.interfaces import ContextPolicy

    if not issubclass(cls, ContextPolicy):
        return {}
    return {
        "does": cls.family,
        "question": "aware" if cls.depends_on_question else "blind",
        "training": "needs training" if cls.is_trained else _UNTRAINED,
    }


def _defaults(config: type) -> dict[str, object]:
    """Setting -> default value; `dataclasses.MISSING` for a setting without one."""
    values: dict[str, object] = {}
    for field in dataclasses.fields(config):
        factory = field.default_factory
        values[field.name] = field.default if factory is dataclasses.MISSING else factory()
    return values


def _short(value: object) -> str:
    """A default value as text; lists are joined by `+`, as on the command line."""
    if value is dataclasses.MISSING:
        return "(to be given)"
    return "+".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
