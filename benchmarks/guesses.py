"""How often guesses of extra rows are right on the answers to held-out questions, by distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.reducers import questions_by_clip
from benchmarks.results import Results
from mmllm.decoding.ahead import AheadDraft, Places, ranks_of
from mmllm.decoding.trained_draft import TargetRows
from mmllm.evaluation.run import Benchmark
from mmllm.inference.answering import VideoQA
from mmllm.llm.head import lm_logits
from mmllm.modeling.placeholders import place, positions
from mmllm.tokens import IGNORED


def rows_about(qa: VideoQA, encoded: Any, question: str) -> TargetRows:
    """A question with the model's greedy answer, as one row of a training."""
    prompt = qa.prompt(question, encoded.duration_s).input_ids
    answer = qa.generate(encoded, prompt[None])[0].cpu()
    ids = torch.cat([prompt, answer])[None]
    labels = torch.cat([torch.full_like(prompt, IGNORED), answer])[None]
    placed = place(ids, torch.ones_like(ids), encoded.sequences, labels=labels)
    return TargetRows(
        model=qa.model, ids=placed.input_ids, embeddings=qa.model.embed(placed.input_ids, placed.visual),
        mask=placed.attention_mask, labels=placed.labels, visual=qa.model.is_placeholder(placed.input_ids),
        positions=positions(placed.attention_mask, None), batch={},
    )  # fmt: skip


def rows_of(qa: VideoQA, benchmark: Benchmark) -> list[TargetRows]:
    """The questions about all clips, each with the model's greedy answer."""
    return [
        rows_about(qa, encoded, question.question)
        for clip, questions in questions_by_clip(benchmark).items()
        for encoded in [qa.encode_video(clip)]
        for question in questions
    ]


@torch.no_grad()
def add_ranks(
    results: Results, name: str, state: str, drafts: Sequence[AheadDraft], rows: Sequence[TargetRows]
) -> None:
    """A row with how often the best guess was right, and the right one among the ten best, at each distance."""
    numbers: dict[str, list[float]] = {}
    for draft in drafts:
        found = []
        for row in rows:
            places = Places.of(row, draft.config.tokens)
            target = lm_logits(row.model, places.laws(row.hidden))
            found.append(ranks_of(draft.guesses(row, places), target, places.is_right)[0])
        ranks = torch.cat(found)  # places, distances
        for distance in range(ranks.shape[1]):
            there = ranks[ranks[:, distance] >= 0, distance]
            for most in (1, 10):
                share = 100 * float((there < most).float().mean())
                numbers.setdefault(f"top{most}_at{distance + 2}_percent", []).append(share)
    means = {key: sum(values) / len(values) for key, values in numbers.items()}
    results.add("ahead", {"draft": name, "state": state, "seeds": str(len(drafts))}, means)
