"""What decoding methods save when a plain LLM writes texts, beside greedy decoding."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from benchmarks.asked import GREEDY, Asked, add_row
from benchmarks.measuring import timed
from benchmarks.results import Results
from mmllm.checkpoints.pretrained_llm import load_llm
from mmllm.decoding.choosing import decoding_of
from mmllm.hub.sources import llm_source
from mmllm.interfaces import Decoding
from mmllm.runtime.progress import Progress

METHODS = (
    "token-recycling", "token-recycling:tree=13", "prompt-lookup", "assisted:layers=20",
    "spectr:layers=20,candidates=2", "dyspec:layers=20,threshold=0.1", "pearl:layers=20", "llmcad:layers=20",
)  # fmt: skip
"""Exact ones that nothing was trained for; a drafter is two thirds of SmolLM2's layers."""
PROMPTS = Path(__file__).parent / "data" / "prompts.json"


def prompts_of(tokenizer: Any, count: int) -> list[Tensor]:
    """int64, 1 P each: the first prompts, as a chat writes them."""
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        for text in json.loads(PROMPTS.read_text())[:count]
    ]


@torch.no_grad()
def written(llm: Any, prompts: Sequence[Tensor], methods: Mapping[str, Decoding | None], most: int) -> dict[str, Asked]:
    """The text behind each prompt by every way of decoding, in turns, of at most so many tokens."""
    results = {name: Asked() for name in methods}
    with Progress("write", len(prompts), "texts") as bar:
        for ids in prompts:
            for name, method in methods.items():
                options: dict[str, Any] = {} if method is None else {"custom_generate": method}
                mask = torch.ones_like(ids)
                write = partial(llm.generate, ids, attention_mask=mask, max_new_tokens=most, do_sample=False, **options)
                out, seconds = timed(write)
                results[name].seconds += seconds
                results[name].answers.append(str(out[0, ids.shape[1] :].tolist()))
            bar.advance()
    return results


def compare_texts(results: Results, llm_name: str, names: Sequence[str], count: int, most: int) -> None:
    """The table `decoding-text`.

    Raises:
        MmllmError: if an exact method has changed a text.
    """
    llm = load_llm(llm_name).eval()
    prompts = prompts_of(AutoTokenizer.from_pretrained(llm_source(llm_name)), count)
    methods: dict[str, Decoding | None] = {GREEDY: None, **{name: decoding_of(name) for name in names}}
    found = written(llm, prompts, methods, most)
    for name, method in methods.items():
        add_row(results, "decoding-text", name, method, found[name], found[GREEDY])
