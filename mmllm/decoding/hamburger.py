"""HAMburger (arXiv 2505.20438): several tokens are one step of the LLM, and one position of its cache. Another law.

    step:  LLM -> features -> micro decoder: t1, t2, ... until its stop head ends the step
    next:  embedder(t1, t2, ...) is one row for the LLM, at the position of the last token

Embedder, micro decoder and the LLM's layers are trained together, on the target's answers cut into groups where the
target was sure of what follows.

G groups, S tokens of a group at most, F features, B rows, P positions, D width, V vocabulary
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from mmllm.decoding.beside_target import BesideTargetConfig
from mmllm.decoding.counts import DecodingCounts
from mmllm.decoding.hamburger_modules import CompositionalEmbedder, MicroDecoder, group_positions, micro_config
from mmllm.decoding.reading import CachedReader
from mmllm.decoding.segments import SEGMENTERS
from mmllm.decoding.trained_draft import TargetRows, text_decoder
from mmllm.decoding.tree import Request
from mmllm.decoding.tuned_layers import TunedDecoding, TunedLayers, outputs_of, refuse_read
from mmllm.errors import ConfigError, InputError
from mmllm.fields import require
from mmllm.llm.cache import CACHE
from mmllm.llm.head import lm_logits
from mmllm.registry import register

_STOP_WEIGHT = 0.5
"""Of the stop head's loss beside that of the tokens."""


@dataclass(frozen=True, kw_only=True)
class BurgerConfig:
    """Sizes of the two modules, and how answers are cut."""

    most: int = 4
    """S: tokens of a step."""
    heads: int | None = None
    """Heads of the merging attention; as many as divide the width, and at most 64, if None."""
    layers: int = 2
    """Layers of the micro decoder."""
    features: tuple[int, ...] = ()
    """The LLM's layers, from 1, whose outputs the micro decoder reads; all if there are at most four, else four."""
    segments: Literal["decreasing_v2", "decreasing", "sliding", "small_group"] = "decreasing_v2"
    """How the target's answers are cut into steps."""

    def __post_init__(self) -> None:
        require(1 <= self.most <= 4, self, "most", "from 1 to 4")
        require(self.heads is None or self.heads >= 1, self, "heads", "at least 1")
        require(self.layers >= 1, self, "layers", "at least 1")
        rising = all(a < b for a, b in zip(self.features, self.features[1:], strict=False))
        require(rising and min(self.features, default=1) >= 1, self, "features", "rising numbers from 1")


@register("draft", "hamburger", config=BurgerConfig)
class Burger(TunedLayers):
    """An embedder of groups, a micro decoder, and the LLM's layers trained with them (HAMburger)."""

    training_defaults: ClassVar[dict[str, Any]] = {"learning_rate": 0.001, "max_steps": 600, "batch_size": 16}
    config: BurgerConfig

    def __init__(self, config: BurgerConfig, *, model: Any) -> None:
        super().__init__(config, model=model)
        text, count = model.config.get_text_config(), len(self.layers)
        spread = [round(count * share / 4) for share in range(1, 5)]
        self.features = config.features or tuple(range(1, count + 1) if count <= 4 else spread)
        if self.features[-1] != count:
            raise ConfigError(f"features = {self.features}: the last must be {count}, the model's last layer")
        width = text.hidden_size
        heads = config.heads or next(heads for heads in range(64, 0, -1) if width % heads == 0)
        self.embedder = CompositionalEmbedder(width, heads, config.most)
        self.micro = MicroDecoder(micro_config(text), config.layers)

    @property
    def tapped(self) -> list[Any]:
        """The layers that features are the outputs of."""
        return [self.layers[number - 1] for number in self.features]

    def stacked(self, outputs: list[Tensor]) -> Tensor:
        """B P F D: features from the outputs (B P D) of the tapped layers."""
        return torch.stack([*outputs[:-1], self.norm(outputs[-1])], dim=2)

    def loss(self, rows: TargetRows) -> Tensor:
        """Cross-entropy of the tokens, and of stopping behind the last token of each group."""
        groups = Groups.of(rows, SEGMENTERS[self.config.segments], self.config.most)
        words = rows.model.get_input_embeddings()(groups.ids)  # G S D
        features = self._features(rows, groups, self.embedder(words, groups.sizes))
        outputs, stops = self.micro(features, words[:, :-1])
        place = torch.arange(self.config.most, device=stops.device)
        is_token = place < groups.sizes[:, None]
        logits = lm_logits(rows.model, outputs[is_token]).float()
        is_last = (place == groups.sizes[:, None] - 1)[is_token].float()
        stop = functional.binary_cross_entropy_with_logits(stops[is_token].float(), is_last)
        return functional.cross_entropy(logits, groups.ids[is_token]) + _STOP_WEIGHT * stop

    def _features(self, rows: TargetRows, groups: Groups, merged: Tensor) -> Tensor:
        """G F D: what the layers make of the position before each group, in rows of merged groups (G D)."""
        embeddings, places, parts = [], [], list(zip(groups.prompts, merged.split(groups.counts), strict=True))
        for row, ((prompt, own), sizes) in enumerate(zip(parts, groups.sizes.split(groups.counts), strict=True)):
            embeddings.append(torch.cat([rows.embeddings[row, :prompt], own]))
            behind = group_positions(prompt, sizes.tolist())
            places.append(torch.tensor([*range(prompt), *behind], device=own.device))
        mask = pad_sequence([torch.ones_like(place) for place in places], batch_first=True)
        with outputs_of(self.tapped) as outputs:
            text_decoder(self.model_of(rows.model))(
                inputs_embeds=pad_sequence(embeddings, batch_first=True),
                attention_mask=mask,
                position_ids=pad_sequence(places, batch_first=True),
                use_cache=False,
            )
            features = self.stacked(outputs)
        return torch.cat(
            [
                features[row, prompt - 1 : prompt - 1 + count]
                for row, (prompt, count) in enumerate(zip(groups.prompts, groups.counts, strict=True))
            ]
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Groups:
    """Answers of rows, cut into groups."""

    ids: Tensor
    """int64, G S; 0 behind a group's end."""
    sizes: Tensor
    """int64, G."""
    prompts: list[int]
    """Positions before each row's answer."""
    counts: list[int]
    """Groups of each row."""

    @classmethod
    def of(cls, rows: TargetRows, segmenter: Callable[..., list[int]], most: int) -> Groups:
        """The groups that a segmenter makes of the target's entropies.

        Args:
            rows: each with an answer at its end.
            segmenter: one of `SEGMENTERS`.
            most: S.

        Raises:
            InputError: if a row has no answer.
        """
        with torch.no_grad():
            law = lm_logits(rows.model, rows.hidden).float().log_softmax(-1)
        entropies = -(law.exp() * law).sum(-1)
        ids, sizes, prompts, counts = [], [], [], []
        for row in range(len(rows.ids)):
            places = torch.nonzero(rows.answered[row])[:, 0]
            if not len(places):
                raise InputError("a row has no answer: nothing can be learned")
            own = segmenter(entropies[row, places].tolist(), most)
            ids += list(rows.following[row, places].split(own))
            sizes += own
            prompts.append(int(places[0]) + 1)
            counts.append(len(own))
        filled = pad_sequence([*ids, ids[0].new_zeros(most)], batch_first=True)[:-1]
        return cls(ids=filled, sizes=torch.tensor(sizes, device=filled.device), prompts=prompts, counts=counts)


@dataclass(frozen=True, kw_only=True)
class HamburgerConfig(BesideTargetConfig):
    """How long steps are."""

    confidence: float = 0.9
    """A step goes on while 1 - p(stop) is at least this; above 1, each step is one token."""
    released: bool = False
    """Count positions as the released code does while it writes: one more than in its training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.confidence >= 0, self, "confidence", "0 or more")


@register("decoding", "hamburger", config=HamburgerConfig)
class Hamburger(TunedDecoding):
    """Several tokens are one step and one position of the cache (HAMburger): another law."""

    draft_name = "hamburger"
    config: HamburgerConfig
    other_law = "steps of several tokens with weights trained for them (HAMburger)"

    def read_prompt(self, model: Any, input_ids: Tensor, inputs: dict[str, Any]) -> tuple[CachedReader, Tensor]:
        """A reader that notes features.

        Raises:
            ConfigError: for a cache with what other weights have read.
        """
        refuse_read(self.registered_name, inputs)
        draft = self.draft_for(model)
        assert isinstance(draft, Burger)
        with outputs_of(draft.tapped, inputs[CACHE]) as outputs:
            reader, logits = FeatureReader.after_prompt(draft.model_of(model), input_ids, inputs)
            reader.note(draft, outputs)
        return reader, logits

    def write(self, request: Request, target: CachedReader, logits: Tensor) -> Callable[[float], DecodingCounts]:
        """Steps until the text ends."""
        assert isinstance(target, FeatureReader)
        steps = _Steps(self.config, request, target)
        steps.step()
        while not request.text.ended:
            steps.next()
        return steps.counts


class FeatureReader(CachedReader):
    """A reader that keeps the features of the last position that it has read."""

    draft: Burger
    features: Tensor
    """1 F D."""

    def note(self, draft: Burger, outputs: list[Tensor]) -> None:
        """Keeps the features of the last position, from the outputs of the tapped layers."""
        self.draft, self.features = draft, draft.stacked(outputs)[:, -1]

    def read_group(self, embedding: Tensor, size: int) -> None:
        """Reads a merged group (1 D) of so many tokens as one position, which stays."""
        self.position = self.position + size - 1
        with outputs_of(self.draft.tapped, self.cache) as outputs:
            self.read(torch.zeros(1, dtype=torch.long), [-1], embedding)
            self.note(self.draft, outputs)
        self.settle([0])


class _Steps:
    """The steps of one text."""

    def __init__(self, config: HamburgerConfig, request: Request, target: FeatureReader) -> None:
        self.config, self.request, self.text, self.target = config, request, request.text, target
        self.words = request.model.get_input_embeddings()
        self.emitted: list[int] = []
        self.group: list[int] = []
        self.micro_passes, self.verify_s = 0, 0.0
        if config.released:
            target.position = target.position + 1

    def next(self) -> None:
        """Reads the last group, and writes the next."""
        begun = time.perf_counter()
        sizes = torch.tensor([len(self.group)], device=self.words.weight.device)
        merged = self.target.draft.embedder(self._embedded(self.group), sizes)
        self.target.read_group(merged, len(self.group))
        self.verify_s += time.perf_counter() - begun
        self.step()
        self.emitted.append(len(self.group))

    def step(self) -> None:
        """Writes tokens until the stop head, the size of a step or the text ends it."""
        draft, self.group = self.target.draft, []
        while len(self.group) < draft.config.most:
            outputs, stops = draft.micro(self.target.features, self._embedded(self.group))
            self.micro_passes += 1
            token = self.text.choose(lm_logits(self.request.model, outputs[0, -1]))
            self.group.append(token)
            if self.text.add(token) or 1 - float(stops[0, -1].sigmoid()) < self.config.confidence:
                break
        self.text.flush()

    def _embedded(self, tokens: list[int]) -> Tensor:
        """1 S D."""
        return self.words(torch.tensor([tokens], dtype=torch.long, device=self.words.weight.device))

    def counts(self, seconds: float) -> DecodingCounts:
        """The counters; tokens behind the first of a step are drafted, and stay."""
        behind_first = self.text.count - len(self.emitted) - 1
        return DecodingCounts.of(
            self.text,
            self.target,
            self.emitted,
            draft_passes=self.micro_passes,
            drafted=behind_first,
            matched=behind_first,
            seconds_verify=self.verify_s,
            seconds_total=seconds,
            extra={"kv_positions": len(self.target.attended)},
        )
