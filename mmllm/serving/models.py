"""Several models behind one address: loaded when they are asked, dropped when others need their memory."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mmllm.app.methods import Methods
from mmllm.app.variants import Variants
from mmllm.fields import closest
from mmllm.inference.asking import VideoAnswering
from mmllm.serving.refusals import Refused, server_fault


@dataclass(kw_only=True, eq=False)
class LoadedModel:
    """A model in memory."""

    name: str
    qa: VideoAnswering
    bytes: int
    """Of its weights."""
    users: int = 0
    """Questions that need it now; it is not dropped while there are some."""
    variants: Variants = field(init=False)
    methods: Methods = field(init=False)
    """How its answers are written."""

    def __post_init__(self) -> None:
        self.variants, self.methods = Variants(self.qa), Methods()


class Models:
    """The models that are served; several threads may ask for them.

    Args:
        sources: name -> what `load` takes.
        load: loads a model.
        most_bytes: of the weights of all loaded models. One that is used is never dropped, so a single model may be
            larger.
    """

    def __init__(self, sources: Mapping[str, Any], load: Callable[[Any], VideoAnswering], most_bytes: int) -> None:
        self.sources, self.load, self.most_bytes = dict(sources), load, most_bytes
        self._loaded: OrderedDict[str, LoadedModel] = OrderedDict()
        self._lock, self._loading = threading.Lock(), {name: threading.Lock() for name in sources}

    @property
    def names(self) -> list[str]:
        """All served models, loaded or not."""
        return list(self.sources)

    @property
    def loaded(self) -> list[str]:
        """The models in memory, least recently used first."""
        with self._lock:
            return list(self._loaded)

    def require(self, name: str) -> None:
        """Refuses a name that is not served.

        Raises:
            Refused: with the names that are.
        """
        if name not in self.sources:
            message = f"there is no model {name[:80]!r} here; {closest(name, self.sources)}"
            raise Refused(404, message, "model_not_found", "model")

    @contextmanager
    def use(self, name: str) -> Iterator[LoadedModel]:
        """A model, which stays in memory inside the block.

        Raises:
            Refused: if there is no such model.
            MmllmError: if it cannot be loaded.
        """
        model = self._taken(name)
        try:
            yield model
        finally:
            self.release(model)

    def taken(self, name: str) -> LoadedModel:
        """The model of a question, which stays in memory until it is released; it is loaded if it is not there.

        Raises:
            Refused: if there is no such model, or it cannot be loaded, for which the question is not to blame.
        """
        try:
            return self._taken(name)
        except Refused:
            raise
        except Exception as problem:
            raise server_fault(f"the model {name!r:.80} cannot be loaded", "model_not_loaded", problem) from None

    def _taken(self, name: str) -> LoadedModel:
        self.require(name)
        with self._loading[name]:
            with self._lock:
                model = self._loaded.get(name)
                if model is not None:
                    self._loaded.move_to_end(name)
                    model.users += 1
                    return model
            qa = self.load(self.sources[name])
            model = LoadedModel(name=name, qa=qa, bytes=_weight_bytes(qa.model), users=1)
            with self._lock:
                self._loaded[name] = model
                self._drop()
            return model

    def release(self, model: LoadedModel) -> None:
        """Says that a question needs a model no more."""
        with self._lock:
            model.users -= 1
            self._drop()

    def _drop(self) -> None:
        """Drops models that nobody uses, least recently used first, until the others fit."""
        excess = sum(model.bytes for model in self._loaded.values()) - self.most_bytes
        for name, model in list(self._loaded.items())[:-1]:
            if excess <= 0:
                return
            if not model.users:
                excess -= model.bytes
                del self._loaded[name]


def _weight_bytes(model: Any) -> int:
    """Bytes of a model's weights; those that parts share count once."""
    module = model if hasattr(model, "parameters") else model.model
    weights = itertools.chain(module.parameters(), module.buffers())
    return sum({weight.data_ptr() or id(weight): weight.nbytes for weight in weights}.values())
