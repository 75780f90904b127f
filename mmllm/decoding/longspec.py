"""LongSpec (arXiv 2502.17421): trees of a layer whose own state does not grow with the context. Exact.

The tree has levels of fixed sizes: a level is the best words behind all nodes of the level before, by the product of
the draft's probabilities on their path. Its siblings are no draws: where texts are sampled, the target draws each token
itself. The release tests siblings as if the draft had drawn them, which gives another law; its greedy texts are exact.

W window, N nodes of a level, M nodes of the tree, V vocabulary, G groups of keys, d head width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from mmllm.decoding.beside_target import BesideTargetConfig, BesideTargetDecoding
from mmllm.decoding.draft import Draft
from mmllm.decoding.drafter import prompt_embeddings
from mmllm.decoding.longspec_draft import LongSpecDraft, key_frequencies
from mmllm.decoding.masks import ancestry
from mmllm.decoding.tree import DraftSource, Request
from mmllm.decoding.writing import Written
from mmllm.fields import require
from mmllm.llm.head import lm_logits
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class LongSpecConfig(BesideTargetConfig):
    """Which draft, and the tree."""

    tree: tuple[int, ...] = (4, 16, 16, 16, 16)
    """Nodes of each level."""
    released: bool = False
    """Accept as the released code does: then samples are of another law."""

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = bool(self.tree) and all(size >= 1 for size in self.tree)
        require(allowed, self, "tree", "at least one level of at least 1 node, such as 4+16+16")


@register("decoding", "longspec", config=LongSpecConfig)
class LongSpec(BesideTargetDecoding):
    """A tree of a trained layer that reads the target's cache and has a short memory of its own (LongSpec): exact."""

    draft_name: ClassVar[str] = "longspec"
    config: LongSpecConfig

    @property
    def other_law(self) -> str:
        """What the released code samples."""
        return "samples that test the best words as if they were drawn (LongSpec as released)" * self.config.released

    def start(self, request: Request) -> DraftSource:
        """A source that has read the end of the prompt."""
        return LayerTrees(cast(LongSpecDraft, self.draft_for(request.model)), self.config, request)

    def accept(self, draft: Draft, logits: Tensor, text: Written) -> list[int]:
        """The target's own choices; as released, the deepest path of right nodes, or draws by p / q."""
        if text.sample or not self.config.released:
            return super().accept(draft, logits, text)
        words = [[draft.ids[step] for step in draft.path_to(node)[1:]] for node in range(len(draft))]
        best = [int(text.scores(row, ahead).argmax()) for row, ahead in zip(logits, words, strict=True)]
        path = deepest_match(draft.parent_of, draft.ids, best)
        for count, node in enumerate(path, start=1):
            if text.add(best[node]):
                return path[:count]
        return path


def deepest_match(parents: Sequence[int], tokens: Sequence[int], best: Sequence[int]) -> list[int]:
    """The path to the last node whose whole path is right, from the root on.

    Args:
        parents: of each node, in topological order and level by level; -1 for the root.
        tokens: of each node.
        best: the target's choice behind each node.
    """
    right = [True]
    for node, parent in enumerate(parents[1:], start=1):
        right.append(right[parent] and tokens[node] == best[parent])
    path = [max(node for node, is_right in enumerate(right) if is_right)]
    while path[-1]:
        path.append(parents[path[-1]])
    return path[::-1]


class LayerTrees(DraftSource):
    """Trees of one text. The layer keeps keys and values of the last W positions."""

    def __init__(self, draft: LongSpecDraft, config: LongSpecConfig, request: Request) -> None:
        self.draft, self.config, self.request = draft, config, request
        self.window = draft.config.window
        embeddings = prompt_embeddings(request)[:, request.target.attended][:, -self.window :]
        self.count, self.read = int(request.target.attended.sum()), 0
        self.frequencies = key_frequencies(request.model) if draft.config.cross else torch.empty(0)
        self.keys, self.values = self._made(embeddings, self.count - embeddings.shape[1])
        self._passes, self._positions = 0, 0

    @property
    def passes(self) -> int:
        """Passes of the layer."""
        return self._passes

    @property
    def positions(self) -> int:
        """Nodes that it computed."""
        return self._positions

    @property
    def extra(self) -> dict[str, Any]:
        """How many bytes the layer's own state has."""
        return {"state_bytes": sum(part.numel() * part.element_size() for part in (self.keys, self.values))}

    def propose(self, root: int, room: int) -> Draft:
        """A tree with as many levels as there is room."""
        self._follow()
        tokens, parents, scores = [root], [-1], [0.0]
        words, rows = [list[int]()], [torch.empty(0)]
        level, branch = [0], None
        for size in self.config.tree[:room]:
            branch = self._grown(tokens, parents, level, branch)
            laws = [
                self.request.text.law(self.request.words_only(logits), words[node])
                for node, logits in zip(level, branch.logits, strict=True)
            ]
            chances = torch.stack([scores[node] + law.log() for node, law in zip(level, laws, strict=True)])  # N V
            best, index = chances.flatten().topk(min(size, int((chances > -torch.inf).sum())))
            born: list[int] = []
            for score, place in zip(best.tolist(), index.tolist(), strict=True):
                row, token = divmod(place, chances.shape[1])
                born.append(len(tokens))
                tokens.append(token)
                parents.append(level[row])
                scores.append(score)
                words.append([*words[level[row]], token])
                rows.append(laws[row])
            level = born
        proposal = None
        if self.config.released and len(rows) > 1:
            proposal = torch.stack([torch.zeros_like(rows[1]), *rows[1:]])
        return Draft(tokens=torch.tensor(tokens), parents=torch.tensor(parents), proposal=proposal)

    def _follow(self) -> None:
        """Adds the tokens since the last call, but the last one, to the layer's state; the oldest leave it."""
        new = self.request.text.new[self.read : -1]
        if new:
            keys, values = self._made(self._embedded(new)[None], self.count)
            self.keys = torch.cat([self.keys, keys], dim=2)[:, :, -self.window :]
            self.values = torch.cat([self.values, values], dim=2)[:, :, -self.window :]
            self.read, self.count = self.read + len(new), self.count + len(new)

    def _embedded(self, tokens: Sequence[int]) -> Tensor:
        """N D."""
        table = self.request.model.get_input_embeddings()
        return table(torch.tensor(tokens, device=table.weight.device))

    def _made(self, embeddings: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """1 G N d each: keys and values of embeddings (1 N D) from a position on."""
        positions = torch.arange(start, start + embeddings.shape[1], device=embeddings.device)[None]
        return self.draft.self_attn.keys_and_values(self.draft.input_layernorm(embeddings), positions)

    def _grown(self, tokens: list[int], parents: list[int], level: list[int], before: _Branch | None) -> _Branch:
        """The nodes of a level, computed in one pass behind the levels above it."""
        visible, depth = (part.to(self.keys.device) for part in ancestry(tuple(parents)))
        states, positions = self._embedded([tokens[node] for node in level])[None], (self.count + depth[level])[None]
        normed = self.draft.input_layernorm(states)
        keys, values = self.draft.self_attn.keys_and_values(normed, positions)
        if before is not None:
            keys, values = torch.cat([before.keys, keys], dim=2), torch.cat([before.values, values], dim=2)
        kept = torch.arange(self.count - self.keys.shape[2], self.count, device=depth.device)
        near = positions[0, :, None] - kept <= self.window
        in_branch = visible[level] & (depth[level][:, None] - depth <= self.window)
        target, layer = self.request.target, self.request.target.cache.layers[-1]
        seen = target.attended.expand(1, len(level), -1)
        hidden = self.draft(
            states, positions,
            [(self.keys, self.values, near[None]), (keys, values, in_branch[None])],
            (layer.keys, layer.values, seen),
            target.position.flatten()[-1] + depth[level][None],
            self.frequencies,
        )  # fmt: skip
        self._passes, self._positions = self._passes + 1, self._positions + len(level)
        return _Branch(keys=keys, values=values, logits=lm_logits(self.request.model, hidden[0]))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Branch:
    """The nodes of a tree that the layer has computed."""

    keys: Tensor
    """1 G M d."""
    values: Tensor
    logits: Tensor
    """N V, of the last level."""
