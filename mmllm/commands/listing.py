"""`mmllm list`: the names of parts, recipes and published models that the command line takes."""

from __future__ import annotations

import dataclasses
import json as json_text
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mmllm import registry
from mmllm.errors import InputError
from mmllm.fields import closest

if TYPE_CHECKING:
    from rich.console import Console

KINDS = {kind.removesuffix("y") + ("ies" if kind.endswith("y") else "s"): kind for kind in registry.KINDS}
"""Name of a list on the command line -> kind of part in the registry."""
LISTS = (*KINDS, "recipes", "tokenizer-recipes", "presets")


def list_parts(kind: Annotated[str, tyro.conf.Positional] = "all", json: bool = False) -> None:
    """List the parts of models with their settings, the recipes, and the short names of published models.

    Args:
        kind: the list to print: encoders, reducers, tokenizers, paths, codecs, contexts, decodings, drafts, times,
            modalities, trainings, recipes, presets, or all.
        json: print one JSON object instead of tables.
    """
    if kind not in ("all", *LISTS):
        raise InputError(f"there is no list of {kind!r}; {closest(kind, ('all', *LISTS))}")
    rows_by_list = {name: _rows(name) for name in LISTS if kind in ("all", name)}
    if json:
        print(json_text.dumps(rows_by_list, indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for name, rows in rows_by_list.items():
        if name == "presets":
            _print_presets(console, rows)
            continue
        columns = ["what it is" if column == "summary" else column for column in rows[0]]
        table = Table(title=name, title_justify="left", box=box.SIMPLE_HEAD)
        for column in columns:
            table.add_column(column, no_wrap=column == "name", overflow="fold")
        for row in rows:
            table.add_row(*row.values())
        console.print(table)


def _print_presets(console: Console, rows: list[dict[str, str]]) -> None:
    """Prints a line with name and source for each preset; below it how it is read, its package, what was checked."""
    from rich.padding import Padding

    console.print("presets\n")
    for row in rows:
        console.print(f"  {row['name']:<22} {row['source']}", highlight=False, soft_wrap=True)
        template = f", template {row['template']}" if row["template"] else ""
        pixels = "" if row["input_size"] == "0" else f", {row['input_size']} pixels"
        kind = row["kind"].replace("_", " ")
        usage = f"{kind}, read as {row['adapter']}{pixels}{template}; {row['licence']}"
        package = f"in the package {row['package'].partition('/')[0].removeprefix('pypi:')}" if row["package"] else ""
        for line in filter(None, (usage, package, f"checked: {row['verified']}")):
            console.print(Padding(line, (0, 0, 0, 6)), highlight=False)
        if row["encoder"]:
            console.print(f"      encoder: {row['encoder']}", highlight=False, soft_wrap=True)


def _rows(kind: str) -> list[dict[str, str]]:
    """The rows of one list; each maps column names to texts."""
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
    """Where a reducer acts, what it needs of the encoder, whether it reads the question, and whether its count follows
    from a video's shape; nothing for another part."""
    from mmllm.interfaces import TokenReducer
    from mmllm.pruning.needs import counts_by_shape, is_question_aware, what_it_needs, where_it_acts

    if not issubclass(cls, TokenReducer):
        return {}
    return {
        "where": where_it_acts(cls),
        "needs": what_it_needs(cls),
        "question-aware": is_question_aware(cls),
        "count by shape": counts_by_shape(cls),
    }


def _about_context(cls: type) -> dict[str, str]:
    """What a policy of the cache does, and whether it looks at the question; nothing for another part."""
    from mmllm.interfaces import ContextPolicy

    if not issubclass(cls, ContextPolicy):
        return {}
    return {
        "does": cls.family,
        "question": "aware" if cls.depends_on_question else "blind",
        "training": "needs training" if cls.is_trained else "training-free",
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
