"""Published weights of timm's models, under their names in timm or in the packages that ship them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmllm.encoders.timm_backbone import TimmEncoder
from mmllm.errors import CheckpointError
from mmllm.modeling.tower import load_strictly

_LITE_STEM, _LITE_HEAD = "_conv_stem.weight", "_fc."
"""The first tensor, and the beginning of the last ones, of an EfficientNet-Lite outside of timm."""


def load_timm_tower(encoder: TimmEncoder, state: Mapping[str, Tensor]) -> None:
    """Loads weights of timm, or of an EfficientNet-Lite under the names that its PyTorch packages have.

    What timm itself adapts is adapted: names of the first publishers, positions of another image size. A classifier in
    the weights is ignored if the encoder gives no scores of classes.

    Raises:
        CheckpointError: if a tensor is missing, unknown or of another shape.
    """
    tower, what = encoder.tower, f"timm's {encoder.config.model}"
    if _LITE_STEM in state:
        load_strictly(tower, _in_order(state, tower, keep_head=encoder.class_count > 0, what=what), what=what)
        return
    adapt = getattr(sys.modules[type(tower).__module__], "checkpoint_filter_fn", None)
    try:
        adapted = dict(state if adapt is None else adapt(dict(state), tower))
    except (AttributeError, AssertionError, LookupError, RuntimeError, ValueError) as problem:
        raise CheckpointError(f"weights do not fit {what}: {problem!s:.200}") from None
    if not encoder.class_count:
        heads = _classifiers(tower)
        adapted = {name: value for name, value in adapted.items() if not name.startswith(heads)}
    load_strictly(tower, adapted, what=what)


def _in_order(state: Mapping[str, Tensor], tower: Any, *, keep_head: bool, what: str) -> dict[str, Tensor]:
    """The tensors under timm's names: both list the same tensors in the same order, and shapes are compared later.

    Raises:
        CheckpointError: if there are more or fewer than the network has.
    """
    tensors = [value for name, value in state.items() if keep_head or not name.startswith(_LITE_HEAD)]
    names = list(tower.state_dict())
    if len(names) != len(tensors):
        raise CheckpointError(f"weights do not fit {what}: they are {len(tensors)} tensors, and it has {len(names)}")
    return dict(zip(names, tensors, strict=True))


def _classifiers(tower: Any) -> tuple[str, ...]:
    """How the names of a network's classifiers begin."""
    names = tower.pretrained_cfg.get("classifier") or ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
