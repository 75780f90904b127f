"""FLASH (arXiv 2505.12728): a chain of k words from one pass of a small layer over the target's hidden states. Exact.

The layer reads the video as a few vectors, and each word of the text once; see `mmllm.decoding.flash_draft`.

P positions of the prompt, N new tokens, D width
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from mmllm.decoding.beside_target import BesideTargetConfig, BesideTargetDecoding
from mmllm.decoding.draft import Draft
from mmllm.decoding.drafter import prompt_embeddings
from mmllm.decoding.flash_draft import FlashDraft
from mmllm.decoding.tree import DraftSource, Request
from mmllm.llm.head import lm_logits
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class FlashConfig(BesideTargetConfig):
    """Which draft."""


@register("decoding", "flash", config=FlashConfig)
class Flash(BesideTargetDecoding):
    """Chains of a trained layer that reads the target's hidden states, and a short view of the video (FLASH): exact."""

    reads_states: ClassVar[bool] = True
    draft_name: ClassVar[str] = "flash"

    def start(self, request: Request) -> DraftSource:
        """A source that has read the prompt."""
        return GuessedChains(cast(FlashDraft, self.draft_for(request.model)), request)


class GuessedChains(DraftSource):
    """Chains of one text. Keys and values of what is text stay; nothing has ever to be taken back."""

    def __init__(self, draft: FlashDraft, request: Request) -> None:
        self.draft, self.request = draft, request
        embeddings, mask = prompt_embeddings(request), request.target.attended
        inputs = draft.inputs(embeddings, request.target.states[None], visual_positions(request, mask), mask[None])
        chosen = inputs.valid[0]
        self.next = int(inputs.positions[0, chosen].max()) + 1
        self.keys, self.values = draft.keys_and_values(inputs.states[:, chosen], inputs.positions[:, chosen])
        self.prompt_length, self.read = len(mask), 0
        self._passes, self._positions, self.prompt_positions = 0, 0, int(chosen.sum())

    @property
    def passes(self) -> int:
        """Passes of the layer."""
        return self._passes

    @property
    def positions(self) -> int:
        """Their inputs."""
        return self._positions

    @property
    def extra(self) -> dict[str, Any]:
        """How many inputs the layer has for the prompt."""
        return {"prompt_positions": self.prompt_positions}

    def propose(self, root: int, room: int) -> Draft:
        """A chain as deep as there is room."""
        states, positions = self._read()
        if not room:
            return Draft.chain([root])
        seen = torch.ones(1, 1, self.keys.shape[2], dtype=torch.bool, device=states.device)
        guesses = self.draft.guesses(states[:, -1:], positions[:, -1:], self.keys, self.values, seen)[0, 0]
        words: list[int] = []
        for logits in lm_logits(self.request.model, guesses[:room]):
            law = self.request.text.law(self.request.words_only(logits), words)
            words.append(int(law.argmax()))
        return Draft.chain([root, *words])

    def _read(self) -> tuple[Tensor, Tensor]:
        """Inputs (1 N D) and positions (1 N) of the tokens since the last call, whose keys and values are kept."""
        text, model = self.request.text, self.request.model
        device = self.keys.device
        tokens = torch.tensor(text.new[self.read :], device=device)
        before = self.prompt_length + self.read - 1
        hidden = self.request.target.states[before : before + len(tokens)].to(device)
        states = self.draft.fused(model.get_input_embeddings()(tokens).to(hidden), hidden)[None]
        positions = torch.arange(self.next, self.next + len(tokens), device=device)[None]
        keys, values = self.draft.keys_and_values(states, positions)
        self.keys, self.values = torch.cat([self.keys, keys], dim=2), torch.cat([self.values, values], dim=2)
        self.read, self.next = text.count, self.next + len(tokens)
        self._passes, self._positions = self._passes + 1, self._positions + len(tokens)
        return states, positions


def visual_positions(request: Request, mask: Tensor) -> Tensor:
    """bool, 1 P: where the prompt has visual tokens; nowhere if it was given without ids.

    Args:
        request: the text.
        mask: P, of the prompt.
    """
    ids = request.input_ids
    if ids.shape[1] != len(mask):
        return torch.zeros_like(mask)[None]
    return torch.isin(ids, torch.tensor(request.forbidden, dtype=ids.dtype, device=ids.device))
