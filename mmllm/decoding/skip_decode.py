"""SkipDecode (arXiv 2307.02628): the later a token of the answer, the fewer layers it goes through. Another law.

The prompt goes through all layers. Each later token leaves out more of the middle ones, by a schedule that depends on
its place alone. The layers are trained further with the same schedule.

B rows, P positions, D width, V vocabulary
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmllm.decoding.counts import DecodingCounts
from mmllm.decoding.drafter import OWN
from mmllm.decoding.reading import CachedReader
from mmllm.decoding.skip_schedule import SkipSchedule
from mmllm.decoding.trained_draft import TargetRows, text_decoder
from mmllm.decoding.tree import Request
from mmllm.decoding.tuned_layers import TunedDecoding, TunedLayers
from mmllm.errors import ConfigError
from mmllm.fields import require
from mmllm.llm.harness import decoder_layers
from mmllm.llm.head import lm_logits
from mmllm.llm.layers import with_layers
from mmllm.registry import register
from mmllm.tokens import IGNORED


@dataclass(frozen=True, kw_only=True)
class SkippingConfig:
    """The schedule that layers are trained with."""

    min_layers: int | None = None
    """Layers of the last token; one fewer than the model has if None."""
    max_layers: int | None = None
    """Layers of the first token; all if None."""
    warmup: int = 1
    """Bottom layers that every token goes through."""
    tokens: int = 12
    """Over how many tokens of the answer the number falls."""

    def __post_init__(self) -> None:
        for name in ("min_layers", "max_layers"):
            value = getattr(self, name)
            require(value is None or value >= 1, self, name, "at least 1")
        require(self.warmup >= 1, self, "warmup", "at least 1")
        require(self.tokens >= 2, self, "tokens", "at least 2")

    def schedule(self, layers: int) -> SkipSchedule:
        """The schedule of a model with so many layers."""
        least = max(1, layers - 1) if self.min_layers is None else self.min_layers
        most = layers if self.max_layers is None else self.max_layers
        return SkipSchedule(layers=layers, least=least, most=most, warmup=self.warmup, steps=self.tokens)


@register("draft", "skip-decode", config=SkippingConfig)
class SkippingLayers(TunedLayers):
    """The model's layers, trained further to be left out by later tokens (SkipDecode)."""

    training_defaults: ClassVar[dict[str, Any]] = {"learning_rate": 0.0005, "max_steps": 300, "batch_size": 16}
    config: SkippingConfig

    def __init__(self, config: SkippingConfig, *, model: Any) -> None:
        super().__init__(config, model=model)
        self.schedule = config.schedule(len(self.layers))

    def loss(self, rows: TargetRows) -> Tensor:
        """Cross-entropy of the target's answers."""
        return functional.cross_entropy(self.logits(rows)[rows.answered].float(), rows.following[rows.answered])

    def logits(self, rows: TargetRows) -> Tensor:
        """B P V: what the layers make of rows when each token of an answer leaves out those of its place."""
        is_answer = rows.labels != IGNORED
        step = torch.where(is_answer, is_answer.cumsum(dim=1) - 1, -1)  # B P; the prompt goes through all layers
        used = [self.schedule.at(number) for number in range(int(step.max()) + 1)]
        model = self.model_of(rows.model)
        with _leaving_out(self.layers, step, used):
            outputs = text_decoder(model)(
                inputs_embeds=rows.embeddings, attention_mask=rows.mask, position_ids=rows.positions, use_cache=False
            )
        return lm_logits(rows.model, outputs.last_hidden_state)


@contextlib.contextmanager
def _leaving_out(layers: Iterable[nn.Module], step: Tensor, used: Sequence[Sequence[int]]) -> Iterator[None]:
    """While it is open, positions go around layers. Those that do are the end of a row, which nobody else sees.

    Args:
        layers: of the decoder.
        step: int64, B P. The place of each token in the answer; -1 for the prompt.
        used: of each step the numbers of its layers.
    """

    def around(number: int) -> Callable[..., Tensor]:
        goes = torch.tensor([*(number in numbers for numbers in used), True], device=step.device)[step]

        def hook(_module: Any, args: Any, kwargs: Any, output: Tensor) -> Tensor:
            return torch.where(goes[..., None], output, args[0] if args else kwargs["hidden_states"])

        return hook

    handles = [layer.register_forward_hook(around(number), with_kwargs=True) for number, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, kw_only=True)
class SkipDecodeConfig:
    """Which layers, and how many of them. What is left out is taken from the trained layers."""

    draft: str = OWN
    """Folder of layers that `mmllm train-draft skip-decode` has trained; own for the model's own."""
    min_layers: int | None = None
    """Layers of the last token."""
    max_layers: int | None = None
    """Layers of the first token."""
    warmup: int | None = None
    """Bottom layers that every token goes through; 1 with the model's own layers."""
    tokens: int | None = None
    """Over how many tokens the number falls; with the model's own layers as many as are allowed."""

    def __post_init__(self) -> None:
        require(bool(self.draft.strip()), self, "draft", "own, or the folder of trained layers")
        for name, least in (("min_layers", 1), ("max_layers", 1), ("warmup", 1), ("tokens", 2)):
            value = getattr(self, name)
            require(value is None or value >= least, self, name, f"at least {least}")


@register("decoding", "skip-decode", config=SkipDecodeConfig)
class SkipDecode(TunedDecoding):
    """Later tokens of an answer go through fewer layers (SkipDecode): another law."""

    draft_name = "skip-decode"
    config: SkipDecodeConfig

    @property
    def other_law(self) -> str:
        """What is written."""
        return "tokens for which layers are left out, the more the later (SkipDecode)"

    def write(self, request: Request, target: CachedReader, logits: Tensor) -> Callable[[float], DecodingCounts]:
        """One token a pass, through the layers of its place.

        Raises:
            ConfigError: if the schedule does not fit the model or the text.
        """
        text, model = request.text, target.model
        decoder = text_decoder(model)
        layers = list(decoder_layers(decoder))
        schedule = self.schedule(request, len(layers))
        short: dict[tuple[int, ...], Any] = {}
        passed, verify_s = [], 0.0
        text.add(text.choose(logits))
        while not text.ended:
            text.flush()
            begun = time.perf_counter()
            used = schedule.at(text.count - 1)
            if used not in short:
                short[used] = with_layers(model, decoder, [layers[number] for number in used], used)
            target.model = short[used]
            row = target.read(torch.tensor([text.last]), [-1])[0]
            target.settle([0])
            passed.append(len(used))
            verify_s += time.perf_counter() - begun
            text.add(text.choose(row))
        text.flush()
        extra = {"layer_passes": sum(passed), "all_layer_passes": len(layers) * len(passed)}
        return lambda seconds: DecodingCounts.of(
            text, target, [1] * len(passed), seconds_verify=verify_s, seconds_total=seconds, extra=extra
        )

    def schedule(self, request: Request, layers: int) -> SkipSchedule:
        """The schedule of a text: that of the trained layers, with the settings that are given.

        Raises:
            ConfigError: if one token is allowed, or the numbers do not fit the model.
        """
        text, given = request.text, self.config
        allowed = text.limit - text.prompt_length
        if allowed < 2:
            raise ConfigError("decoding skip-decode: one new token is allowed, so no layer is ever left out")
        trained = self.trained_for(request.model)
        own = SkippingConfig(tokens=allowed) if trained is None else trained.config
        return SkippingConfig(
            min_layers=given.min_layers or own.min_layers,
            max_layers=given.max_layers or own.max_layers,
            warmup=given.warmup or own.warmup,
            tokens=given.tokens or own.tokens,
        ).schedule(layers)
