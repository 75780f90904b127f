"""What each route would cost one token in loss: the oracle of Duo-LLM, by trying all of them.

B rows, P positions, R routes, A tokens of an answer, L layers, V vocabulary
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from mmllm.decoding.duo_llm import Siblings, routed
from mmllm.decoding.routes import CHOICES
from mmllm.decoding.trained_draft import TargetRows, text_decoder
from mmllm.llm.cache import CACHE
from mmllm.llm.head import lm_logits
from mmllm.tokens import IGNORED


@torch.no_grad()
def route_losses(siblings: Siblings, rows: TargetRows, routes: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each answer's next token (A R) when a token takes each route, and the routers' own losses (A).

    All tokens before it have gone through the big parts.

    Args:
        siblings: with their routers.
        rows: one row.
        routes: int64, R L.
    """
    place = torch.nonzero(rows.answered[0] & (rows.labels[0] != IGNORED))[:, 0]  # A: tokens with a next one
    count, length = len(routes) + 1, rows.mask.shape[1]

    def choose(layer: int, hidden: Tensor) -> Tensor:
        own = siblings.route(layer, hidden[-1:])
        given = functional.one_hot(routes[:, layer].to(hidden.device), len(CHOICES)).to(hidden)
        return torch.cat([given[:, None].expand(-1, hidden.shape[1], -1), own])

    cache = DynamicCache()
    for number, layer in enumerate(rows.cache.layers):
        cache.update(layer.keys.expand(count, -1, -1, -1), layer.values.expand(count, -1, -1, -1), number)
    before = torch.arange(length, device=place.device) < place[:, None]
    seen = torch.cat([before & rows.mask.bool(), torch.eye(len(place), dtype=torch.bool, device=place.device)], dim=1)
    dtype = rows.embeddings.dtype
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
    outputs = text_decoder(routed(rows.model, siblings, choose))(
        inputs_embeds=rows.embeddings[:, place].expand(count, -1, -1),
        attention_mask=mask.expand(count, 1, -1, -1),
        position_ids=rows.positions[:, place].expand(count, -1),
        use_cache=True,
        **{CACHE: cache},
    )
    logits = lm_logits(rows.model, outputs.last_hidden_state).float()  # R+1 A V
    target = rows.following[0, place].expand(count, -1)
    losses = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(count, -1)
    return losses[:-1].T, losses[-1]
