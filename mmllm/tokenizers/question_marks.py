"""Marks on the tokens of frames that resemble words of the question.

    words of the question ── runs of 1 to 4 of them ── mean embedding, less what words share ─┐
    tokens of a frame ────────────────────────────────────────────────────────────────────────┴─ `word_likeness`
      ── less its median over the frames ── the same of the names of classes, added
      ── the runs that stand out most, without common words
      ── of each run: frames that it is in, where it begins, where it ends ── a learned direction for each

A projector that is aligned with the LLM's words gives tokens that are like the words of what a frame shows. A small LLM
takes long to learn how they are compared with the words of a question. This comparison needs no training: only what a
mark looks like is learned, and which words do not count, such as "video".

The names of a classifier's classes are compared once more by themselves. Among things that the projector was trained on
they say little; in other videos the learned part of a token says nothing and outweighs them.

B videos, T frames, N tokens of a frame, D LLM width, Q ids, R runs of words, M marked runs, K 3 marks of a run
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.nn import functional

from mmllm.modeling.word_likeness import word_likeness
from mmllm.tokens import VisualTokens

LONGEST = 4
"""Words of the longest run: names of things have one to four tokens."""
USUAL_EXCESS = 0.15
"""By so much or more, a frame that shows a thing is more like its name than others, as a rule: a mark of size 1."""
HALF, SOFTNESS = 0.5, 0.1
"""A frame is half in a run that it resembles half as much as the best frames do; a tenth more or less decides."""


class QuestionMarks(nn.Module):
    """Adds learned directions to the tokens of frames that resemble words of the question."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.randn(count, 3, width))
        self.gate = nn.Linear(width, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, tokens: VisualTokens, centre: Tensor, named: Tensor | None = None) -> Tensor:
        """Marked features, B T N D.

        Args:
            tokens: features B T N D, with `question` and `words`.
            centre: D. The mean of many words' embeddings.
            named: B T N D. What the names of classes alone say of each token; None if the features are nothing else.
        """
        assert tokens.question is not None, "the model asks for the question of a part that reads it"
        assert tokens.words is not None, "the model gives the words of a question to a part that reads them"
        compared = [tokens.features] if named is None else [tokens.features, named]
        rows = zip(zip(*compared, strict=True), tokens.mask, tokens.words, tokens.question >= 0, strict=True)
        sizes = [self.sizes(sources, mask, words[said], centre) for sources, mask, words, said in rows]
        marks = einsum(torch.stack(sizes), self.directions.float(), "b t m k, m k d -> b t d")
        rms = tokens.features.float().square().mean(-1, keepdim=True).sqrt()  # a mark is as large as the token
        return tokens.features + (rms * rearrange(marks, "b t d -> b t 1 d")).to(tokens.features.dtype)

    def sizes(self, sources: Sequence[Tensor], mask: Tensor, words: Tensor, centre: Tensor) -> Tensor:
        """float32, T M K: the marks of each frame; zeros where fewer runs stand out.

        Args:
            sources: T N D each. What is compared with the words, each by itself.
            mask: bool, T N.
            words: Q D, of this question only.
            centre: D.
        """
        sizes = torch.zeros(len(mask), *self.directions.shape[:2], device=mask.device)
        shown = mask.any(-1)
        if not len(words) or not bool(shown.any()):
            return sizes
        runs = [(first, first + n) for n in range(1, LONGEST + 1) for first in range(len(words) - n + 1)]
        means = torch.stack([words[first:end].detach().float().mean(0) for first, end in runs])
        directions = functional.normalize(means - centre.float(), dim=-1)  # R D
        likeness = [word_likeness(source[shown], directions, mask[shown]) for source in sources]  # T R each
        excess = sum((each - each.median(0).values).clamp(min=0) for each in likeness)
        weight = 2 * torch.sigmoid(self.gate(directions.to(self.gate.weight.dtype)).float())  # R 1, at first 1
        excess = excess * weight.mT
        chosen = outstanding(excess.detach(), runs, len(self.directions))
        marked = sizes[shown]
        marked[:, : len(chosen)] = inside_and_ends(excess[:, chosen])
        return sizes.masked_scatter(shown[:, None, None], marked)


def inside_and_ends(excess: Tensor) -> Tensor:
    """float32, T M K: how much each frame is in a run, is the first that is, and is the last, times the run's strength.

    Args:
        excess: float32, T M, zero or more.
    """
    peak = peaks(excess)
    inside = torch.sigmoid((excess / peak.clamp(min=1e-6) - HALF) / SOFTNESS)
    outside = 1 - functional.pad(inside, (0, 0, 1, 1))  # also before the first frame and after the last
    marks = torch.stack([inside, inside * outside[:-2], inside * outside[2:]], dim=-1)
    return marks * (peak / USUAL_EXCESS).unsqueeze(-1)


def peaks(excess: Tensor) -> Tensor:
    """float32, R: the mean of the two highest values of T R over the frames."""
    return excess.topk(min(2, len(excess)), dim=0).values.mean(0)


def outstanding(excess: Tensor, runs: list[tuple[int, int]], count: int) -> list[int]:
    """Up to `count` numbers of runs: those with the highest values in two frames, none with words of an earlier one.

    Args:
        excess: float32, T R.
        runs: first word, and the one after the last, of each of the R.
        count: M.
    """
    chosen: list[int] = []
    for run in peaks(excess).argsort(descending=True, stable=True).tolist():
        first, end = runs[run]
        if len(chosen) < count and all(end <= runs[other][0] or first >= runs[other][1] for other in chosen):
            chosen.append(run)
    return chosen
