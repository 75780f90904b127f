"""Visual sequences of several videos as rows of one: shorter ones are filled up, masked.

B videos, L positions, F K text before frames, S tokens beside the sequence
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmllm.tokens import VisualSequence

_FILLING = {
    "embeddings": 0,
    "mask": False,
    "frame": -1,
    "place": -1,
    "frame_text": -1,
    "cross_attention_states": 0,
    "cross_attention_mask": False,
    "cross_attention_frame": -1,
}
"""Field -> what stands behind the end of a shorter video."""
_ALL_OR_NONE = ("place",)
"""Fields that say nothing if one of the videos lacks them."""


def as_rows(sequences: Sequence[VisualSequence]) -> VisualSequence:
    """The videos of all sequences, in order, as the rows of one sequence.

    Args:
        sequences: at least one, all of the LLM's width. A grid stays if they have it in common.
    """
    if len(sequences) == 1:
        return sequences[0]
    fields = {name: _joined(name, [getattr(sequence, name) for sequence in sequences], sequences) for name in _FILLING}
    grids = {sequence.grid for sequence in sequences}
    embeddings = fields["embeddings"]
    assert embeddings is not None
    return VisualSequence(
        **fields,  # type: ignore[arg-type]
        grid=grids.pop() if len(grids) == 1 and fields["place"] is not None else None,
        blocks=(("media", embeddings.shape[1]),),
    )


def _joined(name: str, values: Sequence[Tensor | None], sequences: Sequence[VisualSequence]) -> Tensor | None:
    """One field of all videos; None if none has it."""
    given = [value for value in values if value is not None]
    if not given or (name in _ALL_OR_NONE and len(given) < len(values)):
        return None
    sizes = [max(value.shape[axis] for value in given) for axis in range(1, given[0].ndim)]
    rows = []
    for value, sequence in zip(values, sequences, strict=True):
        count = len(sequence.mask)
        row = given[0].new_full((count, *sizes), _FILLING[name])
        if value is not None:
            row[(slice(None), *(slice(size) for size in value.shape[1:]))] = value
        rows.append(row)
    return torch.cat(rows)
