"""Positions of a prompt, as transformers counts them or as the models were trained. They change nothing in the model.

B rows, N prompt length. One axis: B N. M-RoPE: 4 B N, the rows are a counter of the text, time, height and width.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from mmllm.errors import InputError

PositionRule = Literal["transformers", "trained"]
"""Whose numbers are used where transformers differs from the code by which a model was trained."""


def counted(mask: Tensor) -> Tensor:
    """int64, B N: 0, 1, 2 ... over the positions of a mask; 0 at padding."""
    return (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)


def mrope(model: Any, inputs: Mapping[str, Any], rule: PositionRule) -> Tensor:
    """int64, 4 B N: the positions of an M-RoPE model.

    Args:
        model: with their `get_rope_index` on its `base_model`.
        inputs: the whole prompt, with the grids of its media.
        rule: `trained` lets text behind a medium begin after the largest of its positions.

    Raises:
        InputError: if there are media, but no `mm_token_type_ids`.
    """
    mask, types = inputs["attention_mask"], inputs.get("mm_token_type_ids")
    text = counted(mask)
    if not any(inputs.get(name) is not None for name in ("image_grid_thw", "video_grid_thw")):
        return text.expand(4, *text.shape).clone()
    if types is None:
        raise InputError("mm_token_type_ids are missing: the processor gives them beside input_ids")
    method = model.base_model.get_rope_index
    names = [name for name in inspect.signature(method).parameters if inputs.get(name) is not None]
    rows, _ = method(**{name: inputs[name] for name in names})
    if rule == "trained":
        rows = with_text_behind_media(rows, types, mask)
    return torch.cat([text[None].to(rows), rows])


def with_text_behind_media(rows: Tensor, types: Tensor, mask: Tensor) -> Tensor:
    """int64, 3 B N: positions whose every run begins one after the largest position of the run before.

    transformers lets text behind a video begin at half the video's height or width, though frames may reach farther.

    Args:
        rows: int64, 3 B N.
        types: B N, 0 at text.
        mask: B N.
    """
    rows = rows.clone()
    for row in range(rows.shape[1]):
        here = mask[row].nonzero().squeeze(-1)
        kinds, following = types[row].tolist(), 0
        for _, run in itertools.groupby(here.tolist(), key=kinds.__getitem__):
            places = torch.tensor(list(run), device=rows.device)
            own = rows[:, row, places]
            own = own + (following - own.min())
            rows[:, row, places] = own
            following = int(own.max()) + 1
    return rows
