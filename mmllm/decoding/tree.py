"""Tree decoding: a source drafts, the target verifies all nodes in one pass, a rule says what goes into the text.

    prompt -> first token -> [ propose -> read -> accept -> settle -> observe ] until the text ends

N nodes, V vocabulary
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.generation import GenerateDecoderOnlyOutput, LogitsProcessorList, StoppingCriteriaList

from mmllm.decoding import acceptance
from mmllm.decoding.counts import DecodingCounts, added
from mmllm.decoding.draft import Draft
from mmllm.decoding.reading import CachedReader
from mmllm.decoding.refusals import checked_cache, checked_inputs
from mmllm.decoding.writing import Chance, Written
from mmllm.errors import InputError
from mmllm.interfaces import Decoding
from mmllm.llm.cache import CACHE
from mmllm.llm.roomy_layer import with_room


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """What a source may know of a text before it drafts."""

    model: Any
    """The target."""
    text: Written
    """The text so far; its processors of logits, and its random decisions."""
    input_ids: Tensor
    """int64, 1 P. The prompt."""
    inputs: dict[str, Any]
    """What the target was given with the prompt: visual tokens, mask and positions."""
    vocabulary: int
    """V, of the target's logits."""
    forbidden: tuple[int, ...]
    """Ids that stand for visual tokens: no draft may hold one."""
    drafter_prompt: Any = None
    """The prompt as a drafter sees it, if it is another one than the target's."""
    target: Any = None
    """The `CachedReader` of the text: its cache, and its states if the method `reads_states`."""

    def words_only(self, logits: Tensor) -> Tensor:
        """Logits ... V without the forbidden ids."""
        barred = self._barred.to(logits.device)
        return logits.index_fill(-1, barred, float("-inf")) if len(barred) else logits

    @functools.cached_property
    def _barred(self) -> Tensor:
        """int64: the forbidden ids that have a logit."""
        return torch.tensor([token for token in self.forbidden if token < self.vocabulary], dtype=torch.long)


class DraftSource:
    """Drafts for one text. It has to write `propose`."""

    @property
    def passes(self) -> int:
        """Passes of a draft model so far, after its prompt."""
        return 0

    @property
    def positions(self) -> int:
        """Positions of these passes."""
        return 0

    @property
    def extra(self) -> dict[str, Any]:
        """What else is counted."""
        return {}

    def propose(self, root: int, room: int) -> Draft:
        """A draft behind the last token of the text.

        Args:
            root: that token.
            room: how deep the draft may be; 0 for the root alone.
        """
        raise NotImplementedError

    def reading(self) -> contextlib.AbstractContextManager[None]:
        """Is open while the target reads a draft, for sources that change what happens inside."""
        return contextlib.nullcontext()

    def observe(self, draft: Draft, logits: Tensor, path: Sequence[int]) -> None:
        """Learns what the target computed (N V) and which path went into the text."""


def forbidden_ids(model: Any) -> tuple[int, ...]:
    """The ids that stand for visual tokens in a model's prompts."""
    names = ("image_token_id", "video_token_id", "audio_token_id")
    ids = [getattr(model.config, name, None) for name in names]
    return tuple(dict.fromkeys(token for token in ids if token is not None))


class MachineDecoding(Decoding):
    """A method that runs in place of transformers' loop: `model.generate(..., custom_generate=method)`."""

    chance: Chance | None = None
    """Random decisions; torch's own if None."""
    reads_states: ClassVar[bool] = False
    """Whether drafts are made of the target's last hidden states."""

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        streamer: Any = None,
        synced_gpus: bool = False,
        drafter_prompt: Any = None,
        **inputs: Any,
    ) -> Any:
        """int64, 1 P+K: prompt and new ids; with `return_dict_in_generate` transformers' output object.

        The arguments are those that transformers' `generate` gives; `drafter_prompt` is the prompt as a drafter sees
        it. The counters are in `last` afterwards.

        Raises:
            ConfigError: for what does not work with drafts; see `mmllm.decoding.refusals`.
        """
        inputs = checked_inputs(self.registered_name, model, input_ids, generation_config, inputs)
        text = Written(
            input_ids,
            logits_processor,
            stopping_criteria,
            generation_config.max_length,
            sample=bool(generation_config.do_sample),
            streamer=streamer,
            chance=self.chance,
        )
        started = time.perf_counter()
        target, logits = self.read_prompt(model, input_ids, inputs)
        given = {"text": text, "input_ids": input_ids, "inputs": inputs, "drafter_prompt": drafter_prompt}
        self._write(started, model, target, logits, **given)
        if streamer is not None:
            streamer.end()
        if generation_config.return_dict_in_generate:
            return GenerateDecoderOnlyOutput(sequences=text.ids, past_key_values=inputs[CACHE])
        return text.ids

    def _write(self, started: float, model: Any, target: CachedReader, logits: Tensor, **given: Any) -> None:
        """Writes an answer whose prompt has been read, and keeps its counters.

        Args:
            started: `time.perf_counter()` before the prompt was read.
            model: the target.
            target: the reader of the prompt.
            logits: V, of the first new token; 0 V if the end of the prompt is `waiting`.
            given: the other fields of the `Request`.
        """
        vocabulary, forbidden = logits.shape[-1], forbidden_ids(model)
        request = Request(model=model, target=target, vocabulary=vocabulary, forbidden=forbidden, **given)
        counts = self.write(request, target, logits)
        self.last = counts(time.perf_counter() - started)
        self.total = self.last if self.total is None else added([self.total, self.last])

    def read_prompt(self, model: Any, input_ids: Tensor, inputs: dict[str, Any]) -> tuple[CachedReader, Tensor]:
        """A reader of the prompt, and the logits (V) of the first new token; see `CachedReader.after_prompt`."""
        return CachedReader.after_prompt(model, input_ids, inputs, keep_states=self.reads_states)

    def write(self, request: Request, target: CachedReader, logits: Tensor) -> Callable[[float], DecodingCounts]:
        """Writes the text to its end, and returns the counters as a function of all seconds.

        Args:
            request: the text and what the target was given.
            target: has read the prompt.
            logits: V, of the first new token.
        """
        raise NotImplementedError


class TreeDecoding(MachineDecoding):
    """A method that drafts trees and verifies each in one pass. It has to write `start`."""

    @torch.inference_mode()
    def greedy_ids(
        self,
        model: Any,
        embeddings: Tensor,
        mask: Tensor,
        position: Tensor,
        cache: Any,
        *,
        input_ids: Tensor,
        limit: int,
        ends: Sequence[int],
    ) -> Tensor:
        """int64, 1 K: what the LLM writes behind a prompt, as `mmllm.modeling.greedy.greedy_ids` does.

        It takes the place of `__call__` for plain greedy answers of our models, if the method `writes_alone`: what
        transformers prepares in front of each answer takes as long as a pass of a small LLM.

        Args:
            model: one of our models.
            embeddings: 1 N D, of what is not in the cache.
            mask: 1 L. 0 at padding.
            position: int64, 1 N.
            cache: of what comes before; it grows.
            input_ids: int64, 1 L, of the whole prompt.
            limit: the most tokens.
            ends: ids that end an answer.

        Raises:
            ConfigError: for what does not work with drafts; see `mmllm.decoding.refusals`.
        """
        started = time.perf_counter()
        cache = with_room(checked_cache(self.registered_name, model, len(embeddings), cache), limit)
        length, nothing = input_ids.shape[1] + limit, (LogitsProcessorList(), StoppingCriteriaList())
        text = Written(input_ids, *nothing, length, ends=ends, chance=self.chance)
        target, logits = CachedReader.of_own_prompt(model, embeddings, mask, position, cache)
        inputs = {"attention_mask": mask, CACHE: cache}
        self._write(started, model, target, logits, text=text, input_ids=input_ids, inputs=inputs)
        return input_ids.new_tensor([text.new])

    def start(self, request: Request) -> DraftSource:
        """The source of drafts for a text.

        Raises:
            ConfigError: if it does not fit the target.
        """
        raise NotImplementedError

    def accept(self, draft: Draft, logits: Tensor, text: Written) -> list[int]:
        """The path that goes into the text, and grows it; see `mmllm.decoding.acceptance`."""
        sampled = text.sample and draft.proposal is not None
        return (acceptance.recursive if sampled else acceptance.point)(draft, logits, text)

    def write(self, request: Request, target: CachedReader, logits: Tensor) -> Callable[[float], DecodingCounts]:
        """Rounds of draft, verification and acceptance.

        If the end of the prompt is `waiting`, the first draft begins with its last token and is read together with it.
        """
        text, source = request.text, self.start(request)
        rows = request.model.get_input_embeddings().weight.shape[0]
        drafted, matched, emitted, draft_s, verify_s = 0, 0, list[int](), 0.0, 0.0
        if target.waiting is None:
            text.add(text.choose(logits))
            text.flush()
        while not text.ended:
            begun = time.perf_counter()
            draft = source.propose(text.last, text.room)
            draft.refuse_ids(rows, request.forbidden)
            if max(draft.depth) > text.room:
                raise InputError(f"a draft of depth {max(draft.depth)} in a text with room for {text.room}")
            proposed = time.perf_counter()
            with source.reading():
                node_logits = target.read(draft.tokens, draft.parent_of, draft.embeddings)
            before = text.count
            path = self.accept(draft, node_logits, text)
            target.settle(path)
            verified = time.perf_counter()
            source.observe(draft, node_logits, path)
            draft_s += proposed - begun + time.perf_counter() - verified
            verify_s += verified - proposed
            drafted += sum(map(len, draft.children))
            matched += text.count - before - 1
            if before:  # others are of the pass over the prompt
                emitted.append(text.count - before)
            text.flush()
        return lambda seconds: DecodingCounts.of(
            text,
            target,
            emitted,
            draft_passes=source.passes,
            draft_positions=source.positions,
            drafted=drafted,
            matched=matched,
            seconds_draft=draft_s,
            seconds_verify=verify_s,
            seconds_total=seconds,
            extra=source.extra,
        )
