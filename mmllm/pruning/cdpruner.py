"""CDPruner: tokens that answer to the question and differ from each other (NeurIPS 2025, arXiv 2506.10967).

    relevance of a token -> scaled to (0, 1] in its frame -> kernel with cosines behind the projector -> greedy choice

What a question is to a token (`relevance`): `clip` compares patches with CLIP's text tower, as published. Its cosine
is lower on what a text names, so it counts with a minus. `words` compares projected tokens with the mean of the LLM's
own word embeddings, as OpenVINO GenAI does. `given` takes any number of a token. With `none`, the tokens kept are
those that are most unlike each other.

B videos or images, T frames or tiles, N tokens of a frame, K kept, M pieces of a text, Q ids, D LLM width, E CLIP's
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mmllm.errors import InputError
from mmllm.fields import require
from mmllm.interfaces import Grid, Origin, ProjectedReducer
from mmllm.modeling.text_tower import ClipTextTower
from mmllm.preprocessing.question_reader import QuestionReaderConfig
from mmllm.pruning.budget import Budget
from mmllm.pruning.determinantal import determinantal_order, relevance_kernel
from mmllm.pruning.ordered import first_of_order
from mmllm.pruning.relevance import Scale, likeness, scaled_relevance, weighted
from mmllm.registry import register
from mmllm.tokens import VisualTokens

RELEVANCE = "relevance"
"""Name of the score that each token brings to the projector: higher for a token that matters more."""


@dataclass(frozen=True, kw_only=True)
class CdPrunerConfig(Budget):
    """A budget, and what a token's relevance is."""

    relevance: Literal["clip", "words", "given", "none"] = "clip"
    """`given`: the score `relevance` that the caller has put into `VisualTokens.scores`, in front of the projector."""
    source: str = "openai/clip-vit-large-patch14-336"
    """For `clip`: folder or hub id of the CLIP whose vision tower is the encoder. It is loaded from there each time."""
    scale: Scale = "partition"
    """Scale relevances from the least to the largest of each frame or tile, or, as the released code does, of all
    frames or tiles of a video or image."""
    theta: float | None = None
    """Weight of relevance against difference, from 0 (plain choice of unlike tokens) to below 1; OpenVINO's
    `relevance_weight`, there 0.5. None: relevances as they are."""
    most_words: int = 308
    """Most ids of a question that are read."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.theta is None or 0 <= self.theta < 1, self, "theta", "from 0 to below 1")
        require(self.most_words > 0, self, "most_words", "positive")

    @property
    def question_reader(self) -> QuestionReaderConfig | None:
        """How questions are written: as CLIP's tokenizer or the LLM's does; None if none is read."""
        if self.relevance == "clip":
            return QuestionReaderConfig(source=self.source, most_words=self.most_words)
        if self.relevance == "words":
            return QuestionReaderConfig(llm=True, most_words=self.most_words, special_tokens=False)
        return None


@register("reducer", "cdpruner", config=CdPrunerConfig)
class CdPrunerReducer(ProjectedReducer):
    """CDPruner: in every frame tokens that are relevant for the question and unlike each other."""

    origin = Origin(
        original="Theia-4869/CDPruner 9541616, arXiv 2506.10967",
        compared_with="its rule written out",
        equal="each choice has the largest determinant of all candidates; CLIP's embeddings, <= 1e-5",
    )
    question_choices: ClassVar[tuple[str, ...]] = ("relevance=clip", "relevance=words")
    plain_choice: ClassVar[str] = "relevance=none"

    def __init__(self, config: CdPrunerConfig) -> None:
        super().__init__()
        self.config = config
        self.tower = ClipTextTower(config.source)

    @property
    def needs_text_tower(self) -> bool:
        """Whether `relevance` says so."""
        return self.config.relevance == "clip"

    def before_projector(self, tokens: VisualTokens) -> VisualTokens:
        """The tokens with their relevance, if it is that of CLIP; an empty question makes all equal."""
        if not self.needs_text_tower:
            return tokens
        assert tokens.question is not None, "the model asks for the question of a part that reads it"
        relevance = tokens.features.new_zeros(tokens.shape[:3], dtype=torch.float32)
        for video, ids in enumerate(tokens.question):
            if len(ids := ids[ids >= 0]):
                patches = self.tower.patches(tokens.features[video].detach())  # T N E
                relevance[video] = -likeness(patches, self.tower.texts(ids.to(patches.device)))
        return tokens.replace(scores={**tokens.scores, RELEVANCE: relevance})

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """B T K of B T N tokens, in raster order; a smaller budget keeps a subset of what a larger one keeps.

        Raises:
            InputError: if a feature or a relevance is not finite or missing, or the budget exceeds the tokens of a
                frame.
        """
        relevance = self._scaled(tokens).flatten(0, 1)  # B*T N
        features, mask = tokens.features.flatten(0, 1), tokens.mask.flatten(0, 1)

        def order(frames: slice, most: int) -> Tensor:
            kernel = relevance_kernel(features[frames], relevance[frames])
            return determinantal_order(kernel, relevance[frames], most, mask[frames])

        return first_of_order(tokens, self.config.per_frame(tokens.mask), order)

    def ranking(self, tokens: VisualTokens) -> Tensor | None:
        """float32, B T N: the relevance of each token; None if all are equal."""
        return None if self.config.relevance == "none" else self._relevance(tokens)

    def kept_tokens(self, tokens_per_frame: int, frames: int) -> int:
        """The most tokens that remain of a whole video."""
        return self.config.upper_bound(tokens_per_frame, frames)

    def counts_by_shape(self, tokens_per_frame: int, frames: int, grid: Grid) -> list[int]:
        """The budget of each frame."""
        return self.config.of_each(tokens_per_frame, frames)

    def _scaled(self, tokens: VisualTokens) -> Tensor:
        """float32, B T N: the factors of the kernel."""
        pairs = zip(self._relevance(tokens), tokens.mask, strict=True)
        scaled = [weighted(scaled_relevance(own, self.config.scale, mask), self.config.theta) for own, mask in pairs]
        return torch.stack(scaled) if scaled else tokens.features.new_zeros(tokens.shape[:3])

    def _relevance(self, tokens: VisualTokens) -> Tensor:
        """float32, B T N.

        Raises:
            InputError: if the tokens bring none.
        """
        if self.config.relevance == "none":
            return tokens.features.new_zeros(tokens.shape[:3], dtype=torch.float32)
        if self.reads_words:
            assert tokens.question is not None, "the model asks for the question of a part that reads it"
            assert tokens.words is not None, "the model gives the words of a question to a part that reads them"
            rows = zip(tokens.features.detach(), tokens.words.detach(), tokens.question >= 0, strict=True)
            return torch.stack([likeness(features, _average(words[said])) for features, words, said in rows])
        if RELEVANCE not in tokens.scores:
            raise InputError(
                f"cdpruner:relevance={self.config.relevance} needs the relevance of each token behind the projector: "
                f"give it as VisualTokens.scores[{RELEVANCE!r}] (B T N) in front of a projector that keeps tokens apart"
            )
        return tokens.scores[RELEVANCE].detach().float()


def _average(words: Tensor) -> Tensor:
    """1 D: the mean of embeddings Q D, the one text that tokens are compared with; 0 D without words."""
    return words.float().mean(0, keepdim=True) if len(words) else words


def chosen_tokens(
    features: Tensor,
    image_embeds: Tensor,
    text_embeds: Tensor,
    keep: int,
    *,
    scale: Scale = "partition",
    theta: float | None = None,
) -> Tensor:
    """Positions of the kept tokens, ascending: int64, T K. The published rule on plain tensors.

    Args:
        features: float, T N D. Projected tokens of an image's partitions or a video's frames.
        image_embeds: float, T N E. The same patches behind CLIP's last norm and projection.
        text_embeds: float, M E. The pieces of the question behind CLIP's text tower.
        keep: K, from 1 to N.
        scale, theta: as in `CdPrunerConfig`.

    Raises:
        InputError: if a number is not finite, or K is not from 1 to N.
    """
    relevance = weighted(scaled_relevance(-likeness(image_embeds, text_embeds), scale), theta)
    return determinantal_order(relevance_kernel(features, relevance), relevance, keep).sort(-1).values
