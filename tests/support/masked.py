"""An evicting policy's twin that hides the keys in place of removing them: both must give the same answers.

B rows, G key heads, H query heads, K keys, K' keys that are not hidden
"""

from dataclasses import replace

import torch
from einops import repeat

from mmllm.interfaces import LlmStage
from mmllm.llm.values import RoomView

MARKS = ("position", "valid", "number", "kind", "angle")


class Masked(LlmStage):
    """Asks the policy as if the hidden keys were gone."""

    depends_on_question = False

    def __init__(self, policy):
        self.policy, self.config, self.heads_apart = policy, policy.config, policy.heads_apart

    def attention_rows(self, view):
        return self.policy.attention_rows(view)

    def shaped_logits(self, view, logits, rows):
        return self.policy.shaped_logits(view, logits, rows)

    def select(self, view):
        if view.phase == "prompt":
            return None
        new = view.query.shape[2]
        heads, count = view.keys.shape[1:3]
        old = torch.arange(count) < count - new
        here = self.alive(view, heads) & old
        index = slots(here)
        marks = {name: taken(getattr(view, name), index, heads) for name in MARKS}
        marks["valid"] &= here.gather(-1, index)
        notes = {name: taken(value, index, heads) for name, value in view.by_key.items() if name != "gone"}
        coming = view.valid[:, 0, -new:].sum(-1)
        room = RoomView(
            layer=view.layer, current=view.current, coming=coming, state=view.state, by_key=notes,
            **{name: marks[name] for name in ("position", "valid", "number", "kind")},
        )  # fmt: skip
        if (kept := self.policy.make_room(room)) is not None:
            self.hide(view, here, index, kept)
        visible = self.alive(view, heads)
        return repeat(visible, "b g k -> b g n k", n=new)

    def evict(self, view):
        heads = view.keys.shape[1]
        here = self.alive(view, heads)
        index = slots(here)
        groups = view.query.shape[1] // heads
        wide = repeat(index, "b g k -> b (g r) k", r=groups)
        marks = {name: taken(getattr(view, name), index, heads) for name in MARKS}
        marks["valid"] &= here.gather(-1, index)
        notes = {name: taken(value, index, heads) for name, value in view.by_key.items() if name != "gone"}
        keys = view.keys.gather(2, index.unsqueeze(-1).expand(-1, -1, -1, view.keys.shape[-1]))
        received = {name: value.gather(-1, wide) for name, value in view.received.items()}
        inner = replace(view, **marks, keys=keys, values=keys, by_key=notes, received=received)
        kept = self.policy.evict(inner)
        for name, value in inner.by_key.items():
            whole = torch.zeros(*here.shape, dtype=value.dtype)
            view.by_key[name] = whole.scatter(-1, index, value.expand_as(index))
        if kept is not None:
            self.hide(view, here, index, kept)

    def alive(self, view, heads):
        gone = view.by_key.get("gone")
        valid = view.valid.expand(-1, heads, -1)
        return valid if gone is None else valid & ~gone.bool()

    def hide(self, view, here, index, kept):
        slot = index.gather(-1, kept.index.expand(-1, index.shape[1], -1))
        stays = kept.valid.expand_as(slot)
        left = torch.zeros_like(here).scatter(-1, slot, stays)
        gone = view.by_key.get("gone", torch.zeros(here.shape)).bool() | (here & ~left)
        view.by_key["gone"] = gone.float()


def slots(here):
    """int64, B G K': the slots of the keys that are there (bool, B G K); others fill up in front."""
    most = int(here.sum(-1).max())
    return here.to(torch.uint8).argsort(dim=-1, stable=True)[..., here.shape[-1] - most :]


def taken(values, index, heads):
    """Values (B G K or B 1 K) at these slots."""
    return values.expand(-1, heads, -1).gather(-1, index)
