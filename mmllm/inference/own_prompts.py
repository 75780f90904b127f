"""Conversations with a model that mmllm builds: any number of videos and images, several conversations as one batch.

L text positions, P positions in the LLM, D its width, R rows, K new ids
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessorList

from mmllm.decoding.choosing import options_with
from mmllm.errors import InputError
from mmllm.inference.answering import VideoQA
from mmllm.inference.encoded import EncodedVideo
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
from mmllm.modeling.placeholders import Placed, place, require_room
from mmllm.modeling.sequence_rows import as_rows
from mmllm.modeling.time_choice import TimeTokensBarred
from mmllm.preprocessing.text_encoding import Encoded
from mmllm.times.stamps import stamped
from mmllm.tokens import VideoClip, VisualSequence


@dataclass(frozen=True, kw_only=True, eq=False)
class OwnPrompt(Prompt):
    """A conversation as ids with placeholders, and what is put in their places."""

    encoded: Encoded
    sequences: dict[int, list[VisualSequence]]
    """Placeholder id -> what stands for each of them, in order."""
    given: Tensor | None
    """int64, G. The ids up to the last video, whose LLM's cache is kept with it; None if whole prompts are read."""


class OwnPrompts(Prompts[OwnPrompt]):
    """Conversations with a `VideoQA`."""

    takes_rows = True

    def __init__(self, qa: VideoQA) -> None:
        self.qa: VideoQA = qa

    @torch.no_grad()
    def picture(self, pixels: np.ndarray, question: str | None = None) -> EncodedVideo:
        """A still image as the encoder sees it; without visual tokens if the model reads questions and there is none.

        Args:
            pixels: uint8, H W 3.
            question: for a model that reads questions.
        """
        clip = VideoClip(frames=pixels[None], times_s=np.zeros(1), duration_s=1.0)
        if self.qa.reads_question and question is None:
            return EncodedVideo(clip=clip, sequences={})
        inputs = self.qa.processor.media_inputs("image", [pixels])
        if question is not None:
            inputs = inputs.asked(self.qa.processor.question_ids([question]))
        sequences = self.qa.model.visual_sequences({"image": inputs.to(self.qa.model.input_device)})
        count = sum(int(sequence.mask.sum()) for sequence in sequences.values())
        return EncodedVideo(clip=clip, sequences=sequences, token_counts={"image": count})

    @torch.no_grad()
    def prompt(self, turns: Sequence[Turn], times_of: int = -1) -> OwnPrompt:
        """A conversation as the model reads it; see `Prompts.prompt`."""
        media = list(media_of(turns))
        watched = watched_of(media, times_of)
        clock = None if watched is None else self.qa.frame_clock(watched)

        def read(text: str) -> str:
            if watched is not None:
                text = stamped(text) if clock is None else clock.question(stamped(text))
                text = self.qa.processor.writing.write(text, watched.duration_s)
            return self.qa.plain(text)

        messages = chat_messages(turns, read, lambda medium: [{"type": medium.kind}])
        for message in messages:
            if message["role"] == "system":
                message["content"] = "".join(item["text"] for item in message["content"])
        encoded = self.qa.processor.encode(self.qa.processor.apply_chat_template(messages, add_generation_prompt=True))
        if self.qa.reads_question:
            questions = self.qa.processor.questions_about(messages)
            media = [self._asked(medium, words) for medium, words in zip(media, questions, strict=True)]
        sequences: dict[int, list[VisualSequence]] = {}
        for medium in media:
            for placeholder, sequence in medium.encoded.sequences.items():
                sequences.setdefault(placeholder, []).append(sequence)
        given = self._given(media, encoded)
        return OwnPrompt(
            media=tuple(media),
            watched=watched,
            positions=self._positions(encoded, sequences),
            behind=None if given is None else len(encoded.input_ids) - len(given),
            encoded=encoded,
            sequences=sequences,
            given=given,
        )

    def _given(self, media: Sequence[Medium], encoded: Encoded) -> Tensor | None:
        """The ids of a prompt up to its last medium, if that is a video: images are in nobody's store."""
        if not media or media[-1].kind != "video" or not self.qa.keeps({}):
            return None
        return self.qa.given(encoded.input_ids)

    def _asked(self, medium: Medium, question: str) -> Medium:
        """A medium as a model that reads questions sees it for one."""
        if medium.kind == "video":
            return Medium(kind="video", encoded=self.qa.for_question(medium.encoded, question))
        return Medium(kind="image", encoded=self.picture(medium.encoded.clip.frames[0], question))

    @torch.no_grad()
    def embeddings(self, prompt: OwnPrompt) -> Tensor:
        """P D: the prompt as the LLM reads it, one embedding a position, for an engine that runs the LLM alone."""
        placed = self._placed(prompt.encoded, prompt.sequences)
        return self.qa.model.embed(placed.input_ids, placed.visual if prompt.sequences else None)[0]

    @torch.no_grad()
    def laid_out(self, prompt: OwnPrompt) -> tuple[Tensor, Tensor, Tensor]:
        """The prompt as the LLM reads it, with ids: int64, P; which of them are visual: bool, P; these tokens: M D."""
        placed = self._placed(prompt.encoded, prompt.sequences)
        is_visual = self.qa.model.is_placeholder(placed.input_ids[0])
        return placed.input_ids[0], is_visual, placed.visual[0, : int(is_visual.sum())]

    def _placed(self, encoded: Encoded, sequences: dict[int, list[VisualSequence]]) -> Placed:
        ids = encoded.input_ids.unsqueeze(0).to(self.qa.model.input_device)
        return place(ids, torch.ones_like(ids), {token: as_rows(own) for token, own in sequences.items()})

    def _positions(self, encoded: Encoded, sequences: dict[int, list[VisualSequence]]) -> int:
        placed = self._placed(encoded, sequences)
        try:
            require_room(placed.input_ids.shape[1], placed.visual.shape[1], self.qa.model.room)
        except InputError as problem:
            raise PromptTooLong(str(problem)) from None
        return placed.input_ids.shape[1]

    def opens_like(self, prompt: OwnPrompt, other: OwnPrompt) -> bool:
        """Whether two prompts begin with the same text and the same media."""
        if prompt.given is None or other.given is None or len(prompt.media) != len(other.media):
            return False
        same = (first.encoded is second.encoded for first, second in zip(prompt.media, other.media, strict=True))
        return torch.equal(prompt.given, other.given) and all(same)

    def fits(self, prompt: OwnPrompt, other: OwnPrompt) -> bool:
        """Whether two prompts may be rows of a batch.

        Whole prompts do. Behind kept caches, those of one video do unless the LLM's windows count padding; those of
        different videos do if nothing works inside the LLM.
        """
        if prompt.given is None or other.given is None:
            return prompt.given is other.given
        if self.qa.model.counts_padding:
            lengths = {len(each.encoded.input_ids) for each in (prompt, other)}
            return self.opens_like(prompt, other) and len(lengths) == 1
        return self.has_plain_caches or self.opens_like(prompt, other)

    @property
    def has_plain_caches(self) -> bool:
        """Whether caches of videos hold nothing but all keys."""
        return not self.qa.model.llm_stages and not self.qa.model.counts_padding

    @torch.no_grad()
    def openings(self, prompts: Sequence[OwnPrompt], options: Mapping[str, Any]) -> list[Opening] | None:
        """What the LLM has read of each prompt; see `Prompts.openings`."""
        if prompts[0].given is None or options.get("decoding") is not None or not self.qa.keeps(options):
            return None

        def read(prompt: OwnPrompt, kept: Prefix | None) -> Prefix:
            assert prompt.given is not None
            sequences = {placeholder: as_rows(own) for placeholder, own in prompt.sequences.items()}
            return self.qa.model.read_prefix(prompt.given.to(self.qa.model.input_device), sequences, kept)

        return self.kept_openings(prompts, read)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[OwnPrompt],
        openings: Sequence[Opening] | None = None,
        tally: list[ContextCounts] | None = None,
        **options: Any,
    ) -> Tensor:
        """int64, R K: new ids; see `Prompts.generate`."""
        inputs = self.qa.processor.collate([prompt.encoded for prompt in prompts])
        device = self.qa.model.input_device
        ids, mask = inputs["input_ids"].to(device), inputs["attention_mask"].to(device)
        options = options_with(options, self.qa, prompts[0].watched, ids, mask)
        without = [len(self.unsaid(prompt)) > 0 for prompt in prompts]
        if any(without):
            barred = TimeTokensBarred(self.qa.model.config.time_token_ids or (), without)
            options["logits_processor"] = LogitsProcessorList([barred, *(options.get("logits_processor") or ())])
        if tally is not None:
            tally.append(ContextCounts())
            options["context_counts"] = tally[-1]
        ids = self.qa.model.generate(
            input_ids=ids,
            attention_mask=mask,
            **self._seen(prompts) if openings is None else {"prefix": [opening.prefix for opening in openings]},
            **self.qa.generation_options(options),
        )
        return ids[:, inputs["input_ids"].shape[1] :]

    def unsaid(self, prompt: OwnPrompt) -> Sequence[int]:
        """Ids that an answer may not have: without a video, time tokens, as there is nothing that they are times of."""
        return self.qa.model.config.time_token_ids or () if prompt.watched is None else ()

    def _seen(self, prompts: Sequence[OwnPrompt]) -> dict[str, Any]:
        """The media of whole prompts, as `generate` takes them."""
        rows: dict[int, list[VisualSequence]] = {}
        for prompt in prompts:
            for placeholder, sequences in prompt.sequences.items():
                rows.setdefault(placeholder, []).extend(sequences)
        return {"sequences": {placeholder: as_rows(sequences) for placeholder, sequences in rows.items()}}

    def plain(self, ids: Sequence[int]) -> str:
        """The text of an answer without a video; time tokens, which `generate` bars then, are left out."""
        times = self.qa.model.config.time_token_ids or ()
        return self.qa.processor.decode_text([token for token in ids if token not in times])
