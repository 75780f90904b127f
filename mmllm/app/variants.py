"""A model and its variants: the same weights with other stages, as visitors choose them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from mmllm.app.methods import with_remedy
from mmllm.errors import ConfigError
from mmllm.inference.asking import VideoAnswering

_MOST = 16
"""How many variants are kept; all of them share the weights."""


class Variants:
    """Variants of one model; several threads may ask for them."""

    def __init__(self, qa: VideoAnswering) -> None:
        self.qa = qa
        self._variants: OrderedDict[str, VideoAnswering] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, stages: Mapping[str, Any]) -> VideoAnswering:
        """The model with these stages, by slot; None for its own. Without any, the model itself.

        Raises:
            InputError: if the stages do not fit the model; the message gives the reason.
        """
        if not stages:
            return self.qa
        key = repr(sorted(stages.items()))
        with self._lock:
            if key not in self._variants:
                try:
                    self._variants[key] = self.qa.with_stages(**stages)
                except ConfigError as problem:
                    raise with_remedy(problem, stages) from None
                while len(self._variants) > _MOST:
                    self._variants.popitem(last=False)
            self._variants.move_to_end(key)
            return self._variants[key]
