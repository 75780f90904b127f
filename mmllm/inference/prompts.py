"""Conversations with several videos and images, as a model reads them: what the server asks.

    turns with media -> prompt -> ids of one or more rows -> text, and an answer with spans

R rows, K new ids
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from torch import Tensor

from mmllm.errors import InputError
from mmllm.inference.asking import VideoAnswering
from mmllm.inference.encoded import EncodedVideo
from mmllm.llm.counters import ContextCounts
from mmllm.llm.joined_prefixes import LEAST_SHARED
from mmllm.llm.prefix import Prefix
from mmllm.times.answers import Answer


@dataclass(frozen=True, kw_only=True, eq=False)
class Medium:
    """A video or an image of a conversation, as the model's encoder has seen it."""

    kind: Literal["video", "image"]
    encoded: EncodedVideo


@dataclass(frozen=True, kw_only=True, eq=False)
class Turn:
    """What somebody says: texts and media in order. In texts, "12.4 s" and `<12.4>` are times of the video."""

    role: Literal["system", "user", "assistant"]
    content: tuple[str | Medium, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """A conversation as a model reads it."""

    media: tuple[Medium, ...]
    watched: EncodedVideo | None
    """The video that times belong to; None if there is no video."""
    positions: int
    """How many positions the LLM reads: of text, of visual tokens, of text between frames."""
    behind: int | None
    """How many of them stand behind the last visual token, if the LLM's cache of those before is kept; None if whole
    prompts are read."""

    @property
    def usage(self) -> dict[str, int]:
        """What the LLM read of videos and images, before and after reduction."""
        videos = [medium for medium in self.media if medium.kind == "video"]

        def count(stage: str) -> int:
            return sum(medium.encoded.token_counts.get(stage, 0) for medium in videos)

        return {
            "video_tokens": sum(medium.encoded.read_tokens for medium in videos),
            "video_tokens_before_reduction": count("encoder"),
            "video_tokens_after_reducers": count("reducers"),
            "image_tokens": sum(medium.encoded.read_tokens for medium in self.media if medium.kind == "image"),
            "frames": sum(len(medium.encoded.times_s) for medium in videos),
        }


class PromptTooLong(InputError):
    """A conversation has more positions than the LLM can read."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Opening:
    """The beginning of a prompt, up to its last visual token, as the LLM has read it."""

    prefix: Prefix
    cached: int
    """Its positions, if the LLM did not read them for this prompt: they were kept, or read for an earlier row."""


P = TypeVar("P", bound=Prompt)


class Prompts(ABC, Generic[P]):
    """Conversations with one model, whatever its layout is."""

    qa: VideoAnswering
    takes_rows: bool = False
    """Whether prompts about different videos may be one batch, if `fits` says so."""

    @abstractmethod
    def picture(self, pixels: np.ndarray) -> EncodedVideo:
        """A still image (uint8, H W 3) as the model's encoder sees it.

        Raises:
            InputError: if the model takes no images.
        """

    @abstractmethod
    def prompt(self, turns: Sequence[Turn], times_of: int = -1) -> P:
        """A conversation as the model reads it, up to where its answer begins.

        Args:
            turns: the last of them is the user's.
            times_of: number of the video that times belong to, among the conversation's videos.

        Raises:
            InputError: if the model cannot read such a conversation.
            PromptTooLong: if it is longer than the LLM can read.
        """

    @abstractmethod
    def fits(self, prompt: P, other: P) -> bool:
        """Whether two prompts may be answered as one batch, with the ids of one at a time."""

    @abstractmethod
    def opens_like(self, prompt: P, other: P) -> bool:
        """Whether two prompts begin alike, up to their last visual tokens, and the LLM's cache of that is kept."""

    @abstractmethod
    def openings(self, prompts: Sequence[P], options: Mapping[str, Any]) -> list[Opening] | None:
        """What the LLM has read of each prompt: kept, or read now and kept with its video. None for whole prompts.

        Args:
            prompts: those of a batch.
            options: of transformers' `generate`.
        """

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[P],
        openings: Sequence[Opening] | None = None,
        tally: list[ContextCounts] | None = None,
        **options: Any,
    ) -> Tensor:
        """int64, R K: new ids for each prompt.

        Args:
            prompts: at least one, all of which fit the first.
            openings: of the prompts, from `openings`; None to read whole prompts.
            tally: gets the counters of the cache, for a model with policies of it.
            options: of transformers' `generate`, and `decoding`: a method that writes the answer to a single prompt.
        """

    @property
    @abstractmethod
    def has_plain_caches(self) -> bool:
        """Whether caches of videos hold nothing but all keys: no stage acts inside the LLM, and no window slides."""

    def size(self, prompts: Sequence[P]) -> int:
        """Positions of a batch, with filling; a beginning that is held once for all rows counts once."""
        first, rows = prompts[0], len(prompts)
        longest = max(prompt.positions for prompt in prompts)
        beginning = 0 if first.behind is None else first.positions - first.behind
        alike = self.has_plain_caches and all(self.opens_like(first, prompt) for prompt in prompts)
        if rows == 1 or rows * beginning < LEAST_SHARED or not alike:
            return rows * longest
        return beginning + rows * (longest - beginning)

    def kept_openings(self, prompts: Sequence[P], read: Callable[[P, Prefix | None], Prefix]) -> list[Opening]:
        """The openings of prompts whose last media keep them.

        Args:
            prompts: those of a batch.
            read: reads the beginning of a prompt, or returns what was kept, if that is the same.
        """
        openings: list[Opening] = []
        for prompt in prompts:
            earlier = next((number for number, other in enumerate(prompts) if self.opens_like(other, prompt)))
            if earlier < len(openings):
                prefix = openings[earlier].prefix
                openings.append(Opening(prefix=prefix, cached=len(prefix.ids)))
                continue
            slot = prompt.media[-1].encoded.prefix
            before = slot.kept
            slot.kept = prefix = read(prompt, before)
            openings.append(Opening(prefix=prefix, cached=len(prefix.ids) if prefix is before else 0))
        return openings

    def text(self, prompt: P, ids: Sequence[int]) -> str:
        """The text of an answer so far, with times as text."""
        return self.qa.text_of(prompt.watched, ids, prompt.watched.duration_s) if prompt.watched else self.plain(ids)

    def answer(self, prompt: P, ids: Sequence[int]) -> Answer:
        """The answer in generated ids: its sentence, and its spans in seconds of the video that times belong to."""
        if prompt.watched is not None:
            return self.qa.answer_of(prompt.watched, ids, prompt.watched.duration_s)
        text = self.plain(ids)
        return Answer(text=text.strip(), spans=(), raw=text, fallback=True)

    @abstractmethod
    def plain(self, ids: Sequence[int]) -> str:
        """The text of an answer without a video."""


def media_of(turns: Sequence[Turn]) -> Iterator[Medium]:
    """All media of a conversation, in order."""
    for turn in turns:
        for item in turn.content:
            if isinstance(item, Medium):
                yield item


def watched_of(media: Sequence[Medium], times_of: int) -> EncodedVideo | None:
    """The video that times belong to; None if there is no video.

    Raises:
        IndexError: if there is no such video.
    """
    videos = [medium.encoded for medium in media if medium.kind == "video"]
    return videos[times_of] if videos else None


def chat_messages(
    turns: Sequence[Turn], text: Callable[[str], str], medium: Callable[[Medium], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """The turns as messages of transformers' chat templates.

    Args:
        turns: a conversation.
        text: what the model reads of a text.
        medium: the items that stand for a medium.
    """

    def items(item: str | Medium) -> list[dict[str, Any]]:
        return medium(item) if isinstance(item, Medium) else [{"type": "text", "text": text(item)}]

    return [{"role": turn.role, "content": [entry for item in turn.content for entry in items(item)]} for turn in turns]
