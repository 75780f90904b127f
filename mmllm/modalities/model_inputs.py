"""What the processor returns: transformers' `BatchFeature`, in which times keep their type."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import BatchFeature

from mmllm.modalities.border import modalities


class ModelInputs(BatchFeature):
    """Model inputs by name. `inputs.to(torch.bfloat16)` casts pixels and leaves times in seconds as they are.

    In bfloat16 a time of half an hour is off by up to four seconds.
    """

    def to(self, *args: Any, **kwargs: Any) -> ModelInputs:
        """Moves all tensors to a device and casts pixels and features to a type, as `Tensor.to` reads its arguments."""
        exact = {name: self.data[name] for name in _exact_names() if isinstance(self.data.get(name), Tensor)}
        super().to(*args, **kwargs)
        for name, value in exact.items():
            self.data[name] = value.to(self.data[name].device)
        return self


def _exact_names() -> list[str]:
    """Keywords of the fields that are never cast."""
    kinds = [modality.inputs for modality in modalities().values()]
    return [kind.flat_names[field] for kind in kinds for field in kind.exact]
