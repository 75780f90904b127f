"""Duo-LLM (arXiv 2410.10846): each feed-forward part has a small sibling, and each token takes its route. Another law.

    layer:  attention -> router -> nothing, small part or big part

Attention always runs, so that keys and values are there. The prompt goes through the big parts. The model is frozen:
first the small parts learn while routes are drawn, then the routers learn to choose by a straight-through Gumbel
softmax with a budget.

B rows, P positions, N new positions, L layers, D width, W width of a big part
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmllm.decoding.counts import DecodingCounts
from mmllm.decoding.drafter import OWN
from mmllm.decoding.reading import CachedReader
from mmllm.decoding.routes import BIG, CHOICES, SKIP, SMALL, route_of
from mmllm.decoding.trained_draft import TargetRows, TrainedDraft, text_decoder
from mmllm.decoding.tree import Request
from mmllm.decoding.tuned_layers import TunedDecoding
from mmllm.errors import ConfigError
from mmllm.fields import require
from mmllm.llm.harness import decoder_layers
from mmllm.llm.head import lm_logits
from mmllm.llm.layers import with_layers, with_modules
from mmllm.registry import register
from mmllm.tokens import IGNORED

Chooser = Callable[[int, Tensor], Tensor]
"""From the number of a layer and what its feed-forward part reads (B N D) to the weights (B N 3) of its choices; those
of one position are 0 and one 1."""


@dataclass(frozen=True, kw_only=True)
class SiblingsConfig:
    """Sizes of the small parts, and how the routers learn."""

    share: float = 0.25
    """Width of a small part, of the big one's."""
    random_steps: int = 300
    """Steps in which routes are drawn and the small parts learn; the routers learn in those behind."""
    budget: float = 0.5
    """Share of the big parts' widths that a token may cost on average."""
    penalty: float = 4.0
    """What costs above the budget weigh in the loss of the routers."""

    def __post_init__(self) -> None:
        require(0 < self.share <= 1, self, "share", "above 0 and at most 1")
        require(self.random_steps >= 0, self, "random_steps", "0 or more")
        require(0 <= self.budget <= 1, self, "budget", "from 0 to 1")
        require(self.penalty >= 0, self, "penalty", "0 or more")


class SmallPart(nn.Module):
    """A gated feed-forward part of a chosen width."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """... D to ... D."""
        output: Tensor = self.down_proj(functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden))
        return output


@register("draft", "duo-llm", config=SiblingsConfig)
class Siblings(TrainedDraft):
    """A small sibling of each feed-forward part, and a linear router (Duo-LLM)."""

    training_defaults: ClassVar[dict[str, Any]] = {"learning_rate": 0.002, "max_steps": 600, "batch_size": 16}
    config: SiblingsConfig
    steps: Tensor

    def __init__(self, config: SiblingsConfig, *, model: Any) -> None:
        super().__init__()
        self.config = config
        text, layers = model.config.get_text_config(), feed_forward_layers(model)
        self.big_width = text.intermediate_size
        self.small_width = max(1, round(config.share * self.big_width))
        self.small = nn.ModuleList(SmallPart(text.hidden_size, self.small_width) for _ in layers)
        self.routers = nn.ModuleList(nn.Linear(text.hidden_size, len(CHOICES)) for _ in layers)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def check(self, model: Any) -> None:
        """Refuses a target with other layers.

        Raises:
            ConfigError: naming both numbers.
        """
        if (own := len(feed_forward_layers(model))) != len(self.small):
            raise ConfigError(f"draft duo-llm: it has {len(self.small)} layers and the model {own}")

    def loss(self, rows: TargetRows) -> Tensor:
        """Cross-entropy of the target's answers: along drawn routes, later along the routers' with a budget."""
        is_random = int(self.steps) < self.config.random_steps
        self.steps += self.training
        self.small.requires_grad_(is_random)
        self.routers.requires_grad_(not is_random)
        choices: list[Tensor] = []

        def choose(layer: int, hidden: Tensor) -> Tensor:
            if is_random:
                drawn = torch.randint(len(CHOICES), hidden.shape[:2], device=hidden.device)
                return functional.one_hot(drawn, len(CHOICES)).to(hidden)
            choices.append(functional.gumbel_softmax(self.routers[layer](hidden), hard=True))
            return choices[-1]

        logits = self.logits(rows, choose)[rows.answered].float()
        loss = functional.cross_entropy(logits, rows.following[rows.answered])
        if is_random:  # where no small part was drawn, nothing is learned
            return loss + 0.0 * sum(weight.sum() for weight in self.small.parameters())
        widths = torch.tensor([0.0, self.small_width / self.big_width, 1.0], device=loss.device)
        cost = torch.stack([(weights @ widths)[rows.labels != IGNORED].mean() for weights in choices]).mean()
        return loss + self.config.penalty * (cost - self.config.budget).clamp(min=0)

    def logits(self, rows: TargetRows, choose: Chooser) -> Tensor:
        """B P V: what the target makes of rows whose answers take routes; prompts go through the big parts."""
        is_answer = (rows.labels != IGNORED)[..., None]

        def chosen(layer: int, hidden: Tensor) -> Tensor:
            return torch.where(is_answer, choose(layer, hidden), all_big(layer, hidden))

        outputs = text_decoder(routed(rows.model, self, chosen))(
            inputs_embeds=rows.embeddings, attention_mask=rows.mask, position_ids=rows.positions, use_cache=False
        )
        return lm_logits(rows.model, outputs.last_hidden_state)

    def route(self, layer: int, hidden: Tensor) -> Tensor:
        """B N 3: what the router of a layer chooses."""
        return functional.one_hot(self.routers[layer](hidden).argmax(-1), len(CHOICES)).to(hidden)


class RoutedPart(nn.Module):
    """A feed-forward part with its sibling: computes what was chosen for each position, and nothing else.

    Args:
        layer: its number.
        big: the model's own part.
        small: its sibling; None if no route goes there.
        choose: see `Chooser`.
    """

    def __init__(self, layer: int, big: nn.Module, small: nn.Module | None, choose: Chooser) -> None:
        super().__init__()
        self.layer, self.big, self.small, self.choose = layer, big, small, choose

    def forward(self, hidden: Tensor) -> Tensor:
        """B N D to B N D."""
        weights = self.choose(self.layer, hidden)
        output = torch.zeros_like(hidden) * weights[..., SKIP, None]
        for choice, part in ((SMALL, self.small), (BIG, self.big)):
            chosen = weights[..., choice]
            if part is not None and bool(chosen.any()):
                places = chosen.bool() if not weights.requires_grad else torch.ones_like(chosen, dtype=torch.bool)
                output = output.index_put((places,), chosen[places, None] * part(hidden[places]), accumulate=True)
        return output


def all_big(_layer: int, hidden: Tensor) -> Tensor:
    """The weights of big parts for every position."""
    return functional.one_hot(torch.full(hidden.shape[:2], BIG, device=hidden.device), len(CHOICES)).to(hidden)


def feed_forward_layers(model: Any) -> list[Any]:
    """The layers of a model, each with its feed-forward part as `mlp`.

    Raises:
        ConfigError: if a layer has none.
    """
    layers = list(decoder_layers(text_decoder(model)))
    if not all(isinstance(getattr(layer, "mlp", None), nn.Module) for layer in layers):
        raise ConfigError("duo-llm: the model's layers have no feed-forward part named mlp")
    return layers


def routed(model: Any, siblings: Siblings | None, choose: Chooser) -> Any:
    """A model with the same weights whose feed-forward parts do what is chosen.

    Args:
        model: the target.
        siblings: of its parts; None without small ones.
        choose: see `Chooser`.
    """
    layers = []
    for number, layer in enumerate(feed_forward_layers(model)):
        small = None if siblings is None else siblings.small[number]
        layers.append(with_modules(layer, mlp=RoutedPart(number, layer.mlp, small, choose)))
    return with_layers(model, text_decoder(model), layers, range(len(layers)))


@dataclass(frozen=True, kw_only=True)
class DuoLlmConfig:
    """Which siblings, and which route."""

    draft: str = OWN
    """Folder of siblings that `mmllm train-draft duo-llm` has trained; own for a model without any."""
    route: tuple[str, ...] = ()
    """skip, small or big: one for all layers or one for each; the trained routers choose if it is empty."""

    def __post_init__(self) -> None:
        require(bool(self.draft.strip()), self, "draft", "own, or the folder of trained siblings")
        require(all(name in CHOICES for name in self.route), self, "route", f"of {', '.join(CHOICES)}")
        own = bool(self.route) and "small" not in self.route
        require(self.draft != OWN or own, self, "route", "of big and skip: small parts and routers need draft=FOLDER")


@register("decoding", "duo-llm", config=DuoLlmConfig)
class DuoLlm(TunedDecoding):
    """Each token takes its route through small and big feed-forward parts (Duo-LLM): another law."""

    draft_name = "duo-llm"
    config: DuoLlmConfig
    other_law = "tokens that take routes through smaller feed-forward parts (Duo-LLM)"

    def read_prompt(self, model: Any, input_ids: Tensor, inputs: dict[str, Any]) -> tuple[CachedReader, Tensor]:
        """A reader of the prompt, which goes through the big parts: those of the model itself."""
        return CachedReader.after_prompt(model, input_ids, inputs)

    def write(self, request: Request, target: CachedReader, logits: Tensor) -> Callable[[float], DecodingCounts]:
        """One token a pass, along its route.

        Raises:
            ConfigError: if the route does not fit the model.
        """
        text, model = request.text, request.model
        siblings = self.trained_for(model)
        route = route_of(self.config.route, len(feed_forward_layers(model))) if self.config.route else None
        chosen: list[Tensor] = []

        def choose(layer: int, hidden: Tensor) -> Tensor:
            if route is None:
                chosen.append(siblings.route(layer, hidden))
            else:
                chosen.append(functional.one_hot(torch.tensor([[route[layer]]]), len(CHOICES)).to(hidden))
            return chosen[-1]

        target.model = routed(model, siblings, choose)
        emitted, verify_s = 0, 0.0
        text.add(text.choose(logits))
        while not text.ended:
            text.flush()
            begun = time.perf_counter()
            row = target.read(torch.tensor([text.last]), [-1])[0]
            target.settle([0])
            verify_s += time.perf_counter() - begun
            text.add(text.choose(row))
            emitted += 1
        text.flush()
        extra = self._costs(chosen, request, siblings)
        return lambda seconds: DecodingCounts.of(
            text, target, [1] * emitted, seconds_verify=verify_s, seconds_total=seconds, extra=extra
        )

    def _costs(self, chosen: list[Tensor], request: Request, siblings: Siblings | None) -> dict[str, int]:
        """How often each choice was made, the widths that were gone through, and those of the big parts."""
        big = request.model.config.get_text_config().intermediate_size
        counts = [int(sum(weights[..., choice].sum() for weights in chosen)) for choice in range(len(CHOICES))]
        small = 0 if siblings is None else siblings.small_width
        widths = {"ffn_width": counts[SMALL] * small + counts[BIG] * big, "all_big_width": len(chosen) * big}
        return {**dict(zip(CHOICES, counts, strict=True)), **widths}
