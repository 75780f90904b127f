"""What each kind of part is asked for, with a default for all that it may leave out.

| kind | base class | constructor |
|---|---|---|
| encoder | `Encoder` | `(config)` |
| reducer behind the encoder | `TokenReducer`; `mmllm.pruning.ranked.BudgetReducer`, which only ranks | `(config)` |
| reducer inside the encoder | `EncoderStage` | `(config)` |
| reducer inside the LLM | `LlmReducer`; anything else inside the LLM is an `LlmStage` | `(config)` |
| tokenizer | `VisualTokenizer`: a projector or a resampler | `(config, *, in_width, out_width, grid)` |
| path | `VideoPath` | `(config, *, width)` |
| time | `TimeFormat` | `(config, *, count)` |

A constructor leaves out what it does not need besides its config. B videos, T frames, N tokens of a frame, C encoder
width, D LLM width, P positions of the LLM's row, K positions kept, F frames run at once, H heads
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from mmllm.errors import ConfigError
from mmllm.llm.values import AttentionView, KeptKeys, LlmPass, PruneDecision, PruneView, Reweighed
from mmllm.times.vocabulary import TimeTokens
from mmllm.tokens import VisualSequence, VisualTokens

Grid = tuple[int, int] | None
"""Rows and columns of patches; None for 1D tokens."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """What a reducer went by, to be shown as a heat map."""

    name: str
    values: Tensor
    """float32. B T N of the tokens that a reducer was given; B P of the positions of a prompt for one inside the LLM,
    not a number where it judged nothing."""


class Part:
    """What every registered part has."""

    registered_name: ClassVar[str] = ""
    """The name under which it is registered; set by `mmllm.registry.register`."""
    config: Any

    @property
    def has_weights(self) -> bool:
        """Whether it brings weights, which then must have been trained with the model."""
        return isinstance(self, nn.Module) and next(self.parameters(), None) is not None


class Encoder(Part, nn.Module):
    """Frames to patch features. Sets `width` and `grid` when it is built."""

    width: int
    """C, of the features."""
    grid: tuple[int, int]
    score_names: Collection[str] = frozenset()
    """Kinds of scores that it gives cheaply: `cls_attention`, `mean_attention`, `probe_attention`."""
    runs_encoder_stage: ClassVar[bool] = False
    """Whether `forward` takes an `EncoderStage` as `inside`."""
    load_pretrained: Any = None
    """Method `(source)` that loads published weights, for encoders of other packages that know how."""

    @property
    def index(self) -> Tensor | None:
        """int64, N. Raster positions of a frame's tokens, where they are not the whole grid in order."""
        return None

    @property
    def tokens_per_frame(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1] if self.index is None else len(self.index)


class TokenReducer(Part, nn.Module):
    """Fewer tokens of each frame. The base class itself is for reducers between encoder and projector."""

    score_choices: ClassVar[tuple[str, ...]] = ()
    """Kinds of encoder scores that it could rank by, any one of which is enough; none if it needs no score."""

    @property
    def scores_needed(self) -> tuple[str, ...]:
        """Names of the scores that it reads from `VisualTokens.scores`, such as `cls_attention@0`."""
        return ()

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """The tokens that remain."""
        raise NotImplementedError

    def kept_tokens(self, tokens_per_frame: int, frames: int) -> int:
        """The most tokens that remain of a whole video."""
        return tokens_per_frame * frames

    def grid_after(self, grid: Grid) -> Grid:
        """The patch grid behind it."""
        return grid

    def ranking(self, tokens: VisualTokens) -> Tensor | None:
        """float32, B T N: what the tokens are ranked by, the best highest; None if it does not rank."""
        return None

    def explain(self, tokens: VisualTokens) -> Explanation | None:
        """What it went by, to be shown; None if there is nothing to show."""
        values = self.ranking(tokens)
        if values is None:
            return None
        return Explanation(name=str(getattr(self.config, "score", self.registered_name)), values=values)


class InsideBlocks(Protocol):
    """What an encoder calls between attention and MLP of its blocks. `state` belongs to what is called."""

    def start(self, hidden: Tensor, blocks: int) -> Any:
        """State before the first of `blocks` blocks, of hidden states F N C with the class token first."""

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, state: Any) -> tuple[Tensor, Tensor]:
        """Mixed values (F H N D) of F H N D each, and the class token's mean attention (F N)."""

    def reduce(self, block: int, hidden: Tensor, row: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Hidden states after the attention's residual, with fewer tokens."""

    def finish(self, hidden: Tensor, state: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Patch features F N C in raster order, where each came from (F N) and how many it stands for (F N).

        A token of size 0 is gone and will be masked.
        """


class EncoderStage(TokenReducer, InsideBlocks):
    """A reducer inside the blocks of a vision transformer; it writes the four methods of `InsideBlocks`."""

    def prepare(self, encoder: Encoder) -> None:
        """Gets ready for an encoder; once, when a model is put together."""

    def losses(self) -> dict[str, Tensor]:
        """What is added to the loss of a training step, by name."""
        return {}


class LlmStage(Part):
    """Something that acts on visual tokens inside the LLM. What it knows of a sequence is in the pass and in the cache.

    The seams, in the order of a pass: `prune` before a layer (prompts only), `select` and `reweigh` before an
    attention, `evict` after it.
    """

    heads_apart: ClassVar[bool] = False
    """Whether the attention that keys receive is told for each head."""
    evicts: ClassVar[bool] = False
    """Whether it removes keys from the cache, without which it then cannot work."""
    depends_on_question: ClassVar[bool] = True
    """Whether another question about the same video may lead to another choice."""

    def check(self, layers: int) -> None:
        """Refuses an LLM of that many layers, when a model is put together.

        Raises:
            ConfigError: naming the setting and what is allowed.
        """

    def attention_rows(self, view: AttentionView) -> Mapping[str, Tensor] | None:
        """Query rows (name -> float, B N) whose attention is added up for each key in this layer; None for none."""
        return None

    def prune(self, view: PruneView) -> PruneDecision | None:
        """Which positions go on into the next layer; None for all."""
        return None

    def select(self, view: AttentionView) -> Tensor | None:
        """bool, B (G or H) N K: the keys that each query is to see; None for all."""
        return None

    def reweigh(self, view: AttentionView) -> Reweighed | None:
        """Keys, values and logits as this attention is to see them; None for as they are."""
        return None

    def evict(self, view: AttentionView) -> KeptKeys | None:
        """The keys that stay in this layer's cache; None for all."""
        return None

    def llm_losses(self, current: LlmPass, layers: int) -> dict[str, Tensor]:
        """What a finished pass through so many layers adds to the loss of a training step, by name."""
        return {}

    def explain_pass(self, current: LlmPass) -> Explanation | None:
        """What it went by in a finished pass, B P; None if there is nothing to show."""
        return None


class LlmReducer(TokenReducer, LlmStage):
    """A reducer between the LLM's layers."""

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """The tokens as they are: they are removed later, inside the LLM."""
        return tokens


class VisualTokenizer(Part, nn.Module):
    """Encoder features to tokens of the LLM's width: a projector token by token, or a resampler to 1D tokens."""

    affine: ClassVar[bool] = False
    """Whether each token is mapped by one affine map, so that averages of tokens can be taken before it."""

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """Features B T N C to B T M D."""
        raise NotImplementedError

    def token_count(self, tokens_per_frame: int) -> int:
        """M: tokens of a frame behind it."""
        return tokens_per_frame

    def grid_after(self, grid: Grid) -> Grid:
        """The patch grid behind it; None for 1D tokens."""
        return grid


class VideoPath(Part, nn.Module):
    """The tokens of all frames to what the LLM reads."""

    averages: ClassVar[bool] = False
    """Whether each token of the sequence is an average of tokens, so that an affine projector may come after it."""

    def forward(self, tokens: VisualTokens) -> VisualSequence:
        """Features B T N D in reading order."""
        raise NotImplementedError

    def token_counts(self, frames: int, grid: Grid, tokens_per_frame: int) -> dict[str, int]:
        """Tokens of each block, by name, of a video of so many frames.

        Raises:
            InputError: if it needs a patch grid and there is none.
        """
        raise NotImplementedError


class TimeFormat(Part):
    """How times are written for the LLM, and read from what it writes."""

    time_tokens: TimeTokens | None = None
    """The words of one id each that mean instants, if there are any."""

    def write(self, text: str, duration_s: float) -> str:
        """`text` with each stamp of seconds (`<12.3>`) as the LLM reads it."""
        raise NotImplementedError

    def read(self, text: str, duration_s: float, template: str = "<{}>") -> str:
        """`text` with each time as seconds, put into the template."""
        raise NotImplementedError

    def before_frames(self, times_s: Sequence[float]) -> list[str]:
        """What is written before the tokens of each frame; an empty list for nothing."""
        return []


def llm_stages(parts: Sequence[Any]) -> list[LlmStage]:
    """Those of the parts that work inside the LLM, in order.

    Raises:
        ConfigError: if more than one removes keys from the cache.
    """
    stages = [part for part in parts if isinstance(part, LlmStage)]
    evicting = [stage.registered_name for stage in stages if stage.evicts]
    if len(evicting) > 1:
        raise ConfigError(f"one stage at most removes keys from the cache, not {' and '.join(evicting)}")
    return stages
