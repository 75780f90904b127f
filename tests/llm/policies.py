"""Cache policies for tests of the harness: each uses one seam, and H2O uses several.

B rows, N new positions, H query heads, G key heads, K keys, D head width
"""

from __future__ import annotations

import math

import torch
from einops import reduce, repeat

from mmllm.interfaces import LlmStage
from mmllm.llm.values import KeptKeys, Reweighed


class Everything(LlmStage):
    """Evicts nothing, but goes through every seam."""

    evicts = True
    depends_on_question = False

    def attention_rows(self, view):
        return {"all": torch.ones(view.query.shape[0], view.query.shape[2])}

    def select(self, view):
        return torch.ones(len(view.query), 1, view.query.shape[2], view.keys.shape[2], dtype=torch.bool)

    def reweigh(self, view):
        return Reweighed(keys=view.keys, values=view.values, bias=torch.zeros(1))

    def evict(self, view):
        slots = torch.arange(view.keys.shape[2])
        return KeptKeys(index=slots.expand(len(view.keys), view.keys.shape[1], -1))


class Window(LlmStage):
    """The first few valid keys and the last few: as StreamingLLM keeps them, without turning keys."""

    evicts = True
    depends_on_question = False

    def __init__(self, sinks: int, recent: int) -> None:
        self.sinks, self.recent = sinks, recent

    def visible(self, position, valid, query_position):
        """bool, B 1 N K: the sinks, and the keys no further back than the window."""
        first = position.masked_fill(~valid, torch.iinfo(torch.long).max).amin(-1, keepdim=True)
        sink = (position - first < self.sinks) & valid
        near = query_position[:, None, :, None] - position.unsqueeze(2) < self.recent
        return (sink.unsqueeze(2) | near) & valid.unsqueeze(2)


class EvictingWindow(Window):
    """Keys outside the window leave the cache."""

    def evict(self, view):
        stay = self.visible(view.position, view.valid, view.query_position[:, -1:])[:, :, 0]
        stay = stay.expand(-1, view.keys.shape[1], -1)
        most = int(stay.sum(-1).max())
        index = stay.to(torch.uint8).argsort(dim=-1, stable=True)[..., -most:]  # filling in front
        return KeptKeys(index=index, valid=stay.gather(-1, index))


class SelectingWindow(Window):
    """Keys outside the window stay and are not seen."""

    evicts = False

    def select(self, view):
        if view.phase == "prompt":
            return None
        before = view.query_position - 1  # where the window stood when keys were last evicted
        return self.visible(view.position, view.valid, before)


class H2O(LlmStage):
    """Heavy hitters: for each key head, the keys that have received most attention, and the most recent ones."""

    evicts = True
    heads_apart = True
    depends_on_question = False

    def __init__(self, heavy: float, recent: float) -> None:
        self.heavy, self.recent = heavy, recent
        """Counts; fractions of the prompt if below 1."""

    def attention_rows(self, view):
        return {"all": view.valid[:, 0, -view.query.shape[2] :].float()}

    def evict(self, view):
        heads = view.keys.shape[1]
        score = reduce(view.received["all"], "b (g r) k -> b g k", "sum", g=heads)
        if "score" in view.state:
            past = view.state["score"]
            score[..., : past.shape[-1]] += past
        lengths = view.state.get("length", view.valid[:, 0].sum(-1))
        valid = view.valid.expand(-1, heads, -1)
        stay = torch.zeros_like(valid)
        for row, length in enumerate(lengths.tolist()):
            heavy, recent = (math.floor(part * length) if part < 1 else int(part) for part in (self.heavy, self.recent))
            stay[row, :, -recent:] = True
            older = score[row, :, :-recent].masked_fill(~valid[row, :, :-recent], -torch.inf)
            best = older.argsort(dim=-1, descending=True, stable=True)[:, :heavy]
            stay[row, :, :-recent].scatter_(-1, best, True)
        stay &= valid
        most = int(stay.sum(-1).max())
        index = stay.to(torch.uint8).argsort(dim=-1, stable=True)[..., -most:]
        view.state["score"], view.state["length"] = score.gather(-1, index), lengths
        return KeptKeys(index=index, valid=stay.gather(-1, index))


class Bias(LlmStage):
    """Halves the weight of all visual keys."""

    def reweigh(self, view):
        visual = view.current.visual.gather(1, view.position[:, 0].clamp(max=view.current.visual.shape[1] - 1))
        visual &= view.position[:, 0] < view.current.visual.shape[1]
        bias = repeat(visual * math.log(0.5), "b k -> b 1 n k", n=view.query.shape[2])
        return Reweighed(keys=view.keys, values=view.values, bias=bias)
