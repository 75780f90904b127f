"""What reducers inside an LLM compute beside its layers, for `reducer_costs.py`.

A prompt of text, visual tokens and text is read by four layers of an LLM's width whose MLP is narrow, as no reducer
works there. Counted is what the pass takes beyond one that drops the same tokens without looking for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from transformers import LlamaConfig, LlamaModel

import mmllm.llm.attention
from benchmarks.measuring import operations, seconds_on
from mmllm.interfaces import LlmReducer
from mmllm.llm.ahead import Look
from mmllm.llm.harness import install
from mmllm.llm.values import LlmPass, PruneDecision, PruneView


@dataclass(frozen=True)
class Shape:
    """Sizes of an LLM's attention."""

    width: int
    heads: int
    key_heads: int


LLMS = {
    "inside the LLM (Vicuna-7B)": Shape(4096, 32, 32),
    "inside the LLM (Qwen2-7B)": Shape(3584, 28, 4),
}
"""A key head for each query head, and one for seven of them: looking ahead takes keys."""
TEXT = 64
"""Positions of text, half of them before the picture."""


def decoder(shape: Shape, device: torch.device, dtype: torch.dtype) -> LlamaModel:
    """Four layers with random weights."""
    config = LlamaConfig(
        hidden_size=shape.width, intermediate_size=64, num_hidden_layers=4, num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads, vocab_size=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaModel(config).to(device, dtype).eval()
    install(model)
    return model


def read(llm: LlamaModel, stage: Any, visual: int) -> None:
    """One pass over a prompt of so many visual tokens."""
    weight = next(llm.parameters())
    number = torch.arange(visual + TEXT, device=weight.device).unsqueeze(0)
    everywhere = torch.ones_like(number, dtype=torch.bool)
    behind = number >= TEXT // 2 + visual
    current = LlmPass(
        visual=(number >= TEXT // 2) & ~behind, question=behind, prompt=everywhere,
        place=(number - TEXT // 2).clamp(0), frame=torch.zeros_like(number), valid=everywhere, stages=(stage,),
    )  # fmt: skip
    shape = (1, visual + TEXT, llm.config.hidden_size)
    llm(
        inputs_embeds=torch.randn(shape, device=weight.device, dtype=weight.dtype),
        llm_pass=current,
        use_cache=True,
    )


class SameDrops(LlmReducer):
    """Drops before each layer what another reducer has dropped there, and looks at nothing."""

    def __init__(self, decisions: Mapping[int, PruneDecision]) -> None:
        super().__init__()
        self.decisions = decisions

    def prune(self, view: PruneView) -> PruneDecision | None:
        """The other one's decision."""
        return self.decisions.get(view.layer)


def stage_operations(llm: LlamaModel, stage: Any, visual: int) -> int:
    """Operations of a pass with a reducer beyond one that drops the same tokens."""
    decisions: dict[int, PruneDecision] = {}
    prune = stage.prune

    def noting(view: PruneView) -> PruneDecision | None:
        decision = prune(view)
        if decision is not None:
            decisions[view.layer] = decision
        return decision

    with patch.object(stage, "prune", noting):
        looking = operations(lambda: read(llm, stage, visual))
    return looking - operations(lambda: read(llm, SameDrops(decisions), visual))


def stage_seconds(llm: LlamaModel, stage: Any, visual: int) -> float:
    """Seconds of a pass that a reducer takes, with the attention rows that it asks for.

    The projection that a layer is spared, because the reducer has looked at its keys, is taken off.
    """
    seconds, spent = seconds_on(llm.device), [0.0]

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            made: list[Any] = []
            spent[0] += seconds(lambda: made.append(function(*args, **kwargs)))
            return made[0]

        return run

    def spared(look: Look) -> None:
        if look.keys is not None:
            project = look.attention.k_proj
            states = look.keys.new_ones(*look.keys.shape[:2], llm.config.hidden_size)
            spent[0] -= seconds(lambda: project(states)) - seconds(lambda: project(states[:, :1]))
        hand_on(look)

    hand_on = Look.hand_on
    with (
        patch.object(stage, "prune", timed(stage.prune)),
        patch.object(stage, "attention_rows", timed(stage.attention_rows)),
        patch.object(mmllm.llm.attention, "receive", timed(mmllm.llm.attention.receive)),
        patch.object(Look, "hand_on", spared),
    ):
        read(llm, stage, visual)
    return spent[0]
