"""Conversations with a video LLM that transformers runs: about one video or one image, or about none.

R rows, G positions of a beginning, K new ids
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmllm.decoding.choosing import options_with
from mmllm.errors import InputError
from mmllm.hosting.narrowing import HostedPrompt
from mmllm.inference.encoded import EncodedVideo
from mmllm.inference.hosted import HostedVideoQA
from mmllm.inference.hosted_video import HostedVideo, hosted_video
from mmllm.inference.prompts import (
    Medium,
    Opening,
    Prompt,
    Prompts,
    PromptTooLong,
    Turn,
    chat_messages,
    media_of,
    watched_of,
)
from mmllm.llm.counters import ContextCounts
from mmllm.llm.prefix import Prefix
from mmllm.times.stamps import stamped


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptOfHosted(Prompt):
    """A conversation with its visual tokens in place."""

    prepared: HostedPrompt
    inputs: Mapping[str, Any]
    """What the model's processor made of it, one row."""
    opening: Tensor | None
    """int64, G. The ids up to the last visual token of a video, whose LLM's cache is kept with it; None if whole
    prompts are read."""


class HostedPrompts(Prompts[PromptOfHosted]):
    """Conversations with a `HostedVideoQA`."""

    def __init__(self, qa: HostedVideoQA) -> None:
        self.qa: HostedVideoQA = qa

    def picture(self, pixels: np.ndarray) -> EncodedVideo:
        """A still image as the tower sees it."""
        return self.qa.encode_picture(pixels)

    @torch.no_grad()
    def prompt(self, turns: Sequence[Turn], times_of: int = -1) -> PromptOfHosted:
        """A conversation as the model reads it; see `Prompts.prompt`.

        Raises:
            InputError: if there is more than one medium.
        """
        media = tuple(media_of(turns))
        if len(media) > 1:
            raise InputError(
                f"this conversation has {len(media)} videos and images: a model that transformers runs is asked about "
                "one at a time"
            )
        watched = watched_of(media, times_of)
        seen = hosted_video(media[0].encoded) if media else None
        asked = max((number for number, turn in enumerate(turns) if turn.role == "user"), default=-1)
        inputs = self.qa.prompt_of(seen, self._messages(turns, seen, watched is not None, asked))
        prepared = self.qa.model.prepare(self.qa.moved(inputs), None if seen is None else seen.features)
        positions = prepared.inputs["input_ids"].shape[1]
        limit = getattr(self.qa.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and positions > limit:
            raise PromptTooLong(
                f"the prompt has {positions} positions; the LLM can read {limit}: take fewer frames or a token reducer"
            )
        hosted_watched = None if watched is None else hosted_video(watched)
        keeps = hosted_watched is not None and self.qa.keeps({})
        opening = self.qa.model.given(inputs, hosted_watched.features) if keeps and hosted_watched else None
        return PromptOfHosted(
            media=media,
            watched=hosted_watched,
            positions=positions,
            behind=None if opening is None else inputs["input_ids"].shape[1] - len(opening),
            prepared=prepared,
            inputs=inputs,
            opening=opening,
        )

    def _messages(
        self, turns: Sequence[Turn], seen: HostedVideo | None, has_video: bool, asked: int
    ) -> list[dict[str, Any]]:
        """The turns as the model's processor reads them; the question about a video in the form of the family."""

        def items(medium: Medium) -> list[dict[str, Any]]:
            assert seen is not None
            return list(self.qa.prompting.content(len(seen.clip), "", still=medium.kind == "image")[:-1])

        def read(text: str) -> str:
            return self.qa.prompting.plain(text if seen is None or not has_video else self.qa.written(text, seen))

        if has_video:  # the form of the question comes last: what it says of seconds is no time of the video
            form = self.qa.form_of(self.qa.prompt_setting)
            turns = [_asked(turn, form if number == asked else "{}") for number, turn in enumerate(turns)]
        return chat_messages(turns, read, items)

    def opens_like(self, prompt: PromptOfHosted, other: PromptOfHosted) -> bool:
        """Whether two prompts begin with the same text and the same video."""
        if prompt.opening is None or other.opening is None or prompt.watched is not other.watched:
            return False
        return torch.equal(prompt.opening, other.opening)

    def fits(self, prompt: PromptOfHosted, other: PromptOfHosted) -> bool:
        """Whether two prompts may be rows of a batch: questions about one video, behind the LLM's cache of it."""
        lengths = {each.inputs["input_ids"].shape[1] for each in (prompt, other)}
        return self.opens_like(prompt, other) and (len(lengths) == 1 or not self.qa.model.counts_padding)

    @property
    def has_plain_caches(self) -> bool:
        """Whether caches of videos hold nothing but all keys."""
        return not self.qa.model.stages and not self.qa.model.counts_padding

    def openings(self, prompts: Sequence[PromptOfHosted], options: Mapping[str, Any]) -> list[Opening] | None:
        """What the LLM has read of each prompt; see `Prompts.openings`."""
        if prompts[0].opening is None or options.get("decoding") is not None or not self.qa.keeps(options):
            return None

        def read(prompt: PromptOfHosted, _kept: Prefix | None) -> Prefix:
            return self.qa.read_prefix(hosted_video(prompt.media[-1].encoded), prompt.inputs)

        return self.kept_openings(prompts, read)

    def generate(
        self,
        prompts: Sequence[PromptOfHosted],
        openings: Sequence[Opening] | None = None,
        tally: list[ContextCounts] | None = None,
        **options: Any,
    ) -> Tensor:
        """int64, R K: new ids; see `Prompts.generate`."""
        if tally is not None:
            tally.append(ContextCounts())
            options["counts"] = tally[-1]
        if openings is None:
            (prompt,) = prompts
            ids, mask = prompt.inputs["input_ids"], prompt.inputs.get("attention_mask")
            options = options_with(options, self.qa, prompt.watched, ids, mask)
            return self.qa.generate_prepared(prompt.prepared, **options)
        rows = [prompt.inputs for prompt in prompts]
        return self.qa.model.generate_behind(openings[0].prefix, rows, **self.qa.generation_options(options))

    def plain(self, ids: Sequence[int]) -> str:
        """The text of an answer without a video."""
        return self.qa.prompting.tokenizer.decode(list(ids), skip_special_tokens=True)


def _asked(turn: Turn, form: str) -> Turn:
    """A turn with stamps for its times, and its last text put into a form."""
    content = [stamped(item) if isinstance(item, str) else item for item in turn.content]
    texts = [number for number, item in enumerate(content) if isinstance(item, str)]
    for number in texts[-1:]:
        content[number] = form.replace("{}", str(content[number]))
    return Turn(role=turn.role, content=tuple(content))
