"""The base class of each kind of part: the methods it has to write, and defaults for the others.

| kind | base class | constructor |
|---|---|---|
| encoder | `Encoder` | `(config)` |
| audio encoder | `AudioEncoder` | `(config)` |
| audio projector | `AudioProjector` | `(config, *, audio_width, out_width)` |
| image tokenizer | `Autoencoder` | `(config)` |
| reducer behind the encoder | `TokenReducer`; `mmllm.pruning.ranked.BudgetReducer`, which only ranks | `(config)` |
| reducer inside the encoder | `EncoderStage` | `(config)` |
| reducer behind the projector | `ProjectedReducer` | `(config)` |
| reducer inside the LLM | `LlmReducer`; anything else inside the LLM is an `LlmStage` | `(config)` |
| tokenizer | `VisualTokenizer` | `(config, *, in_width, out_width, grid, tower_widths, class_count)` |
| path | `VideoPath` | `(config, *, width, audio_width)` |
| inside the LLM, with or without weights | `LlmStage` | `(config, *, decoder)`: the LLM's configuration |
| context | `ContextPolicy` | `(config)` |
| decoding | `Decoding`; `mmllm.decoding.tree.TreeDecoding`, which only drafts | `(config)` |
| draft beside a frozen model | `mmllm.decoding.trained_draft.TrainedDraft` | `(config, *, model)`: the target |
| time | `TimeFormat` | `(config, *, count)` |

A constructor may leave out any argument besides its config. B videos, T frames, N tokens of a frame, C encoder
width, D LLM width, P positions of the LLM's row, K positions kept, F frames run at once, H heads, S samples of sound,
A audio tokens of a second, E their width
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from mmllm.errors import ConfigError
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
from mmllm.preprocessing.question_reader import QuestionReaderConfig
from mmllm.times.vocabulary import TimeTokens
from mmllm.tokens import VisualSequence, VisualTokens

Grid = tuple[int, int] | None
"""Rows and columns of patches; None for 1D tokens."""
FRAMES_AT_ONCE = 32
"""F of an encoder whose configuration does not choose it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """The values by which a reducer decided, to be shown as a heat map."""

    name: str
    values: Tensor
    """float32. B T N, for the input tokens of a reducer; for one inside the LLM B P, for the positions of a prompt. NaN
    where the reducer had nothing to decide."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a reducer reproduces, and how the two were compared."""

    original: str
    """Repository, with its commit where it is known, and paper; `ours` for one that reproduces nothing."""
    compared_with: Literal["outputs of its code", "its rule written out", "transformers", "properties"]
    """What a test compares it with: recorded outputs of the original's code, its rule in other code, modules of
    transformers or torch, or what must hold of any input."""
    equal: str
    """What is equal to what error, and with which settings if not with all."""


class Part:
    """The fields of every registered part."""

    registered_name: ClassVar[str] = ""
    """The name under which it is registered; set by `mmllm.registry.register`."""
    config: Any
    changeable_settings: ClassVar[tuple[str, ...]] = ()
    """Fields of its configuration for which a trained part takes other values with the same weights, such as `tokens`.
    Its constructor refuses values that do not fit."""

    @property
    def has_weights(self) -> bool:
        """Whether it has weights. They must then have been trained with the model."""
        return isinstance(self, nn.Module) and next(self.parameters(), None) is not None

    @property
    def question_reader(self) -> QuestionReaderConfig | None:
        """The vocabulary in which it reads questions, which its configuration has as `question_reader`; None if it
        reads none."""
        return getattr(self.config, "question_reader", None)

    @property
    def reads_question(self) -> bool:
        """Whether its output depends on the question. It finds the ids in `VisualTokens.question`; an encoder gets
        them as the argument `question` (int64, B Q, filled up with -1)."""
        return self.question_reader is not None

    @property
    def reads_words(self) -> bool:
        """Whether it reads questions in the LLM's vocabulary: then it finds the LLM's embeddings of the ids, too, in
        `VisualTokens.words`."""
        return self.question_reader is not None and self.question_reader.llm


class Encoder(Part, nn.Module):
    """Frames to patch features. Sets `width` and `grid` when it is built."""

    width: int
    """C, of the features."""
    grid: Grid
    """Rows and columns of the patches; None for 1D tokens."""
    score_names: Collection[str] = frozenset()
    """Kinds of scores that it can compute cheaply: `cls_attention`, `mean_attention`, `probe_attention`."""
    class_count: int = 0
    """K: how many of the C channels, the last, are scores of a classifier's classes; 0 without a classifier."""
    runs_encoder_stage: ClassVar[bool] = False
    """Whether `forward` takes an `EncoderStage` as `inside`."""
    has_text_tower: ClassVar[bool] = False
    """Whether a text tower was trained with it that its patch features can be compared with, as with CLIP's."""
    load_pretrained: Any = None
    """Method `(source)` that loads published weights, for encoders of other packages; None for our own."""
    reach: int = 0
    """How many frames before and after a frame its features depend on. If there are any, `forward` takes `margins`: the
    numbers of frames at both ends that are only looked at and get no features."""

    @property
    def chunk(self) -> int:
        """F: frames that it runs at once, the field `chunk` of its configuration if there is one.

        A long video is encoded in multiples of it, and so exactly as in one call.
        """
        return getattr(self.config, "chunk", FRAMES_AT_ONCE)

    @property
    def index(self) -> Tensor | None:
        """int64, N. Raster positions of a frame's tokens; None if they are the whole grid in order, or 1D tokens."""
        return None

    @property
    def tower_widths(self) -> tuple[int, ...]:
        """Widths of the towers whose features are side by side in the width C."""
        return (self.width,)

    @property
    def scene_channels(self) -> slice:
        """Which of the C channels show best where a scene ends; all by default."""
        return slice(None)

    @property
    def tokens_per_frame(self) -> int:
        """N. An encoder of 1D tokens has to say it."""
        if self.index is not None:
            return len(self.index)
        if self.grid is None:
            raise NotImplementedError(f"{type(self).__name__}.tokens_per_frame: 1D tokens have no grid to count")
        return self.grid[0] * self.grid[1]


class AudioEncoder(Part, nn.Module):
    """Sound to features. Sets `width` and `tokens_per_s` when it is built."""

    width: int
    """E, of the features."""
    tokens_per_s: int
    """A: about so many tokens are a second; a second that has fewer or more is pooled to this number."""
    window_s: int = 10
    """Whole seconds that are run at once."""
    load_pretrained: Any = None
    """Method `(source)` that loads published weights; None if there are none."""

    def forward(self, waveform: Tensor) -> Tensor:
        """Features F n E, in order of time, of windows of sound.

        Args:
            waveform: float32, F S. Mono at `mmllm.tokens.SAMPLE_RATE`, from -1 to 1; at least a second, and at most
                `window_s`.
        """
        raise NotImplementedError


class AudioProjector(Part, nn.Module):
    """Audio features to the tokens that the LLM reads after each frame, for paths that do not read sound."""

    def forward(self, audio: Tensor) -> Tensor:
        """B T A E to B T K D."""
        raise NotImplementedError

    @property
    def tokens_per_frame(self) -> int:
        """K."""
        raise NotImplementedError


class TrainingPass(NamedTuple):
    """What an image tokenizer computes of a batch of images in training."""

    losses: dict[str, Tensor]
    """Losses by name: scalars, with their weights. The error of the pixels of `images` is not among them."""
    images: Tensor | None = None
    """float, B 3 S S: the reconstruction with its gradient, to be compared with the originals; None if the training
    makes none."""


class Autoencoder(Part, nn.Module):
    """An image tokenizer: a picture as a short row of 1D tokens, and back. Sets its two numbers when it is built.

    It is trained apart from any LLM. Its encoder half then stands in the place of a model's encoder.
    """

    image_size: int
    """S: side of the square picture in pixels."""
    most_tokens: int
    """Tokens of a picture."""
    ordered: ClassVar[bool] = False
    """Whether any number of the first tokens gives a picture; otherwise all are needed."""
    reads_text: bool = False
    """Whether `forward` and `reconstruct` take captions."""
    reconstructs_in_training: ClassVar[bool] = False
    """Whether `training_pass` gives a reconstruction, which losses of pictures can then be computed from."""

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The loss of a training step: a scalar.

        Args:
            images: float, B 3 S S, from -1 to 1.
            generator: of all random numbers, on the CPU; None for PyTorch's own.

        A tokenizer that reads text also takes `captions`, a text for each image.
        """
        raise NotImplementedError

    def training_pass(
        self, images: Tensor, generator: torch.Generator | None = None, captions: Sequence[str] | None = None
    ) -> TrainingPass:
        """The losses of a training step, by name; `forward` is their sum, with the squared error of the pixels.

        Args:
            images: float, B 3 S S, from -1 to 1.
            generator: of all random numbers, on the CPU; None for PyTorch's own.
            captions: a text for each image, if the tokenizer reads text.
        """
        text = {} if captions is None else {"captions": captions}
        return TrainingPass({"reconstruction": self(images, generator, **text)})

    def reconstruct(
        self, images: Tensor, *, tokens: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Images B 3 S S, about -1 to 1 and not clamped, of the tokens of images.

        Args:
            images: float, B 3 S S, from -1 to 1.
            tokens: how many of the first tokens are used; None for all.
            generator: of random numbers, on the CPU.
        """
        raise NotImplementedError


class Groups(NamedTuple):
    """Which tokens a reducer merges: each output token is a weighted sum of its members.

    The tensors are B T N, or B T N S where a token goes into up to S output tokens.
    """

    owner: Tensor
    """int64. Number of the output token in its frame that a token goes into; -1 for one that is dropped."""
    weight: Tensor
    """float32."""
    frame: Tensor | None = None
    """int64. The frame of that output token; None if it is always the token's own."""
    keeps_place: bool = False
    """Whether each output token is at the place of one of its members, and so keeps that member's position and time."""


class TokenReducer(Part, nn.Module):
    """Reduces the tokens of each frame. The class itself is for reducers between encoder and projector."""

    score_choices: ClassVar[tuple[str, ...]] = ()
    """Kinds of encoder scores by which it can rank; one of them is enough. Empty if it needs no score."""
    needs_keys: ClassVar[bool] = False
    """Whether it also reads the encoder's `keys`."""
    other_needs: ClassVar[str] = ""
    """What else it needs, in words, such as the attention of a layer of the LLM; empty for nothing."""
    origin: ClassVar[Origin | None] = None
    """What it reproduces, for `mmllm list`; None if it does not say so. Each reducer of mmllm does."""
    learns: ClassVar[str] = ""
    """What is trained before it is of use, in words; empty if it is training-free."""
    layout: ClassVar[Literal["grid", "line"] | None] = None
    """What it needs of the encoder: patches on a grid, ordered 1D tokens on a line, or None for either."""

    compares_frames: ClassVar[bool] = False
    """Whether it compares each frame with the one before. Images of a hosted model then stay whole."""
    question_choices: ClassVar[tuple[str, ...]] = ()
    """The settings with which it reads the question, such as `relevance=words`; see `reads_question`."""
    plain_choice: ClassVar[str] = ""
    """The setting with which it needs neither a question nor anything else of the encoder; empty if it never does."""

    @property
    def needs_text_tower(self) -> bool:
        """Whether it compares the encoder's patches with a text; see `Encoder.has_text_tower`."""
        return False

    @property
    def scores_needed(self) -> tuple[str, ...]:
        """Names of the scores that it reads from `VisualTokens.scores`, such as `cls_attention@0`."""
        return ()

    @property
    def by_frame(self) -> bool:
        """Whether what remains of a frame depends on that frame's tokens only, not on its number either.

        A long video is then reduced while it is read, and its other tokens are never held together.
        """
        return False

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """The tokens that remain."""
        raise NotImplementedError

    @classmethod
    def settings_at(cls, share: float, *, tokens: int, layers: int) -> dict[str, Any] | None:
        """The settings with which about this share of a video's tokens remains; None if none comes near it.

        A search over reducers and budgets asks for them. A field `ratio` needs no method of its own.

        Args:
            share: above 0 and at most 1.
            tokens: of a frame, as the encoder makes them.
            layers: of the LLM.
        """
        return {"ratio": share}

    def kept_tokens(self, tokens_per_frame: int, frames: int) -> int:
        """The largest number of tokens that remain of a whole video."""
        return tokens_per_frame * frames

    def counts_by_shape(self, tokens_per_frame: int, frames: int, grid: Grid) -> list[int] | int | None:
        """How many tokens remain of any video of this shape: an engine reserves their places before it sees one.

        Args:
            tokens_per_frame: of each frame, before.
            frames: of the video.
            grid: rows and columns of the patches of a frame, some of which may have gone before.

        Returns:
            The number of each frame; or that of the whole video, if only what is shown says how frames share it; or
            None, if the shape does not tell.
        """
        return None

    def grid_after(self, grid: Grid) -> Grid:
        """The patch grid of its output."""
        return grid

    def groups(self, tokens: VisualTokens) -> Groups | None:
        """How it merges these tokens; None if it only chooses some.

        A hosted model applies the same sums to features that enter its LLM in later layers.

        Raises:
            ConfigError: if it merges in a way that is no weighted sum.
        """
        return None

    def with_groups(self, tokens: VisualTokens) -> tuple[VisualTokens, Groups | None]:
        """The tokens that remain, and how they were merged; a reducer may compute both at once."""
        return self(tokens), self.groups(tokens)

    def ranking(self, tokens: VisualTokens) -> Tensor | None:
        """float32, B T N: the values by which it ranks tokens, the highest is the best; None if it does not rank."""
        return None

    def explain(self, tokens: VisualTokens) -> Explanation | None:
        """The values by which it decided, to be shown; None if there is nothing to show."""
        values = self.ranking(tokens)
        if values is None:
            return None
        return Explanation(name=str(getattr(self.config, "score", self.registered_name)), values=values)


class ProjectedReducer(TokenReducer):
    """A reducer behind the projector: it sees all frames of a video, at the LLM's width.

    Among a model's reducers it comes after those that act before the projector.
    """

    def before_projector(self, tokens: VisualTokens) -> VisualTokens:
        """The same tokens of the encoder's width, with what it notes of them in `scores` for its `forward`."""
        return tokens


class InsideBlocks(Protocol):
    """Methods that an encoder calls inside its blocks, between attention and MLP. `state` is for the methods only."""

    def start(self, hidden: Tensor, blocks: int) -> Any:
        """State before the first of `blocks` blocks, for hidden states F N C with the class token first."""

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, state: Any) -> tuple[Tensor, Tensor]:
        """The attention's output F H N D, from arguments F H N D, and the class token's mean attention F N."""

    def reduce(self, block: int, hidden: Tensor, row: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Fewer hidden states, of those after the attention's residual connection, and the new state."""

    def finish(self, hidden: Tensor, state: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Patch features F N C in raster order, the raster position of each (F N), and how many patches each has (F N).

        A token of size 0 was removed and will be masked.
        """


class EncoderStage(TokenReducer, InsideBlocks):
    """A reducer inside the blocks of a vision transformer. It has to write the four methods of `InsideBlocks`."""

    def prepare(self, encoder: Encoder) -> None:
        """Prepares for an encoder; called once, when a model is built."""

    def losses(self) -> dict[str, Tensor]:
        """Losses that are added to a training step's loss, by name."""
        return {}


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
            logits: float32, B H R K, scaled; the lowest number where a key is not seen.
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


ContextFamily = Literal["keep", "evict", "select", "pattern", "shorten", "store"]
"""What a policy does: nothing, remove keys from the cache, choose the keys that each pass sees, leave out parts of the
attention of a prompt, let the LLM read fewer positions of the prompt, or store keys and values in another form."""
_ONE_FAMILY = ("evict", "select")
"""Families of which one policy may be used: both decide what a query sees of the cache."""


class ContextPolicy(LlmStage):
    """What the LLM still sees of a text that it has read: a stage without weights and without state of its own.

    What it must remember of a text is in the cache: `view.state` of a layer, `view.by_key` of each of its keys.
    """

    family: ContextFamily
    is_trained: ClassVar[bool] = False
    """Whether the LLM must have been trained with it."""
    names_files: ClassVar[tuple[str, ...]] = ()
    """Settings that name files: visitors of the demo may not give them."""

    @property
    def evicts(self) -> bool:  # type: ignore[override]
        """Whether it removes keys from the cache."""
        return self.family == "evict"

    @property
    def needs_cache(self) -> bool:
        """Whether it can only work behind a cache; others may also be trained with."""
        return self.family in _ONE_FAMILY

    @classmethod
    def calibrate(cls, decoder: nn.Module, ask: Callable[[], object], seed: int) -> dict[str, Any] | None:
        """What is measured of an LLM once, as JSON values for `mmllm calibrate`; None if it measures nothing.

        Args:
            decoder: the LLM without its head.
            ask: asks it about some videos.
            seed: of random numbers.
        """
        return None

    def keys_held(self, visual: int) -> int:
        """Keys of a head that the cache still holds of so many visual tokens, once an answer is written."""
        return visual


class LlmReducer(TokenReducer, LlmStage):
    """A reducer between the LLM's layers."""

    @property
    def by_frame(self) -> bool:
        """True: all tokens go on to the LLM."""
        return True

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """The tokens unchanged: they are removed later, inside the LLM."""
        return tokens


class VisualTokenizer(Part, nn.Module):
    """Projects encoder features to the LLM's width: token by token, or as a resampler to 1D tokens."""

    needs_frame_size: ClassVar[bool] = False
    """Whether it reads `VisualTokens.frame_size`."""

    affine: ClassVar[bool] = False
    """Whether it is one affine map of each token. Averages of tokens can then be taken before it."""

    question_comes_last: ClassVar[bool] = False
    """Whether one that reads the question has an output before it does so, `unasked`."""

    @property
    def words(self) -> Sequence[str]:
        """Texts whose embeddings by the LLM it starts from; none by default."""
        return ()

    def start_from(self, embeddings: Tensor) -> None:
        """Sets what follows from the LLM's embeddings of its `words`, float, W D; called once, before training."""

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """Features B T N C to B T M D."""
        raise NotImplementedError

    def unasked(self, tokens: VisualTokens) -> VisualTokens:
        """The same before the question changes anything; see `question_comes_last`."""
        return self(tokens)

    def token_count(self, tokens_per_frame: int) -> int:
        """M: tokens of a frame in its output."""
        return tokens_per_frame

    def grid_after(self, grid: Grid) -> Grid:
        """The patch grid of its output; None for 1D tokens."""
        return grid


class VideoPath(Part, nn.Module):
    """Arranges the tokens of all frames into the sequence that the LLM reads."""

    averages: ClassVar[bool] = False
    """Whether each token of the sequence is an average of tokens. An affine projector can then come after it."""
    reads_audio: bool = False
    """Whether it reads `VisualTokens.audio` itself. No audio projector then puts tokens between the frames. Its
    constructor may take `audio_width`: E, or None without an audio encoder."""
    gives_states: ClassVar[bool] = False
    """Whether its sequences have `cross_attention_states`, for stages inside the LLM that read them."""
    needs_similarity: ClassVar[bool] = False
    """Whether it reads `VisualTokens.similarity`."""
    counts_text: ClassVar[bool] = False
    """Whether it reads `VisualTokens.text_tokens`, because its sequence leaves room for the text."""

    def frames_read(self, frame_mask: Tensor, text_tokens: Tensor | None = None) -> Tensor:
        """bool, B T. Which of the frames of `frame_mask` it reads, out of which the others need not be encoded.

        Args:
            frame_mask: bool, B T. False at padding.
            text_tokens: int64, B; see `VisualTokens`.
        """
        return frame_mask

    def forward(self, tokens: VisualTokens) -> VisualSequence:
        """Features B T N D in reading order."""
        raise NotImplementedError

    def token_counts(self, frames: int, grid: Grid, tokens_per_frame: int) -> dict[str, int]:
        """Tokens of each block, by name, for a video of `frames` frames.

        Raises:
            InputError: if it needs a patch grid and there is none.
        """
        raise NotImplementedError

    def beside_counts(self, frames: int, grid: Grid, tokens_per_frame: int) -> dict[str, int]:
        """Tokens beside the sequence, by name, for the same video."""
        return {}


class Decoding(Part):
    """How an answer is written, in place of one pass for each token. It has to write `options`, or be callable."""

    hosted: ClassVar[bool] = True
    """Whether it works with video LLMs that transformers runs."""
    samples: ClassVar[bool] = False
    """Whether it cannot write greedily. Its configuration then has the `temperature` for callers that do not sample."""
    writes_alone: ClassVar[bool] = False
    """Whether it has `greedy_ids`, a loop of its own for plain greedy answers of our models; see
    `mmllm.decoding.tree.MachineDecoding`. All others go through transformers' `generate`."""
    last: Any = None
    """The counters of its last answer, a `mmllm.decoding.counts.DecodingCounts`; None before the first."""
    total: Any = None
    """Those of all its answers."""

    @property
    def other_law(self) -> str:
        """What it writes in place of the model's own answers, in a few words; empty if it writes the same greedy ids,
        and samples of the same law. It is said beside every answer."""
        return ""

    @property
    def said(self) -> dict[str, Any]:
        """What is said beside an answer: the method, the law that it writes if it is another one, and the counters."""
        counts = None if self.last is None else self.last.to_json()
        return {"name": self.registered_name, "other_law": self.other_law, "counts": counts}

    def options(self, qa: Any, encoded: Any, input_ids: Tensor, attention_mask: Tensor | None) -> dict[str, Any]:
        """Options of transformers' `generate` for an answer about a video.

        Args:
            qa: the model that is asked.
            encoded: the video.
            input_ids: int64, 1 L, with the video's placeholder.
            attention_mask: 1 L; None for no padding.

        Raises:
            ConfigError: if it does not work with this model.
        """
        return {"custom_generate": self}


class TimeFormat(Part):
    """Writes times for the LLM, and reads them from its answers."""

    time_tokens: TimeTokens | None = None
    """Words with one id each that stand for instants; None without them."""

    def write(self, text: str, duration_s: float) -> str:
        """`text` with each stamp of seconds (`<12.3>`) in the form that the LLM reads."""
        raise NotImplementedError

    def read(self, text: str, duration_s: float, template: str = "<{}>") -> str:
        """`text` with each time as seconds, written by the template."""
        raise NotImplementedError

    def before_frames(self, times_s: Sequence[float]) -> list[str]:
        """Text before the tokens of each frame; an empty list for none."""
        return []


def llm_stages(parts: Sequence[Any]) -> list[LlmStage]:
    """The parts that work inside the LLM, in order.

    Raises:
        ConfigError: if more than one removes keys from the cache.
    """
    stages = [part for part in parts if isinstance(part, LlmStage)]
    evicting = [stage.registered_name for stage in stages if stage.evicts]
    if len(evicting) > 1:
        raise ConfigError(f"one stage at most removes keys from the cache, not {' and '.join(evicting)}")
    families: dict[str, str] = {}
    for policy in (stage for stage in stages if isinstance(stage, ContextPolicy)):
        family = "evict" if policy.family in _ONE_FAMILY else policy.family
        if family in families:
            raise ConfigError(
                f"context {families[family]!r} and {policy.registered_name!r} both decide what is seen of the cache: "
                "one policy that evicts or selects, and beside it one of another family, such as a pattern"
            )
        families[family] = policy.registered_name
    return stages
