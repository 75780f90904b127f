"""Weights of a published BERT for the Q-Former of a path, which starts from them.

| BERT | Q-Former |
|---|---|
| `bert.embeddings.word_embeddings`, `.position_embeddings`, `.LayerNorm` | the same |
| `bert.encoder.layer.N.attention`, `.intermediate`, `.output` | the same |
| `.token_type_embeddings`, `.pooler`, `cls.` | nothing |
| nothing | attention to visual tokens, and the MLPs of queries: they start random |

Old files say `gamma` and `beta` for a norm's `weight` and `bias`, and have no `bert.` in front.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mmllm.checkpoints.weights import Weights
from mmllm.errors import ConfigError
from mmllm.hub.sources import local_folder
from mmllm.modeling.tower import check_fit

_NOT_READ = re.compile(r"token_type_embeddings|position_ids|^pooler\.|^cls\.")
_NOT_THERE = re.compile(r"crossattention|_query\.")


def load_bert(path: Any, source: str | Path, *, allow_pickle: bool = False) -> None:
    """Loads BERT's weights into the Q-Former of a path.

    Args:
        path: a path with a Q-Former, such as `tdc`.
        source: folder or hub id.
        allow_pickle: read `.bin` files where there is no safetensors file; their tensors only.

    Raises:
        ConfigError: if the path has no Q-Former.
        CheckpointError: if weights are missing, unknown or of another shape.
    """
    former = getattr(getattr(path, "compressor", None), "bert", None)
    if former is None:
        raise ConfigError(f"path_weights = {str(source)!r}: the path {path.registered_name!r} has no Q-Former")
    given = as_qformer(Weights(local_folder(source, allow_pickle=allow_pickle), allow_pickle=allow_pickle).read())
    expected = {name: value for name, value in former.state_dict().items() if not _NOT_THERE.search(name)}
    check_fit(given, expected, what=f"the Q-Former, read from {source}")
    former.load_state_dict(given, strict=False)


def as_qformer(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BERT's tensors under the Q-Former's names, without those that it does not have."""
    named = {name.removeprefix("bert."): value for name, value in state.items()}
    return {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): value
        for name, value in named.items()
        if not _NOT_READ.search(name)
    }
