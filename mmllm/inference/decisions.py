"""Which visual tokens the stages inside the LLM keep for one question.

P positions of the prompt, T frames, H W patch grid
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from mmllm.inference.encoded import EncodedVideo
from mmllm.interfaces import Explanation
from mmllm.llm.counters import ContextCounts
from mmllm.llm.values import LlmPass
from mmllm.modeling.placeholders import place, positions


@torch.no_grad()
def finished_pass(qa: Any, encoded: EncodedVideo, question: str) -> LlmPass:
    """What the stages inside the LLM decided while it read a question's prompt. No answer is generated."""
    model = qa.model
    encoded = qa.for_question(encoded, qa.question_about_video(question, encoded.duration_s))
    inputs = qa.processor.collate([qa.prompt(question, encoded.duration_s)])
    placed = place(
        inputs["input_ids"].to(model.input_device), inputs["attention_mask"].to(model.input_device), encoded.sequences
    )
    current = model.pass_of_placed(placed)
    model.language_model.base_model(
        inputs_embeds=model.embed(placed.input_ids, placed.visual),
        attention_mask=placed.attention_mask,
        position_ids=positions(placed.attention_mask, None),
        llm_pass=current,
        use_cache=True,
    )
    return current


def held_share(qa: Any, encoded: EncodedVideo, question: str) -> Tensor:
    """float32, P: in which share of layers and heads the cache holds each position, once an answer has begun."""
    tally: list[ContextCounts] = []
    ids = qa.prompt(question, encoded.duration_s).input_ids.unsqueeze(0)
    qa.generate(encoded, ids, tally=tally, max_new_tokens=2, min_new_tokens=2)
    return tally[0].kept_share()


def encoded_for(qa: Any, encoded: EncodedVideo, question: str) -> EncodedVideo:
    """An encoded video with `kept` and `ranking` as the stages inside the LLM decide for a question.

    `kept` is what remains after the last layer and is held by the cache of any layer. `ranking` is what the first stage
    that ranks tokens ranked them by; without one, and with a policy that evicts, in how many heads each is held.
    The video comes back as the model sees it for the question if the model has no such stage, or if its tokens belong
    to no patch.
    """
    encoded = qa.for_question(encoded, qa.question_about_video(question, encoded.duration_s))
    if not qa.model.llm_stages:
        return encoded
    current = finished_pass(qa, encoded, question)
    if current.grid is None:
        return encoded
    share = torch.ones(current.visual.shape[1])
    if qa.context:
        held = held_share(qa, encoded, question)
        share = torch.nn.functional.pad(held, (0, max(0, len(share) - len(held))))[: len(share)]
    return _with_decisions(encoded, current, share)


def _with_decisions(encoded: EncodedVideo, current: LlmPass, share: Tensor) -> EncodedVideo:
    """The encoded video (a batch of one) with the decisions of a finished pass at its patches.

    `share` (float32, P) is 0 at positions that no layer's cache holds.
    """
    assert current.grid is not None
    shape = (len(encoded.times_s), *current.grid)
    patch = current.frame[0], current.place[0] // current.grid[1], current.place[0] % current.grid[1]  # 3 times P
    last = current.kept_at(max(current.kept, default=0)).position[0]
    held = current.visual[0] & (share > 0).to(current.visual.device)
    last = last[held[last]]  # visual positions after the last layer
    kept = torch.zeros(shape, dtype=torch.bool)
    kept[tuple(axis[last].cpu() for axis in patch)] = True
    encoded = dataclasses.replace(encoded, kept=kept.numpy())
    explanations = (stage.explain_pass(current) for stage in current.stages)
    explanation = next((explanation for explanation in explanations if explanation is not None), None)
    if explanation is None and any(stage.evicts for stage in current.stages):
        values = share.unsqueeze(0).masked_fill(~current.visual.cpu(), torch.nan)
        explanation = Explanation(name="share of heads that still hold it", values=values)
    if explanation is None:
        return encoded
    visual = current.visual[0].nonzero().squeeze(1)
    ranking = torch.full(shape, torch.nan)
    ranking[tuple(axis[visual].cpu() for axis in patch)] = explanation.values[0][visual].float().cpu()
    return dataclasses.replace(encoded, ranking=(explanation.name, ranking.numpy()))
