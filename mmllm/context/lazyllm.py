"""LazyLLM: at a few depths only the positions that the last one attends to go on; others wait, and may come back.

    prompt: layers 0.. | cut: the top 70 % go on, the others wait here | cut: the top 40 % | cut: the top 20 % ..
    token:  layers 0.. | cut: ranks anew; what is wanted and waits here goes on with the token through the layers behind

Each position goes through each layer at most once. A token sees, behind a cut, what this step has chosen there, and all
that was written since the prompt (arXiv 2407.14057; shares and depths are ours, the paper's code is not published).

B rows, P positions of the prompt, N new ones, M that came back before a layer, R behind it, K keys, D width
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmllm.context.choosing import best_of_rows, chosen_keys, last_row, note_refreshes
from mmllm.errors import ConfigError
from mmllm.fields import require
from mmllm.interfaces import ContextPolicy
from mmllm.llm.values import AttentionView, GatheredKeys, LlmPass, PruneDecision, PruneView, Rejoined, RejoinView
from mmllm.registry import register

_CHOSEN = -1
"""Under which number the notes of a pass have what its last cut has chosen."""


@dataclass(frozen=True, kw_only=True)
class LazyLlmConfig:
    """Where positions stop, and how many."""

    depths: tuple[float, ...] = (0.3, 0.5, 0.7)
    """Shares of the LLM's layers in front of the cuts."""
    keep: tuple[float, ...] = (0.7, 0.4, 0.2)
    """Share of the prompt's positions that goes on behind each cut."""

    def __post_init__(self) -> None:
        require(len(self.depths) > 0, self, "depths", "at least one")
        require(all(0 < depth < 1 for depth in self.depths), self, "depths", "between 0 and 1")
        require(list(self.depths) == sorted(set(self.depths)), self, "depths", "ascending")
        require(len(self.keep) == len(self.depths), self, "keep", f"as many as depths: {len(self.depths)}")
        require(all(0 < share <= 1 for share in self.keep), self, "keep", "above 0 and at most 1")
        require(
            list(self.keep) == sorted(self.keep, reverse=True), self, "keep", "descending: who has stopped is not read"
        )


def cuts_of(config: LazyLlmConfig, layers: int) -> dict[int, float]:
    """The first layer behind each cut -> the share that goes on. Of two cuts before one layer the deeper one counts."""
    return {max(1, int(depth * layers)): share for depth, share in zip(config.depths, config.keep, strict=True)}


@register("context", "lazyllm", config=LazyLlmConfig)
class LazyLlm(ContextPolicy):
    """LazyLLM: deeper layers read fewer positions of the prompt, and later steps may bring others back."""

    family = "select"
    rejoins = True

    def __init__(self, config: LazyLlmConfig) -> None:
        self.config = config

    def check(self, layers: int) -> None:
        """Refuses an LLM of one layer: there is nothing behind a cut.

        Raises:
            ConfigError: naming the layers.
        """
        if layers < 2:
            raise ConfigError(f"context 'lazyllm' needs an LLM of at least 2 layers, not {layers}")

    @property
    def takes_back(self) -> bool:
        """False: positions that have come back stand among the newest in the cache."""
        return False

    def attention_rows(self, view: AttentionView) -> Mapping[str, Tensor] | None:
        """The last row, in the layer before a cut."""
        if view.layer + 1 not in cuts_of(self.config, view.layers):
            return None
        return {"last": last_row(view).float()}

    def prune(self, view: PruneView) -> PruneDecision | None:
        """Behind a cut of the prompt: the positions that go on; the states of the others wait in the layer's state."""
        cuts = cuts_of(self.config, view.layers)
        if view.layer not in cuts:
            return None
        position, current = view.before.position, view.current
        present = torch.zeros_like(current.valid).scatter(1, position, view.before.valid)
        chosen = self._chosen(_on_prompt(position, view.received["last"], current), present, current, cuts[view.layer])
        _wait(view.state, view.hidden, position, view.before.valid, current)
        view.state["waiting"] &= ~chosen
        view.state["present"] = present
        return PruneDecision(keep=chosen.gather(1, position))

    def evict(self, view: AttentionView) -> None:
        """Evicts nothing: notes what the last row attends to, for the cut behind this layer."""
        if view.received:
            scores = _on_prompt(view.position[:, 0], view.received["last"] * view.valid[:, 0], view.current)
            view.current.notes_of(self)[view.layer] = scores

    def rejoin(self, view: RejoinView) -> Rejoined | None:
        """Behind a cut of a later pass: the positions that it wants and that have not been in the layers behind."""
        cuts = cuts_of(self.config, view.layers)
        if view.layer not in cuts:
            return None
        notes, current, state = view.current.notes_of(self), view.current, view.state
        present = state["present"] if view.layer == min(cuts) else notes[_CHOSEN]
        chosen = self._chosen(notes[view.layer - 1], present, current, cuts[view.layer])
        _wait(state, view.hidden, view.position, view.valid, current)
        coming = chosen & state["waiting"]
        state["waiting"] = state["waiting"] & ~coming
        notes[_CHOSEN] = chosen
        note_refreshes(view, torch.ones(len(chosen)))
        index = coming.to(torch.uint8).argsort(dim=-1, stable=True)[:, coming.shape[1] - int(coming.sum(-1).max()) :]
        where = index.unsqueeze(-1).expand(-1, -1, view.hidden.shape[-1])
        return Rejoined(hidden=state["states"].gather(1, where), position=index, valid=coming.gather(1, index))

    def select(self, view: AttentionView) -> Tensor | GatheredKeys | None:
        """Behind a cut: what this step has chosen of the prompt, and all that came later. Who came back sees more."""
        if view.phase == "prompt" or view.layer < min(cuts_of(self.config, view.layers)):
            return None
        current, position = view.current, view.position[:, 0]
        chosen = current.notes_of(self)[_CHOSEN]
        length = chosen.shape[1]
        seen = chosen.gather(1, position.clamp(max=length - 1)) | (position >= length)
        seen = (seen & view.valid[:, 0]).unsqueeze(1)  # B 1 K
        new = view.query.shape[2]
        if new == 1:
            return chosen_keys(seen, view.valid[:, :1])
        own = torch.arange(new, device=seen.device) >= current.back
        return seen.unsqueeze(2) | ~own[:, None]

    def _chosen(self, scores: Tensor, present: Tensor, current: LlmPass, share: float) -> Tensor:
        """bool, B P: the present positions with the highest scores (float, B P), and the prompt's last one."""
        prompt = current.prompt & current.valid
        place = torch.arange(prompt.shape[1], device=prompt.device)
        last = place == torch.where(prompt, place, -1).amax(-1, keepdim=True)
        count = (prompt.sum(-1) * share + 1e-6).long().clamp(min=1)
        return best_of_rows(scores.masked_fill(last, torch.inf), present, count)


def _on_prompt(position: Tensor, values: Tensor, current: LlmPass) -> Tensor:
    """float32, B P: values (B K) at positions (int64, B K) of the prompt; those of later positions are left out."""
    length = current.valid.shape[1]
    whole = values.new_zeros(len(values), length + 1, dtype=torch.float32)
    return whole.scatter_add(1, position.clamp(max=length), values.float())[:, :length]


def _wait(state: dict[str, Tensor], hidden: Tensor, position: Tensor, valid: Tensor, current: LlmPass) -> None:
    """Lets positions (B M, states B M D) wait in front of a layer; filling goes to a place that nobody reads."""
    rows, length = current.valid.shape
    if "states" not in state:
        state["states"] = hidden.new_zeros(rows, length + 1, hidden.shape[-1])
        state["waiting"] = torch.zeros_like(current.valid)
    if not position.shape[1]:
        return
    place = position.masked_fill(~valid, length)
    state["states"] = state["states"].scatter(1, place.unsqueeze(-1).expand_as(hidden), hidden)
    waiting = torch.nn.functional.pad(state["waiting"], (0, 1)).scatter(1, place, True)
    state["waiting"] = waiting[:, :length]
