"""The values that the LLM's layers and the stages inside it exchange.

B rows, P positions of the whole row, K positions kept, N new positions of a pass, S tokens beside the row,
H query heads, G key heads, D head width
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor

from mmllm.llm.counters import ContextCounts
from mmllm.llm.kinds import kinds_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Phase = Literal["prompt", "more prompt", "token"]
"""The first pass of a cache (or a pass without one), a later pass of several positions, a pass of one position."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Kept:
    """The positions on which a group of layers works."""

    position: Tensor
    """int64, B K. Position of each in the whole row, in reading order: ascending, except at filling, and where merged
    tokens are read behind others."""
    valid: Tensor
    """bool, B K. False at padding, and at filling: entries that make a shorter row as long as the others."""
    weight: Tensor | None = None
    """float32, B K. Factor of the attention to a position, while thresholds are learned: then nothing is removed."""
    rotated_as: Tensor | None = None
    """int64, B K. The positions in the whole row whose rotary embedding is used in their place; None for their own."""

    def of(self, values: Tensor) -> Tensor:
        """Values B P of the kept positions: B K."""
        return values.gather(1, self.position)

    def counting(self, rows: Tensor) -> Tensor:
        """float32, B K: weight of each position that is in `rows` (bool, B P); 0 for other positions and filling."""
        weight = 1.0 if self.weight is None else self.weight.detach()
        return (self.of(rows) & self.valid) * weight


@dataclass(frozen=True, kw_only=True, eq=False)
class PruneDecision:
    """What happens to the positions of the layer before. Exactly one of `keep` and `weight` is given."""

    keep: Tensor | None = None
    """bool, B K. False for a position that is removed."""
    weight: Tensor | None = None
    """float32, B K. Factor of the attention to each position, with gradients; none is removed."""
    hidden: Tensor | None = None
    """B K D, beside `keep`: the states that go on in place of `PruneView.hidden`, where tokens were merged."""
    order: Tensor | None = None
    """int64, B K, beside `keep`: what remains is read in ascending order of these numbers, equal ones as they stand.
    None for no change."""
    restart: bool = False
    """Whether the rotary embeddings of what remains of the prompt count from the start of the row without gaps. Those
    of an answer stay."""
    answer_follows: bool = False
    """Whether an answer that is written with a cache counts on from them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptKeys:
    """The keys that stay in the cache of one layer. Filling comes first, so that the newest key stays last."""

    index: Tensor
    """int64, B G K. Slots of the layer's keys; the same number for all heads."""
    valid: Tensor | None = None
    """bool, B G K. False at filling; None if there is no filling."""
    first: tuple[Tensor, Tensor] | None = None
    """B G D each: the key and the value that the first slot then holds in place of its own."""


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptBank:
    """Key heads of a layer that go on by themselves, so that they may hold more keys than others, or fewer."""

    heads: tuple[int, ...]
    """Numbers of the key heads, ascending."""
    kept: KeptKeys | None
    """The keys that stay, for one head or for each of these; None for all."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rejoined:
    """Positions of the prompt that go through the layers again behind a layer, beside those of a later pass."""

    hidden: Tensor
    """B R D: their states in front of the layer."""
    position: Tensor
    """int64, B R. Their positions in the whole row."""
    valid: Tensor
    """bool, B R. False at filling, which stands in front."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RejoinView:
    """What a stage sees before a layer of a later pass, where positions of the prompt may come back."""

    layer: int
    layers: int
    """How many layers the LLM has."""
    current: LlmPass
    hidden: Tensor
    """B M D: the states in front of the layer of those that have come back before an earlier layer."""
    position: Tensor
    """int64, B M."""
    valid: Tensor
    """bool, B M. False at filling."""
    state: dict[str, Tensor]
    """The stage's own tensors of this layer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reweighed:
    """Keys, values and logits for one attention. The cache is not changed."""

    keys: Tensor
    """B G K D."""
    values: Tensor
    """B G K D."""
    bias: Tensor | None = None
    """float, broadcast to B H N K. Added to the logits."""


@dataclass(kw_only=True, eq=False)
class LlmPass:
    """One prompt on its way through the layers, with the decisions of the stages. A second prompt needs a new pass."""

    visual: Tensor
    """bool, B P."""
    question: Tensor
    """bool, B P. Text after the visual tokens that stages may use for decisions; without answers in training."""
    prompt: Tensor
    """bool, B P. The text and visual tokens that are to be answered; False at padding and at answers."""
    place: Tensor
    """int64, B P. Raster position of a visual token on its frame's grid; meaningless for text."""
    frame: Tensor
    """int64, B P. The frame that a visual token shows."""
    valid: Tensor
    """bool, B P. False at padding."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the grid; None for tokens without a place on a grid: `place` is then their number."""
    cross_attention_states: Tensor | None = None
    """B S (LLM width). Visual tokens of each row that have no position; None if no row has some. Once a cache has gone
    through all layers, they are dropped: a stage keeps what it needs in the cache."""
    cross_attention_mask: Tensor | None = None
    """bool, B S. False at padding; a row without such tokens has nothing but padding."""
    stages: Sequence[Any] = ()
    """The `LlmStage`s that work in this pass, in order."""
    kept: dict[int, Kept] = field(default_factory=dict)
    """First layer of a group -> the positions on which the group works."""
    received: dict[int, list[Mapping[str, Tensor]]] = field(default_factory=dict)
    """Layer -> for each stage, name -> float32 B K: the attention that kept positions receive from the stage's rows."""
    notes: list[dict[int, Any]] = field(default_factory=list)
    """For each stage: layer -> its notes there, for its losses and for display."""
    time_text: Tensor | None = None
    """bool, B P. Text that says when frames are shown; None if there is none."""
    sound: Tensor | None = None
    """bool, B P. Tokens of a video that show no patch, such as sound; None if there are none."""
    frameless: Tensor | None = None
    """bool, B P. Where `frame` says nothing: at text, and at tokens that show several frames; None for text only."""
    counts: ContextCounts | None = None
    """Where is noted what the cache holds; None if nobody asks."""
    rejoined: tuple[Tensor, Tensor] | None = None
    """Positions of the prompt that have come back in the pass that is going on (int64, B R), and which of them are no
    filling (bool, B R); None if none have."""
    prompt_angles: tuple[Tensor, Tensor] | None = None
    """Cosines and sines of the prompt's positions, (B or 1) P D, where a stage lets positions come back."""
    moved: Tensor | None = None
    """int64, B 1. By how many positions an answer moves up, behind a prompt whose positions count anew; None for 0."""
    unusable: bool = False
    """Set in training if numbers are not finite: nothing is learned from this pass."""

    def __post_init__(self) -> None:
        self.notes = self.notes or [{} for _ in self.stages]

    def repeated(self, times: int) -> Self:
        """A pass of the same prompt with every row `times` times: for beams, or for several questions about it."""
        names = (
            "visual", "question", "prompt", "place", "frame", "valid", "time_text", "sound", "frameless", "moved",
        )  # fmt: skip
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        rows = {name: value.repeat_interleave(times, 0) for name, value in given.items()}
        return replace(self, **rows, kept={}, received={}, notes=[])

    def kept_at(self, layer: int) -> Kept:
        """The positions on which a layer works."""
        starts = [start for start in self.kept if start <= layer]
        return self.kept[max(starts)] if starts else self.everything()

    def everything(self) -> Kept:
        """All positions of the row."""
        rows, count = self.visual.shape
        return Kept(position=torch.arange(count, device=self.visual.device).expand(rows, count), valid=self.valid)

    @property
    def back(self) -> int:
        """How many positions of the prompt go through the layers again, in front of those of the pass."""
        return 0 if self.rejoined is None else self.rejoined[0].shape[1]

    @property
    def kind(self) -> Tensor:
        """int64, B P. A `PositionKind` for each position."""
        nothing = torch.zeros_like(self.visual)
        medium = self.visual | (nothing if self.sound is None else self.sound)
        return kinds_of(medium, nothing if self.time_text is None else self.time_text, self.prompt)

    @property
    def number(self) -> Tensor:
        """int64, B P. How many real positions of the row come before each."""
        return (self.valid.cumsum(-1) - 1).clamp(min=0)

    def count_in(self, counts: ContextCounts | None, layers: Sequence[Any]) -> None:
        """Lets counters, if there are some, watch the layers of the cache that this prompt fills."""
        if counts is not None:
            self.counts = counts
            frame = self.frame if self.frameless is None else self.frame.masked_fill(self.frameless, -1)
            counts.records, counts.frame, counts.kind = layers, frame[0], self.kind[0]

    def on_visual(self, position: Tensor, values: Tensor) -> Tensor:
        """float32, B P: values (B K) at positions (int64, B K) of the row; not a number where nothing visual is."""
        whole = torch.full(self.visual.shape, torch.nan, device=values.device)
        return whole.scatter(1, position, values).masked_fill(~self.visual, torch.nan)

    def notes_of(self, stage: Any) -> dict[int, Any]:
        """The notes of a stage, by layer."""
        return next(notes for own, notes in zip(self.stages, self.notes, strict=True) if own is stage)


@dataclass(frozen=True, kw_only=True, eq=False)
class PruneView:
    """What a stage sees before a layer, while a prompt is read."""

    layer: int
    """The layer that comes next."""
    layers: int
    """How many layers the LLM has."""
    current: LlmPass
    before: Kept
    """The positions of the layer before, without those that earlier stages have just removed."""
    received: Mapping[str, Tensor]
    """Name -> float32, B K: attention that these positions received in the layer before, from the stage's rows."""
    notes: dict[int, Any]
    """By layer; the stage writes its notes here."""
    hidden: Tensor
    """B K D: the states of these positions that would go into the layer; before layer 0 the embeddings."""
    final_norm: Callable[[Tensor], Tensor]
    """The norm behind the LLM's last layer."""
    state: dict[str, Tensor]
    """The stage's own tensors of this layer in the cache, with B as their first axis; without a cache all are lost."""
    attention_ahead: Callable[[Tensor], Tensor]
    """Of weighted query rows (float, B K): the attention that the positions of `before` would receive from them in the
    layer that comes next, as it stands: float32, B K. It costs the keys of positions that are then removed."""
    probe_of: Callable[[int], Any]
    """Of a layer's number, this one or a later one: its `query` (B H K D) and `key` (B G K D), rotated, as they would
    be if all positions of `before` went on to it. It costs the layers in between."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GatheredKeys:
    """The keys of a layer that one pass sees; the others stay in the cache."""

    index: Tensor
    """int64, B G K' (or B 1 K'). Slots in ascending order; the same number for all heads. The new keys are among
    them."""
    valid: Tensor | None = None
    """bool, like `index`. False at filling; None if there is no filling."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RoomView:
    """What a stage sees of a layer before a later pass adds keys to it."""

    layer: int
    current: LlmPass
    coming: Tensor
    """int64, B. How many real keys the pass will add."""
    position: Tensor
    """int64, B G K (or B 1 K). Position of each key in the whole row."""
    valid: Tensor
    """bool, like `position`."""
    number: Tensor
    """int64, like `position`. How many real positions of the row come before."""
    kind: Tensor
    """int64, like `position`. A `PositionKind`."""
    state: dict[str, Tensor]
    """The stage's own tensors of this layer."""
    by_key: dict[str, Tensor]
    """What the stage notes of each key."""


@dataclass(kw_only=True, eq=False)
class AttentionView:
    """What a stage sees before and after the attention of one layer."""

    layer: int
    layers: int
    """How many layers the LLM has."""
    phase: Phase
    current: LlmPass
    query: Tensor
    """B H N D, rotated."""
    keys: Tensor
    """B G K D, rotated."""
    values: Tensor
    """B G K D."""
    query_position: Tensor
    """int64, B N. Position of each query in the whole row."""
    position: Tensor
    """int64, B G K (or B 1 K, the same for all heads). Position of each key in the whole row."""
    valid: Tensor
    """bool, like `position`. False at padding and filling."""
    scaling: float
    """Of the logits."""
    state: dict[str, Tensor]
    """The stage's own tensors of this layer, with B as their first axis. In beam search they move with their beam."""
    by_key: dict[str, Tensor] = field(default_factory=dict)
    """What the stage notes of each key of this layer, B G K or B 1 K. It goes with its key, and is 0 for a new one."""
    number: Tensor = None  # type: ignore[assignment]
    """int64, like `position`. How many real positions of the row come before a key; padding does not change it."""
    kind: Tensor = None  # type: ignore[assignment]
    """int64, like `position`. A `PositionKind`."""
    angle: Tensor = None  # type: ignore[assignment]
    """int64, like `position`. The position as which a key is rotated in this pass."""
    heads: tuple[int, ...] | None = None
    """The key heads of the layer that this view is of; None for all."""
    received: Mapping[str, Tensor] = field(default_factory=dict)
    """After attention: name -> float32 B K, or B H K for a stage with `heads_apart`."""
    context: Tensor | None = None
    """After attention: B N H D. Its output, which the layer projects next; with what earlier stages have added."""
    input_norm: Callable[[Tensor], Tensor] | None = None
    """The norm through which the layer's input goes before this attention; None in a layer that has none."""
