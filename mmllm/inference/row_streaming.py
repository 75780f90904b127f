"""Several answers of one batch while they are generated: each row is taken, stopped and ended by itself.

R rows, V vocabulary
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from mmllm.inference.contexts import said_of
from mmllm.inference.prompts import Prompt, Prompts
from mmllm.inference.streaming import Cut
from mmllm.llm.counters import ContextCounts


@dataclass(kw_only=True, eq=False)
class Row:
    """One question of a batch, and who takes its answer."""

    prompt: Prompt
    take: Callable[[int], bool]
    """Called with each new id; True ends the answer as if the model had ended it."""
    most_tokens: int
    stopped: Callable[[], bool] = lambda: False
    """Called after each token; True ends the answer."""
    until_s: float = float("inf")
    """`time.monotonic()` at which the answer ends with the text so far."""
    cached: int = 0
    """Positions of the prompt that the LLM did not read, since its cache of them was kept."""
    tokens: int = 0
    """How many ids came."""
    first_s: float | None = None
    """`time.monotonic()` of the first of them."""
    context: Mapping[str, Any] | None = None
    """What the LLM's policies of its cache did, if it has some; rows of a batch have one account of it."""
    ended: bool = False
    cut: Cut | None = None
    """Why the answer ended early; None if it is complete."""
    problem: Exception | None = None
    """What `take` raised."""


def answer_rows(prompts: Prompts[Any], rows: Sequence[Row], **generate: Any) -> None:
    """Answers the questions of all rows in one call of transformers' `generate`; results are in the rows.

    Args:
        prompts: of the model that answers.
        rows: at least one, whose prompts fit together.
        generate: options of `generate`; with `decoding`, a method that writes the answer of a single row.
    """
    writing = _Rows(list(rows), prompts.qa.stop_tokens)
    asked = [row.prompt for row in rows]
    openings = prompts.openings(asked, generate)
    for row, opening in zip(rows, openings or (), strict=False):
        row.cached = opening.cached
    tally: list[ContextCounts] = []
    prompts.generate(
        asked,
        openings=openings,
        max_new_tokens=max(row.most_tokens for row in rows),
        streamer=writing.streamer,
        stopping_criteria=StoppingCriteriaList([writing.stops]),
        **{"tally": tally} if prompts.qa.context else {},
        **generate,
    )
    for row in rows if tally else ():
        row.context = said_of(prompts.qa.context, tally)


@dataclass
class _Rows:
    """Hands new ids to their rows, and says which rows have ended."""

    rows: list[Row]
    stop_tokens: Sequence[int]
    streamer: BaseStreamer = field(init=False)

    def __post_init__(self) -> None:
        self.streamer = _RowStreamer(self.give)

    def give(self, ids: Sequence[int]) -> None:
        """Takes the next id of each row; those of ended rows are filling. A single row may get several ids at once."""
        rows = self.rows * len(ids) if len(self.rows) == 1 else self.rows
        for row, token in zip(rows, ids, strict=True):
            if row.ended:
                continue
            row.tokens += 1
            row.first_s = row.first_s or time.monotonic()
            try:
                enough = row.take(token)
            except Exception as problem:  # a row that fails changes no other
                row.problem, enough = problem, True
            if enough or token in self.stop_tokens:
                row.ended = True
            elif row.tokens >= row.most_tokens:
                row.ended, row.cut = True, "tokens"

    def stops(self, ids: Tensor, _scores: Any) -> Tensor:
        """bool, R: the rows that have ended, as transformers' stopping criteria say it."""
        now_s = time.monotonic()
        for row in self.rows:
            if not row.ended and row.stopped():
                row.ended, row.cut = True, "stopped"
            elif not row.ended and now_s > row.until_s:
                row.ended, row.cut = True, "time"
        return torch.tensor([row.ended for row in self.rows], device=ids.device)


class _RowStreamer(BaseStreamer):
    """Gives the new ids of all rows. The first tensor that `generate` streams is the prompt; it is left out."""

    def __init__(self, give: Callable[[Sequence[int]], None]) -> None:
        self.give, self.before_prompt = give, True

    def put(self, value: Tensor) -> None:
        """Called by `generate` with each new tensor of ids."""
        if not self.before_prompt:
            self.give(value.flatten().tolist())
        self.before_prompt = False

    def end(self) -> None:
        """Does nothing: `generate` returns to whoever called it."""
