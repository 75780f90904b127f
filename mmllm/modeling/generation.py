"""transformers' `generate` over text with videos and images.

B rows of text, L given positions, P positions with the visual tokens in place, V vocabulary
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor
from transformers.generation import GenerationMixin
from transformers.generation.logits_process import (
    EncoderRepetitionPenaltyLogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
)

from mmllm.errors import ConfigError, InputError
from mmllm.interfaces import Decoding
from mmllm.llm.cache import CACHE, QUANTISED, pass_of
from mmllm.llm.joined_prefixes import cache_behind, rows_behind
from mmllm.llm.prefix import DYNAMIC, Prefix, copies_of_rows, starts_from_prefix, takes_padding
from mmllm.modalities.border import media_apart, one_media, placeholders
from mmllm.modalities.inputs import Media
from mmllm.modeling.greedy import greedy_ids, is_plain, settings_of
from mmllm.modeling.placeholders import Placed, place, positions, require_room
from mmllm.modeling.time_choice import TimeTokensTogether
from mmllm.modeling.vision import VisualStages
from mmllm.tokens import VisualSequence

_VISUAL = (
    "visual_embeddings",
    "visual_place",
    "visual_frame",
    "visual_grid",
    "cross_attention_states",
    "cross_attention_mask",
    "new_valid",
    "context_counts",
)
"""Arguments of `forward` for the first step of `generate` only."""
_LENGTHS = {"max_length": "max_new_tokens", "min_length": "min_new_tokens"}


class GenerationWithMedia(VisualStages, GenerationMixin):
    """`generate` with media: rows are padded on the left, and lengths count what was given."""

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        sequences: dict[int, VisualSequence] | None = None,
        media: Media | None = None,
        prefix: Prefix | Sequence[Prefix] | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' `generate` over text with videos and images: greedy, sampling, beams, streaming.

        Takes the output of the processor, or `media`, or the `sequences` that `visual_sequences` made of them. Returns
        the given ids followed by the new ones, as other vision-language models do. With `return_dict_in_generate`,
        returns an object that has them as `sequences`. Lengths such as `max_length` count the given ids, in which a
        video is one placeholder.

        With a `prefix` that `read_prefix` returned, or one for each row, the LLM reads only what stands behind it in
        `input_ids`, and no media are given.

        Raises:
            InputError: if media and text do not fit each other, or an option does not work with media.
            ConfigError: if an option does not work with a stage inside the LLM.
        """
        if kwargs.get("visual_embeddings") is not None:  # a draft inside `generate`: tokens have their places already
            return super().generate(input_ids, attention_mask=attention_mask, **kwargs)
        named, kwargs = media_apart(kwargs)
        sequences = {} if prefix is not None else sequences
        given = {} if sequences is not None else one_media(media, named)
        for name in ("past_key_values", "cache"):  # transformers 5.24 has the second name
            if name != CACHE and kwargs.get(name) is not None:
                kwargs[CACHE] = kwargs.pop(name)
        if input_ids is None and isinstance(kwargs.get("inputs"), Tensor):
            input_ids = kwargs.pop("inputs")
        mask = None if input_ids is None else self._mask_of(input_ids, attention_mask, kwargs)
        if sequences is None:
            sequences = self.visual_sequences(given, input_ids, mask)
        if input_ids is None or mask is None or kwargs.get("inputs_embeds") is not None:
            if sequences:
                raise InputError("videos and images need input_ids with their placeholders, and an attention_mask B L")
            return super().generate(input_ids, attention_mask=attention_mask, **kwargs)
        if prefix is not None:
            prefixes = [prefix] * len(input_ids) if isinstance(prefix, Prefix) else prefix
            rows = self._behind(prefixes, input_ids, mask, kwargs)
        else:
            rows = self._whole(input_ids, mask, sequences, kwargs)
        settings = {**settings_of(self.generation_config), **kwargs}
        if self._chooses_together(settings):
            settings["logits_processor"] = kwargs["logits_processor"] = LogitsProcessorList(
                [*(kwargs.get("logits_processor") or ()), TimeTokensTogether(self.config.time_token_ids or ())]
            )
        method = settings.pop("custom_generate", None)
        if self._writes_alone and is_plain(settings) and (method is None or writes_alone(method)):
            new = self._written(rows, settings, method)
            return torch.cat([input_ids.to(new.device), new], dim=1)
        length = rows["input_ids"].shape[1]
        kwargs = self._with_lengths(kwargs, length - input_ids.shape[1])
        out = super().generate(**rows, **kwargs)
        ids = out if isinstance(out, Tensor) else out.sequences
        new = ids[:, length:]
        prompts = input_ids.to(new.device).repeat_interleave(len(ids) // len(input_ids), dim=0)
        if isinstance(out, Tensor):
            return torch.cat([prompts, new], dim=1)
        out.sequences = torch.cat([prompts, new], dim=1)
        return out

    def _chooses_together(self, settings: Mapping[str, Any]) -> bool:
        """Whether time tokens are chosen together: not where tokens are drawn or beams are searched."""
        several = settings.get("do_sample") or (settings.get("num_beams") or 1) > 1
        return self.config.time_choice == "together" and bool(self.config.time_token_ids) and not several

    @property
    def _writes_alone(self) -> bool:
        """Whether the own loop can write: nothing works inside the LLM, and no other process waits for its passes."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        return not distributed and not self.llm_stages

    def _written(self, rows: Mapping[str, Any], settings: Mapping[str, Any], method: Any = None) -> Tensor:
        """B K: greedy answers to rows that `_whole` or `_behind` has laid out; a decoding method may write them."""
        mask, cache = rows["attention_mask"], rows.get(CACHE)
        position = rows.get("position_ids")
        position = positions(mask, None) if position is None else position
        before = 0 if cache is None else cache.get_seq_length()
        ends, pad = listed_ids(settings.get("eos_token_id")), settings.get("pad_token_id")
        embeddings = self.embed(rows["input_ids"][:, before:], rows.get("visual_embeddings"))
        cache = DynamicCache(config=self.config.text_config) if cache is None else cache
        prompt = (self, embeddings, mask, position[:, before:], cache)
        limit = settings["max_new_tokens"]
        if method is not None:
            written: Tensor = method.greedy_ids(*prompt, input_ids=rows["input_ids"], limit=limit, ends=ends)
            return written
        pad = pad if pad is not None else (*ends, 0)[0]  # as transformers does
        return greedy_ids(*prompt, limit=limit, ends=ends, pad=pad)

    def _whole(
        self, input_ids: Tensor, mask: Tensor, sequences: dict[int, VisualSequence], options: dict[str, Any]
    ) -> dict[str, Any]:
        """The arguments of transformers' `generate` for whole prompts, padded in front."""
        self.require_media(input_ids, mask, sequences)
        placed = place(input_ids, mask, sequences, pad_side="left")
        rows = {"input_ids": placed.input_ids, "attention_mask": placed.attention_mask}
        if not sequences:
            return rows | self._text_inputs(placed, options)
        require_room(placed.input_ids.shape[1], placed.visual.shape[1], self.room)
        return rows | self._visual_inputs(placed, options)

    def _behind(
        self, prefixes: Sequence[Prefix], input_ids: Tensor, mask: Tensor, options: dict[str, Any]
    ) -> dict[str, Any]:
        """The arguments of transformers' `generate` for prompts (B L) of which the LLM has read the beginnings.

        Raises:
            CheckpointError: if another LLM has, or its weights have changed since.
            InputError: if a prompt begins otherwise, or is longer than the LLM can read.
            ConfigError: if different prefixes cannot stand in one batch.
        """
        own = {id(prefix): prefix for prefix in prefixes}.values()
        for prefix in own:
            prefix.require_reader(self.language_model)
        prompts = [row[valid.bool()] for row, valid in zip(input_ids, mask, strict=True)]
        rows: dict[str, Any] = rows_behind(prefixes, prompts, self._option(options, "pad_token_id") or 0)
        visual = max(int(self.is_placeholder(prefix.ids).sum()) for prefix in own)
        require_room(rows["input_ids"].shape[1], visual, self.room)
        copies = copies_of_rows(partial(self._option, options))
        rows[CACHE] = cache_behind(prefixes, copies, self.language_model.base_model)
        if (current := pass_of(rows[CACHE])) is not None:
            rows["new_valid"] = rows["attention_mask"][:, len(prefixes[0].ids) :].bool()
            current.count_in(options.pop("context_counts", None), rows[CACHE].layers)
        return rows

    def takes_prefix(self, options: Mapping[str, Any]) -> bool:
        """Whether `generate` can start from a prefix with these options.

        A decoding method can that `writes_alone`: it needs nothing of the prompt but the cache. It reads trees, though,
        for which the cache must keep what is outside of a sliding window.
        """
        method = options.get("custom_generate")
        if writes_alone(getattr(method, "func", method)) and not self.counts_padding:  # `func`: beside a streamer
            options = {**options, "custom_generate": None}
        return starts_from_prefix(partial(self._option, options))

    @property
    def counts_padding(self) -> bool:
        """Whether the LLM's cache has sliding windows, which would count the padding behind a prefix."""
        return not takes_padding(DynamicCache(config=self.config.text_config).layers)

    @property
    def room(self) -> int | None:
        """How many positions the LLM can read; None if its configuration does not say."""
        return getattr(self.config.text_config, "max_position_embeddings", None)

    def require_media(self, input_ids: Tensor, mask: Tensor | None, sequences: dict[int, VisualSequence]) -> None:
        """Refuses a placeholder for which there is no medium.

        Raises:
            InputError: naming the placeholder's id.
        """
        for placeholder in set(placeholders(self.config).values()) - set(sequences):
            here = input_ids == placeholder
            if count := int((here & mask.bool() if mask is not None and mask.shape == here.shape else here).sum()):
                raise InputError(f"the text has {count} placeholders of id {placeholder} for 0 videos or images")

    def _mask_of(self, input_ids: Tensor, given: Tensor | None, options: dict[str, Any]) -> Tensor | None:
        """B L: the attention mask; None if the given one also covers a text that is in a cache already.

        Without a mask, the tokenizer's padding is hidden, as transformers does it.
        """
        if given is not None:
            return given if given.shape == input_ids.shape else None
        pad, stops = self._option(options, "pad_token_id"), listed_ids(self._option(options, "eos_token_id"))
        if pad is None or pad in stops:
            return torch.ones_like(input_ids)
        return (input_ids != pad).long()

    def _visual_inputs(self, placed: Placed, options: dict[str, Any]) -> dict[str, Any]:
        """The arguments of `forward` that carry the visual tokens.

        Raises:
            InputError, ConfigError: if an option does not work with media or with a stage inside the LLM.
        """
        if (chunk := self._option(options, "prefill_chunk_size")) is not None:
            raise InputError(
                f"prefill_chunk_size = {chunk}: a prompt with videos or images is read in one pass: leave it out"
            )
        visual: dict[str, Any] = {"visual_embeddings": placed.visual}
        if self.llm_stages:
            self._refuse_for_stages(options)
            visual |= {"visual_place": placed.place, "visual_frame": placed.frame, "visual_grid": placed.grid}
            if placed.cross_attention_states is not None:
                states, mask = placed.cross_attention_states, placed.cross_attention_mask
                visual |= {"cross_attention_states": states, "cross_attention_mask": mask}
        return visual

    def _text_inputs(self, placed: Placed, options: dict[str, Any]) -> dict[str, Any]:
        """The arguments of `forward` for a text without media: policies of the cache act on it, too.

        Raises:
            ConfigError: if an option does not work with a policy.
        """
        if not self.context:
            return {}
        self._refuse_for_stages(options)
        return {"visual_place": placed.place, "visual_frame": placed.frame}

    def _with_lengths(self, options: dict[str, Any], more: int) -> dict[str, Any]:
        """The options, with lengths that also count the `more` positions that visual tokens need."""
        changed = {
            name: value + more
            for name, new in _LENGTHS.items()
            if more and (value := self._option(options, name)) and self._option(options, new) is None
        }
        if (config := options.get("generation_config")) is None:
            return {**options, **changed}
        config = copy.deepcopy(config)
        config.update(**{name: value for name, value in changed.items() if options.get(name) is None})
        return {**options, **{name: changed[name] for name in changed if options.get(name) is not None}} | {
            "generation_config": config
        }

    def _option(self, options: Mapping[str, Any], name: str) -> Any:
        """An option of `generate`: as it is given, or in the given configuration, or in the model's own."""
        for value in (
            options.get(name),
            getattr(options.get("generation_config"), name, None),
            getattr(self.generation_config, name, None),
        ):
            if value is not None:
                return value
        return None

    def _refuse_for_stages(self, options: dict[str, Any]) -> None:
        """Refuses options of `generate` with which stages inside the LLM cannot work.

        Raises:
            ConfigError: naming the option.
        """
        implementation = self._option(options, "cache_implementation")
        if implementation not in DYNAMIC:
            raise ConfigError(
                f"cache_implementation = {implementation!r}: stages inside the LLM need a dynamic cache; {QUANTISED}"
            )
        cache = options.get(CACHE)
        if cache is not None and type(cache) is not DynamicCache:
            raise ConfigError(
                f"{CACHE}: stages inside the LLM need a DynamicCache, not {type(cache).__name__}; {QUANTISED}"
            )
        if any(stage.needs_cache for stage in self.llm_stages) and self._option(options, "use_cache") is False:
            raise ConfigError("use_cache = False: a stage that removes or chooses keys of the cache needs a cache")
        if all(stage.takes_back for stage in self.llm_stages):
            return
        for name in ("assistant_model", "prompt_lookup_num_tokens"):
            if self._option(options, name) is not None:
                raise ConfigError(
                    f"{name}: after a stage has removed keys, or has noted what guessed tokens looked at, these cannot "
                    "be removed from the cache"
                )

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, is_first_iteration: bool | None = False, **kwargs: Any
    ) -> dict[str, Any]:
        """With a cache, visual tokens are given to the first step only; without one, to every step."""
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in _VISUAL:
                kwargs.pop(name, None)
        prepared = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        ids = prepared.get("input_ids")
        if prepared.get("visual_embeddings") is not None and ids is not None and ids.shape[1] < input_ids.shape[1]:
            cached = input_ids[:, : input_ids.shape[1] - ids.shape[1]]
            prepared["visual_embeddings"] = _without_first(prepared["visual_embeddings"], self.is_placeholder(cached))
        return prepared

    def is_placeholder(self, input_ids: Tensor) -> Tensor:
        """bool, like the ids: True at placeholders of videos and images."""
        found = torch.zeros_like(input_ids, dtype=torch.bool)
        for placeholder in placeholders(self.config).values():
            found |= input_ids == placeholder
        return found

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        """transformers' processors of logits. Penalties leave out placeholders, which may have no logit."""
        processors = super()._get_logits_processor(*args, **kwargs)
        for number, processor in enumerate(processors):
            if isinstance(processor, EncoderRepetitionPenaltyLogitsProcessor):
                ids = processor.encoder_input_ids
                processor.encoder_input_ids = _words_only(ids, self.is_placeholder(ids))
            elif isinstance(processor, RepetitionPenaltyLogitsProcessor):
                processors[number] = _PenaltyOfWords(processor, self)
        return processors


def writes_alone(method: Any) -> bool:
    """Whether a `custom_generate` is a decoding method with a loop of its own for plain greedy answers."""
    return isinstance(method, Decoding) and method.writes_alone


def listed_ids(ids: Any) -> list[int]:
    """Ids that are given as one number, several, or none."""
    return [] if ids is None else list(ids) if isinstance(ids, (list, tuple)) else [ids]


class _PenaltyOfWords(LogitsProcessor):
    """A penalty for repetitions that does not see placeholders."""

    def __init__(self, penalty: LogitsProcessor, model: GenerationWithMedia) -> None:
        self.penalty, self.model = penalty, model

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores B V, changed for the ids (B P) that are words."""
        return self.penalty(_words_only(input_ids, self.model.is_placeholder(input_ids)), scores)


def _words_only(input_ids: Tensor, is_placeholder: Tensor) -> Tensor:
    """The ids, with each placeholder replaced by a word of its row: the same set of words."""
    first = (~is_placeholder).long().argmax(dim=1, keepdim=True)
    return torch.where(is_placeholder, input_ids.gather(1, first), input_ids)


def _without_first(visual: Tensor, is_cached: Tensor) -> Tensor:
    """Visual tokens B M D without the first ones of each row, which are in the cache already (bool, B P)."""
    rank = is_cached.sum(dim=1, keepdim=True) + torch.arange(visual.shape[1], device=visual.device)
    rank = rank.clamp(max=visual.shape[1] - 1)
    return visual.gather(1, rank.unsqueeze(-1).expand_as(visual))
