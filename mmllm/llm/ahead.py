"""Looks at the attention of a layer that has not run yet, and computes no more than that takes.

    states -> the layer's norm -> queries of the rows that ask, keys of all rows -> attention of the rows that ask

No value and no output is computed. The layer then takes the keys of the positions that remain, before their rotation,
and does not project them again.

B rows, K positions, D LLM width, W width of a projection's output, R rows that ask
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from mmllm.llm.attention import Probe, receive
from mmllm.llm.cache import CACHE
from mmllm.llm.layers import with_modules

_TAKEN: ContextVar[tuple[nn.Module, Tensor] | None] = ContextVar("taken", default=None)
"""The projection of keys of the layer that comes next, and what it need not compute again, B K W."""


class Look:
    """A look at the attention of one layer, before it runs.

    Args:
        attention: the layer's attention module.
    """

    def __init__(self, attention: Any) -> None:
        self.attention = attention
        self.keys: Tensor | None = None
        """B K W: what the positions' keys are projected to, before their rotation; None if nobody has looked."""

    def received(self, normed: Tensor, inputs: dict[str, Any], rows: Tensor) -> Tensor:
        """float32, B K: the attention that positions would receive from weighted rows.

        Args:
            normed: B K D. States behind the layer's norm.
            inputs: what the attention needs beside them: mask and positions.
            rows: float, B K. Weight of each row.
        """
        asking = (rows != 0).any(0).nonzero().squeeze(1)
        keys = NotedProjection(self.attention.k_proj) if _has(self.attention, "k_proj") else None
        probe = probed(self.attention, normed, inputs, asking, k_proj=keys)
        self.keys = None if keys is None else keys.output
        scaling = getattr(self.attention, "scaling", probe.query.shape[-1] ** -0.5)
        return receive(probe.query, probe.key, inputs["attention_mask"], {"rows": rows}, scaling)["rows"]

    def narrow(self, slot: Tensor) -> None:
        """Positions were removed: those at the slots (int64, B K') remain."""
        if self.keys is not None:
            self.keys = self.keys.gather(1, slot.unsqueeze(-1).expand(*slot.shape, self.keys.shape[-1]))

    def forget(self) -> None:
        """States were changed: keys must be projected again."""
        self.keys = None

    def hand_on(self) -> None:
        """The layer, which runs next, takes the keys as they are. With gradients it projects them again."""
        if self.keys is not None and not torch.is_grad_enabled():
            _TAKEN.set((self.attention.k_proj, self.keys))


def probed(attention: Any, normed: Tensor, inputs: dict[str, Any], asking: Tensor | None = None, **parts: Any) -> Probe:
    """An attention's queries and keys of states behind the layer's norm (B K D); nothing is attended.

    Args:
        attention: the module.
        normed: B K D.
        inputs: what the attention needs beside them: mask and positions.
        asking: int64, R. The rows whose queries are asked for, the others are 0; None for all.
        parts: modules that stand in the place of the attention's own, by name; None for its own.
    """
    parts = {name: part for name, part in parts.items() if part is not None}
    if _has(attention, "v_proj", "o_proj") and hasattr(attention.v_proj, "out_features"):
        parts |= {"v_proj": NoProjection(attention.v_proj.out_features), "o_proj": nn.Identity()}
    if asking is not None and _has(attention, "q_proj"):
        parts["q_proj"] = ProjectionOfRows(attention.q_proj, asking)
    probe = Probe()
    with torch.no_grad():
        with_modules(attention, **parts)(hidden_states=normed, probe=probe, **inputs, **{CACHE: None})
    return probe


def _has(attention: nn.Module, *names: str) -> bool:
    """Whether an attention has projections under the names that Hugging Face gives them; some have one for all."""
    return all(isinstance(getattr(attention, name, None), nn.Module) for name in names)


class NoProjection(nn.Module):
    """Stands for a projection to a width whose output nobody reads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, states: Tensor) -> Tensor:
        """B K W zeros of states B K D, which take no memory."""
        return states.new_zeros(()).expand(*states.shape[:-1], self.width)


class ProjectionOfRows(nn.Module):
    """A projection of some rows; the output of the others is 0."""

    def __init__(self, projection: nn.Module, rows: Tensor) -> None:
        super().__init__()
        self.projection, self.rows = projection, rows

    def forward(self, states: Tensor) -> Tensor:
        """B K W of states B K D."""
        output = self.projection(states[:, self.rows])
        return output.new_zeros(*states.shape[:-1], output.shape[-1]).index_copy(1, self.rows, output)


class NotedProjection(nn.Module):
    """A projection whose last output is kept."""

    def __init__(self, projection: nn.Module) -> None:
        super().__init__()
        self.projection = projection
        self.output: Tensor | None = None

    def forward(self, states: Tensor) -> Tensor:
        """B K W of states B K D."""
        self.output = self.projection(states)
        return self.output


# --- the layer takes what was projected ---------------------------------------------------------------------


def take_keys(attention: nn.Module) -> None:
    """Prepares a layer's attention to take keys from a look. One without a projection of its own for keys cannot."""
    if _has(attention, "k_proj"):
        projection: Any = attention.k_proj
        projection.register_forward_pre_hook(_project_little)
        projection.register_forward_hook(_take)


def nothing_taken() -> None:
    """Before a layer: forgets what a layer that failed has left."""
    _TAKEN.set(None)


def _project_little(projection: nn.Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
    """A single row in place of all, if the output is there: an empty one is not for every kind of projection."""
    taken = _TAKEN.get()
    return None if taken is None or taken[0] is not projection else (args[0][:, :1],)


def _take(projection: nn.Module, _args: tuple[Tensor], _output: Tensor) -> Tensor | None:
    """The output that is there already; None for no change."""
    taken = _TAKEN.get()
    if taken is None or taken[0] is not projection:
        return None
    _TAKEN.set(None)
    return taken[1]
