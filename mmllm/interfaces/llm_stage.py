"""What acts on visual tokens inside the LLM.

B rows, P positions, N queries, K keys, G key heads, H heads, R rows of queries, D width of a head
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from mmllm.interfaces.explanation import Explanation
from mmllm.interfaces.part import Part
from mmllm.interfaces.reducer import TokenReducer
from mmllm.llm.values import (
    AttentionView,
    GatheredKeys,
    KeptBank,
    KeptKeys,
    LlmPass,
    PruneDecision,
    PruneView,
    Rejoined,
    RejoinView,
    Reweighed,
    RoomView,
)
from mmllm.tokens import VisualTokens


class LlmStage(Part):
    """A part that acts on visual tokens inside the LLM. Its state of a sequence is in the pass and in the cache.

    Its methods, in the order of a pass: `prune` before a layer (in prompts only), `select` and `reweigh` before an
    attention, `evict` and `attended` after it. A stage with weights is also a `torch.nn.Module`: they are saved, frozen
    and trained with the model.
    """

    heads_apart: ClassVar[bool] = False
    """Whether it gets the attention that keys receive for each head, not the mean over heads."""
    evicts: ClassVar[bool] = False
    """Whether it removes keys from the cache. It then cannot work without a cache."""
    depends_on_question: ClassVar[bool] = True
    """Whether its decision about a video may depend on the question."""
    needs_states: ClassVar[bool] = False
    """Whether it works on `cross_attention_states`. The path must then give some."""

    rejoins: ClassVar[bool] = False
    """Whether it lets positions of the prompt come back in later passes: it writes `rejoin`."""

    @property
    def needs_cache(self) -> bool:
        """Whether it can only work behind a cache, and so neither in training nor with `use_cache=False`."""
        return self.evicts

    @property
    def takes_back(self) -> bool:
        """Whether the newest positions can be removed from the cache as if they had never been read, as guessed tokens
        are: it neither evicts keys nor remembers what these positions looked at."""
        return not self.evicts

    @property
    def turns_keys(self) -> bool:
        """Whether positions count what is in the cache: keys are rotated anew once others before them have gone."""
        return False

    def check(self, layers: int) -> None:
        """Refuses an LLM with this number of layers; called when a model is built.

        Raises:
            ConfigError: naming the setting and what is allowed.
        """

    @property
    def restarts_positions(self) -> bool:
        """Whether it lets the rotary embeddings of a prompt count anew; see `PruneDecision.restart`."""
        return False

    @property
    def keeps_prefix(self) -> bool:
        """Whether a question is answered alike if the video before it was read in an earlier pass.

        By default not for stages that select or remove keys: what they do in a prompt and in later passes may differ.
        """
        chooses_keys = self.evicts or type(self).select is not LlmStage.select
        return not (self.depends_on_question or self.restarts_positions or chooses_keys)

    def check_layers(self, layers: Sequence[nn.Module]) -> None:
        """Refuses an LLM whose layers lack what the stage needs; called after `check`, when a model is built.

        Raises:
            ConfigError: naming what is missing.
        """

    def start_from(self, layers: Sequence[nn.Module]) -> None:
        """Sets new weights that follow from those of the LLM's layers; called once, before they are trained."""

    def with_settings(self, config: Any) -> Self | None:
        """A stage with the same weights and other settings; None if the weights do not fit these settings."""
        return None

    def attention_rows(self, view: AttentionView) -> Mapping[str, Tensor] | None:
        """Query rows (name -> float, B N) whose attention is added up for each key in this layer; None for none."""
        return None

    def prune(self, view: PruneView) -> PruneDecision | None:
        """The positions that go on into the next layer; None for all."""
        return None

    def select(self, view: AttentionView) -> Tensor | GatheredKeys | None:
        """The keys that are seen: bool, B (G or H) N K, for each query; or the slots that this pass looks at, which
        saves time where few are chosen; None for all."""
        return None

    def shaped_logits(self, view: AttentionView, logits: Tensor, rows: Tensor) -> Tensor:
        """The logits that count in `view.received` in place of the attention's own; it is not changed by them.

        Args:
            view: of the attention.
            logits: float32, B H R K, scaled. Keys that a query does not see count nothing, whatever is given for them.
            rows: int64, R. Which of the N queries they are.
        """
        return logits

    def make_room(self, view: RoomView) -> KeptKeys | None:
        """The keys that stay in a layer's cache, before a later pass adds new ones; None for all."""
        return None

    def reweigh(self, view: AttentionView) -> Reweighed | None:
        """Keys, values and logits for this attention; None changes nothing."""
        return None

    def rejoin(self, view: RejoinView) -> Rejoined | None:
        """The positions of the prompt that go through the layers from here on, beside those of a later pass.

        None for those that have come back before. Keys of theirs must not be in the caches of these layers yet.
        """
        return None

    def evict(self, view: AttentionView) -> KeptKeys | Sequence[KeptBank] | None:
        """The keys that stay in this layer's cache, for all key heads or for banks of them; None for all."""
        return None

    def attended(self, view: AttentionView) -> Tensor | None:
        """B N H D: `view.context`, the attention's output, with something added; None changes nothing.

        The layer projects it next, and adds it to its input.
        """
        return None

    def prompt_flops(self, beside: int, text: int) -> float:
        """Floating point operations that it adds to a prompt's pass; a multiply-add is two.

        Args:
            beside: tokens beside the sequence.
            text: positions of text.
        """
        return 0.0

    def cached_numbers(self, beside: int) -> int:
        """Numbers that it keeps in the cache for so many tokens beside the sequence."""
        return 0

    def llm_losses(self, current: LlmPass, layers: int) -> dict[str, Tensor]:
        """Losses that a finished pass through all `layers` adds to a training step's loss, by name."""
        return {}

    def explain_pass(self, current: LlmPass) -> Explanation | None:
        """The values by which it decided in a finished pass, B P; None if there is nothing to show."""
        return None


class LlmReducer(TokenReducer, LlmStage):
    """A reducer between the LLM's layers."""

    @property
    def by_frame(self) -> bool:
        """True: all tokens go on to the LLM."""
        return True

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """The tokens unchanged: they are removed later, inside the LLM."""
        return tokens
