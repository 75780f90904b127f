"""What one forward pass gives.

B rows, L given positions, P positions with the visual tokens in place, V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import ModelOutput


@dataclass
class MmllmOutput(CausalLMOutputWithPast):
    """The result of one forward pass, with transformers' fields.

    `loss` is a scalar, None without labels. `logits` are B P V, None in training: there the LM head reads the labelled
    positions only.
    """

    losses: dict[str, Tensor] | None = None
    """The parts of the loss by name."""

    @classmethod
    def of(cls, outputs: ModelOutput) -> MmllmOutput:
        """The output of the LLM; fields that only some LLMs have are left out."""
        return cls(**{field.name: outputs.get(field.name) for field in fields(cls)})
