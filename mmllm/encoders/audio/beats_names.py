"""Published names of BEATs' tensors to ours.

| published | ours |
|---|---|
| `encoder.pos_conv.0.weight_g`, `weight_v` | `encoder.pos_conv.weight`: their product, each position of norm g |
| `encoder.layers.N.self_attn.relative_attention_bias.weight` | `encoder.relative_attention_bias.weight`, once |
| `predictor.*` | left out |
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from mmllm.errors import CheckpointError

_PARTS = {
    "encoder.pos_conv.0.parametrizations.weight.original0": "encoder.pos_conv.0.weight_g",
    "encoder.pos_conv.0.parametrizations.weight.original1": "encoder.pos_conv.0.weight_v",
}
"""Names of newer versions of PyTorch for the same tensors."""
_TABLE = re.compile(r"encoder\.layers\.\d+\.self_attn\.relative_attention_bias\.weight")


def named_as_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under our names; names that nobody knows stay, so that a strict loader finds them.

    Raises:
        CheckpointError: if the layers do not share one table of distances.
    """
    named = {_PARTS.get(name, name): value for name, value in state.items() if not name.startswith("predictor")}
    size, direction = named.pop("encoder.pos_conv.0.weight_g", None), named.pop("encoder.pos_conv.0.weight_v", None)
    if size is not None and direction is not None:
        named["encoder.pos_conv.weight"] = size * direction / direction.norm(dim=(0, 1), keepdim=True)
    if "encoder.pos_conv.0.bias" in named:
        named["encoder.pos_conv.bias"] = named.pop("encoder.pos_conv.0.bias")
    tables = [named.pop(name) for name in list(named) if _TABLE.fullmatch(name)]
    if any(not table.equal(tables[0]) for table in tables):
        raise CheckpointError("these weights have a table of distances for each layer; BEATs has one for all")
    if tables:
        named["encoder.relative_attention_bias.weight"] = tables[0]
    return named
