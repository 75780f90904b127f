"""Stages and decoding methods that visitors and clients name: none opens a file or loads a model.

A method is kept, with what it learns of answers.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from mmllm import registry
from mmllm.decoding.choosing import decoding_of
from mmllm.errors import ConfigError, InputError
from mmllm.interfaces import Decoding
from mmllm.stages import one_or_more

MOST_CHARACTERS = 200
"""Of a part's description."""
_MOST = 16
"""How many methods are kept."""
_LARGEST = 256
"""The largest number in a description: it says how much is computed for a word."""
_KINDS = {"reducers": "reducer", "path": "path", "context": "context"}
"""Slots of stages that visitors choose, and the kind of part in each."""
_PLACES = (str, str | None, Path, Path | None)
"""Types of fields that name a file, a folder or a model; closed lists of words have others."""
_ASKED = "a request"


class Methods:
    """The methods of one model; several threads may ask for them."""

    def __init__(self) -> None:
        self._methods: OrderedDict[str, Decoding] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, choice: str) -> Decoding:
        """The method of a description such as `token-recycling:tree=80`.

        Raises:
            InputError: for an unknown method or setting, one that would load a model which the visitor names, and a
                number that would take too long.
        """
        if len(choice) > MOST_CHARACTERS:
            raise InputError(f"a decoding must be a text of at most {MOST_CHARACTERS} characters, not {choice!r:.50}")
        with self._lock:
            if choice not in self._methods:
                self._methods[choice] = _checked(choice)
                while len(self._methods) > _MOST:
                    self._methods.popitem(last=False)
            self._methods.move_to_end(choice)
            return self._methods[choice]


def refuse_files(stages: Mapping[str, Any]) -> None:
    """Refuses stages that would open a file, or load a model, which the visitor names.

    Args:
        stages: descriptions by slot, as `VideoQA.with_stages` takes them.

    Raises:
        ConfigError: naming the setting.
    """
    for kind, description in _described(stages):
        name, fields = registry.named(kind, description)
        if named := sorted(set(fields) & set(_places(kind, name))):
            raise ConfigError(f"{name}: {', '.join(named)}: {_ASKED} opens no other files; leave it out")


def with_remedy(problem: ConfigError, stages: Mapping[str, Any]) -> ConfigError:
    """Why stages cannot be used; if a setting is to blame that a visitor may not give, where it is given."""
    for kind, description in _described(stages):
        name, _ = registry.named(kind, description)
        if places := _blamed(problem, kind, name):
            return ConfigError(f"{problem}; {_ASKED} cannot give {places}: set {name} when the server starts")
    return problem


def _described(stages: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Kind and description of each stage."""
    for slot, kind in _KINDS.items():
        for description in one_or_more(stages.get(slot)):
            yield kind, description


def _places(kind: str, name: str) -> list[str]:
    """The settings of a part that name a file, a folder or a model."""
    return [field for field, of in get_type_hints(registry.find(kind, name).config).items() if of in _PLACES]


def _blamed(problem: ConfigError, kind: str, name: str) -> str:
    """The settings that name a file or a model among the words of a problem."""
    words = re.findall(r"\w+", str(problem))
    return ", ".join(field for field in _places(kind, name) if field in words)


def _checked(choice: str) -> Decoding:
    """A method that loads nothing and computes in bounds."""
    name, given = registry.named("decoding", choice)
    for field in _places("decoding", name):
        if field in given:
            own = "leave it out for the model's own weights"
            raise InputError(f"{field}: {_ASKED} loads no other models; {own}")
    try:
        method = decoding_of(choice)
    except ConfigError as problem:
        if places := _blamed(problem, "decoding", name):
            without = "do without it, or ask for another method"
            raise InputError(f"{problem}; {_ASKED} cannot give {places}: {without}") from None
        raise
    for field in given:
        if isinstance(value := getattr(method.config, field), int) and value > _LARGEST:
            raise InputError(f"{field} = {value}: must be at most {_LARGEST}")
    return method
