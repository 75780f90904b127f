"""The text while it is written: the law of its next token, where it ends, and who is told of new tokens.

V vocabulary, P ids so far
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.generation import LogitsProcessorList, StoppingCriteriaList

from mmllm.errors import InputError


class Chance(Protocol):
    """Random decisions. Tests enumerate them."""

    def accepts(self, probability: float) -> bool:
        """True with this probability."""

    def draw(self, law: Tensor) -> int:
        """An id of a law (V)."""


class TorchChance:
    """Decisions of torch's own random numbers, drawn as transformers draws tokens."""

    def accepts(self, probability: float) -> bool:
        """True with this probability."""
        return bool(torch.rand(()) < probability)

    def draw(self, law: Tensor) -> int:
        """An id of a law (V)."""
        return int(torch.multinomial(law[None], num_samples=1))


class Written:
    """Prompt and answer so far.

    Args:
        input_ids: int64, 1 P. The prompt.
        processor: transformers' processors of logits, which may depend on all ids before.
        stops: transformers' stopping criteria.
        limit: the largest number of ids, with the prompt's.
        ends: ids that end the text, beside the criteria.
        sample: whether tokens are drawn, and not the most probable ones.
        streamer: gets the new tokens of each round at once; None for none.
        chance: of what is drawn.
    """

    def __init__(
        self,
        input_ids: Tensor,
        processor: LogitsProcessorList,
        stops: StoppingCriteriaList,
        limit: int,
        *,
        ends: Iterable[int] = (),
        sample: bool = False,
        streamer: Any = None,
        chance: Chance | None = None,
    ) -> None:
        self.prompt_length, self.ends = input_ids.shape[1], frozenset(ends)
        self.new: list[int] = []
        """The new tokens."""
        self.processor, self.stops, self.limit, self.sample, self.streamer = processor, stops, limit, sample, streamer
        self.chance: Chance = TorchChance() if chance is None else chance
        self.ended = False
        self._ids, self._waiting = input_ids, list[int]()

    @property
    def ids(self) -> Tensor:
        """int64, 1 P: prompt and new tokens."""
        if missing := self.new[self._ids.shape[1] - self.prompt_length :]:
            self._ids = torch.cat([self._ids, self._ids.new_tensor([missing])], dim=1)
        return self._ids

    @property
    def count(self) -> int:
        """How many tokens are new."""
        return len(self.new)

    @property
    def last(self) -> int:
        """The last id of the text."""
        return self.new[-1] if self.new else int(self._ids[0, -1])

    @property
    def room(self) -> int:
        """How deep a draft may be: the tokens still allowed, without the one that a verification always adds."""
        return max(0, self.limit - self.prompt_length - self.count - 1)

    def scores(self, logits: Tensor, ahead: list[int] | None = None) -> Tensor:
        """float32, V: logits (V) as transformers' processors change them.

        Args:
            logits: V.
            ahead: tokens that would follow the text; for laws of a drafter.

        Raises:
            InputError: if they hold NaN.
        """
        ids = self._with(ahead) if ahead else self.ids
        scores = self.processor(ids, logits[None].to(copy=True, dtype=torch.float32, device=ids.device))[0]
        if bool(scores.isnan().any()):
            raise InputError("the scores of the next token hold NaN")
        return scores

    def law(self, logits: Tensor, ahead: list[int] | None = None) -> Tensor:
        """float32, V: the law of the next token; arguments are as in `scores`."""
        return self.scores(logits, ahead).softmax(-1)

    def choose(self, logits: Tensor) -> int:
        """The next token: the most probable one, or one draw."""
        scores = self.scores(logits)
        return self.chance.draw(scores.softmax(-1)) if self.sample else int(scores.argmax())

    def chooser(self, logits: Tensor) -> Callable[[int], int]:
        """The function from a row of logits (N V, without NaN) to the next token, for rows in the order of the text.

        Where nothing depends on the text, the choices of all rows are made at once.
        """
        if self.sample or self.processor:
            return lambda row: self.choose(logits[row])
        return logits.argmax(-1).tolist().__getitem__

    def ends_with(self, tokens: list[int]) -> bool:
        """Whether the text would end if these tokens followed."""
        return self._ends([*self.new, *tokens]) or self._stops(lambda: self._with(tokens))

    def add(self, token: int) -> bool:
        """Appends a token. True if the text ends with it."""
        self.new.append(token)
        self._waiting.append(token)
        self.ended = self._ends(self.new) or self._stops(lambda: self.ids)
        return self.ended

    def _ends(self, new: list[int]) -> bool:
        """Whether a text with these new tokens has reached the limit or an ending id."""
        return self.prompt_length + len(new) >= self.limit or not self.ends.isdisjoint(new[-1:])

    def _stops(self, ids: Callable[[], Tensor]) -> bool:
        """Whether the stopping criteria, if there are any, end a text (1 P)."""
        return bool(self.stops) and bool(self.stops(ids(), None).all())

    def _with(self, tokens: list[int]) -> Tensor:
        """int64, 1 P: the text with tokens behind it."""
        return torch.cat([self.ids, self.ids.new_tensor([tokens])], dim=1)

    def flush(self) -> None:
        """Tells the streamer of the tokens since the last call."""
        if self.streamer is not None and self._waiting:
            self.streamer.put(torch.tensor(self._waiting))
        self._waiting = []
