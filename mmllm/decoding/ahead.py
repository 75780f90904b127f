"""Weights that make a frozen model guess several tokens ahead, at extra rows behind each of its tokens.

    text    c0  c1  c2  c3           an extra row behind c1 sees c0, c1 and the extra rows before it;
    extra       s1  s2  s3           s1 guesses c3, since the model's own law behind c1 gives c2

They learn the model's own laws by their Kullback-Leibler divergence, at all tokens of an answer in one pass behind the
model's cache, and note how often the guess of each rank was right.

B rows, P positions, A tokens of an answer, k extra rows of each, R ranks, D width, V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor
from transformers import DynamicCache

from mmllm.decoding.masks import window_of
from mmllm.decoding.sparse_tree import MOST_LEVELS, measured_accuracies
from mmllm.decoding.trained_draft import TargetRows, TrainedDraft, text_decoder
from mmllm.errors import ConfigError, InputError
from mmllm.fields import require
from mmllm.llm.cache import CACHE
from mmllm.llm.head import lm_logits
from mmllm.tokens import IGNORED

RANKS = 10
"""R: guesses of each extra row that a tree may use."""
_WEIGHT = 0.8
"""A guess counts so much less than the one before it."""
_MEMORY = 0.98
"""How much of the counted guesses stays after a step, so that those of the weights of the end count."""


@dataclass(frozen=True, kw_only=True)
class AheadConfig:
    """How far ahead."""

    tokens: int = 3
    """k: extra rows of a token, each a guess further ahead."""

    def __post_init__(self) -> None:
        require(1 <= self.tokens <= MOST_LEVELS, self, "tokens", f"from 1 to {MOST_LEVELS}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Places:
    """Tokens of answers, behind which extra rows stand."""

    position: Tensor
    """int64, B A."""
    is_right: Tensor
    """bool, B A k. Whether the answer goes on as far as the guess of each extra row."""

    @classmethod
    def of(cls, rows: TargetRows, count: int) -> Places:
        """All tokens of the answers.

        Args:
            rows: prompts with answers.
            count: k.

        Raises:
            InputError: if there are none.
        """
        is_answer = rows.labels != IGNORED
        most = int(is_answer.sum(dim=1).max())
        if not most:
            raise InputError("no row has an answer: nothing can be learned")
        position = (~is_answer).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
        steps = [_later(rows.answered, position, distance) for distance in range(count + 1)]
        right = torch.stack(steps, dim=-1).long().cumprod(dim=-1).bool()[..., 1:]
        return cls(position=position, is_right=right & is_answer.gather(1, position)[..., None])

    def laws(self, values: Tensor) -> Tensor:
        """B A k D: values (B P D) at the position whose law each extra row guesses."""
        count = self.is_right.shape[-1]
        place = self.position[..., None] + torch.arange(1, count + 1, device=values.device)
        place = rearrange(place.clamp(max=values.shape[1] - 1), "b a k -> b (a k)")
        chosen = values.gather(1, repeat(place, "b n -> b n d", d=values.shape[-1]))
        return rearrange(chosen, "b (a k) d -> b a k d", k=count)


def _later(values: Tensor, position: Tensor, distance: int) -> Tensor:
    """B A: values (bool, B P) so many positions later; False behind the end."""
    place = position + distance
    return values.gather(1, place.clamp(max=values.shape[1] - 1)) & (place < values.shape[1])


class AheadDraft(TrainedDraft):
    """Weights of extra rows. It has to write `outputs`."""

    config: AheadConfig
    hits: Tensor
    places: Tensor

    def __init__(self, config: AheadConfig, *, model: Any) -> None:
        super().__init__()
        self.config = config
        self.width = model.get_input_embeddings().weight.shape[1]
        # before anything is measured: half of the guesses of the first rank are right, a quarter of the second, ...
        self.register_buffer("hits", (0.5 ** torch.arange(1.0, RANKS + 1)).repeat(config.tokens, 1))
        self.register_buffer("places", torch.ones(config.tokens))

    def check(self, model: Any) -> None:
        """Refuses a target of another width.

        Raises:
            ConfigError: naming both.
        """
        if (own := model.get_input_embeddings().weight.shape[1]) != self.width:
            raise ConfigError(
                f"draft {self.registered_name}: it is {self.width} wide and the model {own}: train one for this model"
            )

    @property
    def accuracies(self) -> Tensor:
        """float32, k R: how often the guess of each rank was right in the last steps, made to fall."""
        return (self.hits / self.places[:, None]).sort(dim=1, descending=True).values.float().cpu()

    def outputs(self, rows: TargetRows, places: Places) -> Tensor:
        """B A k D: the last hidden states of the extra rows."""
        raise NotImplementedError

    def guesses(self, rows: TargetRows, places: Places) -> Tensor:
        """B A k V: the logits of the extra rows."""
        return lm_logits(rows.model, self.outputs(rows, places))

    def loss(self, rows: TargetRows) -> Tensor:
        """The divergence of the guesses from the target's laws; a guess weighs 0.8 of the one before it."""
        places = Places.of(rows, self.config.tokens)
        guesses = self.guesses(rows, places).float()
        with torch.no_grad():
            target = lm_logits(rows.model, places.laws(rows.hidden)).float()
            self._measure(ranks_of(guesses, target, places.is_right))
        divergence = (target.softmax(-1) * (target.log_softmax(-1) - guesses.log_softmax(-1))).sum(-1)  # B A k
        weight = places.is_right * _WEIGHT ** torch.arange(self.config.tokens, device=divergence.device)
        return (weight * divergence).sum() / places.is_right.any(dim=-1).sum().clamp(min=1) / self.config.tokens

    def _measure(self, ranks: Tensor) -> None:
        """Counts ranks (int64, B A k) of right tokens."""
        ranks = rearrange(ranks, "b a k -> (b a) k")
        counted = (ranks >= 0).sum(dim=0).to(self.places)
        hits = measured_accuracies(ranks, RANKS).to(self.hits) * counted[:, None]
        self.hits.mul_(_MEMORY).add_(hits)
        self.places.mul_(_MEMORY).add_(counted)


def ranks_of(guesses: Tensor, target: Tensor, is_right: Tensor) -> Tensor:
    """int64, B A k: the rank that guesses give the target's choice; -1 where there is none.

    Args:
        guesses, target: logits, B A k V.
        is_right: bool, B A k.
    """
    chosen = guesses.gather(-1, target.argmax(-1, keepdim=True))
    return (guesses > chosen).sum(-1).masked_fill(~is_right, -1)


def read_extra(rows: TargetRows, places: Places, embeddings: Tensor) -> Tensor:
    """B A k D: last hidden states of extra rows, which the decoder reads behind its cache of the rows.

    Args:
        rows: of the target.
        places: behind which tokens.
        embeddings: B A k D.
    """
    decoder, (batch, length) = text_decoder(rows.model), rows.mask.shape
    count = embeddings.shape[2]
    number = torch.arange(places.position.shape[1] * count, device=embeddings.device)
    place, step = number // count, number % count
    behind = places.position[:, place]  # B N: the token of each extra row
    before = torch.arange(length, device=behind.device) <= behind[..., None]  # B N P
    own = (place[:, None] == place) & (step[:, None] >= step)
    seen = torch.cat([before & rows.mask.bool()[:, None], own.expand(batch, -1, -1)], dim=-1)
    at = rows.positions.gather(1, behind) + step + 1
    cache = DynamicCache()
    for number_of, layer in enumerate(rows.cache.layers):
        cache.update(layer.keys, layer.values, number_of)
    outputs = decoder(
        inputs_embeds=rearrange(embeddings, "b a k d -> b (a k) d"),
        attention_mask=_masks(decoder.config, seen, torch.cat([rows.positions, at], dim=1), embeddings.dtype),
        position_ids=at,
        use_cache=True,
        **{CACHE: cache},
    )
    return rearrange(outputs.last_hidden_state, "b (a k) d -> b a k d", k=count)


def _masks(config: Any, seen: Tensor, positions: Tensor, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """Additive masks, B 1 N P+N, in the form that an LLM takes; `seen` is bool, B N P+N, `positions` B P+N."""

    def additive(mask: Tensor) -> Tensor:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)[
            :, None
        ]

    window, mixed = window_of(config)
    if window is None:
        return additive(seen)
    near = positions[:, -seen.shape[1] :, None] - positions[:, None] < window
    if not mixed:
        return additive(seen & near)
    return {"full_attention": additive(seen), "sliding_attention": additive(seen & near)}
