"""The loss of a long row whose positions are shared out over a ring of processes.

Each process runs the whole LLM over its own positions; only attention sees those of the others. So memory for
activations is a part of that of the row, the size of the ring below one.

B rows, P positions, N positions of a process, D width
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmllm.llm.harness import decoder_layers
from mmllm.llm.ring import RING, Ring, RingRow

RingLoss = Callable[[Tensor, Tensor], Tensor]
"""The loss of a process' share, from its hidden states (B N D) and its positions (int64, N)."""


def ring_loss(decoder: Any, arguments: dict[str, Any], segments: Tensor, loss_of: RingLoss, ring: Ring) -> Tensor:
    """The loss of this process' positions; those of all processes of the ring add up to the loss of the rows.

    Args:
        decoder: the LLM without its head, which `install` has prepared.
        arguments: its `inputs_embeds` (B P D) and `position_ids` (B P), the same in all processes of the ring.
        segments: int64, B P; see `RingRow`.
        loss_of: the loss of a share. The last position of a row is repeated where a share is filled up, so it must not
            have a loss.
        ring: the processes.

    Raises:
        InputError: if the processes have different rows.
        ConfigError: if the LLM's attention does not look beyond its own process.
    """
    row = RingRow.of(segments, ring)
    own = row.own_positions()
    embeddings = arguments["inputs_embeds"]
    if torch.is_grad_enabled() and not embeddings.requires_grad:
        embeddings = embeddings.detach().requires_grad_()  # so that all processes go back through the same attentions
    outputs = decoder(
        inputs_embeds=embeddings[:, own],
        attention_mask=embeddings.new_zeros(1, 1, 1, 1),  # a mask with four axes is taken as it is; nobody reads it
        position_ids=arguments["position_ids"][:, own],
        use_cache=False,
        **{RING: row},
    )
    row.require_attended(len(decoder_layers(decoder)))
    return loss_of(outputs.last_hidden_state, own)
