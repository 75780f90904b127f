"""Reducers of visual tokens behind the encoder and behind the projector.

B videos, T frames, N tokens of a frame, S output tokens that a token goes into
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from mmllm.interfaces.encoder import Grid
from mmllm.interfaces.explanation import Explanation
from mmllm.interfaces.part import Part
from mmllm.tokens import VisualTokens


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
