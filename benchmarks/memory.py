"""Memory that work takes: what the process holds before it, and the most that it holds while it lasts."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")
PROCESS = Path("/proc/self")
"""Where Linux keeps the peak of a process; psutil tells it on Windows only."""


@dataclass(frozen=True)
class Memory:
    """Bytes of resident memory."""

    held: int
    """Before the work."""
    peak: int
    """The most while it lasted."""

    @property
    def extra(self) -> int:
        """What the work took beside what was held."""
        return self.peak - self.held


def resident_bytes() -> int:
    """Resident memory of this process."""
    return psutil.Process().memory_info().rss


def peak_memory(work: Callable[[], Result], *, trim: bool = True) -> tuple[Result, Memory]:
    """Does the work; returns its result and the memory of this process.

    Args:
        work: what is done.
        trim: whether memory that is free but kept by the C library is given back before.

    Raises:
        OSError: The system does not let a process forget its peak; Linux does.
    """
    if trim:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    (PROCESS / "clear_refs").write_text("5")  # forgets the peak so far
    held = resident_bytes()
    result = work()
    return result, Memory(held, _peak_bytes())


def _peak_bytes() -> int:
    lines = dict(line.split(":", 1) for line in (PROCESS / "status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def extra_bytes_on(device: torch.device, work: Callable[[], Any]) -> int:
    """Most memory of a device that work takes beside what is held there.

    Raises:
        OSError: The device is the CPU of a system that does not let a process forget its peak.
    """
    if device.type == "cpu":
        return peak_memory(work)[1].extra
    import torch

    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    work()
    return torch.cuda.max_memory_allocated(device) - held
