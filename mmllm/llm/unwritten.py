"""Whether tensors are still as they were, without a look at their numbers."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Unwritten:
    """Tensors as they were at one time."""

    parts: tuple[tuple[weakref.ref[Tensor], int], ...]
    """Each with how often it had been written to."""

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Self | None:
        """The tensors as they are now; None if torch does not count how often one of them is written to."""
        if any(tensor.is_inference() for tensor in tensors):
            return None
        return cls(tuple((weakref.ref(tensor), tensor._version) for tensor in tensors))

    def are(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the same tensors, in the same order, and nobody has written to them since."""
        if len(tensors) != len(self.parts):
            return False
        pairs = zip(self.parts, tensors, strict=True)
        return all(own() is tensor and tensor._version == written for (own, written), tensor in pairs)
