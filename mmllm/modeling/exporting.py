"""Placing visual tokens without looking at values, for `torch.export`.

`mmllm.modeling.placeholders.place` reads the ids, so that rows may have any number of videos, of any length. A traced
program has fixed shapes: here each row has the same number of videos and images, and a position for each of their
tokens, valid or not.

B rows, L text positions, P positions after expansion, M visual tokens of a row, D width
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from mmllm.errors import InputError
from mmllm.modeling.placeholders import Placed
from mmllm.tokens import NOWHERE, VisualSequence


def place_traced(input_ids: Tensor, attention_mask: Tensor, sequences: dict[int, VisualSequence]) -> Placed:
    """What `place` gives, for rows with the same number of placeholders. Running the program checks the number.

    Raises:
        InputError: if videos cannot be spread evenly over rows, or text stands before frames.
    """
    rows, length = input_ids.shape
    counts, grown, total = torch.ones_like(input_ids), length, 0
    for placeholder, sequence in sequences.items():
        media, tokens = sequence.embeddings.shape[:2]
        if media % rows or sequence.frame_text is not None:
            what = "times before frames" if sequence.frame_text is not None else f"{media} media in {rows} rows"
            raise InputError(f"torch.export needs rows with equally many videos and images, not {what}")
        counts = counts.where(input_ids != placeholder, tokens)
        grown += media // rows * (tokens - 1)
        total += media // rows * tokens
    ends = counts.cumsum(1)
    torch._assert_async((ends[:, -1] == grown).all(), "each row needs equally many placeholders")
    position = torch.arange(grown, device=input_ids.device)
    source = (rearrange(ends, "b l -> b 1 l") <= rearrange(position, "p -> 1 p 1")).sum(-1).clamp(max=length - 1)
    within = position - (ends - counts).gather(1, source)  # B P: number of a visual token in its video
    ids, mask = input_ids.gather(1, source), attention_mask.gather(1, source)
    width = next(iter(sequences.values())).embeddings.shape[-1]
    tokens_at = next(iter(sequences.values())).embeddings.new_zeros(rows, grown, width)
    is_visual = torch.zeros_like(ids, dtype=torch.bool)
    for placeholder, sequence in sequences.items():
        here = ids == placeholder
        number = ((within == 0) & here).long().cumsum(1) - 1  # of the video in its row
        each = len(sequence.embeddings) // rows
        medium = (torch.arange(rows, device=ids.device).unsqueeze(1) * each + number.clamp(0, each - 1)).where(here, 0)
        token = within.where(here, 0)
        tokens_at = sequence.embeddings[medium, token].where(here.unsqueeze(-1), tokens_at)
        mask = mask.where(~here, mask * sequence.mask[medium, token].long())
        is_visual |= here
    # valid positions come first, as in `place`
    order = (mask == 0).to(torch.uint8).argsort(dim=1, stable=True)
    ids, mask, is_visual = (values.gather(1, order) for values in (ids, mask, is_visual & (mask != 0)))
    slots = order.gather(1, (~is_visual).to(torch.uint8).argsort(dim=1, stable=True)[:, :total])
    nowhere = torch.full_like(ids, NOWHERE)
    return Placed(
        input_ids=ids.where(mask != 0, 0),
        attention_mask=mask,
        visual=tokens_at.gather(1, slots.unsqueeze(-1).expand(-1, -1, width)),
        labels=None,
        segments=None,
        frame=nowhere,
        which=nowhere,
        place=nowhere,
        ends=order.argsort(dim=1).gather(1, ends - 1),
    )
