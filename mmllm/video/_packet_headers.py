"""The headers of a stream's packets."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

NONE = -(2**63)
"""Stands for a time that a packet does not have."""


@dataclass(frozen=True, kw_only=True)
class Packets:
    """The headers of the packets of one stream: one entry for each packet, in stored order."""

    pts: np.ndarray
    """int64, presentation times in units of `time_base`; NONE if the packet has none."""
    dts: np.ndarray
    """int64, decoding times in the same units; NONE if the packet has none."""
    duration: np.ndarray
    """int64, in the same units; 0 if unknown."""
    key: np.ndarray
    """bool, whether decoding can start at this packet."""
    hidden: np.ndarray
    """bool, whether the frame is decoded but never shown, because an edit list cuts it off."""
    time_base: Fraction

    def __len__(self) -> int:
        return len(self.pts)
