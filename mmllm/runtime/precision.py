"""Which number types are slow on this machine: measured, because processors with the same name differ."""

from __future__ import annotations

import functools
import logging
import time
from typing import Any

import torch

from mmllm.errors import ConfigError

log = logging.getLogger(__name__)

HALF = (torch.bfloat16, torch.float16)
TYPES = (torch.float32, *HALF, torch.float64)
SLOW = 1.5
"""A half type is slow if a product takes this many times as long as in float32."""
_SIDE, _ROUNDS = 512, 3


@functools.cache
def slowdown(dtype: torch.dtype) -> float:
    """The time of a product of matrices on this CPU, as a multiple of its time in float32.

    It is measured once, in some hundredths of a second; each type's fastest round counts.
    """
    return _seconds(dtype) / _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    left = torch.ones(_SIDE, _SIDE, dtype=dtype)
    taken = []
    for _ in range(_ROUNDS + 1):  # the first round prepares the kernel
        start = time.perf_counter()
        left @ left
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def on_cpu(asked: Any, stored: Any) -> torch.dtype:
    """The number type in which a model computes on a CPU.

    Args:
        asked: a type or its name, "auto" for that of the files, or None: float32.
        stored: the type of the files or its name; None if it is unknown.

    `auto` never takes a half type that is slow here; one that is asked for by name is taken, with a warning.

    Raises:
        ConfigError: if there is no such type, or a model cannot compute in it.
    """
    if asked is None:
        return torch.float32
    automatic = asked == "auto"
    dtype = named_type(stored) if automatic else named_type(asked)
    if dtype in HALF and (times := slowdown(dtype)) > SLOW:
        name = str(dtype).removeprefix("torch.")
        if automatic:
            log.warning("%s is %.1f times slower than float32 on this processor: computing in float32", name, times)
            return torch.float32
        log.warning("%s is %.1f times slower than float32 on this processor", name, times)
    return dtype


def named_type(value: Any) -> torch.dtype:
    """A type by its name; float32 if it is None.

    Raises:
        ConfigError: if there is no such type, or a model cannot compute in it.
    """
    if value is None:
        return torch.float32
    dtype = getattr(torch, str(value).removeprefix("torch."), None)
    if dtype not in TYPES:
        names = ", ".join(str(known).removeprefix("torch.") for known in TYPES)
        raise ConfigError(f"dtype {str(value)!r}: a model computes in {names} or auto")
    return dtype
