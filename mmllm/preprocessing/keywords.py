"""The keywords of the processor, each for its reader: text, media of one modality, or the chat template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmllm.errors import InputError
from mmllm.fields import closest
from mmllm.preprocessing.text_options import ASKS_NOTHING, TEXT_OPTIONS

_GROUPS = ("text_kwargs", "common_kwargs", "processor_kwargs")
"""Keywords under which transformers takes mappings of keywords, besides one for each modality (`images_kwargs`)."""


@dataclass(frozen=True, kw_only=True)
class Keywords:
    """Keywords that have a value, sorted by who reads them."""

    text: dict[str, Any] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name of a modality -> its options."""
    media: dict[str, Any] = field(default_factory=dict)
    """Keyword of a modality -> what was given under it."""
    variables: dict[str, Any] = field(default_factory=dict)
    """Variables of the chat template."""

    def require_nothing_but_variables(self) -> None:
        """Refuses keywords that have no effect where messages become text only.

        Raises:
            InputError: naming the first one.
        """
        others = [*self.text, *(name for options in self.options.values() for name in options)]
        if others:
            raise InputError(
                f"{others[0]} has no effect on text: give tokenize=True, or give it to the processor's call"
            )


def sorted_keywords(
    keywords: Mapping[str, Any],
    arguments: Mapping[str, str],
    options: Mapping[str, Sequence[str]],
    template: str = "",
) -> Keywords:
    """Every keyword for its reader.

    Args:
        keywords: as given; None stands for a keyword that is not given.
        arguments: name of a modality -> the keyword of its media.
        options: name of a modality -> names of its options.
        template: Jinja text; a word of it may be a keyword.

    Raises:
        InputError: naming a keyword that nobody would read, and those that are known.
    """
    out = Keywords(options={name: {} for name in options})
    groups = {f"{argument}_kwargs": name for name, argument in arguments.items()}
    known = [*TEXT_OPTIONS, *arguments.values(), *(option for names in options.values() for option in names)]

    def sort(given: Mapping[str, Any], only: str | None) -> None:
        for name, value in given.items():
            takers = [kind for kind in options if name in options[kind] and only in (None, kind)]
            if value is None or (name in ASKS_NOTHING and value is False):
                continue
            if name in _GROUPS or name in groups:
                if not isinstance(value, Mapping):
                    raise InputError(f"{name} must be a mapping of keywords, not {type(value).__name__}")
                sort(value, groups.get(name))
            elif takers:
                for kind in takers:
                    out.options[kind][name] = value
            elif name in TEXT_OPTIONS:
                out.text[name] = value
            elif name in arguments.values():
                out.media[name] = value
            elif re.search(rf"\b{re.escape(name)}\b", template):
                out.variables[name] = value
            elif name in ASKS_NOTHING:
                raise InputError(f"{name}={value!r:.80} cannot be honoured by this processor; leave it out")
            else:
                raise InputError(f"the processor takes no {name!r}; {closest(name, known)}")

    sort(keywords, None)
    return out


def for_each(options: Mapping[str, Any], count: int, kind: str) -> list[dict[str, Any]]:
    """The options of each of `count` media: a list has a value for each of them, anything else is for all.

    Raises:
        InputError: naming an option with another number of values.
    """
    out: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, value in options.items():
        if value is None:
            continue
        if isinstance(value, (list, tuple)):
            values = [entry for part in value for entry in (part if isinstance(part, (list, tuple)) else [part])]
        elif isinstance(value, Mapping) and count > 1:
            raise InputError(f"{name} must be a list with an entry for each of {count} {kind}s")
        else:
            values = [value] * count
        if count and len(values) != count:
            raise InputError(f"{name} has {len(values)} values for {count} {kind}s: give one for each, or one for all")
        for medium, entry in zip(out, values, strict=False):
            medium[name] = entry
    return out
