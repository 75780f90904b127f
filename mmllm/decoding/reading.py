"""A model with the cache of what it has read. Branches of a tree are read beside each other, then cut back to one.

    cache  | prompt and text, L positions | nodes of a tree, M |  settle(path) ->  | L + len(path) |

Keys are stored rotated, and a node's depth is its later position: what is kept needs no change.

L positions kept, N new nodes, M nodes of the tree, V vocabulary, D width, A axes of a position (1, or more with M-RoPE)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from transformers import DynamicCache

from mmllm.decoding.masks import ancestry, behind_chain, masks_for, window_of
from mmllm.errors import InputError
from mmllm.llm.cache import CACHE
from mmllm.llm.head import lm_logits
from mmllm.llm.last_rows import finishing_last

_SHORT = 256
"""Rows of a prompt that are read together with a first tree. Attention with a mask computes what it hides: longer
prompts are read without one, alone."""


class CachedReader:
    """Reads trees of tokens behind what is in a cache.

    Args:
        model: a decoder LLM of transformers, or one of our models.
        cache: with L positions.
        attended: bool, L. False at padding.
        position: int64, A 1 1 or 1 1. The position of the next token.
    """

    def __init__(self, model: Any, cache: Any, attended: Tensor, position: Tensor) -> None:
        self.model, self.cache, self.attended, self.position = model, cache, attended, position
        self.window = window_of(model.config.get_text_config())
        self.words = model.get_input_embeddings()
        self.dtype = self.words.weight.dtype
        self.passes, self.positions, self.peak = 0, 0, len(attended)
        self.states: Tensor | None = None
        """L D: the last hidden states of the text; None if nobody reads them."""
        self.logits: Tensor = torch.empty(0)
        """N V, of the nodes of the tree."""
        self.waiting: Tensor | None = None
        """1 N D: the end of the prompt, which the pass of the first tree reads. The last row is the tree's root."""
        self.drop()

    @classmethod
    def after_prompt(
        cls, model: Any, input_ids: Tensor, inputs: Mapping[str, Any], *, keep_states: bool = False
    ) -> tuple[Self, Tensor]:
        """A reader of a prompt, and the logits (V) of the first new token.

        Args:
            model: the model.
            input_ids: int64, 1 L; empty if `inputs` has `inputs_embeds`.
            inputs: what transformers' `generate` gives to a decoding method. Its cache may hold a beginning of the
                prompt.
            keep_states: keep the last hidden states of the text.

        Raises:
            InputError: if states are to be kept, and the beginning was read by somebody else.
        """
        embeddings = inputs.get("inputs_embeds")
        given = input_ids.shape[1] if embeddings is None else embeddings.shape[1]
        mask = inputs.get("attention_mask")
        before = inputs[CACHE].get_seq_length()
        is_whole = mask is None or mask.shape[1] == given
        prepared = model.prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=given - before if before and is_whole else None,
            is_first_iteration=True,
            **inputs,
        )
        if keep_states and before:
            raise InputError(f"{CACHE} holds {before} positions, whose hidden states nobody has kept: give none")
        outputs = model(**prepared, return_dict=True, **({"output_hidden_states": True} if keep_states else {}))
        length = inputs[CACHE].get_seq_length()
        attended = torch.ones(length, dtype=torch.bool) if mask is None else mask[0].bool()
        attended = attended.to(input_ids.device)
        positions = inputs.get("position_ids")
        last = attended.sum().view(1, 1) - 1 if positions is None else positions[..., -1:]
        reader = cls(model, inputs[CACHE], attended, last + 1)
        reader.states = outputs.hidden_states[-1][0] if keep_states else None
        return reader, outputs.logits[0, -1]

    @classmethod
    def of_embeddings(cls, model: Any, embeddings: Tensor, mask: Tensor) -> tuple[Self, Tensor]:
        """A reader of a prompt of embeddings, and the logits (V) of the first new token.

        Args:
            model: a decoder LLM.
            embeddings: 1 L D.
            mask: 1 L. 0 at padding, on the left.
        """
        cache, attended = DynamicCache(), mask[0].bool()
        positions = (attended.long().cumsum(0) - 1).clamp(min=0)[None]
        outputs = model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{CACHE: cache},
        )
        return cls(model, cache, attended, positions[..., -1:] + 1), outputs.logits[0, -1]

    @classmethod
    def of_own_prompt(
        cls, model: Any, embeddings: Tensor, mask: Tensor, position: Tensor, cache: DynamicCache
    ) -> tuple[Self, Tensor]:
        """A reader of a prompt of one of our models, and the logits (V) of the first new token.

        What is not in the cache is read with the first tree if it is short: it is `waiting`, and the logits are 0 V.

        Args:
            model: one of our models.
            embeddings: 1 N D, of what is not in the cache.
            mask: 1 L. 0 at padding.
            position: int64, 1 N.
            cache: of what comes before.

        Raises:
            InputError: if the logits hold NaN.
        """
        is_whole, rows = bool(mask.all()), embeddings.shape[1]
        if is_whole and rows <= _SHORT:
            reader = cls(model, cache, mask[0, :-rows].bool(), position[:, :1])
            reader.waiting = embeddings
            return reader, embeddings.new_empty(0, model.get_output_embeddings().out_features)
        reader = cls(model, cache, mask[0].bool(), position[:, -1:] + 1)
        seen = None if is_whole else mask
        return reader, reader._decoded(embeddings, seen, position, last=1)[0]

    @property
    def decoder(self) -> Any:
        """The decoder of one of our models; None for others, whose own forward may do more. A method may put another
        model in place of the first."""
        return self.model.language_model.base_model if hasattr(self.model, "llm_stages") else None

    def read(self, tokens: Tensor, parents: Sequence[int], embeddings: Tensor | None = None) -> Tensor:
        """Logits N V of new nodes, which join the tree.

        Args:
            tokens: int64, N.
            parents: for each its parent among the nodes of the tree, those of this call included; -1 if it follows
                the text.
            embeddings: N D, in place of the tokens.

        Raises:
            InputError: if the logits hold NaN.
        """
        device, before = self.attended.device, len(self.tokens)
        self.tokens += tokens.tolist()
        self.parents += [int(parent) for parent in parents]
        if self.waiting is not None:
            return self._read_with_prompt(self.waiting, tokens)
        visible, depth = (part.to(device) for part in ancestry(tuple(self.parents)))
        mask = masks_for(self.window, self.attended, visible[before:], depth, self.dtype)
        position = self.position + depth[before:]
        if self.decoder is not None:
            given = self.words(tokens.to(device)) if embeddings is None else embeddings
            logits = self._decoded(given[None], mask, position)
        else:
            logits = self._computed(tokens.to(device), embeddings, mask, position)
        self.logits = logits if not before else torch.cat([self.logits, logits])
        self.passes, self.positions = self.passes + 1, self.positions + len(tokens)
        self.peak = max(self.peak, len(self.attended) + len(self.tokens))
        return logits

    def _read_with_prompt(self, prompt: Tensor, tokens: Tensor) -> Tensor:
        """Logits M V of the tree, in one pass with the end of the prompt (1 N D), whose last row is the root.

        The prompt's rows come first and are text at once; its pass is not counted among those of the trees.
        """
        device, before, self.waiting = self.attended.device, prompt.shape[1] - 1, None
        visible, depth = (part.to(device) for part in behind_chain(before, *ancestry(tuple(self.parents))))
        mask = masks_for(self.window, self.attended, visible, depth, self.dtype)
        rows = torch.cat([prompt, self.words(tokens[1:].to(device))[None]], dim=1)
        self.logits = self._decoded(rows, mask, self.position + depth, last=len(tokens))
        self.attended = torch.cat([self.attended, self.attended.new_ones(before)])
        self.position, self.positions = self.position + before, self.positions + len(tokens) - 1
        self.peak = len(self.attended) + len(tokens)
        return self.logits

    def _decoded(self, embeddings: Tensor, mask: Any, position: Tensor, last: int = 0) -> Tensor:
        """Logits of the `last` positions of a pass of our decoder over 1 N D; of all for 0."""
        inputs = {"inputs_embeds": embeddings, "attention_mask": mask, "position_ids": position, CACHE: self.cache}
        decoder = finishing_last(self.decoder, embeddings.shape[1], last) if last else self.decoder
        hidden = decoder(**inputs, use_cache=True).last_hidden_state[0, -last:]
        return self._checked(lm_logits(self.model, hidden), hidden)

    def _computed(self, tokens: Tensor, embeddings: Tensor | None, mask: Any, position: Tensor) -> Tensor:
        """Logits N V of a pass through a model of transformers."""
        given = {"input_ids": tokens[None]} if embeddings is None else {"inputs_embeds": embeddings[None]}
        inputs = {**given, "attention_mask": mask, "position_ids": position, CACHE: self.cache, "use_cache": True}
        states = {} if self.states is None else {"output_hidden_states": True}
        outputs = self.model(**inputs, **states, return_dict=True)
        return self._checked(outputs.logits[0], outputs.hidden_states[-1][0] if states else None)

    def _checked(self, logits: Tensor, hidden: Tensor | None) -> Tensor:
        """The logits of a pass (N V); its hidden states (N D) are kept if somebody reads them.

        Raises:
            InputError: if the logits hold NaN.
        """
        if bool(logits.isnan().any()):
            raise InputError("the logits of a draft hold NaN: the model's numbers overflow")
        if self.states is not None and hidden is not None:
            self._tree_states.append(hidden)
        return logits

    def settle(self, path: Sequence[int]) -> None:
        """Keeps the nodes of a path of the tree as text, and drops all others.

        Only the path is moved: what stands in front of it has its place already. The pass that read the tree has made
        the tensors that are written into, so that nobody else holds them.
        """
        length, count = len(self.attended), len(path)
        nodes = None if list(path) == list(range(count)) else length + torch.tensor(path)
        for layer in self.cache.layers:
            for states in (layer.keys, layer.values):
                if nodes is not None:
                    states[:, :, length : length + count] = states.index_select(2, nodes.to(states.device))
            layer.keys, layer.values = (states[:, :, : length + count] for states in (layer.keys, layer.values))
        self.attended = torch.cat([self.attended, self.attended.new_ones(count)])
        self.position = self.position + count
        if self.states is not None and count:
            self.states = torch.cat([self.states, torch.cat(self._tree_states)[list(path)]])
        self.drop()

    def cut(self, count: int) -> None:
        """Takes back the last `count` positions of the text."""
        length = len(self.attended) - count
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]
        self.attended, self.position = self.attended[:length], self.position - count
        self.states = None if self.states is None else self.states[:length]

    def drop(self) -> None:
        """Forgets the tree, whose keys the cache no longer holds."""
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.logits = torch.empty(0, device=self.attended.device)
        self._tree_states: list[Tensor] = []
