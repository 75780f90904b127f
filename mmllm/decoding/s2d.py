"""S2D (arXiv 2407.01955): one draft for several targets, whose first layers are drafts, too. Exact.

A token is drafted by the first layers if they are sure of it; else the same pass goes on to the next exit, and the last
exit is final. How sure is a setting, which differs between targets. `mmllm train-draft s2d` trains all exits together.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmllm.decoding.draft import Draft
from mmllm.decoding.draft_files import recorded
from mmllm.decoding.drafted import DraftedDecoding
from mmllm.decoding.drafter import OWN, DrafterConfig, common, prompt_of
from mmllm.decoding.exit_reader import ExitReader
from mmllm.decoding.refusals import check_llm, same_vocabulary
from mmllm.decoding.tree import DraftSource, Request, TreeDecoding
from mmllm.fields import require
from mmllm.registry import register


@dataclass(frozen=True, kw_only=True)
class S2DConfig(DrafterConfig):
    """Which model drafts, and when it is sure."""

    draft: str
    """Folder of the draft, as `mmllm train-draft s2d` wrote it."""
    threshold: float = 0.6
    """tau: a token is kept at an exit if its probability there is at least this. 0 takes the first exit only, a number
    above 1 the last one only."""
    exits: tuple[int, ...] = ()
    """After how many layers drafting may stop; those that the draft was trained with if none is given."""
    tokens: int = 4
    """Tokens of a draft."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.draft != OWN, self, "draft", "the folder of a trained draft")
        require(self.threshold >= 0, self, "threshold", "0 or more")
        rising = all(a < b for a, b in zip((0, *self.exits), self.exits, strict=False))
        require(rising, self, "exits", "rising numbers of layers, such as 1+2")
        require(self.tokens >= 1, self, "tokens", "at least 1")


@register("decoding", "s2d", config=S2DConfig)
class S2D(DraftedDecoding, TreeDecoding):
    """A chain of a small model that stops after its first layers wherever these are sure (S2D): exact."""

    config: S2DConfig

    def start(self, request: Request) -> DraftSource:
        """A source that has read the prompt."""
        name = self.registered_name
        prompt = request.drafter_prompt or prompt_of(name, request, self.config, self.draft_model)
        check_llm(name, prompt.model)
        same_vocabulary(name, request.vocabulary, prompt.model.config.vocab_size)
        reader = ExitReader(prompt.model, self.exits, prompt.embeddings, prompt.mask)
        return SureExits(reader, self.config, request)

    @property
    def exits(self) -> tuple[int, ...]:
        """After how many layers drafting may stop.

        Raises:
            ConfigError: if neither the configuration nor the draft says it.
        """
        if self.config.exits:
            return self.config.exits
        settings = recorded("s2d", Path(self.config.draft))
        return tuple(settings["exits"])


class SureExits(DraftSource):
    """Chains of one text."""

    def __init__(self, reader: ExitReader, config: S2DConfig, request: Request) -> None:
        self.reader, self.config, self.request = reader, config, request
        self.prompt_length = reader.length
        self.said: list[int] = []
        self.stopped = [0] * len(reader.done)

    @property
    def passes(self) -> int:
        """Passes of the first layers."""
        return self.reader.passes

    @property
    def positions(self) -> int:
        """Their positions."""
        return self.reader.positions

    @property
    def extra(self) -> dict[str, Any]:
        """How many tokens stopped at each exit, and how often a layer computed a token behind the prompt."""
        exits = {f"exit_{last}": count for (_, last), count in zip(self.reader.bounds, self.stopped, strict=True)}
        return {**exits, "layer_positions": self.reader.pairs}

    def propose(self, root: int, room: int) -> Draft:
        """A chain as deep as there is room."""
        count = min(self.config.tokens, room)
        words: list[int] = []
        if count:
            self._follow(self.request.text.new)
        while len(words) < count:
            words.append(self._next(words))
            if len(words) < count:
                self._say(words[-1:])
        return Draft.chain([root, *words])

    def _next(self, words: list[int]) -> int:
        """The best word at the first exit that is sure of it, or at the last exit."""
        for segment in range(len(self.stopped)):
            logits = self.request.words_only(self.reader.logits(segment))
            law = self.request.text.law(logits, words)
            if float(law.max()) >= self.config.threshold:
                break
        self.stopped[segment] += 1
        return int(law.argmax())

    def _follow(self, new: list[int]) -> None:
        """Takes back what did not become text, and reads the rest."""
        same = common(self.said, new)
        self.reader.cut(self.prompt_length + same)
        self.said = self.said[:same]
        self._say(new[same:])

    def _say(self, tokens: list[int]) -> None:
        """Reads tokens."""
        table = self.reader.llm.get_input_embeddings()
        self.reader.append(table(torch.tensor(tokens, device=table.weight.device))[None])
        self.said += tokens
