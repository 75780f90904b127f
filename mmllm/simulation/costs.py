"""What each piece of serving costs, in seconds and bytes: measured numbers, and formulas over them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmllm.fields import require


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The costs of one kind of machine. A step of the LLM takes `step_s + token_s * tokens + cached_s * cached`."""

    decode_s: float = 0.0
    """Of one new video, in one of the processes that decode."""
    encode_s: float = 0.0
    """Of one new video, on the machine that encodes."""
    step_s: float = 0.02
    """Of a step of the LLM, however little it does."""
    token_s: float = 0.001
    """More for each token that a step reads or writes."""
    cached_s: float = 0.0
    """More for each position of the cache that the step's tokens look back at."""
    kv_bytes: float = 0.0
    """Of one position in the cache."""
    link_bytes_s: float = math.inf
    """From a machine that reads prompts to one that writes answers."""
    swap_bytes_s: float = math.inf
    """Out of the LLM's memory, and back."""
    swap_call_s: float = 0.0
    """Of each transfer, however small."""
    block: int = 16
    """Positions of a block of the cache."""
    contiguous: int = 1
    """Blocks that lie together and move in one transfer."""
    layers: int = 1
    """Of the LLM; they matter for communication only."""
    message_s: float = 0.0
    """Of communication between the devices of one machine, for each token in each layer."""
    overlap: bool = False
    """Whether one half of a step's tokens is computed while the other half's results are sent (TokenWeave)."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name not in ("overlap", "link_bytes_s", "swap_bytes_s"):
                require(0 <= value < math.inf, self, name, "zero or more, and finite")
        for name in ("link_bytes_s", "swap_bytes_s", "block", "contiguous", "layers"):
            require(getattr(self, name) > 0, self, name, "above 0")

    def step(self, tokens: int, cached: int) -> float:
        """Seconds of a step of the LLM.

        Args:
            tokens: read or written in it.
            cached: positions that they look back at, summed over requests.
        """
        compute = self.step_s + self.token_s * tokens + self.cached_s * cached
        if not self.message_s:
            return compute
        return communicating_s(self.layers, compute / self.layers, self.message_s * tokens, overlap=self.overlap)

    def link(self, positions: int) -> float:
        """Seconds in which the cache of so many positions goes to another machine."""
        return self.kv_bytes * positions / self.link_bytes_s

    def swap(self, positions: int) -> float:
        """Seconds in which so many positions leave the LLM's memory, or come back.

        Blocks that lie together move in one call (FastSwitch).
        """
        calls = math.ceil(math.ceil(positions / self.block) / self.contiguous)
        return calls * self.swap_call_s + self.kv_bytes * positions / self.swap_bytes_s


def communicating_s(layers: int, compute_s: float, message_s: float, *, overlap: bool) -> float:
    """Seconds of a pass whose layers compute and then communicate.

    With overlap, the tokens are two halves, and one communicates while the other computes: what takes longer decides.

    Args:
        layers: of the LLM.
        compute_s: of one layer, for all tokens.
        message_s: of one layer's communication, for all tokens.
        overlap: whether the two halves overlap.
    """
    if not overlap:
        return layers * (compute_s + message_s)
    if message_s <= compute_s:
        return layers * compute_s + message_s / 2
    return compute_s / 2 + layers * message_s
