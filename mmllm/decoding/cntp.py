"""CNTP, cautious next token prediction (arXiv 2507.03038): several trials where the model is unsure. Another law.

The entropy H of the next token's law says how many trials are made: 1 + (most - 1) * clamp((H - low) / (high - low)).
Each is drawn up to a punctuation mark or the end, and the one with the lowest perplexity stays. All trials are branches
of one tree, so that each pass of the target makes one token of every trial.

V vocabulary
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmllm.decoding.counts import DecodingCounts
from mmllm.decoding.reading import CachedReader
from mmllm.decoding.tree import MachineDecoding, Request
from mmllm.decoding.writing import Written
from mmllm.errors import ConfigError
from mmllm.fields import require
from mmllm.registry import register

MARKS = (".", ",", "\n", "?", "!", ":", ";", ")", "]", "}")
"""Where a trial ends."""


@dataclass(frozen=True, kw_only=True)
class CntpConfig:
    """How many trials, and how long."""

    trials: int = 10
    """The most trials of a step; 1 is plain sampling."""
    low: float = 0.01
    """Entropy in nats up to which one trial is made."""
    high: float = 1.5
    """Entropy in nats from which all trials are made."""
    tokens: int = 64
    """The most tokens of a trial."""
    temperature: float = 1.0
    """Of the samples, where the caller does not sample already."""

    def __post_init__(self) -> None:
        require(self.trials >= 1, self, "trials", "at least 1")
        require(0 <= self.low < self.high, self, "low", "0 or more, and below high")
        require(self.tokens >= 1, self, "tokens", "at least 1")
        require(self.temperature > 0, self, "temperature", "above 0")


def trials_for(entropy: float, config: CntpConfig) -> int:
    """How many trials a step with this entropy (nats) makes."""
    unsure = min(1.0, max(0.0, (entropy - config.low) / (config.high - config.low)))
    return int(1 + (config.trials - 1) * unsure)


def entropy_of(law: Tensor) -> float:
    """The entropy of a law (V) in nats."""
    return float(torch.special.entr(law).sum())


@dataclass(kw_only=True)
class Trial:
    """One continuation of the text."""

    tokens: list[int] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    """Those of its tokens that the target has read, in its tree."""
    nll: float = 0.0
    """Sum of -log p of its tokens."""
    done: bool = False

    @property
    def mean_nll(self) -> float:
        """The logarithm of its perplexity."""
        return self.nll / len(self.tokens)


@register("decoding", "cntp", config=CntpConfig)
class Cntp(MachineDecoding):
    """Several sampled trials where the model is unsure, the likeliest stays (CNTP): another law.

    Args:
        config: its settings.
        marks: ids that end a trial; `options` finds them in a model's tokenizer if None.
    """

    samples = True
    other_law = "the likeliest of several sampled trials where the model is unsure (CNTP)"

    def __init__(self, config: CntpConfig, marks: Collection[int] | None = None) -> None:
        self.config, self.marks = config, marks

    def options(self, qa: Any, encoded: Any, input_ids: Tensor, attention_mask: Tensor | None) -> dict[str, Any]:
        """Options of `generate`, with the punctuation of the model's tokenizer."""
        if self.marks is None:
            self.marks = marks_of(qa.processor.tokenizer if not qa.settings else qa.prompting.tokenizer)
        return {"custom_generate": self}

    def write(self, request: Request, target: CachedReader, logits: Tensor) -> Callable[[float], DecodingCounts]:
        """Steps of one token, or of the best of several trials.

        Raises:
            ConfigError: for a greedy text, or without punctuation.
        """
        if not request.text.sample:
            raise ConfigError("decoding cntp samples: give do_sample=True")
        if self.marks is None:
            raise ConfigError(
                "decoding cntp needs the ids of punctuation: Cntp(config, marks=...), or ask through VideoQA"
            )
        steps = _Steps(self.config, set(self.marks), request, target)
        steps.step(logits)
        while not request.text.ended:
            steps.step(steps.read([request.text.last], [-1])[0])
        return steps.counts


class _Steps:
    """The steps of one text."""

    def __init__(self, config: CntpConfig, marks: set[int], request: Request, target: CachedReader) -> None:
        self.config, self.marks, self.request, self.target = config, marks, request, target
        self.text: Written = request.text
        self.emitted: list[int] = []
        self.trials, self.discarded, self.seconds = 0, 0, 0.0

    def read(self, tokens: list[int], parents: list[int]) -> Tensor:
        """Logits N V of new nodes of the target's tree, in a pass that is counted."""
        begun = time.perf_counter()
        logits = self.target.read(torch.tensor(tokens), parents)
        self.seconds += time.perf_counter() - begun
        self.emitted.append(0)
        return logits

    def step(self, logits: Tensor) -> None:
        """One token, or the best of several trials, behind logits (V); the text's last token is the tree's root."""
        law, root = self.text.law(logits), len(self.target.tokens) - 1
        count = trials_for(entropy_of(law), self.config)
        if count == 1:
            chosen = Trial(tokens=[self.text.chance.draw(law)])
        else:
            trials = [Trial() for _ in range(count)]
            self._draw(trials, law)
            while alive := [trial for trial in trials if not trial.done]:
                heads = [trial.nodes[-1] if trial.nodes else root for trial in alive]
                rows = self.read([trial.tokens[-1] for trial in alive], heads)
                before = len(self.target.tokens) - len(alive)
                for row, trial in enumerate(alive):
                    trial.nodes.append(before + row)
                    self._draw([trial], self.text.law(rows[row], trial.tokens))
            chosen = min(trials, key=lambda trial: trial.mean_nll)
            self.trials += count
            self.discarded += sum(len(trial.tokens) for trial in trials) - len(chosen.tokens)
        self._write(chosen, root)

    def _draw(self, trials: list[Trial], law: Tensor) -> None:
        """Another token of each trial, of one law (V)."""
        for trial in trials:
            token = self.text.chance.draw(law)
            trial.tokens.append(token)
            trial.nll -= float(law[token].log())
            room = self.text.limit - self.text.ids.shape[1]
            ended = self.text.ends_with(trial.tokens)
            trial.done = token in self.marks or ended or len(trial.tokens) >= min(self.config.tokens, room)

    def _write(self, trial: Trial, root: int) -> None:
        """Adds a trial to the text; all of it but its last token stays in the cache."""
        before = self.text.count
        for token in trial.tokens:
            if self.text.add(token):
                break
        count = self.text.count - before
        self.target.settle([*range(root + 1), *trial.nodes[: count - 1]])
        if self.emitted:  # else the pass over the prompt gave the token
            self.emitted[-1] += count
        self.text.flush()

    def counts(self, seconds: float) -> DecodingCounts:
        """The counters; a pass that only goes on with trials emits nothing."""
        return DecodingCounts.of(
            self.text,
            self.target,
            self.emitted,
            seconds_verify=self.seconds,
            seconds_total=seconds,
            extra={"trials": self.trials, "discarded_tokens": self.discarded},
        )


def marks_of(tokenizer: Any) -> tuple[int, ...]:
    """The ids of punctuation in a tokenizer: of each mark the last id of its encoding, if that alone is the mark."""
    ids = []
    for mark in MARKS:
        encoded = tokenizer(mark, add_special_tokens=False)["input_ids"]
        if encoded and tokenizer.decode(encoded[-1:]).strip(" ") == mark:
            ids.append(encoded[-1])
    if not ids:
        raise ConfigError("decoding cntp: the tokenizer has no punctuation marks of their own")
    return tuple(dict.fromkeys(ids))
