"""BiLD as its released code runs, for comparison with it.

It differs in five ways. A token that the large model would choose itself is never taken back, and neither is anything
behind it. After it has taken tokens back, the large model runs once more over what is left. The small model's last
tokens are given out unverified at the end. A step in which the small model was unsure leaves its cache as it was. The
first token is the large model's.

V vocabulary
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmllm.decoding.counts import DecodingCounts
from mmllm.decoding.drafter import Drafter
from mmllm.decoding.reading import CachedReader
from mmllm.decoding.tree import Request


class ReleasedBild:
    """The loop of one text.

    Args:
        config: a `BildConfig`.
        request: of the text.
        drafter: the small model.
        target: the large model, which has read the prompt.
    """

    def __init__(self, config: Any, request: Request, drafter: Drafter, target: CachedReader) -> None:
        self.config, self.text, self.drafter, self.target = config, request.text, drafter, target
        self.small: list[int] = []  # its tokens that the large model has not seen
        length = len(target.attended)
        self.calls = [(1, length)]  # (large or not, positions that the released code computes)
        self.small_cache = 0
        self.emitted: list[int] = []
        self.drafted, self.matched, self.verify_s = 0, 0, 0.0

    def run(self, logits: Tensor) -> Callable[[float], DecodingCounts]:
        """Writes the text, from the large model's logits (V) behind the prompt."""
        self.text.add(self.text.choose(logits))
        while not self.text.ended:
            if self._small_ends():
                break
            self._large()
            self.text.flush()
        self.text.flush()
        return self.counts

    def _length(self) -> int:
        """Positions of the whole sequence; the large model keeps all but the last token of the text."""
        return len(self.target.attended) + 1 + len(self.small)

    def _small_ends(self) -> bool:
        """Steps of the small model until it is unsure or has made enough. True if the text ends with its tokens."""
        self.small = []
        while len(self.small) < self.config.most:
            law = self.drafter.law(self.drafter.follow([*self.text.new, *self.small]), self.small)
            self.calls.append((0, self._length() - self.small_cache))
            if float(law.max()) < self.config.fallback:
                return False
            self.small_cache = self._length()
            self.small.append(int(law.argmax()))
            self.drafted += 1
            if self.text.ends_with(self.small):
                return self._unverified()
        return False

    def _unverified(self) -> bool:
        """The small model's tokens as the end of the text."""
        for token in self.small:
            self.text.add(token)
        return True

    def _large(self) -> None:
        """The large model reads what it has not seen, takes back what surprises it, and adds a token."""
        begun, before, base = time.perf_counter(), self.text.count, len(self.target.attended)
        nodes = [self.text.last, *self.small]
        logits = self.target.read(torch.tensor(nodes), range(-1, len(nodes) - 1))
        self.calls.append((1, len(nodes)))
        cut = self._cut(logits)
        kept = self.small if cut is None else self.small[:cut]
        for token in kept:
            self.text.add(token)
        self.matched += len(kept)
        self.target.settle(range(len(kept) + 1))
        self.text.add(self.text.choose(logits[len(kept)]))
        self.emitted.append(self.text.count - before)
        self.small_cache = min(self.small_cache, base + 1 + len(kept))
        self.small = []
        self.verify_s += time.perf_counter() - begun
        if cut is not None and not self.text.ended:
            before = self.text.count
            row = self.target.read(torch.tensor([self.text.last]), [-1])[0]
            self.calls.append((1, len(kept) + 2))
            self.target.settle([0])
            self.text.add(self.text.choose(row))
            self.emitted.append(self.text.count - before)

    def _cut(self, logits: Tensor) -> int | None:
        """The first token that is taken back; None if none is."""
        for node, token in enumerate(self.small):
            scores = self.text.scores(logits[node], self.small[:node])
            if -float(scores.log_softmax(-1)[token]) > self.config.rollback:
                return None if int(scores.argmax()) == token else node
        return None

    def counts(self, seconds: float) -> DecodingCounts:
        """The counters; `calls` are those that the released code makes."""
        return DecodingCounts.of(
            self.text,
            self.target,
            self.emitted,
            draft_passes=self.drafter.passes,
            draft_positions=self.drafter.positions,
            drafted=self.drafted,
            matched=self.matched,
            seconds_verify=self.verify_s,
            seconds_total=seconds,
            extra={"calls": self.calls},
        )
