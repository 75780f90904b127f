"""What shortened prompts are compared with: transformers' own pass over the whole prompt, with dropped keys hidden.

B rows, N prompt length, G generated ids, L = N + G, K length of the shortened prompt
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from tiny_inputs import PLACEHOLDERS
from tiny_models import CASES, Case
from torch import Tensor

from mmllm.hosting.encoding import ROW_INPUTS, HostedFeatures
from mmllm.hosting.model import HostedModel
from mmllm.hosting.narrowing import HostedPrompt

STEPS = 20
GREEDY = {"max_new_tokens": STEPS, "do_sample": False, "suppress_tokens": PLACEHOLDERS}
WITH_LOGITS = {**GREEDY, "output_logits": True, "return_dict_in_generate": True}
BEAMS = {**GREEDY, "max_new_tokens": 6, "num_beams": 3}
SHARES = (0.3, 0.6)
"""How much of the media in each row is kept."""


def some_kept(host: HostedModel, inputs: dict[str, Any], features: HostedFeatures) -> Tensor:
    """bool, B N: a random share of each medium, other places in each, what is fixed, and all text."""
    keep = host.keep_all(inputs)
    for medium in features.media:
        number = len(medium.places) + int(inputs["input_ids"][medium.row].sum())  # of the row, not of the batch
        drawn = torch.rand(medium.count, generator=torch.Generator().manual_seed(number))
        chosen = (drawn < SHARES[medium.row % 2]) | medium.fixed
        chosen[medium.count // 2] = True
        keep[medium.row, medium.places] = chosen
    return keep


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A case, shortened and answered."""

    host: HostedModel
    inputs: dict[str, Any]
    features: HostedFeatures
    keep: Tensor
    prompt: HostedPrompt
    answer: Any

    @property
    def new_ids(self) -> Tensor:
        """B G."""
        return self.answer.sequences[:, self.prompt.inputs["input_ids"].shape[1] :]

    @property
    def logits(self) -> Tensor:
        """B G V."""
        return torch.stack(self.answer.logits, 1)


@cache
def run(name: str) -> Run:
    """The shortened prompt of a case with its answer; shared by several tests, which must not change it."""
    host = HostedModel(CASES[name].model)
    inputs = CASES[name].inputs()
    with torch.no_grad():
        features = host.encode(inputs)
    keep = some_kept(host, inputs, features)
    prompt = host.prepare(inputs, features, keep)
    answer = host.generate(prompt, **WITH_LOGITS)
    return Run(host=host, inputs=inputs, features=features, keep=keep, prompt=prompt, answer=answer)


def said(ids: Tensor) -> Tensor:
    """Logits without the ids that generation may not choose."""
    return ids.index_fill(-1, torch.tensor(PLACEHOLDERS), -torch.inf)


@torch.no_grad()
def uncached_logits(made: Run) -> Tensor:
    """B G V: the logits of the generated ids from one pass over shortened prompt and answer, without a cache."""
    both = made.prompt.followed_by(made.answer.sequences, made.new_ids[:, :0])
    both = replace(both, outputs=made.prompt.outputs)
    return made.host.model(**both.arguments(), use_cache=False).logits[:, -STEPS - 1 : -1]


@torch.no_grad()
def reference_logits(case: Case, made: Run) -> Tensor:
    """B G V: the same logits from transformers' own pass over pixels and the whole prompt, with dropped keys hidden."""
    ids, new = made.inputs["input_ids"], made.new_ids
    rows = {name: made.inputs[name] for name in ROW_INPUTS if name in made.inputs}
    rows = {name: torch.cat([value, value.new_zeros(new.shape)], 1) for name, value in rows.items()}
    rows["input_ids"] = torch.cat([ids, new], 1)
    kept = torch.cat([made.keep & made.inputs["attention_mask"].bool(), torch.ones_like(new, dtype=torch.bool)], 1)
    positions = made.host.family.positions(case.model, made.inputs, "transformers")
    steps = torch.arange(1, STEPS + 1).expand_as(new)
    rows["position_ids"] = torch.cat([positions, positions[..., -1:] + steps], -1)
    rows["attention_mask"] = hidden_keys(case, kept, rows)
    others = {name: value for name, value in made.inputs.items() if name not in ROW_INPUTS}
    return case.model(**rows, **others, use_cache=False).logits[:, -STEPS - 1 : -1]


def hidden_keys(case: Case, kept: Tensor, rows: dict[str, Tensor]) -> Any:
    """The additive mask B 1 L L of the whole row; a mask for each kind of layer where there are several."""
    length = kept.shape[1]
    itself = torch.eye(length, dtype=torch.bool)
    causal = torch.ones_like(itself).tril()
    seen = causal & kept[:, None, None, :]
    kinds = set(getattr(case.model.config.get_text_config(), "layer_types", None) or ())
    if "sliding_attention" not in kinds:
        return additive(seen | itself)
    # Gemma 3: the tokens of a picture see each other, and a window counts the tokens that are there
    pictures = rows["token_type_ids"] == 1
    begins = pictures & ~torch.nn.functional.pad(pictures, (1, 0))[:, :-1]
    number = begins.long().cumsum(1).masked_fill(~pictures, -1)
    together = (number[:, None, :, None] == number[:, None, None, :]) & pictures[:, None, None, :]
    seen = (causal | together) & kept[:, None, None, :]
    order = kept.long().cumsum(1)
    near = order[:, None, :, None] - order[:, None, None, :] < case.model.config.text_config.sliding_window
    return {"full_attention": additive(seen | itself), "sliding_attention": additive((seen & near) | itself)}


def additive(seen: Tensor) -> Tensor:
    """0 where a key is seen, the lowest number elsewhere."""
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
