"""How far two results of the same formula may be apart: as far as rounding explains, on any processor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def tolerance(expected: Tensor, terms: int = 1024) -> float:
    """The largest difference that rounding explains, for numbers of the size of `expected`.

    Each of `terms` additions is off by at most eps times the largest number. Processors, numbers of threads and
    versions of libraries add in other orders, so their errors differ. Such errors grow with the root of the terms.
    """
    finite = expected.detach()[expected.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return 2 * torch.finfo(expected.dtype).eps * terms**0.5 * largest


def assert_near(actual: Any, expected: Any, *, terms: int = 1024) -> None:
    """Fails if two floating-point tensors differ in shape, in type, or by more than rounding explains.

    Args:
        actual, expected: tensors, or what `torch.as_tensor` takes.
        terms: additions on the longest way from the inputs to a result: the width of a product, times the number of
            products in a row.
    """
    actual, expected = torch.as_tensor(actual), torch.as_tensor(expected)
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance(expected, terms))
