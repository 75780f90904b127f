"""Which visual tokens a reducer inside the LLM keeps for one question, to be shown.

P positions of the prompt, T frames, H W patch grid
"""

from __future__ import annotations

import dataclasses

import torch

from mmllm.inference.answering import VideoQA, Watched
from mmllm.modeling.placeholders import place, positions


@torch.no_grad()
def watched_for(qa: VideoQA, watched: Watched, question: str) -> Watched:
    """A watched video with `kept` and `ranking` as the LLM's own reducer decides for a question.

    The video as it is, if the model has no such reducer or its tokens have no place in the picture. `kept` is what is
    left behind the last stage, `ranking` what the first stage judged by.
    """
    model, duration_s = qa.model, watched.duration_s
    if model.inside_llm is None:
        return watched
    inputs = qa.processor.collate([qa.prompt(question, duration_s)])
    placed = place(inputs["input_ids"].to(model.device), inputs["attention_mask"].to(model.device), watched.seen)
    current = model.llm_pass(placed.place, placed.frame, placed.attention_mask.bool(), None)
    model.language_model.base_model(
        inputs_embeds=model.embed(placed.input_ids, placed.visual),
        attention_mask=placed.attention_mask,
        position_ids=positions(placed.attention_mask, None),
        inside_llm=current,
        use_cache=False,
    )
    if current.grid is None or not current.decided:
        return watched
    stages = sorted(current.decided)
    spots = current.frame[0], current.place[0] // current.grid[1], current.place[0] % current.grid[1]
    shape = (len(watched.clip), *current.grid)
    left = current.alive[stages[-1]].position[0]
    left = left[current.visual[0][left]]
    kept = torch.zeros(shape, dtype=torch.bool)
    kept[tuple(axis[left].cpu() for axis in spots)] = True
    judged = current.visual[0].nonzero().squeeze(1)
    ranking = torch.full(shape, torch.nan)
    ranking[tuple(axis[judged].cpu() for axis in spots)] = current.decided[stages[0]].redundancy[0][judged].cpu()
    name = type(model.inside_llm).__name__.removesuffix("Reducer")
    return dataclasses.replace(watched, kept=kept.numpy(), ranking=(f"{name}'s redundancy score", ranking.numpy()))
