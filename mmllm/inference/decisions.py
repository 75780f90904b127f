"""Which visual tokens the stages inside the LLM keep for one question.

P positions of the prompt, T frames, H W patch grid
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from mmllm.inference.encoded import EncodedVideo
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


def encoded_for(qa: Any, encoded: EncodedVideo, question: str) -> EncodedVideo:
    """An encoded video with `kept` and `ranking` as the stages inside the LLM decide for a question.

    `kept` is what remains after the last layer. `ranking` is what the first stage that ranks tokens ranked them by.
    The video comes back as the model sees it for the question if the model has no such stage, or if its tokens belong
    to no patch.
    """
    encoded = qa.for_question(encoded, qa.question_about_video(question, encoded.duration_s))
    if not qa.model.llm_stages:
        return encoded
    current = finished_pass(qa, encoded, question)
    return encoded if current.grid is None else _with_decisions(encoded, current)


def _with_decisions(encoded: EncodedVideo, current: LlmPass) -> EncodedVideo:
    """The encoded video (a batch of one) with the decisions of a finished pass at its patches."""
    assert current.grid is not None
    shape = (len(encoded.times_s), *current.grid)
    patch = current.frame[0], current.place[0] // current.grid[1], current.place[0] % current.grid[1]  # 3 times P
    last = current.kept_at(max(current.kept, default=0)).position[0]
    last = last[current.visual[0][last]]  # visual positions after the last layer
    kept = torch.zeros(shape, dtype=torch.bool)
    kept[tuple(axis[last].cpu() for axis in patch)] = True
    encoded = dataclasses.replace(encoded, kept=kept.numpy())
    explanations = (stage.explain_pass(current) for stage in current.stages)
    explanation = next((explanation for explanation in explanations if explanation is not None), None)
    if explanation is None:
        return encoded
    visual = current.visual[0].nonzero().squeeze(1)
    ranking = torch.full(shape, torch.nan)
    ranking[tuple(axis[visual].cpu() for axis in patch)] = explanation.values[0][visual].float().cpu()
    return dataclasses.replace(encoded, ranking=(explanation.name, ranking.numpy()))
