"""Attention masks of a tree behind a prompt: a node sees the prompt, its ancestors and itself.

L positions in the cache, N new nodes, M nodes of the tree so far with the new ones
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmllm.errors import ConfigError

_FULL, _SLIDING = "full_attention", "sliding_attention"


def window_of(config: Any) -> tuple[int | None, bool]:
    """The sliding window of an LLM (None if all its layers see everything), and whether only some layers have it.

    Args:
        config: of the LLM.

    Raises:
        ConfigError: for layers with linear or another attention, on which no tree mask acts.
    """
    kinds = set(getattr(config, "layer_types", None) or ())
    if others := kinds - {_FULL, _SLIDING}:
        raise ConfigError(f"layers with {', '.join(sorted(others))} cannot read a tree of drafts")
    window = getattr(config, "sliding_window", None)
    if kinds and _SLIDING not in kinds:
        return None, False
    if not kinds and not getattr(config, "use_sliding_window", True):
        return None, False
    return window, window is not None and bool(kinds)


@functools.lru_cache(maxsize=64)
def ancestry(parents: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Which nodes of a tree each node sees (bool, M M: ancestors and itself), and their depths (int64, M).

    Args:
        parents: of each node; -1 for one that follows the text.
    """
    visible, depth = np.eye(len(parents), dtype=bool), np.zeros(len(parents), dtype=np.int64)
    for node, parent in enumerate(parents):
        if parent >= 0:
            visible[node] |= visible[parent]
            depth[node] = depth[parent] + 1
    return torch.from_numpy(visible), torch.from_numpy(depth)


def behind_chain(count: int, visible: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """What `ancestry` gives for a tree, if its root has so many ancestors in a chain: these nodes come first.

    Args:
        count: C.
        visible: bool, M M.
        depth: int64, M.

    Returns:
        bool, C+M C+M, and int64, C+M.
    """
    whole = torch.ones(count + len(depth), count + len(depth), dtype=torch.bool).tril()
    whole[count:, count:] = visible
    return whole, torch.cat([torch.arange(count), count + depth])


def tree_mask(
    attended: Tensor, visible: Tensor, depth: Tensor, dtype: torch.dtype, window: int | None = None
) -> Tensor:
    """Additive mask, 1 1 N L+M: 0 where a node sees a position, the lowest number elsewhere.

    It is additive because eager attention adds it: a mask of booleans would be added as 0 and 1.

    Args:
        attended: bool, L. False at padding.
        visible: bool, N M. Ancestors of the new nodes, and themselves.
        depth: int64, M. Of all nodes of the tree; the new ones are the last.
        dtype: of the attention's numbers.
        window: positions that a node sees back, itself included; None for all.
    """
    rows = len(visible)
    seen = torch.cat([attended.expand(rows, -1), visible], dim=1)  # N L+M
    if window is not None:
        length = len(attended)
        place = torch.cat([torch.arange(length, device=depth.device), length + depth])
        seen = seen & (place[-rows:, None] - place[None, :] < window)
    lowest = torch.finfo(dtype).min
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, lowest)[None, None]


def masks_for(
    windows: tuple[int | None, bool], attended: Tensor, visible: Tensor, depth: Tensor, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """The mask in the form that an LLM takes: one, or by kind of layer where kinds differ.

    Args:
        windows: as `window_of` gives them for the LLM.
        attended: this and all others as in `tree_mask`.
        visible: which nodes the new ones see.
        depth: of all nodes.
        dtype: of the attention's numbers.
    """
    window, mixed = windows
    if not mixed:
        return tree_mask(attended, visible, depth, dtype, window)
    return {
        _FULL: tree_mask(attended, visible, depth, dtype),
        _SLIDING: tree_mask(attended, visible, depth, dtype, window),
    }
