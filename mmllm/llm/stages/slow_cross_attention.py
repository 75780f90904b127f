"""Gated cross-attention to all slow tokens in some layers of the LLM: Slow-Fast's hybrid layers (arXiv 2504.01328).

    text and fast tokens -> self-attention -> a
                                  | rotated queries
    slow tokens -> input norm -> cross-attention -> c        a + gate(a) c -> output projection

The slow tokens have no position: they are a set. Their keys and values are computed once and kept with the cache.

B rows, N new positions, M of them that attend, S slow tokens, H query heads, G key heads, d head width, D LLM width
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from mmllm.errors import ConfigError, InputError
from mmllm.fields import require
from mmllm.interfaces import LlmStage
from mmllm.llm.values import AttentionView
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class SlowCrossAttentionConfig:
    """The defaults are those of the released models; only `kv_init` and `upstream_decode` differ from them."""

    min_layer: int = 0
    """The first layer with cross-attention, counted from 0."""
    max_layer: int | None = None
    """Layers from this one on have none; None for all layers of the LLM."""
    every: int = 8
    """Distance between two layers with cross-attention."""
    queries: Literal["text", "text_after_visual", "all"] = "text"
    """Positions that attend to slow tokens: all text, text behind the first visual token, or all positions."""
    gate_tanh: bool = True
    """Whether the gate of a position goes through tanh."""
    gate_warm_up: bool = True
    """Whether a learned number that starts at 0 is a factor of the gate: at first, the layer is the LLM's own."""
    kv_init: Literal["aligned", "scrambled", "random"] = "aligned"
    """How new weights begin. `aligned`: keys and values as the LLM's own projections give them. `scrambled`: the same
    weights in the order of the release, whose heads then mix keys with values. `random`: as torch draws them."""
    upstream_decode: bool = False
    """Leave out cross-attention while an answer is generated with a cache, as the released code does by mistake."""

    def __post_init__(self) -> None:
        require(self.min_layer >= 0, self, "min_layer", "zero or more")
        require(self.every >= 1, self, "every", "at least 1")
        above = self.max_layer is None or self.max_layer > self.min_layer
        require(above, self, "max_layer", f"above min_layer = {self.min_layer}")

    def layers(self, count: int) -> range:
        """The layers with cross-attention, of an LLM of `count` layers.

        Raises:
            ConfigError: if the LLM has fewer layers than the settings name.
        """
        most = count if self.max_layer is None else self.max_layer
        if most > count or self.min_layer >= most:
            name = "max_layer" if most > count else "min_layer"
            raise ConfigError(
                f"SlowCrossAttentionConfig.{name} = {getattr(self, name)}: the LLM has {count} layers, from 0 on"
            )
        return range(self.min_layer, most, self.every)


@register("decoder_stage", "slow-cross-attention", config=SlowCrossAttentionConfig)
class SlowCrossAttention(LlmStage, nn.Module):
    """Slow-Fast's hybrid layers: text attends to all slow tokens, through a gate that starts closed."""

    depends_on_question: ClassVar[bool] = False
    needs_states: ClassVar[bool] = True

    def __init__(self, config: SlowCrossAttentionConfig, *, decoder: Any) -> None:
        """New weights for an LLM.

        Args:
            config: the settings.
            decoder: configuration of the LLM.

        Raises:
            ConfigError: if the LLM does not have the layers.
        """
        super().__init__()
        self.config = config
        chosen = config.layers(decoder.num_hidden_layers)
        self.layers = nn.ModuleDict({str(layer): GatedAttention(config, decoder) for layer in chosen})

    @property
    def keeps_prefix(self) -> bool:
        """Not if later passes go without cross-attention: the question would be in one."""
        return not self.config.upstream_decode

    def check_layers(self, layers: Sequence[nn.Module]) -> None:
        """Refuses an LLM whose layers have no norm before their attention.

        Raises:
            ConfigError: naming the layer.
        """
        for number in self.layers:
            if not hasattr(layers[int(number)], "input_layernorm"):
                raise ConfigError(f"layer {number} of this LLM has no input_layernorm, which slow tokens go through")

    def start_from(self, layers: Sequence[nn.Module]) -> None:
        """Sets keys and values to the LLM's own projections, as `kv_init` says.

        Raises:
            ConfigError: if the LLM's projections have other names or shapes.
        """
        if self.config.kv_init == "random":
            return
        own: Any
        for number, own in self.layers.items():
            own.start_from(layers[int(number)].self_attn, aligned=self.config.kv_init == "aligned")

    def with_settings(self, config: Any) -> Self | None:
        """A stage with the same weights, if it has the same layers and gates."""
        same = ("min_layer", "max_layer", "every", "gate_warm_up")
        if type(config) is not type(self.config) or any(getattr(config, x) != getattr(self.config, x) for x in same):
            return None
        other = copy.copy(self)
        other.config = config
        return other

    def prompt_flops(self, beside: int, text: int) -> float:
        """Keys and values of all slow tokens, and the attention and the gates of all text."""
        return float(sum(own.flops(beside, text) for own in self._own))

    def cached_numbers(self, beside: int) -> int:
        """Keys and values of all slow tokens."""
        return sum(beside * own.kv_proj.out_features for own in self._own)

    @property
    def _own(self) -> list[Any]:
        return list(self.layers.values())

    def attended(self, view: AttentionView) -> Tensor | None:
        """B N H d: the attention's output, with what text takes from the slow tokens.

        Raises:
            InputError: if a row has visual tokens and no slow tokens.
        """
        if str(view.layer) not in self.layers:
            return None
        layer: Any = self.layers[str(view.layer)]
        if view.phase == "prompt":
            self._read(view, layer)
        if "keys" not in view.state or (self.config.upstream_decode and view.phase != "prompt"):
            return None
        attends = self._attending(view)  # B N
        most = int(attends.sum(1).max())
        if not most:
            return None
        # only the positions that attend are computed: most of a prompt is visual
        index = (~attends).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]  # B M
        query = view.query.gather(2, repeat(index, "b m -> b h m d", h=view.query.shape[1], d=view.query.shape[3]))
        assert view.context is not None
        slots = repeat(index, "b m -> b m h d", h=view.context.shape[2], d=view.context.shape[3])
        context = view.context.gather(1, slots)  # B M H d
        seen = layer(query, context, view.state, view.scaling)
        seen = seen.masked_fill(~attends.gather(1, index)[..., None, None], 0.0)
        return view.context.scatter(1, slots, context + seen.to(context.dtype))

    def _read(self, view: AttentionView, layer: GatedAttention) -> None:
        """Computes the keys and values of a prompt's slow tokens; nothing for rows of text alone.

        Raises:
            InputError: if a row has visual tokens and no slow tokens.
        """
        current = view.current
        has_visual = current.visual.any(1)
        states, mask = current.cross_attention_states, current.cross_attention_mask
        present = torch.zeros_like(has_visual) if mask is None else mask.any(1).to(has_visual.device)
        if bool((without := has_visual & ~present).any()):
            row = int(without.nonzero()[0])
            raise InputError(f"row {row} has visual tokens, and no slow token to attend to: its mask is empty")
        if states is None or mask is None or not bool(has_visual.any()):
            return
        assert view.input_norm is not None
        device = view.query.device
        keys, values = layer.keys_and_values(view.input_norm(states.to(device)), view.query.dtype)
        # a row without slow tokens sees padding, and takes nothing of it: a softmax needs at least one key
        visible = mask.to(device) | ~present[:, None]
        view.state.update(keys=keys, values=values, visible=visible, has_visual=has_visual)

    def _attending(self, view: AttentionView) -> Tensor:
        """bool, B N: the new positions that attend to slow tokens."""
        new = view.query.shape[2]
        has_visual = view.state["has_visual"].unsqueeze(1)
        if self.config.queries == "all":
            return has_visual.expand(-1, new)
        text = has_visual & view.valid[:, 0, -new:]
        if view.phase != "prompt":
            return text
        visual, position = view.current.visual, view.query_position
        text &= ~visual.gather(1, position)
        if self.config.queries == "text_after_visual":
            text &= position > visual.int().argmax(1, keepdim=True)
        return text


class GatedAttention(nn.Module):
    """The weights of one layer: keys and values of slow tokens, and the gate."""

    def __init__(self, config: SlowCrossAttentionConfig, decoder: Any) -> None:
        super().__init__()
        self.config = config
        heads = decoder.num_attention_heads
        width = getattr(decoder, "head_dim", None) or decoder.hidden_size // heads
        self.key_heads = getattr(decoder, "num_key_value_heads", None) or heads
        self.kv_proj = nn.Linear(decoder.hidden_size, 2 * self.key_heads * width)
        self.gate = nn.Linear(heads * width, 1)
        self.warm_up = nn.Parameter(torch.zeros(1)) if config.gate_warm_up else None

    def keys_and_values(self, normed: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values, B G S d each, of normed slow tokens B S D."""
        both = rearrange(self.kv_proj(normed), "b s (g two d) -> two b g s d", two=2, g=self.key_heads)
        keys, values = both.to(normed.device, dtype)
        return keys, values

    def flops(self, slow: int, text: int) -> int:
        """Operations of so many slow tokens and positions that attend to them."""
        context = self.gate.in_features
        return 2 * (slow * self.kv_proj.weight.numel() + 2 * text * slow * context + text * context)

    def forward(self, query: Tensor, context: Tensor, state: dict[str, Tensor], scaling: float) -> Tensor:
        """What queries take from the slow tokens, times their gate: B M H d.

        Args:
            query: B H M d, rotated.
            context: B M H d, the self-attention's output of the same positions.
            state: `keys` and `values`, B G S d, and `visible`, bool B S.
            scaling: of the logits.
        """
        # the queries of all heads that share a key head stand in one row: the keys need no copies
        grouped = rearrange(query, "b (g r) m d -> b g (r m) d", g=self.key_heads)
        visible = rearrange(state["visible"], "b s -> b 1 1 s")
        seen = scaled_dot_product_attention(grouped, state["keys"], state["values"], visible, scale=scaling)
        seen = rearrange(seen, "b g (r m) d -> b m (g r) d", m=query.shape[2])
        gate = self.gate(rearrange(context, "b m h d -> b m (h d)")).to(context.device)  # B M 1
        gate = gate.tanh() if self.config.gate_tanh else gate
        if self.warm_up is not None:
            warm_up = self.warm_up.to(context.device)
            gate = gate * (warm_up if self.config.queries == "all" else warm_up.tanh())
        return seen * gate.unsqueeze(-1).to(seen.dtype)

    @torch.no_grad()
    def start_from(self, attention: nn.Module, *, aligned: bool) -> None:
        """Copies the projections of keys and values of the LLM's attention, head by head or one behind the other.

        Raises:
            ConfigError: if they have other names or shapes.
        """
        pair: list[Any] = [getattr(attention, name, None) for name in ("k_proj", "v_proj")]
        if any(part is None or 2 * part.weight.shape[0] != self.kv_proj.weight.shape[0] for part in pair):
            raise ConfigError(
                f"{type(attention).__name__} has no k_proj and v_proj of the expected shape: set kv_init=random"
            )
        pattern = "two (g d) ... -> (g two d) ..." if aligned else "two (g d) ... -> (two g d) ..."
        weights = torch.stack([part.weight for part in pair])
        self.kv_proj.weight.copy_(rearrange(weights, pattern, g=self.key_heads))
        biases = [torch.zeros_like(part.weight[:, 0]) if part.bias is None else part.bias for part in pair]
        self.kv_proj.bias.copy_(rearrange(torch.stack(biases), pattern, g=self.key_heads))
