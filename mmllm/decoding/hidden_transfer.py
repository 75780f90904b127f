"""Hidden Transfer (arXiv 2404.12022): hidden states of tokens to come are guessed in the middle of the model. Exact.

    layers 1 .. t | h of a token, W1 h, W2 h, ... | layers t+1 .. L | the head's guesses of the tokens behind the next

The guessed states go through the upper layers at positions of their own, where they see the text and the guesses before
them. In the pass, their rows go through the lower layers as well, where nobody sees them.

k guessed states, B rows, A tokens of an answer, N nodes, D width
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor, nn

from mmllm.decoding.ahead import AheadConfig, AheadDraft, Places, read_extra
from mmllm.decoding.ahead_drafts import AheadDrafts
from mmllm.decoding.beside_target import BesideTargetConfig, BesideTargetDecoding
from mmllm.decoding.sparse_tree import full_trees
from mmllm.decoding.trained_draft import TargetRows, text_decoder
from mmllm.decoding.tree import DraftSource, Request
from mmllm.errors import ConfigError
from mmllm.fields import require
from mmllm.llm.cache import CACHE
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class TransferConfig(AheadConfig):
    """How many states are guessed, and where."""

    layer: int | None = None
    """t: the layer behind which states are guessed, from 1; half of the layers if None."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.layer is None or self.layer >= 1, self, "layer", "at least 1")


@register("draft", "hidden-transfer", config=TransferConfig)
class Transfer(AheadDraft):
    """Linear maps from a token's hidden state to those of the tokens behind it (Hidden Transfer)."""

    training_defaults: ClassVar[dict[str, Any]] = {"learning_rate": 0.001, "max_steps": 400, "batch_size": 16}
    config: TransferConfig

    def __init__(self, config: TransferConfig, *, model: Any) -> None:
        super().__init__(config, model=model)
        layers = len(text_decoder(model).layers)
        self.layer = max(1, layers // 2) if config.layer is None else config.layer
        if self.layer >= layers:
            raise ConfigError(f"layer = {self.layer}: the model has {layers}, and one at least must follow: take fewer")
        self.maps = nn.Parameter(repeat(torch.eye(self.width), "d e -> k d e", k=config.tokens).clone())

    def check(self, model: Any) -> None:
        """Refuses a target of another width, or without layers behind the states."""
        super().check(model)
        if (layers := len(text_decoder(model).layers)) <= self.layer:
            raise ConfigError(
                f"draft hidden-transfer: it guesses behind layer {self.layer}, and the model has {layers}"
            )

    def outputs(self, rows: TargetRows, places: Places) -> Tensor:
        """B A k D: what the upper layers compute of the guessed states."""
        hidden = rows.outputs.hidden_states[self.layer]
        hidden = hidden.gather(1, repeat(places.position, "b a -> b a d", d=self.width))
        states = einsum(self.maps.to(hidden), hidden, "k e d, b a d -> b a k e")
        guessed = rearrange(states, "b a k e -> b (a k) e")
        with states_replaced(rows.model, self.layer, lambda _hidden, _cache: guessed):
            return read_extra(rows, places, torch.zeros_like(states))


@contextlib.contextmanager
def states_replaced(model: Any, layer: int, replace: Callable[[Tensor, Any], Tensor]) -> Iterator[None]:
    """While it is open, the output of a layer goes through a function.

    Args:
        model: its decoder has the layer.
        layer: from 1.
        replace: function of the output (1 N D) and the pass's cache to the new output.
    """

    def hook(_module: Any, _args: Any, kwargs: Any, output: Tensor) -> Tensor:
        return replace(output, kwargs.get(CACHE))

    handle = text_decoder(model).layers[layer - 1].register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True, kw_only=True)
class HiddenTransferConfig(BesideTargetConfig):
    """How large drafts are."""

    nodes: int = 10
    """Nodes of a draft behind its root: the most probable guesses. Guessed states stand behind each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.nodes >= 1, self, "nodes", "at least 1")


@register("decoding", "hidden-transfer", config=HiddenTransferConfig)
class HiddenTransfer(BesideTargetDecoding):
    """Hidden states of tokens to come are guessed in the middle of the model (Hidden Transfer): exact."""

    draft_name = "hidden-transfer"
    config: HiddenTransferConfig

    def start(self, request: Request) -> DraftSource:
        """Trees of what the guessed states say."""
        draft = self.draft_for(request.model)
        assert isinstance(draft, Transfer)
        return TransferDrafts(request, draft, self.config.nodes)


class TransferDrafts(AheadDrafts):
    """Trees for one text, and the guessed states of their extra rows."""

    def __init__(self, request: Request, draft: Transfer, nodes: int) -> None:
        super().__init__(request, full_trees(draft.accuracies, nodes), embeddings=None)
        self.draft = draft

    def reading(self) -> contextlib.AbstractContextManager[None]:
        """While it is open, rows of guessed states get them behind layer t of this text's passes."""
        target = self.request.target

        def replace(hidden: Tensor, cache: Any) -> Tensor:
            return self.transferred(hidden) if cache is target.cache else hidden

        return states_replaced(self.request.model, self.draft.layer, replace)

    def transferred(self, hidden: Tensor) -> Tensor:
        """1 N D: the states of a draft's rows behind layer t, with the guessed ones in place."""
        rows = [row for row, number in enumerate(self.number) if number]
        maps = self.draft.maps[[self.number[row] - 1 for row in rows]].to(hidden)
        hidden = hidden.clone()
        hidden[0, rows] = einsum(maps, hidden[0, [self.behind[row] for row in rows]], "n e d, n d -> n e")
        return hidden
