"""PEARL (arXiv 2408.11850): target and drafter work at once. Exact; here a simulation of the schedule.

    pre-verify    the drafter makes x1 .. xg while the target scores the text so far, that is x1
    post-verify   the target scores the pending x2 .. xg and, by its last row, the first of g new tokens that the
                  drafter makes meanwhile

Both run one after the other here; the counters say how long the longer of the two would have taken in each round.
The release looks for no end token. It stops as soon as text and pending tokens reach the limit, and gives the pending
ones out unverified.

g tokens a round (gamma), V vocabulary
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmllm.decoding.acceptance import tried
from mmllm.decoding.counts import DecodingCounts
from mmllm.decoding.drafted import DraftedDecoding
from mmllm.decoding.drafter import Drafter, DrafterConfig
from mmllm.decoding.reading import CachedReader
from mmllm.decoding.tree import Request
from mmllm.fields import require
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class PearlConfig(DrafterConfig):
    """The schedule."""

    gamma: int = 4
    """g: tokens that the drafter makes in a round."""
    ratio: float | None = None
    """How many passes the drafter makes in the time of one of the target's, for the simulated time; gamma if None."""
    released: bool = False
    """Give out unverified tokens at the limit, as the released code does: then it is not exact."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.gamma >= 1, self, "gamma", "at least 1")
        require(self.ratio is None or self.ratio > 0, self, "ratio", "above 0")


@register("decoding", "pearl", config=PearlConfig)
class Pearl(DraftedDecoding):
    """Target and drafter at once, simulated one after the other (PEARL): exact."""

    config: PearlConfig

    @property
    def other_law(self) -> str:
        """What the released code does at the limit."""
        return "a tail that the model has not verified, at the limit of tokens" if self.config.released else ""

    def write(self, request: Request, target: CachedReader, logits: Tensor) -> Callable[[float], DecodingCounts]:
        """Rounds of both kinds; the first pre-verification is the pass over the prompt."""
        schedule = _Schedule(self.config, request, self.drafter(request), target)
        schedule.pre_verify(logits)
        while not schedule.ended:
            schedule.verify()
        return schedule.counts


@dataclass(kw_only=True)
class _Pending:
    """Drafted tokens that wait for the target, with their laws (V each)."""

    tokens: list[int]
    laws: list[Tensor]


class _Schedule:
    """The rounds of one text."""

    def __init__(self, config: PearlConfig, request: Request, drafter: Drafter, target: CachedReader) -> None:
        self.config, self.text, self.drafter, self.target = config, request.text, drafter, target
        self.pending = _Pending(tokens=[], laws=[])
        self.after_pre = False  # whether pending tokens are there, though there may be none with gamma 1
        self.emitted: list[int] = []
        self.drafted, self.matched, self.draft_s, self.verify_s = 0, 0, 0.0, 0.0

    @property
    def ended(self) -> bool:
        """Whether the text has ended; in the release, if it reaches the limit with its pending tokens."""
        if not self.config.released:
            return self.text.ended
        ended = self.text.ids.shape[1] + len(self.pending.tokens) >= self.text.limit
        for token in self.pending.tokens if ended else ():
            self.text.add(token)
        return ended

    def pre_verify(self, logits: Tensor) -> None:
        """Tests the first of g new tokens by the target's logits (V) behind the text."""
        tokens, laws = self._drafted([])
        accepted, token = tried(self.text, logits, tokens[0], laws[0])
        self.matched += accepted
        self.text.add(token)
        self.text.flush()
        if accepted:
            self.pending, self.after_pre = _Pending(tokens=tokens[1:], laws=laws[1:]), True

    def verify(self) -> None:
        """A round behind the prompt, of the kind that the one before asks for."""
        begun, before = time.perf_counter(), self.text.count
        nodes = [self.text.last, *self.pending.tokens]
        logits = self.target.read(torch.tensor(nodes), range(-1, len(nodes) - 1))
        self.verify_s += time.perf_counter() - begun
        if self.after_pre:
            self._post_verify(logits)
        else:
            self.pre_verify(logits[0])
        self.target.settle(range(self.text.count - before))
        self.emitted.append(self.text.count - before)
        self.text.flush()

    def _post_verify(self, logits: Tensor) -> None:
        """Tests the pending tokens and the first of g new ones."""
        new, new_laws = self._drafted(self.pending.tokens)
        tests = zip([*self.pending.tokens, new[0]], [*self.pending.laws, new_laws[0]], strict=True)
        self.pending = _Pending(tokens=new[1:], laws=new_laws[1:])
        for row, (drafted, law) in enumerate(tests):
            accepted, token = tried(self.text, logits[row], drafted, law)
            self.matched += accepted
            ended = self.text.add(token) and not self.config.released
            if ended or not accepted:
                self.pending, self.after_pre = _Pending(tokens=[], laws=[]), False
                return

    def _drafted(self, pending: list[int]) -> tuple[list[int], list[Tensor]]:
        """g new tokens behind the text and what is pending, with their laws."""
        begun = time.perf_counter()
        logits = self.drafter.follow([*self.text.new, *pending])
        tokens: list[int] = []
        laws: list[Tensor] = []
        for _ in range(self.config.gamma):
            laws.append(self.drafter.law(logits, [*pending, *tokens]))
            tokens.append(self.drafter.pick(laws[-1]))
            if len(tokens) < self.config.gamma:
                logits = self.drafter.grow(tokens[-1:], [len(tokens) - 2])[0]
        self.drafted += self.config.gamma
        self.draft_s += time.perf_counter() - begun
        return tokens, laws

    def counts(self, seconds: float) -> DecodingCounts:
        """The counters; `extra` has the simulated time in passes of the target, at once and one after the other."""
        rounds, ratio = len(self.emitted), self.config.ratio or float(self.config.gamma)
        own = self.config.gamma / ratio
        return DecodingCounts.of(
            self.text,
            self.target,
            self.emitted,
            draft_passes=self.drafter.passes,
            draft_positions=self.drafter.positions,
            drafted=self.drafted,
            matched=self.matched,
            seconds_draft=self.draft_s,
            seconds_verify=self.verify_s,
            seconds_total=seconds,
            extra={"critical_path": (rounds + 1) * max(own, 1.0), "one_after_another": (rounds + 1) * (own + 1.0)},
        )
