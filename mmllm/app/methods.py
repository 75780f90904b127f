"""Decoding methods and policies of the cache that visitors and clients name: none opens a file or loads a model.

A method is kept, with what it learns of answers.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_type_hints

from mmllm import registry
from mmllm.decoding.choosing import decoding_of
from mmllm.errors import ConfigError, InputError
from mmllm.interfaces import Decoding

MOST_CHARACTERS = 200
"""Of a part's description."""
_MOST = 16
"""How many methods are kept."""
_LARGEST = 256
"""The largest number in a description: it says how much is computed for a word."""
_PLACES = (str, str | None, Path, Path | None)
"""Types of fields that name a folder or a model; closed lists of words have others."""


_OWN = "a description that others write"


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


def refuse_files(policies: Iterable[str]) -> None:
    """Refuses policies of the cache that would open a file which the visitor names.

    Raises:
        ConfigError: naming the setting.
    """
    for policy in policies:
        name, fields = registry.named("context", policy)
        cls: Any = registry.find("context", name).cls
        if files := set(fields) & set(cls.names_files):
            raise ConfigError(f"{name}: {', '.join(sorted(files))}: {_OWN} opens no other files; leave it out")


def _checked(choice: str) -> Decoding:
    """A method that loads nothing and computes in bounds."""
    name, given = registry.named("decoding", choice)
    for field, kind in get_type_hints(registry.find("decoding", name).config).items():
        if field in given and kind in _PLACES:
            own = "leave it out for the model's own weights"
            raise InputError(f"{field}: {_OWN} loads no other models; {own}")
    method = decoding_of(choice)
    for field in given:
        if isinstance(value := getattr(method.config, field), int) and value > _LARGEST:
            raise InputError(f"{field} = {value}: must be at most {_LARGEST}")
    return method
